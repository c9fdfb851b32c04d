"""The two training phases: batches, optimisers, callbacks, metrics, history.

Knows how to fit; knows nothing of folders, of the network's layers or of plots.
"""

import time
from collections.abc import Callable, Iterator, Sequence

from fer_utils import devices, progress, time_budget
from fer_utils.checkpoint import TrainingCheckpoint
from fer_utils.classes import CLASSES
from fer_utils.model import compiled

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import ops

PREDICT_BATCH = 256  # no gradients to keep: larger batches than training's reuse each weight read more often
HEAD_STEPS = 32  # the head alone takes 1 ms a step: run by run of 32, Keras asks for no more time than they do
WARM_UP_START = 0.01  # of the learning rate: a step of nothing would be a step lost
HISTORY_FIRST = ("epoch", "phase", "learning_rate", "weight_decay", "seconds")
# What a notebook shows of a history, and with how many digits.
SCORES = ("loss", "accuracy", "macro_f1", "val_loss", "val_accuracy", "val_macro_f1")
SHOWN_DIGITS = dict.fromkeys(SCORES, 4)


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


def is_soft(labels) -> bool:
    """Whether labels are probabilities (n, 7), as mixup and label smoothing make them, and not places in CLASSES."""
    return len(labels.shape) == 2 and labels.shape[-1] == len(CLASSES)


def likeliest(labels):
    """Labels as places in CLASSES; of soft ones the class with the largest share."""
    return ops.argmax(labels, axis=-1) if is_soft(labels) else labels


def cross_entropy(y_true, y_pred):
    """The specification's loss, and for soft labels its generalisation: what smoothing adds is seen in TRAIN alone."""
    if is_soft(y_true):
        return keras.losses.categorical_crossentropy(y_true, y_pred)
    return keras.losses.sparse_categorical_crossentropy(y_true, y_pred)


@keras.saving.register_keras_serializable("fer_utils")
class Accuracy(keras.metrics.SparseCategoricalAccuracy):
    """How often the likeliest class is the label, or the largest share of a soft one."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(likeliest(y_true), y_pred, sample_weight)


@keras.saving.register_keras_serializable("fer_utils")
class MacroScores(keras.metrics.Metric):
    """Macro precision, recall and F1 over all batches of an epoch, from one confusion matrix.

    As scikit-learn's `average="macro", zero_division=0`: the plain mean over the seven classes, a class without
    predictions (or without images) counting 0. Of a soft label the largest share counts.
    """

    def __init__(self, name: str = "macro", **kwargs):
        super().__init__(name=name, **kwargs)
        self.counts = self.add_weight(
            shape=(len(CLASSES), len(CLASSES)), initializer="zeros", name="counts", dtype="float32"
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        true = ops.one_hot(ops.cast(ops.reshape(likeliest(y_true), (-1,)), "int32"), len(CLASSES), dtype="float32")
        predicted = ops.one_hot(ops.argmax(y_pred, axis=-1), len(CLASSES), dtype="float32")
        self.counts.assign_add(ops.matmul(ops.transpose(true), predicted))

    def result(self):
        hits = ops.diagonal(self.counts)
        precision = ops.divide_no_nan(hits, ops.sum(self.counts, axis=0))
        recall = ops.divide_no_nan(hits, ops.sum(self.counts, axis=1))
        f1 = ops.divide_no_nan(2 * precision * recall, precision + recall)
        return {"macro_precision": ops.mean(precision), "macro_recall": ops.mean(recall), "macro_f1": ops.mean(f1)}


class Interrupted(KeyboardInterrupt):
    """Someone stopped a computation; the message says what is saved and how to go on. A notebook shows it alone."""

    def _render_traceback_(self) -> list[str]:
        return [f"Interrupted: {self}"]  # IPython asks for it instead of a dozen frames of Keras


class _OneKernel:
    """Adam's update of a variable in TensorFlow's own kernel: one pass over memory instead of Keras' dozen.

    The same formula (Kingma & Ba 2015, section 2, the efficient form with `epsilon` added to the root) with the same
    slots, so that nothing but rounding differs.
    """

    def update_step(self, gradient, variable, learning_rate):
        place = self._get_variable_index(variable)
        step = ops.cast(self.iterations + 1, "float32")
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[place].value.handle,
            v=self._velocities[place].value.handle,
            beta1_power=ops.power(self.beta_1, step),
            beta2_power=ops.power(self.beta_2, step),
            lr=ops.cast(learning_rate, "float32"),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=ops.cast(gradient, variable.dtype),
        )

    def _clip_gradients(self, gradients):
        return gradients  # Keras clips here, each replica its own share; we clip their sum, below

    def _all_reduce_sum_gradients(self, grads_and_vars):
        gradients, variables = zip(*super()._all_reduce_sum_gradients(grads_and_vars), strict=True)
        return list(zip(super()._clip_gradients(list(gradients)), variables, strict=True))


@keras.saving.register_keras_serializable("fer_utils")
class Adam(_OneKernel, keras.optimizers.Adam):
    """Keras' Adam, with a faster update."""


