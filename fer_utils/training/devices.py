"""What TensorFlow and JAX need of their own: devices, precision, kernels, compiled functions and gradients.

All other modules compute with Keras and NumPy alone. The environment variable KERAS_BACKEND chooses: `tensorflow`, the
default, is several times faster on a CPU; `jax` also computes on several GPUs and on TPUs.
"""

import os
from collections.abc import Callable

from fer_utils import places

import keras
import numpy as np

BACKEND = keras.config.backend()
if BACKEND == "tensorflow":
    # TensorFlow takes all of a GPU's memory by default. A second process would find none: another notebook's kernel, a sweep.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # read when a GPU is first used
    import tensorflow as tf
elif BACKEND == "jax":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the same for JAX
    import jax
else:
    raise ImportError(f"KERAS_BACKEND is {BACKEND!r}: this project computes with tensorflow or jax")

# Threads of Keras that make batches. With one, tf.data tunes how many it prepares, and when an epoch's iterator is destroyed
# TensorFlow 2.20 sometimes waits for the tuning thread, some five seconds without computing. On JAX Keras 3.15 traces the step
# with a first batch, and the first epoch would begin with those that several threads have prepared by then.
BATCH_WORKERS = 2 if BACKEND == "tensorflow" else 1

TENSOR_CORES = (7, 0)  # compute capability from which a GPU multiplies float16 in tensor cores


def has_gpu() -> bool:
    """Whether the backend finds a GPU."""
    return bool(_gpus())


def _gpus() -> list[tuple[str, tuple[int, ...]]]:
    """Name and compute capability of each GPU."""
    if BACKEND == "jax":
        found = [device for device in jax.devices() if device.platform == "gpu"]
        return [(gpu.device_kind, tuple(map(int, str(gpu.compute_capability).split(".")))) for gpu in found]
    details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    return [(gpu.get("device_name", "GPU"), gpu.get("compute_capability", (0, 0))) for gpu in details]


def has_tpu() -> bool:
    """Whether JAX finds a TPU."""
    return BACKEND == "jax" and jax.default_backend() == "tpu"


def describe() -> str:
    """A description of the devices that the backend computes on."""
    names = [device.device_kind for device in jax.devices()] if has_tpu() else [name for name, _ in _gpus()]
    return f"{', '.join(names) or f'CPU, {os.cpu_count()} cores'} with {versions()[1]}"


def versions() -> tuple[str, str]:
    """Names and versions of Keras and of its backend."""
    return f"keras {keras.__version__}", f"{BACKEND} {(jax if BACKEND == 'jax' else tf).__version__}"


def set_up(seed: int, deterministic: str = "auto", precision: str = "float32") -> None:
    """Set seeds, kernels, precision and the devices that share each batch, and print them: see the functions below."""
    kernels = "deterministic" if make_reproducible(seed, deterministic) else "default"
    skip_graph_optimizer()
    print(f"computing on {describe()} in {choose_precision(precision)} with {kernels} kernels")
    print(share_batches(), end="")


def skip_graph_optimizer() -> None:
    """Without a GPU, switch off TensorFlow's graph optimizer (Grappler) for the functions that are traced from now on.

    It costs seconds before the first and the second epoch, and makes no step faster (docs/measurements.md). On a GPU it
    chooses the layout of the tensors, and stays on.
    """
    if BACKEND == "tensorflow" and not has_gpu():
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def make_reproducible(seed: int, deterministic: str = "auto") -> bool:
    """Seed Python, NumPy and the backend; return whether deterministic kernels were chosen.

    deterministic: `yes`, `no`, or `auto`: yes on a GPU, whose default kernels sum in a different order in each run; no on
    a CPU, whose default kernels are reproducible, and where TensorFlow's deterministic ones more than double a step's time.
    With TensorFlow's deterministic kernels Keras compiles nothing with XLA, and an operation without one raises
    UnimplementedError. JAX reads its flag when it first computes. The setting lasts until the process ends.
    """
    on_gpu = places.shows_gpu() if BACKEND == "jax" else has_gpu()  # JAX would begin to compute to find its devices
    chosen = deterministic == "yes" or (deterministic == "auto" and on_gpu)
    if chosen and BACKEND == "tensorflow":
        tf.config.experimental.enable_op_determinism()
    elif chosen and (flag := "--xla_gpu_deterministic_ops=true") not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    keras.utils.set_random_seed(seed)
    return chosen


