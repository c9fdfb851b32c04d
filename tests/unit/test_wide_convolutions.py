"""A wide convolution gives what TensorFlow's gives, forward and backward."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from fer_utils import wide_convolutions as wide

CASES = [
    (1, 1, "VALID", 5),
    (1, 2, "VALID", 5),
    (1, 2, "VALID", 4),
    (3, 1, "SAME", 3),
    (3, 1, "SAME", 2),
    (5, 1, "SAME", 4),
]


@pytest.mark.parametrize(("side", "stride", "padding", "height"), CASES)
def test_output_and_both_gradients_are_those_of_conv2d(side, stride, padding, height):
    random = np.random.default_rng(0)
    images = tf.constant(random.normal(size=(4, height, height + 1, 6)), tf.float32)
    kernel = tf.constant(random.normal(size=(side, side, 6, 8)), tf.float32)

    def both(convolve) -> list[np.ndarray]:
        with tf.GradientTape() as tape:
            tape.watch([images, kernel])
            outputs = convolve(images, kernel, stride, padding)
            loss = tf.reduce_sum(outputs**2)
        return [np.array(value) for value in (outputs, *tape.gradient(loss, [images, kernel]))]

    for ours, theirs in zip(both(wide.convolve), both(tf.nn.conv2d), strict=True):
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
