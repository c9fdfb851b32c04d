"""Finds, checks and loads weights files of ResNet50 without top, in both layouts published by Keras."""

import hashlib
import re
from pathlib import Path

from fer_utils import places

import h5py
import keras
import numpy as np

FILE = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"  # Keras' ImageNet weights
URL = f"https://storage.googleapis.com/tensorflow/keras-applications/resnet/{FILE}"
# Of today's file and the one from before 2019, whose layers have other names and another order
# (github.com/keras-team/keras-applications/issues/74, github.com/tensorflow/tensorflow/issues/33459).
MD5, OLDER_MD5 = "4d473c1dd8becc155b73f8504c6f6626", "a268eb855778b3df3c7506639542a6af"

_OLDER_LAYER = re.compile(r"(res|bn)(\d)([a-f])_branch(1|2[abc])")
_OLDER_BRANCHES = {"1": 0, "2a": 1, "2b": 2, "2c": 3}  # branch → number in today's layer name


class WeightsError(ValueError):
    """A weights file or download that does not fit ResNet50 without top."""


def load(backbone: keras.Model, weights: str) -> None:
    """Load `imagenet` or the file at a path, relative to the project's root, into ResNet50 without top.

    `imagenet` uses the first mounted file that fits, and prints which, or else the file that Keras downloads. Raises
    WeightsError, naming the file, what is wrong with it and what to do.
    """
    if weights == "imagenet":
        _load_imagenet(backbone)
    else:
        load_file(backbone, places.place(weights))


def load_file(backbone: keras.Model, path: Path) -> None:
    """Load one file: `.h5` as distributed by Keras, in either layout, or `.weights.h5` as written by `Model.save_weights`.

    Layers are matched by name, not by position: the two layouts have different orders, and swapping two kernels of the
    same shape would raise no error. Raises WeightsError.
    """
    if not path.is_file():
        raise WeightsError(f"weights: no file at {path}; give `imagenet`, `none`, or a path to a ResNet50 notop .h5")
    # Weights missing in the file stay NaN and are rejected below, instead of staying random.
    backbone.set_weights([np.full(weight.shape, np.nan, np.float32) for weight in backbone.weights])
    try:
        with h5py.File(path) as file:
            group = file["model_weights"] if "model_weights" in file else file
            by_layer = "layer_names" in group.attrs
            if by_layer:
                _assign(backbone, group, path)
        if not by_layer:  # the format of Keras 3, which Keras checks against the model's structure
            backbone.load_weights(path)
    except WeightsError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: not the weights of ResNet50 without top ({error})") from error
    if not all(np.isfinite(value).all() for value in backbone.get_weights()):
        raise WeightsError(f"{path}: lacks weights or holds values that are no numbers; get the file again")


def _assign(backbone: keras.Model, group: h5py.Group, path: Path) -> None:
    """Assign each layer the file's weights under its name, today's or the older one; a layer's weights have one order in both."""
    names = [name for name in _texts(group, "layer_names") if len(group[name].attrs.get("weight_names", ()))]
    stored = {todays_name(name): group[name] for name in names}
    layers = {layer.name: layer for layer in backbone.layers if layer.weights}
    missing, extra = sorted(layers.keys() - stored.keys()), sorted(stored.keys() - layers.keys())
    if missing or extra:
        raise WeightsError(
            f"{path}: its layers are not ResNet50's without top; {len(missing)} missing (such as {missing[:3]}), "
            f"{len(extra)} unknown (such as {extra[:3]}): take the `notop` file"
        )
    for name, layer in layers.items():  # Keras refuses another number of weights or another shape
        layer.set_weights([stored[name][weight][()] for weight in _texts(stored[name], "weight_names")])


def _texts(group: h5py.Group, attribute: str) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else name for name in group.attrs[attribute]]


def todays_name(layer: str) -> str:
    """Today's name of a ResNet50 layer with an older name, or else the name itself.

    `conv1` → `conv1_conv`, `bn_conv1` → `conv1_bn`, `res2a_branch2c` → `conv2_block1_3_conv`, `bn3b_branch2a` →
    `conv3_block2_1_bn`, `res2a_branch1` → `conv2_block1_0_conv`.
    """
    match = _OLDER_LAYER.fullmatch(layer)
    if not match:
        return {"conv1": "conv1_conv", "bn_conv1": "conv1_bn"}.get(layer, layer)
    kind, stage, block, branch = match.groups()
    part = "conv" if kind == "res" else "bn"
    return f"conv{stage}_block{'abcdef'.index(block) + 1}_{_OLDER_BRANCHES[branch]}_{part}"


def _load_imagenet(backbone: keras.Model) -> None:
    passed_over = []
    for path in mounted_weights():
        try:
            load_file(backbone, path)
        except WeightsError as error:
            passed_over.append(str(error))
            continue
        is_known = hashlib.md5(path.read_bytes()).hexdigest() in (MD5, OLDER_MD5)
        said = "ImageNet's, as Keras publishes them" if is_known else "NOT Keras' ImageNet file: scores should say so"
        print(f"weights from {path} ({said})")
        return
    load_file(backbone, _download(passed_over))


def _download(passed_over: list[str]) -> Path:
    try:
        return Path(keras.utils.get_file(FILE, URL, cache_subdir="models", file_hash=MD5))
    except Exception as error:  # urllib, sockets and Keras raise many types here
        mounted = "\nMounted, but not fit:\n" + "\n".join(passed_over) if passed_over else ""
        raise WeightsError(
            f"ImageNet weights could not be downloaded ({error}). With internet elsewhere, fetch {URL} and set "
            "weights to its path; on Kaggle, turn internet on or attach a dataset with that file (Add Input, Datasets, "
            f"keras/resnet50): it is then found by itself; weights = 'none' tries the code without them{mounted}"
        ) from error


def mounted_weights() -> list[Path]:
    """The `.h5` files mounted on Kaggle, those called `notop` first."""
    found = places.find_files(places.kaggle_root() / "input", ".h5")
    return sorted(found, key=lambda path: "notop" not in path.name.lower())
