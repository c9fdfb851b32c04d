"""How long ResNet50's trained convolutions take, forward and backward: TensorFlow's beside fer_utils.wide_convolutions.

python tests/benchmarks/wide_convolutions.py --image-size 48 --batch 64
"""

import argparse
import functools
import time

from fer_utils import wide_convolutions

import keras
import numpy as np
import tensorflow as tf

ROUNDS = 9


def both_ways(convolve, images: tf.Tensor, kernel: tf.Tensor, upstream: tf.Tensor) -> list[tf.Tensor]:
    """Of the output and of both gradients one number each: what is timed is to be computed."""
    with tf.GradientTape() as tape:
        tape.watch([images, kernel])
        outputs = convolve(images, kernel)
    gradients = tape.gradient(outputs, [images, kernel], upstream)
    return [tf.reduce_max(tensor) for tensor in (outputs, *gradients)]


def milliseconds(steps: list) -> np.ndarray:
    """The median for each step, taken in turn after a first run that builds the graphs."""
    for step in steps:
        step()
    seconds = np.empty((ROUNDS, len(steps)))
    for times in seconds:
        for place, step in enumerate(steps):
            began = time.monotonic()
            step()
            times[place] = time.monotonic() - began
    return 1000 * np.median(seconds, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    side = options.image_size
    backbone = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(side, side, 3))
    convolutions = [layer for layer in backbone.layers[-50:] if isinstance(layer, keras.layers.Conv2D)]
    random, sums = np.random.default_rng(0), np.zeros(2)
    print(f"{'layer':22} {'weights':>10} {'wide':>5} {'TensorFlow ms':>14} {'ours ms':>8}")
    for layer in convolutions:
        shapes = [(options.batch, *tensor.shape[1:]) for tensor in (layer.input, layer.output)]
        images, upstream = (tf.constant(random.normal(size=shape), tf.float32) for shape in shapes)
        kernel, stride = tf.constant(layer.kernel.numpy()), layer.strides[0]
        ways = (
            functools.partial(tf.nn.conv2d, strides=stride, padding=layer.padding.upper()),
            functools.partial(wide_convolutions.convolve, stride=stride),
        )
        took = milliseconds([tf.function(functools.partial(both_ways, way, images, kernel, upstream)) for way in ways])
        wide = wide_convolutions.is_wide(layer)
        sums += took if wide else took[0]
        print(
            f"{layer.name:22} {int(tf.size(kernel)):>10,} {'yes' if wide else 'no':>5} {took[0]:>14.1f} {took[1]:>8.1f}"
        )
    print(f"all, ours where wide: {sums[0]:.1f} and {sums[1]:.1f} ms, {sums[0] / sums[1]:.2f} times as fast")


if __name__ == "__main__":
    main()
