"""A wide convolution gives what TensorFlow's gives, forward and backward."""

from fer_utils import wide_convolutions as wide

import keras
import numpy as np
import pytest
import tensorflow as tf

CASES = [
    ((1, 1), 1, (5, 6)),
    ((1, 1), 2, (5, 6)),
    ((1, 1), 2, (4, 3)),
    ((3, 3), 1, (3, 4)),
    ((3, 3), 1, (2, 2)),
    ((3, 5), 1, (2, 1)),
    ((3, 3), 1, (1, 1)),
    ((5, 3), 1, (4, 1)),
    ((7, 7), 1, (1, 2)),
    ((7, 7), 1, (3, 2)),
]


@pytest.mark.parametrize(("size", "stride", "side"), CASES)
def test_output_and_both_gradients_are_those_of_conv2d(size, stride, side):
    random = np.random.default_rng(0)
    images = tf.constant(random.normal(size=(4, *side, 6)), tf.float32)
    kernel = tf.constant(random.normal(size=(*size, 6, 8)), tf.float32)

    def both(convolve) -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            tape.watch([images, kernel])
            outputs = convolve(images, kernel, stride)
            loss = tf.reduce_sum(outputs**2)
        return [np.array(value) for value in (outputs, *tape.gradient(loss, [images, kernel]))]

    def conv2d(images, kernel, stride):
        return tf.nn.conv2d(images, kernel, stride, "SAME")

    for ours, theirs in zip(both(wide.convolve), both(conv2d), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-3)


def test_wide_is_what_the_gradient_is_right_for():
    def conv(filters: int, size: int, **how) -> keras.layers.Conv2D:
        layer = keras.layers.Conv2D(filters, size, **how)
        layer.build((None, 4, 4, 512))
        return layer

    assert wide.is_wide(conv(1024, 1)) and wide.is_wide(conv(1024, 1, strides=2))
    assert wide.is_wide(conv(512, 3, padding="same"))
    assert not wide.is_wide(conv(64, 1))
    for how in ({"padding": "valid"}, {"padding": "same", "strides": 2}, {"padding": "same", "dilation_rate": 2}):
        assert not wide.is_wide(conv(512, 3, **how))
    assert not wide.is_wide(conv(512, 3, padding="same", groups=2))
    assert not wide.is_wide(keras.layers.Dense(4))
