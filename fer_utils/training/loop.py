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

PREDICT_BATCH = 256  # no gradients to keep: larger batches than training's reuse each weight read more often
HEAD_STEPS = 32  # the head alone takes 1 ms a step: run by run of 32, Keras asks for no more time than they do
HISTORY_FIRST = ("epoch", "phase", "learning_rate", "weight_decay", "seconds")
SCORES = ("loss", "accuracy", "macro_f1", "val_loss", "val_accuracy", "val_macro_f1")


class Batches(keras.utils.PyDataset):
    """Shuffled batches of arrays whose order follows from (seed, epoch) alone, or batches in order.

    inputs: an array (n, …) or, for a model of several inputs, a tuple of them; whatever an array of row numbers indexes
    will do. labels: (n,) int. `seed` None keeps the order. `epoch` is the number of the epoch that is shown; `fit` sets
    it: Keras' own `on_epoch_end` also comes once before the first epoch, when it traces a model.

    changes: what is done to each batch, such as fer_utils.augmentation.Changes: changes(inputs, labels, generator) gives
    the inputs and labels shown. The generator follows from (seed, epoch, number of the batch) alone, so a resumed epoch
    shows the pictures that it would have shown. Needs a seed.
    """

    def __init__(
        self,
        inputs,
        labels: np.ndarray,
        batch_size: int,
        seed: int | None = None,
        epoch: int = 0,
        changes: Callable[..., tuple] | None = None,
    ):
        super().__init__()
        if changes is not None and seed is None:
            raise ValueError("changes need a seed")
        self.inputs, self.labels, self.batch_size, self.seed, self.epoch = inputs, labels, batch_size, seed, epoch
        self.changes = changes
        self._order()

    def _order(self) -> None:
        n = len(self.labels)
        self.order = (
            np.arange(n) if self.seed is None else np.random.default_rng([self.seed, self.epoch]).permutation(n)
        )

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __getitem__(self, index: int) -> tuple:
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        several = isinstance(self.inputs, tuple)
        inputs = tuple(array[chosen] for array in self.inputs) if several else self.inputs[chosen]
        if self.changes is None:
            return inputs, self.labels[chosen]
        return self.changes(inputs, self.labels[chosen], np.random.default_rng([self.seed, self.epoch, index]))

    def begin_epoch(self, epoch: int) -> None:
        """Take the order of that epoch."""
        self.epoch = epoch
        self._order()


class Interrupted(KeyboardInterrupt):
    """Someone stopped a computation; the message says what is saved and how to go on. A notebook shows it alone."""

    def _render_traceback_(self) -> list[str]:
        return [f"Interrupted: {self}"]  # IPython asks for it instead of a dozen frames of Keras


class _TakeOrder(keras.callbacks.Callback):
    """Gives each epoch the order of its own number."""

    def __init__(self, batches: Batches):
        super().__init__()
        self.batches = batches

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self.batches.begin_epoch(epoch)


class _OneStatistic(keras.callbacks.Callback):
    """Where several devices share a batch, averages what BatchNormalization has seen over them before VAL is scored.

    Keras 3 creates its moving statistics without an aggregation, so that each device keeps its own, of its own part of
    the batches. VAL would be scored with all of them, and a saved model would hold the first device's alone.
    """

    def on_test_begin(self, logs=None) -> None:
        strategy = self.model.distribute_strategy
        if strategy.num_replicas_in_sync == 1:
            return
        for variable in self.model.non_trainable_variables:
            if keras.backend.is_float_dtype(variable.dtype):
                variable.assign(strategy.reduce(tf.distribute.ReduceOp.MEAN, variable.value, axis=None))


