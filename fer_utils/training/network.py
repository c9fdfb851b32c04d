"""The network that is trained: its weights, which of its layers train, and what is saved of it."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer_utils import images, places, progress
from fer_utils.classes import CLASSES
from fer_utils.training import model_files
from fer_utils.training import weights as weights_files

import keras
import numpy as np
import pandas as pd
from keras import layers

PREPROCESSING = "preprocessing"
RESNET50, SMALL = "resnet50", "small"  # the backbones: values of the parameter, and names of the layer in the model
FEATURES = "pooled_features"
HEAD_LAYERS = ("head_dense", "head_batch_norm", "head_dropout", "probabilities")
# Keras' 0.99 needs about 500 steps to forget the initial statistics, more than a small dataset has.
TRAINED_NORM_MOMENTUM = 0.9
# Width and number of blocks of each stage; each but the first halves the side. At 48 px 123 million multiply-adds.
SMALL_STAGES = ((16, 1), (64, 1), (128, 1), (208, 2))
VOTES_LAYER, BOTH_LAYER = "votes_probabilities", "both_probabilities"
ADJUSTMENTS = np.linspace(0, 1, 11)  # the strengths that with_adjusted_logits tries
MIN_IMAGE_SIZE = 32  # smaller images vanish in ResNet50's five halvings


def build(image_size: int, weights: str, backbone: str = RESNET50) -> keras.Model:
    """A backbone, `resnet50` as specified or `small`, with the specification's head; the backbone is frozen.

    Input: raw grey images, float or uint8, shape (n, height, width, 1), values 0–255, of any size. Inside the model they
    are resized bilinearly to `image_size`, and prepared as the backbone needs it: for ResNet50 as RGB, by its own
    `preprocess_input`; for the small network each picture by its own mean and variance. Output: probabilities, shape
    (n, 7), in the order of CLASSES. weights: see load_backbone.
    """
    if image_size < MIN_IMAGE_SIZE:
        raise ValueError(f"image_size is {image_size}, expected at least {MIN_IMAGE_SIZE}")
    return assembled(load_backbone(image_size, weights, backbone))


def load_backbone(image_size: int, weights: str, name: str = RESNET50) -> keras.Model:
    """The backbone `name` without top, frozen, its weights from `weights`.

    `none` leaves random weights, with every residual block reduced to its shortcut, and says so. For ResNet50 `imagenet` and
    paths are passed to fer_utils.training.weights.load, which describes its errors. For the small network `shipped` takes
    those of the model that comes with this package, and a path those of a model's file. Raises WeightsError, and NotOurModel
    as `load` does.
    """
    backbone = random_backbone(image_size, name)
    if weights == "none":
        # The scale of each residual block's last BatchNormalization is 0 (He et al. 2019, arXiv:1812.01187, section 3.1):
        # the network starts as a shallower one, which is easier to train, and activations stay in the range of float16.
        for layer in backbone.layers:
            if re.fullmatch(r"conv\d_block\d_3_bn", layer.name):
                layer.gamma.assign(np.zeros(layer.gamma.shape))
        progress.say("weights is none: the backbone is random, and only the layers that 04 unfreezes learn")
    elif name == SMALL and weights == "imagenet":
        raise weights_files.WeightsError(
            "weights is 'imagenet': the backbone small has none; set weights to shipped, none, or the path of a model's file"
        )
    elif name == SMALL:
        source = load(places.SHIPPED if weights == "shipped" else places.place(weights))
        if not any(layer.name == SMALL for layer in source.layers):
            raise weights_files.WeightsError(f"weights: {weights} is a model with another backbone than small")
        backbone.set_weights(backbone_of(source).get_weights())
    else:
        weights_files.load(backbone, weights)
    return backbone


def untrained(image_size: int, backbone: str) -> keras.Model:
    """The network of `build` with random weights, for those of a file or of another model."""
    return assembled(random_backbone(image_size, backbone))


def assembled(backbone: keras.Model) -> keras.Model:
    """The whole network: preprocessing, this backbone in inference mode, and a new head."""
    raw = keras.Input((None, None, 1), name="raw_grey")
    x = backbone(_preprocessing(backbone.input_shape[1], backbone.name)(raw), training=False)
    x = layers.GlobalAveragePooling2D(name=FEATURES)(x)
    x = layers.Dense(32, activation="relu", name=HEAD_LAYERS[0])(x)
    x = layers.BatchNormalization(momentum=TRAINED_NORM_MOMENTUM, name=HEAD_LAYERS[1])(x)
    x = layers.Dropout(0.4, name=HEAD_LAYERS[2])(x)
    x = layers.Dense(len(CLASSES), activation="softmax", dtype="float32", name=HEAD_LAYERS[3])(x)
    return keras.Model(raw, x, name=f"fer_{backbone.name}")


def _preprocessing(image_size: int, backbone: str) -> keras.Model:
    # In float32 whatever the policy: bfloat16's 8 bits of mantissa cannot hold grey levels less a mean.
    raw = keras.Input((None, None, 1), name="raw_grey")
    if backbone == SMALL:
        x = layers.Resizing(image_size, image_size, name="resize", dtype="float32")(raw)
        # Each picture gets mean 0 and variance 1: light and contrast do not matter.
        x = layers.LayerNormalization(axis=(1, 2, 3), center=False, scale=False, name="standardise", dtype="float32")(x)
        return keras.Model(raw, x, name=PREPROCESSING)
    x = layers.Concatenate(name="grey_to_rgb", dtype="float32")([raw, raw, raw])
    x = layers.Resizing(image_size, image_size, name="resize", dtype="float32")(x)
    return keras.Model(raw, keras.applications.resnet50.preprocess_input(x), name=PREPROCESSING)


def random_backbone(image_size: int, name: str) -> keras.Model:
    """The backbone `name` without top, frozen, with random weights."""
    if name == SMALL:
        backbone = small(image_size)
    else:
        shape = image_size, image_size, 3
        backbone = keras.applications.ResNet50(include_top=False, weights=None, input_shape=shape, name=RESNET50)
    backbone.trainable = False
    return backbone


def small(image_size: int) -> keras.Model:
    """A residual network for small faces, with random weights; input: (n, image_size, image_size, 1), standardised.

    As the networks for 32-px pictures of He et al. 2016 (arXiv:1512.03385, section 4.2) it begins with a 3×3 convolution
    and halves the picture late, since a face of 48 pixels has no detail to lose. Where the width changes, a 1×1 convolution
    is the shortcut, as in ResNet50. Each block starts as its shortcut (see load_backbone).
    """

    def convolution(x, width: int, size: int, stride: int, name: str, gamma: str = "ones"):
        x = layers.Conv2D(width, size, stride, "same", use_bias=False, name=f"{name}_conv")(x)
        return layers.BatchNormalization(gamma_initializer=gamma, name=f"{name}_bn")(x)

    pixels = keras.Input((image_size, image_size, 1))
    x = layers.ReLU(name="stem_relu")(convolution(pixels, SMALL_STAGES[0][0], 3, 1, "stem"))
    for stage, (width, n_blocks) in enumerate(SMALL_STAGES, 1):
        for block in range(n_blocks):
            name, stride = f"stage{stage}_block{block + 1}", 2 if stage > 1 and block == 0 else 1
            shortcut = x if x.shape[-1] == width else convolution(x, width, 1, stride, f"{name}_0")
            branch = layers.ReLU(name=f"{name}_1_relu")(convolution(x, width, 3, stride, f"{name}_1"))
            branch = convolution(branch, width, 3, 1, f"{name}_2", gamma="zeros")
            x = layers.ReLU(name=f"{name}_out")(layers.Add(name=f"{name}_add")([shortcut, branch]))
    return keras.Model(pixels, x, name=SMALL)


def backbone_of(model: keras.Model) -> keras.Model:
    """The backbone of a whole network."""
    return next(layer for layer in model.layers if layer.name in (RESNET50, SMALL))


def with_votes_output(model: keras.Model) -> keras.Model:
    """The same layers with a second output, which learns FER+'s votes beside the first, which learns the labels.

    It shares the head except the last layer. Output: the probabilities of both in one row, shape (n, 14). It is for training;
    `for_inference` separates the two.
    """
    hidden = model.get_layer(HEAD_LAYERS[-2]).output
    votes = layers.Dense(len(CLASSES), activation="softmax", dtype="float32", name=VOTES_LAYER)(hidden)
    both = layers.Concatenate(dtype="float32", name=BOTH_LAYER)([model.get_layer(HEAD_LAYERS[-1]).output, votes])
    return keras.Model(model.input, both, name=model.name)


def has_votes_output(model: keras.Model) -> bool:
    return any(layer.name == VOTES_LAYER for layer in model.layers)


def apply_head(model: keras.Model, features):
    """The model's head on pooled features: what the model gives for them."""
    for name in HEAD_LAYERS[:-1]:
        features = model.get_layer(name)(features)
    if not has_votes_output(model):
        return model.get_layer(HEAD_LAYERS[-1])(features)
    return model.get_layer(BOTH_LAYER)([model.get_layer(name)(features) for name in (HEAD_LAYERS[-1], VOTES_LAYER)])


