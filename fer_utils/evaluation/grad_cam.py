"""Grad-CAM: heat maps of the image parts that speak for a class."""

from functools import partial

from fer_utils.training import devices, network

import keras
import numpy as np
from keras import ops

SMALLEST_MAP = 5  # squares per side; with fewer, a heat map cannot separate mouth and eyes
BATCH = 32


def heat_maps(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How much each part of each image speaks for a class: float32 (n, squares, squares), 0 to 1, 1 the strongest.

    model: a whole network, or an exported one. images: uint8 (n, height, width, 1). classes: int (n,), the class for
    each image. The maps come from the deepest layer of the backbone with at least SMALLEST_MAP squares per side: the
    last one from 160 px on, an earlier one at smaller sizes. As in Selvaraju et al. 2017, "Grad-CAM", the layer's
    channels are weighted by the mean gradient of the class's score before softmax, and negative values are set to zero.
    A map without positive values is all zeros.
    """
    if network.PREPROCESSING not in [layer.name for layer in model.layers]:  # exported: a model of any colour around it
        model = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    backbone = network.backbone_of(model)
    blocks = [layer.output for layer in backbone.layers if layer.name.endswith("_out")]
    deepest = [output for output in blocks if output.shape[1] >= SMALLEST_MAP][-1]
    *layers, last = [model.get_layer(name) for name in (network.FEATURES, *network.HEAD_LAYERS)]
    x = backbone.output
    for layer in layers:
        x = layer(x)
    before, after = keras.Model(backbone.input, deepest), keras.Model(deepest, x)

    def score(maps, codes: np.ndarray):
        x = ops.cast(after(maps, training=False), last.kernel.dtype)  # float16 in a model trained in mixed precision
        return ops.take_along_axis(ops.matmul(x, last.kernel) + last.bias, ops.expand_dims(codes, 1), axis=1)

    found = []
    for rows in (slice(start, start + BATCH) for start in range(0, len(images), BATCH)):
        pixels = ops.convert_to_tensor(images[rows], "float32")
        maps = before(model.get_layer(network.PREPROCESSING)(pixels), training=False)
        slopes = ops.cast(devices.gradient(partial(score, codes=classes[rows]), maps), "float32")
        weights = ops.mean(slopes, axis=(1, 2), keepdims=True)
        heat = ops.relu(ops.sum(weights * ops.cast(maps, "float32"), axis=-1))
        found.append(ops.convert_to_numpy(ops.divide_no_nan(heat, ops.max(heat, axis=(1, 2), keepdims=True))))
    return np.concatenate(found)
