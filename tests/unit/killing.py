"""A process that ends in the middle of an epoch, as a callback."""

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import keras
import pytest


class Killed(Exception):
    """Stands for the end of the process."""


class KillIn(keras.callbacks.Callback):
    """Raises Killed after the third batch of an epoch."""

    STATE = ()

    def __init__(self, epoch: int):
        super().__init__()
        self.epoch, self._here = epoch, -1

    def on_epoch_begin(self, epoch, logs=None):
        self._here = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self._here == self.epoch and batch == 2:
            raise Killed


@contextmanager
def killed() -> Iterator[None]:
    """Expects Killed, and lets go of what was being computed, as the end of a process does."""
    with pytest.raises(Killed) as caught:
        yield
    traceback.clear_frames(caught.tb)
    gc.collect()