def unfreeze_top(model: keras.Model, n_layers: int, batch_norm: str) -> int:
    """Make the backbone's top `n_layers` layers trainable; return the number of layers with trainable weights.

    batch_norm: `frozen` keeps every BatchNormalization of the backbone in inference mode; `trained` lets those among the
    top layers learn, which only a backbone without trained statistics needs. Raises ValueError for more layers than the
    backbone has.
    """
    backbone = backbone_of(model)
    if not 0 <= n_layers <= len(backbone.layers):
        raise ValueError(f"unfreeze_top is {n_layers}, the backbone {backbone.name} has {len(backbone.layers)} layers")
    norms = [layer for layer in backbone.layers if isinstance(layer, layers.BatchNormalization)]
    if batch_norm == "frozen" and not norms[-1].gamma.numpy().any():
        warnings.warn(
            "the backbone is random and batch_norm is 'frozen': its residual branches stay at zero and learn nothing. Set "
            "batch_norm to 'trained'.",
            stacklevel=2,
        )
    backbone.trainable = True
    for number, layer in enumerate(backbone.layers, start=n_layers - len(backbone.layers)):
        is_norm = isinstance(layer, layers.BatchNormalization)
        layer.trainable = number >= 0 and not (is_norm and batch_norm == "frozen")
        if layer.trainable and is_norm:
            layer.momentum = TRAINED_NORM_MOMENTUM
    return sum(bool(layer.trainable_weights) for layer in backbone.layers)