@keras.saving.register_keras_serializable("fer_utils")
class AdamW(_OneKernel, keras.optimizers.AdamW):
    """Keras' AdamW, with a faster update and its weight decay in a variable, so that a change reaches the compiled step.

    In `keras.optimizers.AdamW` the decay is a Python number, a constant in the compiled step: setting it during `fit`
    changes nothing.
    """

    def __init__(self, learning_rate: float = 0.001, weight_decay: float = 0.004, **kwargs):
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)
        self.weight_decay = keras.Variable(weight_decay, trainable=False, dtype="float32", name="weight_decay")

    def get_config(self) -> dict:
        return {**super().get_config(), "weight_decay": float(self.weight_decay.numpy())}


@keras.saving.register_keras_serializable("fer_utils")
class LossScale(keras.optimizers.LossScaleOptimizer):
    """Keras' loss scaling for mixed_float16, which skips a step where the gradients of any device overflow.

    Keras (3.13, 3.15) asks the first device alone, before gradients are summed over devices, so that another device's
    infinite gradients reach the weights.
    """

    def check_finite(self, grads):
        finite = super().check_finite(grads)
        replica = tf.distribute.get_replica_context()
        if replica is None or replica.num_replicas_in_sync == 1:
            return finite
        n_finite = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(finite, tf.float32))
        return tf.equal(n_finite, replica.num_replicas_in_sync)


class IncreaseWeightDecayOnLRDrop(keras.callbacks.Callback):
    """When the learning rate has dropped, multiply the weight decay by `factor`, up to `cap`.

    Put it after the callback that drops the rate. Keras' decoupled decay shrinks a weight by lr × wd of itself a step.
    When the rate halves, that product halves too; with factor 2 it stays where it was, with a factor above 2 it rises,
    and once `cap` is reached it falls with the rate again. Needs `fer_utils.training.AdamW`; raises TypeError for an
    optimiser whose decay cannot change in the compiled step.
    """

    STATE = ("_rate",)  # for TrainingCheckpoint

    def __init__(self, factor: float = 2.0, cap: float = 0.1):
        super().__init__()
        if factor < 1 or cap <= 0:
            raise ValueError(f"factor is {factor} and cap {cap}, expected factor >= 1 and cap > 0")
        self.factor, self.cap = factor, cap

    def on_train_begin(self, logs=None) -> None:
        optimizer = innermost(self.model.optimizer)
        if not isinstance(optimizer.weight_decay, keras.Variable):
            raise TypeError(
                f"{type(optimizer).__name__} holds its weight decay as a constant: use fer_utils.training.AdamW"
            )
        self._rate = float(optimizer.learning_rate.numpy())

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        optimizer = innermost(self.model.optimizer)
        rate = float(optimizer.learning_rate.numpy())
        if rate < self._rate:
            decay = float(optimizer.weight_decay.numpy())
            optimizer.weight_decay.assign(max(decay, min(decay * self.factor, self.cap)))
        self._rate = rate


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


