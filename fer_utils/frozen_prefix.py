"""Cuts the network where training begins: a prefix that never changes, and the suffix that learns.

Knows the graph of layers; knows nothing of images, caches or optimisers.
"""

from fer_utils import devices, wide_convolutions
from fer_utils import model as network

import keras


def split(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """(prefix, suffix), which share their layers with `model`: suffix(prefix(images)) is model(images).

    The prefix takes raw images and gives what the suffix takes: the tensors that pass from layers which no trainable
    weight reaches to the others, a list of them where there are several. What is trainable decides, so it has to be set
    before. Training the suffix trains `model`. Where no GPU is found the suffix holds WideConv in place of wide
    convolutions.
    """
    backbone, pooling = model.get_layer(network.BACKBONE), model.get_layer(network.FEATURES)
    preprocessed = model.get_layer(network.PREPROCESSING)(model.input)
    cut = _cut(backbone)
    if cut:
        frozen = keras.Model(backbone.input, cut, name="frozen_layers")
        outputs = keras.tree.flatten(frozen(preprocessed, training=False))
        trained = _faster(keras.Model(cut, backbone.output, name="trained_layers"))
    else:
        outputs = [pooling(backbone(preprocessed, training=False))]
    inputs = [keras.Input(tensor.shape[1:], name=f"cut_{place}") for place, tensor in enumerate(outputs)]
    if len(inputs) == 1:
        (outputs,), (inputs,) = outputs, inputs
    x = pooling(trained(inputs)) if cut else inputs
    for name in network.HEAD_LAYERS:
        x = model.get_layer(name)(x)
    return keras.Model(model.input, outputs, name="prefix"), keras.Model(inputs, x, name="suffix")


def joined(prefix: keras.Model, suffix: keras.Model) -> keras.Model:
    """Both halves as one model, raw images in, probabilities out: for training without cached activations."""
    return keras.Model(prefix.input, suffix(prefix(prefix.input)), name="whole")


def _cut(backbone: keras.Model) -> list:
    """The tensors that cross from frozen layers to trained ones; none where every layer of the backbone is frozen."""
    trained, cut = set(), {}
    for layer in backbone.layers:
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        if layer.trainable_weights or any(id(tensor) in trained for tensor in inputs):
            cut.update({id(tensor): tensor for tensor in inputs if id(tensor) not in trained})
            trained.add(id(layer.output))
    return list(cut.values())


def _faster(part: keras.Model) -> keras.Model:
    if devices.has_gpu():
        return part

    def replacement(layer: keras.layers.Layer) -> keras.layers.Layer:
        wide = layer.trainable and wide_convolutions.is_wide(layer)
        return wide_convolutions.WideConv(layer) if wide else layer

    return keras.models.clone_model(part, clone_function=replacement)