class _RecordRates(keras.callbacks.Callback):
    """Puts into the history what the epoch was trained with, and how long it took."""

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
    """A progress bar over the steps of all epochs, with the scores of the last epoch."""

    def __init__(self, initial_epoch: int):
        super().__init__()
        self.initial_epoch, self._bar = initial_epoch, None

    def on_train_begin(self, logs=None) -> None:
        steps = (self.params["epochs"] - self.initial_epoch) * self.params["steps"]
        self._bar = progress.bar(description="epochs", total=steps, unit="steps")

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self._done = 0
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
    """Compile with the specification's loss and metrics; `steps_per_execution` helps where a step takes milliseconds.

    It is 1 where several devices share a batch: `fit` of Keras 3 (3.13, 3.15) fails there with more ("You must feed a value
    for placeholder tensor"). XLA only on a single GPU: on a CPU Keras' `jit_compile="auto"` switches it on too, and its
    convolutions are several times slower there than oneDNN's; over several GPUs it fails in mixed precision
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
    # Now, since slots that came into being while Keras traces the step would have it traced a second time. Of the compiled
    # optimiser: under mixed precision that is a wrapper around the one given, with variables of its own.
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
) -> pd.DataFrame:
    """Train a compiled model for up to `epochs` epochs and return the history, a row an epoch.

    Epochs count on from `first_epoch` (0 for phase 1); the history's `epoch` is the number of epochs finished, 1 the
    first; its `attrs["ended_by"]` says what ended training. With a checkpoint, its file and a key (see TrainingCheckpoint),
    training goes on from the last epoch that an earlier process finished, to the same history. time_budget_minutes: see
    TimeBudget.
    Raises FloatingPointError where the loss is no number any more, ValueError for a batch that devices cannot share evenly,
    Interrupted where someone stops it: called again with the same model, callbacks and a checkpoint at the same path, it
    goes on after the last finished epoch.
    """
    _share_evenly(train, val, model.distribute_strategy.num_replicas_in_sync)
    budget = TimeBudget(phase, time_budget_minutes)
    callbacks = [*callbacks, budget]
    saved = TrainingCheckpoint(*checkpoint) if checkpoint else None
    done = first_epoch + (saved.resume(callbacks) if saved else 0)
    rows = list(saved.rows) if saved else []
    bar = _EpochBar(done)
    try:
        history = model.fit(
            train,
            validation_data=val,
            initial_epoch=done,
            epochs=done if saved and saved.is_stopped else first_epoch + epochs,
            shuffle=False,  # else Keras shuffles the batches once more, by a stream of its own
            callbacks=[
                _TakeOrder(train),
                _OneStatistic(),
                _RecordRates(),
                *callbacks,
                keras.callbacks.TerminateOnNaN(),
                *([saved] if saved else []),
                bar,
            ],
            verbose=0,
        )
    except KeyboardInterrupt:
        kept = saved.after_interrupt() if saved else "nothing of it is kept"
        raise Interrupted(f"{phase} stopped in epoch {train.epoch + 1}; {kept}") from None
    finally:
        bar.on_train_end()  # Keras leaves it out where an error ends training
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


def shown(history: pd.DataFrame) -> pd.DataFrame:
    """What a notebook shows of a history; the file has more."""
    return history[["epoch", "seconds", "learning_rate", *SCORES]].round(dict.fromkeys(SCORES, 4))


def _share_evenly(train: Batches, val: Batches, devices_in_sync: int) -> None:
    """Have the first batch of TRAIN and of VAL fall into parts of one size, a part a device.

    `fit` of Keras 3 (3.13, 3.15) builds a model on the mean of the parts of its first batch, which ends in "Inputs to operation
    AddN must have the same size" where they differ. VAL's batches may have any size; TRAIN's are the user's.
    """
    first = min(train.batch_size, len(train.labels))
    if first % devices_in_sync:
        raise ValueError(
            f"the first batch has {first} images, which {devices_in_sync} devices cannot share evenly: set batch_size to a "
            f"multiple of {devices_in_sync} that is at most {len(train.labels)}, or strategy to 'none'"
        )
    val_first = min(val.batch_size, len(val.labels))
    val.batch_size = max(val_first - val_first % devices_in_sync, 1)


def predict(model: keras.Model, inputs, batch_size: int = PREDICT_BATCH) -> np.ndarray:
    """The model's output for every input, in order, without training's dropout: float32 (n, …)."""
    return np.concatenate([*in_batches(compiled(model), inputs, "predicting", batch_size)])


def in_batches(step: Callable, inputs, description: str, batch_size: int = PREDICT_BATCH) -> Iterator:
    """What `step` gives for each batch, in order.

    step: such as fer_utils.model.compiled makes. inputs as for Batches. `description` names the progress bar.
    """
    n = len(inputs[0] if isinstance(inputs, tuple) else inputs)
    order = Batches(inputs, np.zeros(n, np.int32), batch_size)
    try:
        with progress.bar(description=description, total=n) as bar:
            for i in time_budget.announced(range(len(order)), description):
                given = step(order[i][0])
                bar.update(min(batch_size, n - i * batch_size))
                yield given
    except KeyboardInterrupt:
        raise Interrupted(f"{description} stopped; nothing of this pass is kept. Run this cell again") from None
