"""Chooses devices, precision and kernels for TensorFlow."""

import contextlib
import os
from functools import lru_cache

import keras
import tensorflow as tf

# TensorFlow takes all of a GPU's memory by default. A second process would find none: another notebook's kernel, a sweep.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # read when a GPU is first used

TENSOR_CORES = (7, 0)  # compute capability from which a GPU multiplies float16 in tensor cores
# Pixels per step from which several GPUs pay off. An estimate for two T4 on PCIe, not measured: at 15 % of its data
# sheet's 65 TFLOP/s a T4 takes 26 ms for a step of 64 pictures of 128 px (12.2 GFLOP each at 224 px). Two GPUs save 13 ms;
# exchanging the 68 MB of gradients of the top 50 layers takes about 10 ms.
MIRRORED_FROM = 64 * 128**2


def has_gpu() -> bool:
    """Whether TensorFlow finds a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def describe() -> str:
    """A description of the devices that TensorFlow computes on."""
    gpus = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    return ", ".join(names) or f"CPU, {os.cpu_count()} cores"


def set_up(seed: int, deterministic: str = "auto", precision: str = "float32") -> None:
    """Set seeds, kernels and precision, and print the devices: see the functions below."""
    skip_graph_optimizer()
    kernels = "deterministic" if make_reproducible(seed, deterministic) else "default"
    print(f"computing on {describe()} in {choose_precision(precision)} with {kernels} kernels")


def skip_graph_optimizer() -> None:
    """Without a GPU, switch off TensorFlow's graph optimizer (Grappler) for the functions that are traced from now on.

    It takes seconds before the first step and again before the second epoch, and a step takes as long without it
    (docs/measurements.md). On a GPU it chooses the layout of the tensors, and stays on.
    """
    if not has_gpu():
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def make_reproducible(seed: int, deterministic: str = "auto") -> bool:
    """Seed Python, NumPy and TensorFlow; return whether TensorFlow was set to deterministic kernels.

    deterministic: `yes`, `no`, or `auto`: yes on a GPU, whose default kernels sum in a different order in each run; no on
    a CPU, whose default kernels are reproducible, and where the deterministic ones more than double a step's time. With
    deterministic kernels Keras compiles nothing with XLA, and an operation without one raises UnimplementedError. The
    setting lasts until the process ends.
    """
    keras.utils.set_random_seed(seed)
    chosen = deterministic == "yes" or (deterministic == "auto" and has_gpu())
    if chosen:
        tf.config.experimental.enable_op_determinism()
    return chosen


def choose_precision(precision: str) -> str:
    """Set Keras' precision and return it: `float32`, `mixed_float16`, `mixed_bfloat16`, or `auto`.

    Softmax and loss stay float32 (fer_utils.training.network). `auto` is mixed_float16 if every GPU has tensor cores, as a
    T4 and newer ones have, and otherwise float32; a P100 and CPUs are not faster with float16. CPUs with AVX512_BF16 or
    AMX are faster with mixed_bfloat16 in large batches (docs/measurements.md).
    """
    if precision == "auto":
        gpus = tf.config.list_physical_devices("GPU")
        capabilities = [
            tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus
        ]
        precision = "mixed_float16" if gpus and min(capabilities) >= TENSOR_CORES else "float32"
    keras.mixed_precision.set_global_policy(precision)
    return precision


def rounds_to_tensor_float_32() -> bool:
    """Whether float32 may be rounded to 10 bits of mantissa: by a GPU since Ampere, if TensorFlow allows it (its default)."""
    return has_gpu() and tf.config.experimental.tensor_float_32_execution_enabled()


def choose_strategy(strategy: str, step_pixels: int = 0) -> tf.distribute.Strategy | None:
    """The strategy that distributes a batch over devices, or None for one device; prints the number of devices.

    `mirrored` uses every GPU of this machine (without a GPU every logical CPU device) if there are several, `none` one device. `auto` is
    mirrored with several GPUs and at least MIRRORED_FROM pixels per step. step_pixels: batch_size × image_size² of the
    input of the layers that train; 0 for a head on cached features. Batch sizes are global: each of n devices gets an
    n-th. Several machines are not supported: `fit` of Keras 3 fails under MultiWorkerMirroredStrategy
    (github.com/keras-team/keras/issues/20585).
    """
    if strategy == "auto":
        several = len(tf.config.list_physical_devices("GPU")) > 1
        strategy = "mirrored" if several and step_pixels >= MIRRORED_FROM else "none"
    if strategy == "none":
        return None
    kind = "GPU" if has_gpu() else "CPU"
    names = tuple(device.name for device in tf.config.list_logical_devices(kind))
    if len(names) == 1:
        return None
    print(f"{len(names)} devices share each batch")
    return _mirrored(names)


@lru_cache
def _mirrored(names: tuple[str, ...]) -> tf.distribute.Strategy:
    """One strategy per process: stages 03 and 04 may share a kernel, and the collectives of two strategies would mix."""
    return tf.distribute.MirroredStrategy(names)


def scope(strategy: tf.distribute.Strategy | None) -> contextlib.AbstractContextManager:
    """The scope in which models for `strategy` are built and compiled."""
    return strategy.scope() if strategy else contextlib.nullcontext()
