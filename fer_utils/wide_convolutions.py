"""Convolutions whose filter gradient is one matrix product: faster on a CPU where kernels are wide and pictures small.

Knows TensorFlow's convolutions; knows nothing of which network they stand in.

Over the 2 × 2 positions that 48 px leave, oneDNN's kernel takes several times as long as the product of the same two
matrices, and more than everything else in the step together (tests/benchmarks/filter_gradient.py).
"""

import keras
import tensorflow as tf

WIDE = 2**19  # weights of a kernel; below it oneDNN's own filter gradient is as fast or faster


def is_wide(layer: keras.layers.Layer) -> bool:
    """Whether a layer is a convolution that gains: 1 × 1, or odd-sized with stride 1, no groups, no dilation, wide."""
    if type(layer) is not keras.layers.Conv2D:  # a subclass computes something else
        return False
    height, width = layer.kernel_size
    simple = layer.groups == 1 and layer.dilation_rate == (1, 1) and layer.data_format == "channels_last"
    pointwise = (height, width) == (1, 1)
    same = layer.padding == "same" and layer.strides == (1, 1) and height % 2 == width % 2 == 1
    return simple and (pointwise or same) and keras.ops.size(layer.kernel) >= WIDE


class WideConv(keras.layers.Layer):
    """Computes what `conv` computes, with its weights; only the way to the filter's gradient differs."""

    def __init__(self, conv: keras.layers.Conv2D):
        super().__init__(name=conv.name, dtype=conv.dtype_policy)
        self.conv = conv
        self.trainable = conv.trainable
        self.built = True

    def call(self, inputs):
        kernel = tf.cast(tf.convert_to_tensor(self.conv.kernel), inputs.dtype)
        outputs = convolve(inputs, kernel, self.conv.strides[0], self.conv.padding.upper())
        if self.conv.use_bias:
            outputs = outputs + tf.cast(tf.convert_to_tensor(self.conv.bias), outputs.dtype)
        return self.conv.activation(outputs)

    def compute_output_shape(self, input_shape):
        return self.conv.compute_output_shape(input_shape)


def convolve(images: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str) -> tf.Tensor:
    """`tf.nn.conv2d` of images (n, h, w, c) and a kernel that `is_wide` allows, its filter gradient a matrix product."""

    @tf.custom_gradient
    def with_gradient(images, kernel):
        def gradient(upstream):
            for_images = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(images),
                filter=kernel,
                out_backprop=upstream,
                strides=[1, stride, stride, 1],
                padding=padding,
            )
            rows = _rows(images, kernel.shape[0], kernel.shape[1], stride)
            for_kernel = tf.matmul(rows, tf.reshape(upstream, (-1, kernel.shape[3])), transpose_a=True)
            return for_images, tf.reshape(for_kernel, kernel.shape)

        return tf.nn.conv2d(images, kernel, stride, padding), gradient

    return with_gradient(images, kernel)


def _rows(images: tf.Tensor, height: int, width: int, stride: int) -> tf.Tensor:
    """The patch that each output sees, a row each: (n · h' · w', height · width · c)."""
    if (height, width) == (1, 1):
        seen = images[:, ::stride, ::stride]
        return tf.reshape(seen, (-1, images.shape[3]))
    up, left = height // 2, width // 2
    padded = tf.pad(images, [[0, 0], [up, up], [left, left], [0, 0]])
    h, w = tf.shape(images)[1], tf.shape(images)[2]
    shifted = [padded[:, i : i + h, j : j + w] for i in range(height) for j in range(width)]
    return tf.reshape(tf.concat(shifted, axis=-1), (-1, height * width * images.shape[3]))
