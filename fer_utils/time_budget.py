"""Says early how long training will take, and stops it before the time is up.

Knows clocks and Keras callbacks; knows nothing of what is trained.
"""

import time

import keras

from fer_utils.stages import KERNEL_BEGAN

WARM_UP = 2  # steps that compile and choose kernels, left out of the estimate
MEASURED = 10  # steps that the estimate is made from
PASSES_LEFT = 3  # after training: a validation pass, and one each over VAL and TEST in 05
SAVING = 60  # seconds for saving the model, reading it back and the report


class TimeBudget(keras.callbacks.Callback):
    """Print the estimated time after the first steps of a phase, and keep training within a budget.

    minutes: what the whole session may take, counted from the kernel's start; 0 only prints. Training stops after an
    epoch where another whole one would not fit, and within an epoch where the time runs out there; both leave time to
    validate, evaluate and save (PASSES_LEFT validation passes and SAVING seconds). Where the budget stopped training, the
    model goes back to the weights of the lowest `val_loss` so far.

    began: the kernel's start on `time.monotonic`'s clock. clock: that clock; tests turn their own.
    """

    def __init__(self, phase: str, minutes: float, began: float = KERNEL_BEGAN, clock=time.monotonic):
        super().__init__()
        self.phase, self.clock = phase, clock
        self.deadline = began + 60 * minutes if minutes else float("inf")
        self.stopped = False
        self._best_loss, self._best_weights = float("inf"), None
        self._validation = 0.0  # seconds of the last validation pass
        self._step_seconds = None

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self._epoch_began, self._epoch = self.clock(), epoch

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        now, done = self.clock(), batch + 1
        self._last_step = now
        if self._step_seconds is None:
            self._measure(done, now)
        if now + self._reserve() > self.deadline:
            self._stop(f"in epoch {self._epoch + 1}, after {done} of {self.params['steps']} steps")

    def on_test_begin(self, logs=None) -> None:
        self._test_began = self.clock()

    def on_test_end(self, logs=None) -> None:
        self._validation = self.clock() - self._test_began

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        if self.deadline == float("inf"):
            return
        if logs["val_loss"] < self._best_loss:
            self._best_loss, self._best_weights = logs["val_loss"], self.model.get_weights()
        now = self.clock()
        another = now + (now - self._epoch_began) + self._reserve() > self.deadline
        if another and not self.stopped and epoch + 1 < self.params["epochs"]:
            self._stop(f"after epoch {epoch + 1}: another would not fit")

    def on_train_end(self, logs=None) -> None:
        if self.stopped and self._best_weights is not None:
            self.model.set_weights(self._best_weights)

    def _measure(self, done: int, now: float) -> None:
        """Print the estimate once WARM_UP and MEASURED steps are done, or an epoch that has fewer."""
        if not hasattr(self, "_measured_from") and done >= WARM_UP:
            self._measured_from = done, now
            return
        if not hasattr(self, "_measured_from"):
            return
        first, since = self._measured_from
        steps, epochs = self.params["steps"], self.params["epochs"] - self._epoch
        if done - first >= MEASURED or done == steps:
            self._step_seconds = (now - since) / (done - first)
            epoch_seconds = steps * self._step_seconds
            print(
                f"{self.phase}: {1000 * self._step_seconds:,.0f} ms a step, about {in_words(epoch_seconds)} an epoch of "
                f"{steps:,} steps without validation, at most {epochs} epochs: {in_words(epochs * epoch_seconds)}{self._left(now)}"
            )

    def _left(self, now: float) -> str:
        return "" if self.deadline == float("inf") else f"; the budget leaves {in_words(max(0, self.deadline - now))}"

    def _reserve(self) -> float:
        return PASSES_LEFT * self._validation + SAVING

    def _stop(self, where: str) -> None:
        if not self.stopped:
            print(f"{self.phase}: time_budget_minutes stops training {where}")
        self.stopped = self.model.stop_training = True


def in_words(seconds: float) -> str:
    """A duration as a person says it: `45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
