"""The training loop of both phases, and prediction: batches, callbacks, history."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fer_utils import progress
from fer_utils.training import devices, time_budget
from fer_utils.training.checkpoint import TrainingCheckpoint
from fer_utils.training.metrics import Accuracy, MacroScores, cross_entropy
from fer_utils.training.network import compiled
from fer_utils.training.optimizers import LossScale, innermost
from fer_utils.training.time_budget import TimeBudget

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

PREDICT_BATCH = 256  # larger than in training, since there are no gradients to store, and faster
HEAD_STEPS = 32  # a step of the head takes 1 ms; 32 steps per call make Keras' overhead small
HISTORY_FIRST = ("epoch", "phase", "learning_rate", "weight_decay", "seconds")
SCORES = ("loss", "accuracy", "macro_f1", "val_loss", "val_accuracy", "val_macro_f1")


class Batches(keras.utils.PyDataset):
    """Batches of arrays, shuffled in an order that depends only on (seed, epoch), or in the original order.

    inputs: an array (n, …) or, for a model with several inputs, a tuple of arrays; any object that can be indexed with an
    array of row numbers works. labels: (n,) int. `seed` None keeps the order. `epoch` is the number of the current epoch,
    set by `fit`: Keras also calls `on_epoch_end` before the first epoch, when it traces a model.

    changes: changes of each batch, such as fer_utils.data.augmentation.Changes: changes(inputs, labels, generator) returns
    the inputs and labels to train on. The generator depends only on (seed, epoch, number of the batch), so that a resumed
    epoch has the same pictures. Needs a seed.

    least_last: a last batch of fewer rows is joined to the one before it, see `training_batches`.
    """

    def __init__(
        self,
        inputs,
        labels: np.ndarray,
        batch_size: int,
        seed: int | None = None,
        epoch: int = 0,
        changes: Callable[..., tuple] | None = None,
        least_last: int = 1,
    ):
        super().__init__()
        if changes is not None and seed is None:
            raise ValueError("changes need a seed")
        self.inputs, self.labels, self.batch_size, self.seed, self.epoch = inputs, labels, batch_size, seed, epoch
        self.changes, self.least_last = changes, least_last
        self._order()

    def _order(self) -> None:
        n = len(self.labels)
        self.order = (
            np.arange(n) if self.seed is None else np.random.default_rng([self.seed, self.epoch]).permutation(n)
        )

    def __len__(self) -> int:
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest >= self.least_last or not full)

    def __getitem__(self, index: int) -> tuple:
        end = (index + 1) * self.batch_size if index + 1 < len(self) else len(self.labels)
        chosen = self.order[index * self.batch_size : end]
        several = isinstance(self.inputs, tuple)
        inputs = tuple(array[chosen] for array in self.inputs) if several else self.inputs[chosen]
        if self.changes is None:
            return inputs, self.labels[chosen]
        return self.changes(inputs, self.labels[chosen], np.random.default_rng([self.seed, self.epoch, index]))

    def begin_epoch(self, epoch: int) -> None:
        """Set the order of that epoch."""
        self.epoch = epoch
        self._order()


def training_batches(
    inputs, labels: np.ndarray, batch_size: int, seed: int, epoch: int = 0, changes: Callable[..., tuple] | None = None
) -> Batches:
    """Batches to train on, see Batches. A last batch of less than a quarter is joined to the one before it.

    Whatever its size, the last batch counts 10 % in the moving statistics of BatchNormalization with which VAL is scored
    (network.TRAINED_NORM_MOMENTUM). A batch of one picture has no variance, and several devices cannot share it.
    """
    return Batches(inputs, labels, batch_size, seed, epoch, changes, least_last=max(1, batch_size // 4))


class _EveryEpoch(keras.utils.PyDataset):
    """The batches of one epoch after the other without an end, so that one iterator serves the whole training.

    From a finite dataset Keras makes a new iterator each epoch. On several devices the end of an iterator may wait for a thread
    of tf.data that sleeps for about as long as the iterator exists, up to a minute.
    """

    num_batches = None  # how Keras knows a dataset without an end

    def __init__(self, batches: Batches, first_epoch: int):
        super().__init__()
        self.batches, self.first_epoch = batches, first_epoch

    def __getitem__(self, index: int) -> tuple:
        epoch, place = divmod(index, len(self.batches))
        if self.batches.epoch != self.first_epoch + epoch:
            self.batches.begin_epoch(self.first_epoch + epoch)
        return self.batches[place]


class Interrupted(KeyboardInterrupt):
    """A user stopped a computation; the message says what is saved and how to continue. A notebook shows no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Interrupted: {self}"]  # IPython shows it instead of the traceback


class _TakeOrder(keras.callbacks.Callback):
    """Sets the order of the batches at the start of each epoch."""

    def __init__(self, batches: Batches):
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self.batches.begin_epoch(epoch)


