"""Announces the estimated time of long steps, and stops training before the session's time is over."""

import time
from collections.abc import Callable, Iterator, Sequence

from fer_utils.progress import SHORT, announce, in_words

import keras
import psutil

WARM_UP = 2  # steps that compile and choose kernels, excluded from the estimate
MEASURED = 10  # steps used for the estimate
PASSES_LEFT = 3  # validation passes after training stops: its last validation, then VAL and TEST in stage 05
SAVING = 60  # seconds; minimum reserve for saving the model, loading it and the report
SHARE_LEFT = 0.05  # of the budget; minimum reserve, since stage 05 runs the whole network, but validation may use cached activations


class TimeBudget(keras.callbacks.Callback):
    """Print the estimated time after the first steps of a phase, and keep training within a budget.

    minutes: the session's time limit; 0 only prints. began: the session's start on `clock`, in seconds; None: when this
    process, the kernel, was started. Training stops after an epoch if another one would not fit, and within an epoch if the
    time runs out there. Both leave time to validate, evaluate and save (PASSES_LEFT validation passes, and the larger of
    SAVING and SHARE_LEFT). The weights that the model then has depend on other callbacks, such as EarlyStopping.
    """

    STATE = ("stopped",)  # restored from a checkpoint

    def __init__(
        self, phase: str, minutes: float, began: float | None = None, clock: Callable[[], float] = time.monotonic
    ):
        super().__init__()
        self.phase, self.clock = phase, clock
        if began is None:
            began = clock() - (time.time() - psutil.Process().create_time())
        self.deadline = began + 60 * minutes if minutes else float("inf")
        self.margin = max(SAVING, SHARE_LEFT * 60 * minutes)
        self.stopped = False

    def ended_by(self, epochs_trained: int, epochs: int) -> str:
        """A description of what ended a training of up to `epochs` epochs."""
        if self.stopped:
            return "time budget"
        return "early stopping" if epochs_trained < epochs else "last epoch"

    def on_train_begin(self, logs=None) -> None:
        self._validation = 0.0  # seconds of the last validation pass
        self._is_warm = self._announced = False

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self._epoch, self._epoch_began = epoch, self.clock()
        self._since = 0, self._epoch_began  # the estimate counts from here: steps done, and when

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        # With several steps an execution Keras counts the last one of an epoch as full.
        now, done = self.clock(), min(batch + 1, self.params["steps"])
        if not self._announced:
            self._measure(done, now)
        if now + self._reserve() > self.deadline:
            self._stop(f"in epoch {self._epoch + 1}, after {done} of {self.params['steps']} steps")

    def on_test_begin(self, logs=None) -> None:
        self._test_began = self.clock()

    def on_test_end(self, logs=None) -> None:
        self._validation = self.clock() - self._test_began

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        now = self.clock()
        another = now + (now - self._epoch_began) + self._reserve() > self.deadline
        if another and not self.stopped and epoch + 1 < self.params["epochs"]:
            self._stop(f"after epoch {epoch + 1}: another would not fit")

    def _measure(self, done: int, now: float) -> None:
        """Announce the time when there are enough steps after WARM_UP; Keras may run several at once."""
        before, since = self._since
        if not self._is_warm:
            self._is_warm, self._since = done >= min(WARM_UP, self.params["steps"]), (done, now)
        elif done - before >= MEASURED or done == self.params["steps"]:
            self._announced = True
            self._announce((now - since) / (done - before), now)

    def _announce(self, step: float, now: float) -> None:
        steps, epochs = self.params["steps"], self.params["epochs"] - self._epoch
        total, shown = epochs * steps * step, f"{1000 * step:,.0f}" if step >= 0.01 else f"{1000 * step:.2g}"
        left = "" if self.deadline == float("inf") else f"; the budget leaves {in_words(max(0, self.deadline - now))}"
        text = (
            f"{self.phase}: {shown} ms a step; without validation {in_words(steps * step)} an epoch of {steps:,} "
            f"steps, at most {in_words(total)} for {epochs} epochs{left}"
        )
        announce(text, total)

    def _reserve(self) -> float:
        return PASSES_LEFT * self._validation + self.margin

    def _stop(self, where: str) -> None:
        if not self.stopped:
            print(f"{self.phase}: time_budget_minutes stops training {where}")
        self.stopped = self.model.stop_training = True


def announced(batches: Sequence, name: str, clock: Callable[[], float] = time.monotonic) -> Iterator:
    """Yield the batches; after the first ones announce the time for all, if that is more than SHORT seconds."""
    for done, batch in enumerate(batches):
        if done == WARM_UP:
            since = clock()
        elif done == WARM_UP + MEASURED // 2:
            total = len(batches) * (clock() - since) / (done - WARM_UP)
            if total > SHORT:
                announce(f"{name}: about {in_words(total)} for {len(batches):,} batches", total)
        yield batch
