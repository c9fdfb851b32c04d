"""What IPython runs when a kernel starts that rehearses two T4: two logical CPU devices that pass for GPUs.

The branches for GPUs are taken as far as a CPU can: mirrored strategy, mixed_float16, deterministic kernels. With
FER_TEST_KILL_AFTER the process ends, as `kill -9` ends it, once 04 has saved that many epochs.
"""

import os

import tensorflow as tf


def _pass_for_gpus() -> None:
    physical, logical = tf.config.list_physical_devices, tf.config.list_logical_devices
    (cpu,) = physical("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{place}", "GPU") for place in range(2)]
    tf.config.list_physical_devices = lambda kind=None: gpus if kind == "GPU" else physical(kind)
    tf.config.list_logical_devices = lambda kind=None: logical("CPU" if kind == "GPU" else kind)
    tf.config.experimental.get_device_details = lambda gpu: {"device_name": "Tesla T4", "compute_capability": (7, 5)}


def _end_after(epochs: int) -> None:
    from fer_utils.checkpoint import TrainingCheckpoint

    save = TrainingCheckpoint.on_epoch_end

    def save_and_end(self, epoch, logs=None):
        save(self, epoch, logs)
        if "fine_tune" in self.path.name and len(self.rows) == epochs:
            os._exit(9)

    TrainingCheckpoint.on_epoch_end = save_and_end


_pass_for_gpus()
if "FER_TEST_KILL_AFTER" in os.environ:
    _end_after(int(os.environ["FER_TEST_KILL_AFTER"]))
