"""Grad-CAM: heat maps of the image parts that speak for a class."""

from fer_utils.training import network

import keras
import numpy as np
import tensorflow as tf

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
    maps = [
        explain(tf.constant(images[i : i + BATCH], tf.float32), tf.constant(classes[i : i + BATCH])).numpy()
        for i in range(0, len(images), BATCH)
    ]
    return np.concatenate(maps)


def _explainer(model: keras.Model):
    backbone = model.get_layer(network.BACKBONE)
    tapped = keras.Model(backbone.input, [_layer_to_explain(backbone).output, backbone.output])
    *head, last = [model.get_layer(name) for name in (network.FEATURES, *network.HEAD_LAYERS)]

    def explain(images: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        preprocessed = model.get_layer(network.PREPROCESSING)(images)
        with tf.GradientTape() as tape:
            maps, x = tapped(preprocessed, training=False)
            tape.watch(maps)
            for layer in head:
                x = layer(x, training=False)
            x = tf.cast(x, last.kernel.dtype)  # float16 in a model trained in mixed precision
            score = tf.gather(tf.matmul(x, last.kernel) + last.bias, classes, batch_dims=1)
        gradient = tf.cast(tape.gradient(score, maps), tf.float32)
        weights = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(weights * tf.cast(maps, tf.float32), axis=-1))
        return tf.math.divide_no_nan(heat, tf.reduce_max(heat, axis=(1, 2), keepdims=True))

    return explain


def _layer_to_explain(backbone: keras.Model) -> keras.layers.Layer:
    blocks = [layer for layer in backbone.layers if layer.name.endswith("_out")]
    large = [layer for layer in blocks if layer.output.shape[1] >= SMALLEST_MAP]
    return large[-1]
