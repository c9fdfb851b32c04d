"""The training loop of both phases, and prediction: batches, callbacks, history."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fer_utils import progress
from fer_utils.training import devices
from fer_utils.training.checkpoint import TrainingCheckpoint
from fer_utils.training.devices import compiled
from fer_utils.training.metrics import Accuracy, MacroScores, cross_entropy
from fer_utils.training.optimizers import innermost
from fer_utils.training.time_budget import TimeBudget

import keras
import numpy as np
import pandas as pd
from tqdm import tqdm

PREDICT_BATCH = 256  # larger than in training, since there are no gradients to store, and faster
HEAD_STEPS = 32  # a step of the head takes 1 ms; 32 steps per call make Keras' overhead small
HISTORY_FIRST = ("epoch", "phase", "learning_rate", "weight_decay", "seconds")
SCORES = ("loss", "accuracy", "macro_f1", "val_loss", "val_accuracy", "val_macro_f1")


class Batches(keras.utils.PyDataset):
    """Batches of arrays, all of one size: JAX compiles for each size, and several devices share a batch evenly.

    inputs: an array (n, …) or, for a model with several inputs, a tuple of arrays. labels: (n,) int, or shares (n, 7) or
    (n, 14). A batch size above n counts as n. epoch: the number of the current epoch; `fit` sets it.

    With a seed the rows are shuffled in an order that depends only on (seed, epoch), and what is left over after the last
    full batch is left out, in each epoch other rows. Without one the order is kept and no row is left out: the last batch is
    filled up with its last row, and a third array, float32 (rows,), has the weights with which a mean over the batches is
    the mean over the rows: 0 for what fills up, and for the others the same number, 1 or a little more.

    changes: such as fer_utils.data.augmentation.Changes: changes(inputs, labels, generator) returns the inputs and labels
    of a batch to train on. The generator depends only on (seed, epoch, number of the batch), so that a resumed epoch has
    the same pictures. Needs a seed.
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
        super().__init__(workers=devices.BATCH_WORKERS, max_queue_size=4)
        if changes is not None and seed is None:
            raise ValueError("changes need a seed")
        self.inputs, self.labels, self.batch_size, self.seed = inputs, labels, min(batch_size, len(labels)), seed
        self.changes = changes
        self.begin_epoch(epoch)

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size if self.seed is not None else -(-len(self.labels) // self.batch_size)

    def __getitem__(self, index: int) -> tuple:
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        rows = np.append(chosen, np.repeat(chosen[-1:], self.batch_size - len(chosen)))
        inputs, labels = keras.tree.map_structure(lambda array: array[rows], self.inputs), self.labels[rows]
        if self.seed is None:
            weights = np.full(self.batch_size, len(self) * self.batch_size / len(self.labels), np.float32)
            weights[len(chosen) :] = 0
            return inputs, labels, weights
        if self.changes is None:
            return inputs, labels
        return self.changes(inputs, labels, np.random.default_rng([self.seed, self.epoch, index]))

    def begin_epoch(self, epoch: int) -> None:
        """Set the order of that epoch."""
        n, self.epoch = len(self.labels), epoch
        self.order = np.arange(n) if self.seed is None else np.random.default_rng([self.seed, epoch]).permutation(n)


class Interrupted(KeyboardInterrupt):
    """A user stopped a computation; the message says what is saved and how to continue. A notebook shows no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Interrupted: {self}"]  # IPython shows it instead of the traceback


class _RecordRates(keras.callbacks.Callback):
    """Adds learning rate, weight decay and seconds of each epoch to the history."""

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self._began, optimizer = time.monotonic(), innermost(self.model.optimizer)
        decay = 0.0 if optimizer.weight_decay is None else float(optimizer.weight_decay)
        self._rates = {"learning_rate": float(optimizer.learning_rate), "weight_decay": decay}

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        logs.update(self._rates, seconds=round(time.monotonic() - self._began, 2))


class _ShowProgress(keras.callbacks.Callback):
    """Shows the steps of all epochs on a progress bar, and the scores of the last epoch."""

    def __init__(self, bar: tqdm):
        super().__init__()
        self._bar = bar

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self._done = 0
        self._bar.set_description(f"epoch {epoch + 1} of {self.params['epochs']}")

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        done = min(batch + 1, self.params["steps"])  # see TimeBudget
        self._bar.update(done - self._done)
        self._done = done

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        names = {"loss": "loss", "accuracy": "accuracy", "val_loss": "VAL loss", "val_accuracy": "VAL accuracy"}
        scores = ", ".join(f"{name} {logs[key]:.3f}" for key, name in names.items() if key in logs)
        self._bar.set_postfix_str(f"epoch {epoch + 1}: {scores}")


def compile_for_training(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, steps_per_execution: int = 1
) -> None:
    """Compile with the specification's loss and metrics; `steps_per_execution` helps if a step takes milliseconds.

    In mixed_float16 Keras scales the loss, and skips a step whose gradients overflow.
    """
    model.compile(
        optimizer=optimizer,
        loss=cross_entropy,
        weighted_metrics=[Accuracy(name="accuracy"), MacroScores()],
        jit_compile=devices.compiles_with_xla(),
        steps_per_execution=steps_per_execution,
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
    tensorboard: a folder for the event files of keras.callbacks.TensorBoard. Raises FloatingPointError if the loss is not
    finite, ValueError for a batch that devices cannot share evenly, and Interrupted if a user stops it: called again with
    the same model, callbacks and checkpoint, it resumes after the last finished epoch.
    """
    _share_evenly(train, val, devices.n_sharing())
    budget = TimeBudget(phase, time_budget_minutes)
    callbacks = [*callbacks, budget]
    # What "auto" chose belongs to the key: on another machine it may choose another precision.
    saved = TrainingCheckpoint(checkpoint[0], f"{checkpoint[1]} {model.dtype_policy.name}") if checkpoint else None
    done = first_epoch + (saved.resume(callbacks) if saved else 0)
    rows = list(saved.rows) if saved else []
    if tensorboard:
        callbacks = [*callbacks, keras.callbacks.TensorBoard(tensorboard, write_graph=False)]
    end = done if saved and saved.is_stopped else first_epoch + epochs
    bar = progress.bar(description="epochs", total=(end - done) * len(train), unit="steps")
    try:
        history = model.fit(
            train,
            validation_data=val,
            initial_epoch=done,
            epochs=end,
            shuffle=False,  # `train` is already shuffled
            callbacks=[
                keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: train.begin_epoch(epoch)),
                _RecordRates(),
                *callbacks,
                keras.callbacks.TerminateOnNaN(),
                *([saved] if saved else []),
                _ShowProgress(bar),
            ],
            verbose=0,
        )
    except KeyboardInterrupt:
        kept = "nothing of it is kept"
        if saved:
            kept = f"finished epochs kept in {saved.path.name}: {len(saved.rows)}.\nRun this cell again to go on after them; "
            kept += "after a restart of the kernel, run the notebook from its top"
        raise Interrupted(f"{phase} stopped in epoch {train.epoch + 1}; {kept}") from None
    finally:
        bar.close()
    table = pd.concat([pd.DataFrame(rows), pd.DataFrame(history.history)], ignore_index=True)
    table = table.assign(epoch=first_epoch + 1 + np.arange(len(table)), phase=phase)
    if not np.isfinite(table["loss"]).all():
        raise FloatingPointError(
            f"{phase}: the loss is no number in epoch {table['epoch'].iloc[-1]}: lower learning_rate"
        )
    table = table[[*HISTORY_FIRST, *(name for name in table if name not in HISTORY_FIRST)]]
    table.attrs["ended_by"] = budget.ended_by(len(table), epochs)
    return table