def parameter_counts(model: keras.Model) -> dict[str, int]:
    """Numbers of weights: total, trainable, frozen."""
    total, trainable = model.count_params(), sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    return {"total": total, "trainable": trainable, "frozen": total - trainable}


def for_inference(model: keras.Model, output: str = HEAD_LAYERS[-1]) -> keras.Model:
    """A model from `build` for saving: the same weights in float32, without optimiser, loss and metrics.

    A model trained in mixed_float16 would also compute in float16 after loading, which is many times slower on a CPU.
    output: which of two outputs it has, the first or VOTES_LAYER; either way it is a network as `build` makes it.
    """
    policy, backbone = keras.mixed_precision.dtype_policy(), backbone_of(model)
    if policy.name == "float32" and not has_votes_output(model):
        return plain_copy(model)
    keras.mixed_precision.set_global_policy("float32")
    try:
        copy = untrained(backbone.input_shape[1], backbone.name)
    finally:
        keras.mixed_precision.set_global_policy(policy)
    for name in (backbone.name, *HEAD_LAYERS):
        source = output if name == HEAD_LAYERS[-1] else name
        copy.get_layer(name).set_weights(model.get_layer(source).get_weights())
    return copy


def with_adjusted_logits(
    model: keras.Model, probabilities: np.ndarray, labels: np.ndarray, train_labels: np.ndarray
) -> tuple[keras.Model, pd.DataFrame]:
    """A copy of a model from `for_inference` whose scores before softmax are lower by strength × log(share of the class).

    Post-hoc logit adjustment (Menon et al. 2021, arXiv:2007.07314, section 4.1): classes with few pictures gain.
    probabilities, labels: the model's for VAL, (n, 7), and (n,) int; of the strengths ADJUSTMENTS the one with their highest
    macro F1 is taken, the lowest of equal ones. train_labels: (n,) int, of the pictures that trained; a class without any
    counts as one picture. Returns VAL's accuracy and macro_f1 at each strength too.
    """
    from sklearn.metrics import f1_score  # takes a while to import

    counts = np.maximum(np.bincount(train_labels, minlength=len(CLASSES)), 1)
    log_shares = np.log(counts / counts.sum())
    scores = np.log(probabilities + np.finfo(np.float32).tiny)
    predicted = [(scores - strength * log_shares).argmax(axis=1) for strength in ADJUSTMENTS]
    table = pd.DataFrame({"accuracy": [(classes == labels).mean() for classes in predicted]}, index=ADJUSTMENTS)
    table["macro_f1"] = [
        f1_score(labels, classes, labels=range(len(CLASSES)), average="macro", zero_division=0) for classes in predicted
    ]
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.get_layer(HEAD_LAYERS[-1]).bias.assign_sub(table["macro_f1"].idxmax() * log_shares)
    return copy, table.rename_axis("strength")


