"""Finds, checks and loads weights files of ResNet50 without top, in both layouts published by Keras."""

import hashlib
import re
from pathlib import Path

from fer_utils import places

import h5py
import keras
import numpy as np

# Keras' ImageNet file from before 2019. Its layers have other names and another order than in today's file
# (github.com/keras-team/keras-applications/issues/74, github.com/tensorflow/tensorflow/issues/33459).
OLDER_MD5 = "a268eb855778b3df3c7506639542a6af"

_OLDER_LAYER = re.compile(r"(res|bn)(\d)([a-f])_branch(1|2[abc])")
_OLDER_BRANCHES = {"1": 0, "2a": 1, "2b": 2, "2c": 3}  # branch → number in today's layer name
# Ends of weights' names → today's names. Keras 1 called the moving variance `running_std`, and put a number after a name that
# it had given before: `conv1_W_1:0` and `bn_conv1_running_std_1:0`.
_ROLES = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}
_ROLES |= {name: name for name in ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")}
_WEIGHT = re.compile(rf"(?:^|[_/])({'|'.join(_ROLES)})(?:_\d+)?(?::0)?$")


class WeightsError(ValueError):
    """A weights file or download that does not fit ResNet50 without top."""


def load(backbone: keras.Model, weights: str) -> None:
    """Load `imagenet` or the file at a path, relative to the project's root, into ResNet50 without top.

    `imagenet` uses the first mounted file that fits, and prints which, or else the file that Keras downloads. Raises
    WeightsError, naming the file, what is wrong with it and what to do.
    """
    if weights == "imagenet":
        _load_imagenet(backbone)
    elif load_file(backbone, places.place(weights)) == "older":
        print(f"weights from {weights}: the layout of Keras before 2019, loaded by name")


def load_file(backbone: keras.Model, path: Path) -> str:
    """Load one file; return its layout: `today's` or `older`.

    Layers are matched by name, not by position: the two layouts have different orders, and swapping two kernels of the
    same shape would raise no error. Accepts `.h5` as distributed by Keras and `.weights.h5` as written by
    `Model.save_weights`. Raises WeightsError.
    """
    if not path.is_file():
        raise WeightsError(f"weights: no file at {path}; give `imagenet`, `none`, or a path to a ResNet50 notop .h5")
    # Weights missing in the file stay NaN and are rejected below, instead of staying random.
    backbone.set_weights([np.full(weight.shape, np.nan, np.float32) for weight in backbone.weights])
    layout = "today's"
    try:
        with h5py.File(path) as file:
            group = file["model_weights"] if "model_weights" in file else file
            by_layer = "layer_names" in group.attrs
            if by_layer:
                layout = _assign(backbone, group, path)
        if not by_layer:  # the format of Keras 3, which Keras checks against the model's structure
            backbone.load_weights(path)
    except WeightsError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: not the weights of ResNet50 without top ({error})") from error
    if not all(np.isfinite(value).all() for value in backbone.get_weights()):
        raise WeightsError(f"{path}: lacks weights or holds values that are no numbers; get the file again")
    return layout


def _assign(backbone: keras.Model, group: h5py.Group, path: Path) -> str:
    """Assign each layer the file's weights under its name, today's or the older one; return the layout."""
    names = [name for name in _texts(group, "layer_names") if len(group[name].attrs.get("weight_names", ()))]
    stored = {todays_name(name): group[name] for name in names}
    layers = {layer.name: layer for layer in backbone.layers if layer.weights}
    missing, extra = sorted(layers.keys() - stored.keys()), sorted(stored.keys() - layers.keys())
    if missing or extra:
        raise WeightsError(
            f"{path}: its layers are not ResNet50's without top; {len(missing)} missing (such as {missing[:3]}), "
            f"{len(extra)} unknown (such as {extra[:3]}): take the `notop` file"
        )
    for name, layer in layers.items():
        found = {name: _WEIGHT.search(name) for name in _texts(stored[name], "weight_names")}
        values = {_ROLES[match[1]]: stored[name][weight] for weight, match in found.items() if match}
        for variable in layer.weights:
            shape = values[variable.name].shape if variable.name in values else None
            if shape != tuple(variable.shape):
                raise WeightsError(
                    f"{path}: {f'shape {shape}' if shape else 'nothing'} for {variable.name} of {name}, expected shape "
                    f"{tuple(variable.shape)}: take ResNet50's notop file"
                )
            variable.assign(values[variable.name])
    return "today's" if stored.keys() == set(names) else "older"


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
    url, checksum = _published()
    passed_over = []
    for path in mounted_weights():
        try:
            layout = load_file(backbone, path)
        except WeightsError as error:
            passed_over.append(str(error))
            continue
        known = {
            checksum: "ImageNet's, as Keras publishes them",
            OLDER_MD5: "ImageNet's, as Keras published them before 2019; loaded by name",
        }
        older = "; in the layout of Keras before 2019, loaded by name" if layout == "older" else ""
        unknown = f"NOT Keras' ImageNet file: scores should say so{older}"
        print(f"weights from {path} ({known.get(hashlib.md5(path.read_bytes()).hexdigest(), unknown)})")
        return
    load_file(backbone, _download(url, checksum, passed_over))


def _published() -> tuple[str, str]:
    """The URL of Keras' notop file, and its MD5 checksum."""
    from keras.src.applications import resnet  # the only module with both

    name = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    return resnet.BASE_WEIGHTS_PATH + name, resnet.WEIGHTS_HASHES["resnet50"][1]


def _download(url: str, checksum: str, passed_over: list[str]) -> Path:
    try:
        return Path(keras.utils.get_file(Path(url).name, url, cache_subdir="models", file_hash=checksum))
    except Exception as error:  # urllib, sockets and Keras raise many types here
        mounted = "\nMounted, but not fit:\n" + "\n".join(passed_over) if passed_over else ""
        raise WeightsError(
            f"ImageNet weights could not be downloaded ({error}). With internet elsewhere, fetch {url} and set "
            "weights to its path; on Kaggle, turn internet on or attach a dataset with that file (Add Input, Datasets, "
            f"keras/resnet50): it is then found by itself; weights = 'none' tries the code without them{mounted}"
        ) from error


def mounted_weights() -> list[Path]:
    """The `.h5` files mounted on Kaggle, those called `notop` first."""
    found = places.find_files(places.kaggle_root() / "input", ".h5")
    return sorted(found, key=lambda path: "notop" not in path.name.lower())
