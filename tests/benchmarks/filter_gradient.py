"""How long the filter gradients of ResNet50's trained convolutions take: TensorFlow's kernel beside one matrix product.

python tests/benchmarks/filter_gradient.py --image-size 48 --batch 64
"""

import argparse
import statistics
import time

import keras
import numpy as np
import tensorflow as tf

from fer_utils import wide_convolutions


def milliseconds(work) -> float:
    """Median of seven runs, after a first that builds the graph."""
    step = tf.function(work)
    step()
    seconds = []
    for _ in range(7):
        began = time.monotonic()
        step()
        seconds.append(time.monotonic() - began)
    return 1000 * statistics.median(seconds)


def gradient(convolve, images: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """The filter gradient, as one number: what is timed is to be computed."""
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        outputs = convolve(images, kernel)
    return tf.reduce_max(tape.gradient(outputs, kernel, upstream))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    side = options.image_size
    backbone = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(side, side, 3))
    convolutions = [layer for layer in backbone.layers[-50:] if isinstance(layer, keras.layers.Conv2D)]
    print(f"{'layer':22} {'weights':>10} {'wide':>5} {'kernel ms':>10} {'product ms':>11}")
    for layer in convolutions:
        random = np.random.default_rng(0)
        shapes = [(options.batch, *tensor.shape[1:]) for tensor in (layer.input, layer.output)]
        images, upstream = (tf.constant(random.normal(size=shape), tf.float32) for shape in shapes)
        kernel, stride, padding = tf.constant(layer.kernel.numpy()), layer.strides[0], layer.padding.upper()

        def plain(images, kernel, stride=stride, padding=padding):
            return tf.nn.conv2d(images, kernel, stride, padding)

        def product(images, kernel, stride=stride, padding=padding):
            return wide_convolutions.convolve(images, kernel, stride, padding)

        took = [
            milliseconds(lambda how=how, images=images, kernel=kernel, up=upstream: gradient(how, images, kernel, up))
            for how in (plain, product)
        ]
        wide = "yes" if wide_convolutions.is_wide(layer) else "no"
        print(f"{layer.name:22} {int(tf.size(kernel)):>10,} {wide:>5} {took[0]:>10.1f} {took[1]:>11.1f}", flush=True)


if __name__ == "__main__":
    main()