def make_rate(
    schedule: str, learning_rate: float, steps_per_epoch: int, epochs: int, warmup_epochs: float
) -> float | keras.optimizers.schedules.CosineDecay:
    """What the optimiser takes as its learning rate.

    `plateau`: the rate itself, for callbacks to lower. `cosine`: from WARM_UP_START of the rate straight up to it over
    `warmup_epochs` (Goyal et al. 2017, arXiv:1706.02677, section 2.2), then along a cosine down to nothing at the end of
    `epochs` (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts). It follows from the optimiser's count of
    steps, so a checkpoint brings it back. Raises ValueError where nothing is left after warming up.
    """
    if schedule == "plateau":
        return learning_rate
    warmup, total = round(warmup_epochs * steps_per_epoch), epochs * steps_per_epoch
    if warmup >= total:
        raise ValueError(f"warmup_epochs is {warmup_epochs}, expected less than the {epochs} epochs of training")
    if not warmup:
        return keras.optimizers.schedules.CosineDecay(learning_rate, total)
    return keras.optimizers.schedules.CosineDecay(
        WARM_UP_START * learning_rate, total - warmup, warmup_target=learning_rate, warmup_steps=warmup
    )


def make_optimizer(
    name: str,
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
    weight_decay: float,
    clip_norm: float = 0.0,
) -> keras.optimizers.Optimizer:
    """`adamw` with decoupled weight decay, or `adam` without any.

    clip_norm: gradients whose norm over all weights is larger are scaled down to it (Pascanu et al. 2013,
    arXiv:1211.5063, section 3.2); 0 leaves them alone.
    """
    clip = {"global_clipnorm": clip_norm or None}
    if name == "adam":
        return Adam(learning_rate, **clip)
    return AdamW(learning_rate, weight_decay, **clip)


def innermost(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimiser itself, where mixed precision has wrapped it to scale the loss."""
    return getattr(optimizer, "inner_optimizer", optimizer)


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
    checkpoint: TrainingCheckpoint | None = None,
) -> pd.DataFrame:
    """Train a compiled model for up to `epochs` epochs and return the history, a row an epoch.

    Epochs count on from `first_epoch` (0 for phase 1); the history's `epoch` is the number of epochs finished, 1 the
    first. With a checkpoint, training goes on from the last epoch that an earlier process finished, to the same history.
    Raises FloatingPointError where the loss is no number any more, ValueError for a batch that devices cannot share evenly,
    Interrupted where someone stops it: called again with the same model, callbacks and a checkpoint at the same path, it
    goes on after the last finished epoch.
    """
    _share_evenly(train, val, model.distribute_strategy.num_replicas_in_sync)
    done = first_epoch + (checkpoint.resume(callbacks) if checkpoint else 0)
    rows = list(checkpoint.rows) if checkpoint else []
    bar = _EpochBar(done)
    try:
        history = model.fit(
            train,
            validation_data=val,
            initial_epoch=done,
            epochs=done if checkpoint and checkpoint.is_stopped else first_epoch + epochs,
            shuffle=False,  # else Keras shuffles the batches once more, by a stream of its own
            callbacks=[
                _TakeOrder(train),
                _OneStatistic(),
                _RecordRates(),
                *callbacks,
                keras.callbacks.TerminateOnNaN(),
                *([checkpoint] if checkpoint else []),
                bar,
            ],
            verbose=0,
        )
    except KeyboardInterrupt:
        kept = checkpoint.after_interrupt() if checkpoint else "nothing of it is kept"
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
    return table[[*HISTORY_FIRST, *(name for name in table if name not in HISTORY_FIRST)]]


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
