"""Optimisers, learning-rate schedules, weight decay that rises when the rate falls, and averages of the weights."""

from typing import TypeAlias

from fer_utils.training import devices

import keras
import numpy as np

WARM_UP_START = 0.01  # of the learning rate; at 0 the first step would change nothing
AVERAGE_WARM_UP = 10.0  # as tf.train.ExponentialMovingAverage: after n steps the decay is at most (1 + n) / (10 + n)
Rate: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule


@keras.saving.register_keras_serializable("fer_utils")
class AdamW(keras.optimizers.AdamW):
    """Keras' AdamW with its weight decay in a variable: a Python number is a constant in the compiled step, and setting it
    during `fit` changes nothing."""

    def __init__(self, learning_rate: float = 0.001, weight_decay: float = 0.004, **kwargs):
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)
        self.weight_decay = keras.Variable(weight_decay, trainable=False, dtype="float32", name="weight_decay")

    def get_config(self) -> dict:
        return {**super().get_config(), "weight_decay": float(self.weight_decay)}

    def _apply_weight_decay(self, variables):
        # Keras (3.13, 3.15) asks for the rate once for every weight, and puts a schedule into the graph each time.
        rate = self.learning_rate
        for variable in filter(self._use_weight_decay, variables):
            variable.assign(variable - variable * self.weight_decay * rate)


class IncreaseWeightDecayOnLRDrop(keras.callbacks.Callback):
    """When the learning rate has dropped, multiply the weight decay by `factor`, up to `cap`.

    This callback must come after the one that lowers the rate. A step shrinks a weight by the share lr × wd. When the rate
    halves, that product stays constant with factor 2 and rises with a larger one; once `cap` is reached it falls with the
    rate. Raises TypeError for an optimiser whose decay cannot change in the compiled step: it must be AdamW of this module.
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
            name = type(optimizer).__name__
            raise TypeError(f"{name} holds its weight decay as a constant: use fer_utils.training.optimizers.AdamW")
        self._rate = float(optimizer.learning_rate)

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        optimizer = innermost(self.model.optimizer)
        rate = float(optimizer.learning_rate)
        if rate < self._rate:
            decay = float(optimizer.weight_decay)
            optimizer.weight_decay.assign(max(decay, min(decay * self.factor, self.cap)))
        self._rate = rate


class WeightAveraging(keras.callbacks.Callback):
    """Keep an exponential moving average of the model's weights (Polyak & Juditsky 1992) and validate with it.

    decay: the share of the average that a step keeps, below 1; it is smaller in the first steps, so that the initial
    weights are forgotten. BatchNormalization's moving statistics are averaged like weights.

    From the start of a validation pass to the next epoch the model has the average: validation scores it, callbacks that
    keep the best weights keep averages, and it remains in the model when training ends. Needs validation data; must come
    before callbacks that read the weights.

    Keras' `use_ema` with `SwapEMAWeights` (3.15) averages only trainable weights, not BatchNormalization's statistics. Its
    average has no warm-up, so that initial weights keep a large share. After early stopping, the model has the weights of the
    last step.
    """

    STATE = ("_own", "_steps")  # at the end of an epoch the averages are in the model

    def __init__(self, decay: float):
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}, expected one between 0 and 1")
        self.decay = decay

    def on_train_begin(self, logs=None) -> None:
        self._own: list[np.ndarray] | None = None  # the weights without averaging, while the averages are in the model
        self._averages: list = []
        self._steps, self._update = 0, devices.jitted(_moved)

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        # Not in `on_train_begin`: a checkpoint restores the model and this callback only after it.
        if not self._averages:
            self._averages = [keras.ops.convert_to_tensor(value) for value in self.model.get_weights()]
        if self._own is not None:
            self.model.set_weights(self._own)
            self._own = None

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        self._steps += 1
        decay = min(self.decay, (1 + self._steps) / (AVERAGE_WARM_UP + self._steps))
        weights = [weight.value for weight in self.model.weights]
        self._averages = self._update(self._averages, weights, keras.ops.convert_to_tensor(1 - decay, "float32"))

    def on_test_begin(self, logs=None) -> None:
        if self._own is None and self._averages:
            self._own = self.model.get_weights()
            # Copies: JAX reuses the memory of a weight in the next step.
            self.model.set_weights([np.array(average) for average in self._averages])


def _moved(averages: list, weights: list, share) -> list:
    """The averages, moved toward the weights by a share of the distance."""
    return [
        average + keras.ops.cast(share, average.dtype) * (keras.ops.convert_to_tensor(weight) - average)
        for average, weight in zip(averages, weights, strict=True)
    ]


def make_rate(schedule: str, learning_rate: float, steps_per_epoch: int, epochs: int, warmup_epochs: float) -> Rate:
    """The learning rate or schedule for the optimiser.

    `plateau`: the rate itself, to be lowered by callbacks. `cosine`: linear from WARM_UP_START of the rate to the rate
    over `warmup_epochs` (Goyal et al. 2017, arXiv:1706.02677, section 2.2), then a cosine down to 0 at the end of `epochs`
    (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts). It depends on the optimiser's number of steps, which a
    checkpoint restores. Raises ValueError if the warm-up leaves no epochs.
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
    name: str, learning_rate: Rate, weight_decay: float, clip_norm: float = 0.0
) -> keras.optimizers.Optimizer:
    """`adamw` with decoupled weight decay, or `adam` without any.

    clip_norm: gradients whose norm over all weights is larger are scaled down to it (Pascanu et al. 2013,
    arXiv:1211.5063, section 3.2); 0 means no clipping.
    """
    if name == "adam":
        return keras.optimizers.Adam(learning_rate, global_clipnorm=clip_norm or None)
    return AdamW(learning_rate, weight_decay, global_clipnorm=clip_norm or None)


def innermost(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimiser inside the wrapper for loss scaling, or the optimiser itself without a wrapper."""
    return getattr(optimizer, "inner_optimizer", optimizer)