def plain_copy(model: keras.Model) -> keras.Model:
    """The same layers without optimiser, loss and metrics, so that its file can be loaded with only Keras."""
    return keras.Model(model.input, model.output, name=model.name)


def save(model: keras.Model, path: Path, sources: Mapping[str, Any] | None) -> None:
    """Save a model with its origin: what it was trained on, by the parameters of 01; None where they are not known."""
    model.save(path)
    if sources is not None:
        origin = {"faces": model_files.faces_of(sources), "labels": sources["labels"], "leakage": sources["leakage"]}
        model_files.write_origin(path, origin)


def load(path: Path) -> keras.Model:
    """The model of a file from `save`, loaded safely, or of the shipped `.onnx`. Raises model_files.NotOurModel."""
    return model_files.load_keras(path, _from_onnx if path.suffix == ".onnx" else None)


def _from_onnx(path: Path) -> keras.Model:
    """The model of a file that export.small_onnx wrote, in float32. Raises ValueError for another ONNX file."""
    import onnx  # takes a while to import
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    if graph.name != SMALL:
        raise ValueError(f"its graph is called {graph.name!r}: only the network {SMALL!r} becomes a Keras model")
    found = {weight.name: numpy_helper.to_array(weight).astype(np.float32) for weight in graph.initializer}
    model = untrained(images.SIZE, SMALL)
    for layer in filter(weight_names, (*backbone_of(model).layers, *map(model.get_layer, HEAD_LAYERS))):
        planes_first = [found[name] for name in weight_names(layer)]
        arrays = [values.transpose(2, 3, 1, 0) if values.ndim == 4 else values for values in planes_first]
        layer.set_weights([np.reshape(a, w.shape) for a, w in zip(arrays, layer.weights, strict=True)])
    return model


def weight_names(layer: layers.Layer) -> list[str]:
    """Names of a layer's weights in the ONNX file."""
    return [f"{layer.name}/{weight.name}" for weight in layer.weights]