def shown(history: pd.DataFrame) -> pd.DataFrame:
    """The columns of a history that a notebook shows."""
    return history[["epoch", "seconds", "learning_rate", *SCORES]].round(dict.fromkeys(SCORES, 4))


def _share_evenly(train: Batches, val: Batches, n_devices: int) -> None:
    """Require that the devices can share the batches of TRAIN, whose size the user chose, and adjust VAL's size to that."""
    if train.batch_size % n_devices:
        raise ValueError(
            f"a batch has {train.batch_size} images, which {n_devices} devices cannot share evenly: set batch_size to a "
            f"multiple of {n_devices} that is at most {len(train.labels)}"
        )
    val.batch_size += -val.batch_size % n_devices


def predict(model: keras.Model, inputs, batch_size: int = PREDICT_BATCH) -> np.ndarray:
    """The model's output for every input, in order, in inference mode: float32 (n, …)."""
    return np.concatenate([*in_batches(compiled(model), inputs, "predicting", batch_size)])


def in_batches(step: Callable, inputs, description: str, batch_size: int = PREDICT_BATCH) -> Iterator:
    """Yield the result of `step`, such as from devices.compiled, for each batch of `inputs` (as for Batches), in order.

    All batches have one length, since each length is compiled anew: the last one is filled up with the last row, which is
    left out of its result. description: the progress bar's text.
    """
    n = len(keras.tree.flatten(inputs)[0])
    size = min(batch_size, n)
    try:
        with progress.bar(description=description, total=n) as bar:
            for start in range(0, n, batch_size):
                rows, own = np.minimum(np.arange(start, start + size), n - 1), slice(min(size, n - start))
                outputs = step(keras.tree.map_structure(lambda array, rows=rows: array[rows], inputs))
                bar.update(own.stop)
                yield keras.tree.map_structure(lambda array, own=own: array[own], outputs)
    except KeyboardInterrupt:
        raise Interrupted(f"{description} stopped; nothing of this pass is kept. Run this cell again") from None