class _OneStatistic(keras.callbacks.Callback):
    """With several devices, averages BatchNormalization's moving statistics over the devices before VAL is scored.

    Keras 3 creates moving statistics without an aggregation, so that each device has separate ones, from its part of the
    batches. VAL would be scored with different statistics, and a saved model would have those of the first device.
    `strategy.reduce` does not average them: it takes them for copies of one value and returns the first device's.
    """

    def on_test_begin(self, logs=None) -> None:
        strategy = self.model.distribute_strategy
        if strategy.num_replicas_in_sync == 1:
            return
        for variable in self.model.non_trainable_variables:
            if keras.backend.is_float_dtype(variable.dtype):
                values = [value.numpy() for value in strategy.experimental_local_results(variable.value)]
                variable.assign(np.mean(values, axis=0))


class _RecordRates(keras.callbacks.Callback):
    """Adds learning rate, weight decay and seconds of each epoch to the history."""

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self._began = time.monotonic()
        optimizer = innermost(self.model.optimizer)
        decay = optimizer.weight_decay
        self._rates = {
            "learning_rate": float(optimizer.learning_rate.numpy()),
            "weight_decay": float(decay.numpy()) if isinstance(decay, keras.Variable) else float(decay or 0),
        }

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        logs.update(self._rates, seconds=round(time.monotonic() - self._began, 2))


class _EpochBar(keras.callbacks.Callback):
    """A progress bar over the steps of all epochs that shows the scores of the last epoch."""

    def __init__(self, initial_epoch: int):
        super().__init__()
        self.initial_epoch, self.epoch, self._bar = initial_epoch, initial_epoch, None

    def on_train_begin(self, logs=None) -> None:
        steps = (self.params["epochs"] - self.initial_epoch) * self.params["steps"]
        self._bar = progress.bar(description="epochs", total=steps, unit="steps")

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self._done, self.epoch = 0, epoch
        self._bar.set_description(f"epoch {epoch + 1} of {self.params['epochs']}")

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        self._bar.update(batch + 1 - self._done)
        self._done = batch + 1

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        names = {"loss": "loss", "accuracy": "accuracy", "val_loss": "VAL loss", "val_accuracy": "VAL accuracy"}
        scores = ", ".join(f"{name} {logs[key]:.3f}" for key, name in names.items() if key in logs)
        self._bar.set_postfix_str(f"epoch {epoch + 1}: {scores}")

    def on_train_end(self, logs=None) -> None:
        if self._bar is not None:
            self._bar.close()


def compile_for_training(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, steps_per_execution: int = 1
) -> None:
    """Compile with the specification's loss and metrics; `steps_per_execution` helps if a step takes milliseconds.

    With several devices it is 1: with more, `fit` of Keras 3 (3.13, 3.15) fails there ("You must feed a value for
    placeholder tensor"). XLA is used only on a single GPU: Keras' `jit_compile="auto"` also enables it on a CPU, where its
    convolutions are several times slower than oneDNN's; with several GPUs it fails in mixed precision
    (github.com/keras-team/keras/issues/21366).
    """
    is_shared = tf.distribute.get_strategy().num_replicas_in_sync > 1
    model.compile(
        optimizer=LossScale(optimizer) if model.dtype_policy.name == "mixed_float16" else optimizer,
        loss=cross_entropy,
        metrics=[Accuracy(name="accuracy"), MacroScores()],
        jit_compile="auto" if devices.has_gpu() and not is_shared else False,
        steps_per_execution=1 if is_shared else steps_per_execution,
    )
    # Slots that are created while Keras traces the step would cause a second tracing. `model.optimizer`, since in mixed
    # precision it is a wrapper around `optimizer` with additional variables.
    model.optimizer.build(model.trainable_variables)


