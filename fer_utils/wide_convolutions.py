"""Wide convolutions over small pictures as matrix products: faster on a CPU than oneDNN's convolutions.

Knows TensorFlow's convolutions; knows nothing of which network they stand in.

A convolution is a sum over its kernel's taps: each tap's weights times the pictures, shifted. At the 2 × 2 positions
that 48 px leave, more than half of what a 3 × 3 kernel multiplies is padding, which the taps leave out; and oneDNN's
filter gradient takes several times as long as the products (tests/benchmarks/wide_convolutions.py).
"""

import keras
import tensorflow as tf

WIDE = 2**19  # weights of a kernel; below it oneDNN's filter gradient is as fast or faster
TINY = 2  # positions along a side; above it less than half is padding, and oneDNN is as fast or faster forward


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
    """Computes what `conv` computes, with its weights; only the way there differs."""

    def __init__(self, conv: keras.layers.Conv2D):
        super().__init__(name=conv.name, dtype=conv.dtype_policy)
        self.conv = conv
        self.trainable = conv.trainable
        self.built = True

    def call(self, inputs):
        kernel = tf.cast(tf.convert_to_tensor(self.conv.kernel), inputs.dtype)
        outputs = convolve(inputs, kernel, self.conv.strides[0])
        if self.conv.use_bias:
            outputs = outputs + tf.cast(tf.convert_to_tensor(self.conv.bias), outputs.dtype)
        return self.conv.activation(outputs)

    def compute_output_shape(self, input_shape):
        return self.conv.compute_output_shape(input_shape)


def convolve(images: tf.Tensor, kernel: tf.Tensor, stride: int) -> tf.Tensor:
    """What `tf.nn.conv2d` gives for a kernel (height, width, c, c') that `is_wide` allows.

    images: (n, h, w, c), h and w known. A kernel larger than 1 × 1 pads with zeros and has stride 1.
    """
    if kernel.shape[:2] == (1, 1):
        seen = images[:, ::stride, ::stride]
        return _like(seen, tf.matmul(_rows(seen), kernel[0, 0]))
    if max(images.shape[1:3]) <= TINY:
        return _by_taps(images, kernel)
    return _with_filter_gradient_by_taps(images, kernel)


def _by_taps(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    _, h, w, _ = images.shape
    parts = []
    # Split at once: a slice for each tap would have as many gradients of the whole kernel's size to add up.
    each = tf.unstack(tf.reshape(kernel, (-1, *kernel.shape[2:])))
    for weights, (outputs, inputs) in zip(each, _taps(images, kernel), strict=True):
        seen = images[inputs]
        if 0 in seen.shape:
            continue
        around = [[reached.start, side - reached.stop] for reached, side in zip(outputs[1:], (h, w), strict=True)]
        parts.append(tf.pad(_like(seen, tf.matmul(_rows(seen), weights)), [[0, 0], *around, [0, 0]]))
    return tf.add_n(parts)


def _with_filter_gradient_by_taps(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    @tf.custom_gradient
    def with_gradient(images, kernel):
        def gradient(upstream):
            for_images = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(images), filter=kernel, out_backprop=upstream, strides=[1, 1, 1, 1], padding="SAME"
            )
            for_taps = [
                tf.matmul(_rows(images[inputs]), _rows(upstream[outputs]), transpose_a=True)
                for outputs, inputs in _taps(images, kernel)
            ]
            return for_images, tf.reshape(tf.stack(for_taps), kernel.shape)

        return tf.nn.conv2d(images, kernel, 1, "SAME"), gradient

    return with_gradient(images, kernel)


def _taps(images: tf.Tensor, kernel: tf.Tensor) -> list[tuple[tuple, tuple]]:
    """For each tap of a kernel, in its order, the index of the outputs that it reaches and of what it sees for them.

    Empty where the kernel reaches beyond the pictures.
    """

    def along(side: int, size: int) -> list[tuple[slice, slice]]:
        found = []
        for shift in range(-(size // 2), size // 2 + 1):
            first, last = min(max(0, -shift), side), max(0, min(side, side - shift))
            found.append((slice(first, last), slice(first + shift, last + shift)))
        return found

    (_, h, w, _), (height, width, _, _) = images.shape, kernel.shape
    return [
        ((slice(None), rows, columns), (slice(None), seen_rows, seen_columns))
        for rows, seen_rows in along(h, height)
        for columns, seen_columns in along(w, width)
    ]


def _rows(images: tf.Tensor) -> tf.Tensor:
    """(n, h, w, c) as the rows of a matrix (n · h · w, c)."""
    return tf.reshape(images, (-1, images.shape[3]))


def _like(images: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Rows (n · h · w, c') as (n, h, w, c'), with the positions of `images`."""
    return tf.reshape(rows, (-1, *images.shape[1:3], rows.shape[1]))
