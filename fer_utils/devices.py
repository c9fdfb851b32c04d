"""What TensorFlow computes on: CPU or GPUs, one or several, and which precision.

Knows devices; knows nothing of networks or data.
"""

import contextlib
import os

import keras
import tensorflow as tf

TENSOR_CORES = (7, 0)  # compute capability from which a GPU multiplies float16 in tensor cores


def has_gpu() -> bool:
    """Whether TensorFlow finds a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def describe() -> str:
    """The devices that TensorFlow computes on, in words."""
    gpus = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    return ", ".join(names) or f"CPU, {os.cpu_count()} cores"


def make_reproducible(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow, and on a GPU have TensorFlow choose deterministic kernels.

    On a CPU oneDNN's kernels agree from run to run as they are, and the deterministic choice more than doubles a step.
    """
    keras.utils.set_random_seed(seed)
    if has_gpu():
        tf.config.experimental.enable_op_determinism()


def choose_precision(precision: str) -> str:
    """Set Keras' precision and return it: `float32`, `mixed_float16`, or `auto` for what the GPUs gain from.

    Softmax and loss stay float32 (fer_utils.model). `auto` is mixed where every GPU has tensor cores, as a T4 or newer
    has; a P100 and CPUs compute float16 no faster.
    """
    if precision == "auto":
        gpus = tf.config.list_physical_devices("GPU")
        capabilities = [
            tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus
        ]
        precision = "mixed_float16" if gpus and min(capabilities) >= TENSOR_CORES else "float32"
    keras.mixed_precision.set_global_policy(precision)
    return precision


def choose_strategy(strategy: str) -> tf.distribute.Strategy | None:
    """The way to spread a batch over devices, None for one device.

    `mirrored` takes every GPU of this machine (or every logical CPU device where there is no GPU), `auto` does so where
    there are several GPUs, `none` never. Batch sizes stay global: each of n devices gets its n-th part. Several machines
    are not offered: `fit` of Keras 3 fails under MultiWorkerMirroredStrategy (github.com/keras-team/keras/issues/20585).
    """
    if strategy == "auto":
        strategy = "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "none"
    if strategy == "none":
        return None
    kind = "GPU" if has_gpu() else "CPU"
    return tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices(kind)])


def scope(strategy: tf.distribute.Strategy | None) -> contextlib.AbstractContextManager:
    """Where models are built and compiled for `strategy`."""
    return strategy.scope() if strategy else contextlib.nullcontext()