def choose_precision(precision: str) -> str:
    """Set Keras' precision and return it: `float32`, `mixed_float16`, `mixed_bfloat16`, or `auto`.

    Preprocessing, softmax and loss stay float32. `auto` is mixed_bfloat16 on TPUs, mixed_float16 if every GPU has tensor
    cores, as a T4 and newer ones have, and otherwise float32; a P100 and CPUs are not faster with float16. CPUs with
    AVX512_BF16 or AMX are faster with mixed_bfloat16 in large batches (docs/measurements.md).
    """
    if precision == "auto":
        capabilities = [capability for _, capability in _gpus()]
        on_gpu = "mixed_float16" if capabilities and min(capabilities) >= TENSOR_CORES else "float32"
        precision = "mixed_bfloat16" if has_tpu() else on_gpu
    keras.mixed_precision.set_global_policy(precision)
    return precision


def share_batches() -> str:
    """With JAX, let all devices of this machine share each batch (DataParallel); return a line that says so, or nothing.

    Must precede the first network. Batch sizes are global: each of n devices gets an n-th. With TensorFlow one device
    computes; the line then says how to use the others.
    """
    n_devices = len(jax.devices() if BACKEND == "jax" else _gpus())
    if n_devices < 2:
        return ""
    if BACKEND == "tensorflow":
        return f"1 of {n_devices} GPUs computes: set KERAS_BACKEND=jax to use them all\n"
    keras.distribution.set_distribution(keras.distribution.DataParallel())
    return f"{n_devices} devices share each batch\n"


def n_sharing() -> int:
    """The number of devices that share each batch."""
    distribution = keras.distribution.distribution()
    return 1 if distribution is None else len(distribution.device_mesh.devices.flatten())


def compiles_with_xla() -> str | bool:
    """`jit_compile` for Keras: not for TensorFlow on a CPU, where XLA's convolutions are several times slower than oneDNN's."""
    return "auto" if BACKEND == "jax" or has_gpu() else False


def compiled(model: keras.Model) -> Callable:
    """The model as a compiled function in inference mode, from arrays to arrays, for batches of any length.

    Takes an array, or a tuple of arrays for a model with several inputs; returns an array or a list of arrays. A batch is
    padded to a power of two, and a multiple of the devices, since each length is compiled anew.
    """
    distribution = keras.distribution.distribution()

    def outputs(batch):
        n = len(keras.tree.flatten(batch)[0])
        length = -(-(1 << (n - 1).bit_length()) // n_sharing()) * n_sharing()

        def fitted(array: np.ndarray):
            array = np.concatenate([array, np.repeat(array[-1:], length - n, axis=0)]) if length > n else array
            if distribution is None:
                return array
            return keras.distribution.distribute_tensor(array, distribution.get_data_layout(array.shape))

        inputs = keras.tree.map_structure(fitted, list(batch) if isinstance(batch, tuple) else batch)
        return keras.tree.map_structure(lambda array: array[:n], model.predict_on_batch(inputs))

    return outputs


def jitted(function: Callable) -> Callable:
    """A function of tensors, compiled."""
    return jax.jit(function) if BACKEND == "jax" else tf.function(function)


def gradient(function: Callable, x):
    """The gradient of the sum of a function's values by its argument, a tensor."""
    if BACKEND == "jax":
        return jax.grad(lambda given: function(given).sum())(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    return tape.gradient(value, x)
