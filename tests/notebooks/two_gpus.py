"""What IPython runs when a kernel starts that rehearses two T4: two logical CPU devices that pass for GPUs.

The branches for GPUs are taken as far as a CPU can: mirrored strategy, mixed_float16, deterministic kernels.
FER_TEST_CHECKPOINT names a file to which 04's checkpoint after its first epoch is copied: what a kill at that moment leaves
behind.
"""

import os
import shutil

import tensorflow as tf


def _pass_for_gpus() -> None:
    physical, logical = tf.config.list_physical_devices, tf.config.list_logical_devices
    (cpu,) = physical("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{place}", "GPU") for place in range(2)]
    tf.config.list_physical_devices = lambda kind=None: gpus if kind == "GPU" else physical(kind)
    tf.config.list_logical_devices = lambda kind=None: logical("CPU" if kind == "GPU" else kind)
    tf.config.experimental.get_device_details = lambda gpu: {"device_name": "Tesla T4", "compute_capability": (7, 5)}
    # On a real GPU it stays on; here it would rewrite the graph of every layer on two devices for minutes.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def _copy_checkpoint(to: str) -> None:
    from fer_utils.training.checkpoint import TrainingCheckpoint

    save = TrainingCheckpoint.on_epoch_end

    def save_and_copy(self, epoch, logs=None):
        save(self, epoch, logs)
        if "fine_tune" in self.path.name and len(self.rows) == 1:
            shutil.copy(self.path, to)

    TrainingCheckpoint.on_epoch_end = save_and_copy


_pass_for_gpus()
if "FER_TEST_CHECKPOINT" in os.environ:
    _copy_checkpoint(os.environ["FER_TEST_CHECKPOINT"])
