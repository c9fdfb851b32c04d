"""The network: ResNet50, its head, its weights, and which of its layers train.

Knows Keras layers; knows nothing of datasets or of training, and of folders only whom to ask for mounted weights.
"""

import hashlib
import re
import warnings
from collections.abc import Callable
from pathlib import Path

from fer_utils import paths
from fer_utils.classes import CLASSES

import h5py
import keras
import numpy as np
import tensorflow as tf
from keras import layers

PREPROCESSING = "preprocessing"
BACKBONE = "resnet50"
FEATURES = "pooled_features"
HEAD_LAYERS = ("head_dense", "head_batch_norm", "head_dropout", "probabilities")
TRAINED_NORM_MOMENTUM = 0.9  # Keras' 0.99 needs some 500 steps to forget where it began: more than a small set has
MIN_IMAGE_SIZE = 32  # below it ResNet50's five halvings leave nothing


class WeightsError(ValueError):
    """A weights file or download that does not fit ResNet50 without top."""


def build(image_size: int, weights: str) -> keras.Model:
    """ResNet50 with the specification's head, backbone frozen.

    Input: raw grey images, float or uint8, shape (n, height, width, 1), values 0–255, of any size. Inside the model they
    become RGB, are resized bilinearly to `image_size`, and pass ResNet50's own `preprocess_input`. Output:
    probabilities, shape (n, 7), in the order of CLASSES.

    weights: `imagenet`, a path to a `notop` file, or `none` (see load_backbone). The head's BatchNormalization forgets
    at TRAINED_NORM_MOMENTUM.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise ValueError(f"image_size is {image_size}, ResNet50 needs at least {MIN_IMAGE_SIZE}")
    raw = keras.Input((None, None, 1), name="raw_grey")
    x = _preprocessing(image_size)(raw)
    x = load_backbone(image_size, weights)(x, training=False)
    x = layers.GlobalAveragePooling2D(name=FEATURES)(x)
    return keras.Model(raw, _head(x), name="fer_resnet50")


def _preprocessing(image_size: int) -> keras.Model:
    raw = keras.Input((None, None, 1), name="raw_grey")
    x = layers.Concatenate(name="grey_to_rgb")([raw, raw, raw])
    x = layers.Resizing(image_size, image_size, name="resize")(x)
    return keras.Model(raw, keras.applications.resnet50.preprocess_input(x), name=PREPROCESSING)


def _head(features):
    x = layers.Dense(32, activation="relu", name=HEAD_LAYERS[0])(features)
    x = layers.BatchNormalization(momentum=TRAINED_NORM_MOMENTUM, name=HEAD_LAYERS[1])(x)
    x = layers.Dropout(0.4, name=HEAD_LAYERS[2])(x)
    return layers.Dense(len(CLASSES), activation="softmax", dtype="float32", name=HEAD_LAYERS[3])(x)


def load_backbone(image_size: int, weights: str) -> keras.Model:
    """ResNet50 without top, frozen, its weights from `weights`.

    `imagenet` takes a file that is mounted on Kaggle, else lets Keras download one; a path names a `notop` file, `.h5` as
    Keras distributes it or `.weights.h5` as `Model.save_weights` writes it; `none` leaves random ones, every residual block as its shortcut alone,
    and warns. Raises WeightsError, naming the file, what it holds and the way out.
    """
    backbone = keras.applications.ResNet50(
        include_top=False, weights=None, input_shape=(image_size, image_size, 3), name=BACKBONE
    )
    backbone.trainable = False
    if weights == "none":
        _silence_residual_branches(backbone)
        warnings.warn(
            "weights is 'none': the backbone's weights are random. Phase 1 trains the head on random features, and only the "
            "layers that phase 2 unfreezes learn from the images. This setting is for trying the code.",
            stacklevel=2,
        )
    elif weights == "imagenet":
        _load_imagenet(backbone)
    else:
        _load_file(backbone, Path(weights))
    return backbone


def _silence_residual_branches(backbone: keras.Model) -> None:
    """Zero the scale of each residual block's last BatchNormalization: every block starts as its shortcut alone.

    He et al. 2019 (arXiv:1812.01187, section 3.1): the network starts as a shallower one, which trains more easily.
    """
    for layer in backbone.layers:
        if re.fullmatch(r"conv\d_block\d_3_bn", layer.name):
            layer.gamma.assign(np.zeros(layer.gamma.shape))


def _load_imagenet(backbone: keras.Model) -> None:
    """Load the first mounted file that fits, saying which, else the one that Keras downloads."""
    url, checksum = _published_weights()
    passed_over = []
    for path in paths.mounted_weights():
        try:
            _load_file(backbone, path)
            _check_features(backbone, path)
        except WeightsError as error:
            passed_over.append(str(error))
            continue
        is_published = hashlib.md5(path.read_bytes()).hexdigest() == checksum
        known = (
            "ImageNet's, as Keras publishes them" if is_published else "NOT Keras' ImageNet file: scores should say so"
        )
        print(f"weights from {path} ({known})")
        return
    _load_file(backbone, _download(url, checksum, passed_over))


def _check_features(backbone: keras.Model, path: Path) -> None:
    """Raise WeightsError unless a fixed image's features are finite and differ."""
    height, width, channels = backbone.input_shape[1:]
    image = np.linspace(-120, 120, height * width * channels, dtype=np.float32).reshape(1, height, width, channels)
    features = np.array(backbone(image, training=False))
    if not np.isfinite(features).all() or np.ptp(features) == 0:
        raise WeightsError(
            f"{path}: ResNet50 with these weights computes no features of a test image; get the file again"
        )


