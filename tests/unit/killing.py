"""A process that ends in the middle of an epoch, as a callback."""

import gc
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

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
def broken_off(by: type[BaseException], match: str | None = None) -> Iterator[None]:
    """Expects an exception that breaks off a training, and lets go of what was being computed."""
    with pytest.raises(by, match=match) as caught:
        yield
    error: BaseException | None = caught.value
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
    gc.collect()


def killed() -> AbstractContextManager:
    """Expects Killed, and lets go as the end of a process does."""
    return broken_off(Killed)
