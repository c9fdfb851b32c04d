"""What happens in the middle of an epoch, such as the end of the process, as a callback."""

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import keras
import pytest


class Killed(Exception):
    """Stands for the end of the process."""


def _kill(model: keras.Model) -> None:
    raise Killed


class KillIn(keras.callbacks.Callback):
    """Raises Killed after the third batch of an epoch, or calls `act` with the model, once."""

    STATE = ()

    def __init__(self, epoch: int, act: Callable[[keras.Model], object] = _kill):
        super().__init__()
        self.epoch, self.act, self._here = epoch, act, -1

    def on_epoch_begin(self, epoch, logs=None):
        self._here = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self._here == self.epoch and batch == 2:
            self.epoch = -1
            self.act(self.model)


@contextmanager
def killed() -> Iterator[None]:
    """Expects Killed, and lets go of what was being computed, as the end of a process does."""
    with pytest.raises(Killed) as caught:
        yield
    traceback.clear_frames(caught.tb)
    gc.collect()
