"""Grad-CAM: heat maps of the image parts that speak for a class."""

from fer_utils.training import devices, network

import keras
import numpy as np
from keras import ops

SMALLEST_MAP = 5  # squares per side; with fewer, a heat map cannot separate mouth and eyes
BATCH = 32


def heat_maps(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How much each part of each image speaks for a class: float32 (n, squares, squares), 0 to 1, 1 the strongest.

    images: uint8 (n, height, width, 1). classes: int (n,), the class for each image. The maps come from the deepest layer
    of the backbone with at least SMALLEST_MAP squares per side: the last one from 160 px on, an earlier one at smaller
    sizes. As in Selvaraju et al. 2017, "Grad-CAM", the layer's channels are weighted by the mean gradient of the class's
    score before softmax, and negative values are set to zero. A map without positive values is all zeros.
    """
    explain = _explainer(model)
    batches = range(0, len(images), BATCH)
    return np.concatenate([explain(images[i : i + BATCH], classes[i : i + BATCH]) for i in batches])


def _explainer(model: keras.Model):
    backbone = network.backbone_of(model)
    layer = _layer_to_explain(backbone)
    pooling, *head, last = [model.get_layer(name) for name in (network.FEATURES, *network.HEAD_LAYERS)]
    before, after = keras.Model(backbone.input, layer.output), keras.Model(layer.output, pooling(backbone.output))

    def explain(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        pixels = ops.convert_to_tensor(images, "float32")
        maps = before(model.get_layer(network.PREPROCESSING)(pixels), training=False)

        def score(maps):
            x = after(maps, training=False)
            for layer in head:
                x = layer(x, training=False)
            x = ops.cast(x, last.kernel.dtype)  # float16 in a model trained in mixed precision
            return ops.take_along_axis(ops.matmul(x, last.kernel) + last.bias, ops.expand_dims(classes, 1), axis=1)

        weights = ops.mean(ops.cast(devices.gradient(score, maps), "float32"), axis=(1, 2), keepdims=True)
        heat = ops.relu(ops.sum(weights * ops.cast(maps, "float32"), axis=-1))
        return ops.convert_to_numpy(ops.divide_no_nan(heat, ops.max(heat, axis=(1, 2), keepdims=True)))

    return explain


def _layer_to_explain(backbone: keras.Model) -> keras.layers.Layer:
    blocks = [layer for layer in backbone.layers if layer.name.endswith("_out")]
    large = [layer for layer in blocks if layer.output.shape[1] >= SMALLEST_MAP]
    return large[-1]