def _published_weights() -> tuple[str, str]:
    """Where Keras has its notop file, and its MD5 checksum."""
    from keras.src.applications import resnet  # the one home of both

    return (
        resnet.BASE_WEIGHTS_PATH + "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        resnet.WEIGHTS_HASHES["resnet50"][1],
    )


def _download(url: str, checksum: str, passed_over: list[str]) -> Path:
    try:
        return Path(keras.utils.get_file(Path(url).name, url, cache_subdir="models", file_hash=checksum))
    except Exception as error:  # urllib, sockets and Keras raise a dozen kinds here
        mounted = "\nMounted, but not fit:\n" + "\n".join(passed_over) if passed_over else ""
        raise WeightsError(
            f"ImageNet weights could not be downloaded ({error}). With internet elsewhere, fetch {url} and set "
            "weights to its path; on Kaggle, turn internet on or attach a dataset with that file (Add Input, Datasets, "
            f"keras/resnet50): it is then found by itself; weights = 'none' tries the code without them{mounted}"
        ) from error


def _load_file(backbone: keras.Model, path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"weights: no file at {path}; give `imagenet`, `none`, or a path to a ResNet50 notop .h5")
    try:
        with h5py.File(path) as file:
            _check_layers(backbone, file, path)
        # Whatever a version of Keras skips in a file stays NaN, and is refused below instead of staying random.
        backbone.set_weights([np.full(weight.shape, np.nan, np.float32) for weight in backbone.weights])
        backbone.load_weights(path)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: not the weights of ResNet50 without top ({error})") from error
    if not all(np.isfinite(value).all() for value in backbone.get_weights()):
        raise WeightsError(f"{path}: lacks weights or holds values that are no numbers; get the file again")


def _check_layers(backbone: keras.Model, file: h5py.File, path: Path) -> None:
    """Compare layer names with a file in Keras' older layout; the newer one Keras itself checks by structure."""
    group = file["model_weights"] if "model_weights" in file else file
    if "layer_names" not in group.attrs:
        return
    found = {
        _text(name) for name in group.attrs["layer_names"] if len(group[_text(name)].attrs.get("weight_names", ()))
    }
    expected = {layer.name for layer in backbone.layers if layer.weights}
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        advice = (
            "take the `notop` file" if {"fc1000", "probs", "predictions"} & set(extra) else "take ResNet50's notop file"
        )
        raise WeightsError(
            f"{path}: its layers are not ResNet50's without top; {len(missing)} missing (such as {missing[:3]}), "
            f"{len(extra)} unknown (such as {extra[:3]}): {advice}"
        )


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def unfreeze_top(model: keras.Model, n_layers: int, batch_norm: str) -> int:
    """Make the backbone's top `n_layers` layers trainable; return how many of them train weights.

    batch_norm: `frozen` keeps every BatchNormalization of the backbone in inference mode; `trained` lets those among the
    top layers learn, which only a backbone without trained statistics needs. Raises ValueError beyond the backbone.
    """
    backbone = model.get_layer(BACKBONE)
    if not 0 <= n_layers <= len(backbone.layers):
        raise ValueError(f"unfreeze_top is {n_layers}, ResNet50 without top has {len(backbone.layers)} layers")
    backbone.trainable = True
    first = len(backbone.layers) - n_layers
    for place, layer in enumerate(backbone.layers):
        is_frozen_norm = isinstance(layer, layers.BatchNormalization) and batch_norm == "frozen"
        layer.trainable = place >= first and not is_frozen_norm
        if layer.trainable and isinstance(layer, layers.BatchNormalization):
            layer.momentum = TRAINED_NORM_MOMENTUM
    return sum(bool(layer.trainable_weights) for layer in backbone.layers)


def parameter_counts(model: keras.Model) -> dict[str, int]:
    """Numbers of weights: total, trainable, frozen."""

    def count(weights) -> int:
        return sum(int(np.prod(weight.shape)) for weight in weights)

    total, trainable = count(model.weights), count(model.trainable_weights)
    return {"total": total, "trainable": trainable, "frozen": total - trainable}


def compiled(model: keras.Model) -> Callable:
    """The model as one function of batches of any length, without training's dropout: arrays in, arrays out.

    Takes an array, or a tuple of them for a model of several inputs; gives an array, or a list of them. It is traced once,
    which for ResNet50 takes as long as some hundred images of 48 px: keep it. Keras' `predict` is slow with small batches.
    """
    several = len(model.inputs) > 1

    @tf.function(input_signature=[tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in model.inputs])
    def step(*inputs):
        return model(list(inputs) if several else inputs[0], training=False)

    def outputs(batch):
        given = step(*batch) if several else step(batch)
        return keras.tree.map_structure(lambda tensor: tensor.numpy(), given)

    return outputs


def plain_copy(model: keras.Model) -> keras.Model:
    """The same layers without optimiser, loss and metrics: a file of it loads with Keras alone."""
    return keras.Model(model.input, model.output, name=model.name)