def fit(
    model: keras.Model,
    train: Batches,
    val: Batches,
    phase: str,
    first_epoch: int,
    epochs: int,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoint: tuple[Path, str] | None = None,
    time_budget_minutes: float = 0.0,
    tensorboard: Path | None = None,
) -> pd.DataFrame:
    """Train a compiled model for up to `epochs` epochs and return the history, one row per epoch.

    Epochs are counted from `first_epoch` (0 for phase 1); the history's `epoch` starts at 1; its `attrs["ended_by"]` says
    what ended training. checkpoint: a file and a key (see TrainingCheckpoint); training resumes after the last epoch that
    an earlier process finished, with the same history as without an interruption. time_budget_minutes: see TimeBudget.
    tensorboard: a folder for TensorBoard's event files, see TensorBoardLog. Raises FloatingPointError if the loss is not
    finite, ValueError for a batch that devices cannot share evenly, and Interrupted if a user stops it: called again with
    the same model, callbacks and checkpoint, it resumes after the last finished epoch.
    """
    n_devices = model.distribute_strategy.num_replicas_in_sync
    _share_evenly(train, val, n_devices)
    budget = TimeBudget(phase, time_budget_minutes)
    callbacks = [*callbacks, budget]
    # What "auto" chose belongs to the key: on another machine it may choose another precision.
    saved = TrainingCheckpoint(checkpoint[0], f"{checkpoint[1]} {model.dtype_policy.name}") if checkpoint else None
    done = first_epoch + (saved.resume(callbacks) if saved else 0)
    rows = list(saved.rows) if saved else []
    watched = [_tensorboard_log(tensorboard, first_epoch, rows)] if tensorboard else []
    bar = _EpochBar(done)
    if n_devices == 1:
        batches, order = {"x": train}, [_TakeOrder(train)]
    else:
        batches, order = {"x": _EveryEpoch(train, done), "steps_per_epoch": len(train)}, []
    try:
        history = model.fit(
            **batches,
            validation_data=val,
            initial_epoch=done,
            epochs=done if saved and saved.is_stopped else first_epoch + epochs,
            shuffle=False,  # `train` is already shuffled
            callbacks=[
                *order,
                _OneStatistic(),
                _RecordRates(),
                *callbacks,
                *watched,
                keras.callbacks.TerminateOnNaN(),
                *([saved] if saved else []),
                bar,
            ],
            verbose=0,
        )
    except KeyboardInterrupt:
        kept = saved.after_interrupt() if saved else "nothing of it is kept"
        raise Interrupted(f"{phase} stopped in epoch {bar.epoch + 1}; {kept}") from None
    finally:
        bar.on_train_end()  # Keras does not call it after an error
    table = pd.concat([pd.DataFrame(rows), pd.DataFrame(history.history)], ignore_index=True)
    table.insert(0, "epoch", first_epoch + 1 + np.arange(len(table)))
    table.insert(1, "phase", phase)
    if not np.isfinite(table["loss"]).all():
        raise FloatingPointError(
            f"{phase}: the loss is no number in epoch {table['epoch'].iloc[-1]}: lower learning_rate"
        )
    table = table[[*HISTORY_FIRST, *(name for name in table if name not in HISTORY_FIRST)]]
    table.attrs["ended_by"] = budget.ended_by(len(table), epochs)
    return table


def _tensorboard_log(*arguments) -> keras.callbacks.Callback:
    from fer_utils.training.tensorboard import TensorBoardLog  # it draws, and predict needs no plots

    return TensorBoardLog(*arguments)


def shown(history: pd.DataFrame) -> pd.DataFrame:
    """The columns of a history that a notebook shows."""
    return history[["epoch", "seconds", "learning_rate", *SCORES]].round(dict.fromkeys(SCORES, 4))


def _share_evenly(train: Batches, val: Batches, devices_in_sync: int) -> None:
    """Require that the devices can share the batches of TRAIN, and adjust VAL's batch size to that.

    `fit` of Keras 3 (3.13, 3.15) builds a model on the mean of the parts of the first batch, and fails with "Inputs to
    operation AddN must have the same size" if their sizes differ. A device without a picture computes the mean of nothing
    in BatchNormalization, and its gradients are no numbers. TRAIN's batch size is a parameter of the user.
    """
    first = min(train.batch_size, len(train.labels))
    if first % devices_in_sync:
        raise ValueError(
            f"the first batch has {first} images, which {devices_in_sync} devices cannot share evenly: set batch_size to a "
            f"multiple of {devices_in_sync} that is at most {len(train.labels)}, or strategy to 'none'"
        )
    last = len(train.labels) - (len(train) - 1) * train.batch_size
    if -(-last // devices_in_sync) * (devices_in_sync - 1) >= last:  # a device takes the ceiling of its share
        raise ValueError(
            f"the last batch has {last} images, which leaves one of {devices_in_sync} devices without any: choose another "
            "batch_size, or strategy 'none'"
        )
    val_first = min(val.batch_size, len(val.labels))
    val.batch_size = max(val_first - val_first % devices_in_sync, 1)


def predict(model: keras.Model, inputs, batch_size: int = PREDICT_BATCH) -> np.ndarray:
    """The model's output for every input, in order, in inference mode: float32 (n, …)."""
    return np.concatenate([*in_batches(compiled(model), inputs, "predicting", batch_size)])


def in_batches(step: Callable, inputs, description: str, batch_size: int = PREDICT_BATCH) -> Iterator:
    """Yield the result of `step` for each batch, in order.

    step: a function such as from fer_utils.training.network.compiled. inputs: as for Batches. description: the progress
    bar's text.
    """
    n = len(inputs[0] if isinstance(inputs, tuple) else inputs)
    order = Batches(inputs, np.zeros(n, np.int32), batch_size)
    try:
        with progress.bar(description=description, total=n) as bar:
            for i in time_budget.announced(range(len(order)), description):
                outputs = step(order[i][0])
                bar.update(min(batch_size, n - i * batch_size))
                yield outputs
    except KeyboardInterrupt:
        raise Interrupted(f"{description} stopped; nothing of this pass is kept. Run this cell again") from None
