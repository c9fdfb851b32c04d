"""Averages the weights over the steps of training and scores VAL with the average.

Knows Keras' order of events in `fit`; knows nothing of what is trained.

Keras' own `use_ema` with `SwapEMAWeights` is not used (3.15): it averages trainable weights alone, so that averaged
kernels would run on the BatchNormalization statistics of others; its average begins without a warm-up, so that it lags
by its whole decay; and where early stopping ends training, it leaves the weights of the last step in the model.
"""

import keras
import numpy as np
import tensorflow as tf

WARM_UP = 10.0  # as tf.train.ExponentialMovingAverage: after n steps the decay is at most (1 + n) / (WARM_UP + n)


class WeightAveraging(keras.callbacks.Callback):
    """Keep an exponential moving average of the model's weights (Polyak & Juditsky 1992) and validate with it.

    decay: what the average keeps of itself in a step, below 1; less in the first steps, so that it forgets where it began.
    BatchNormalization's moving statistics are averaged like weights.

    From the start of a validation pass to the next epoch the model holds the average: validation scores it, callbacks
    that keep the best weights keep averages, and it stays in the model when training ends. The steps of training go on
    from the weights' own values. Needs validation data; put it before callbacks that read the weights.
    """

    STATE = ("_own", "_steps")  # at the end of an epoch the averages are what the model holds

    def __init__(self, decay: float):
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"decay is {decay}, expected one between 0 and 1")
        self.decay = decay

    def on_train_begin(self, logs=None) -> None:
        self._own: list[np.ndarray] | None = None  # the weights' own values while the model holds the averages
        self._steps = 0
        self._averages: list[tf.Variable] = []
        self._update = tf.function(self._move)

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        # Here, not earlier: a checkpoint fills the model and this callback after `on_train_begin`.
        if not self._averages:
            self._averages = [tf.Variable(weight.numpy(), trainable=False) for weight in self.model.weights]
        if self._own is not None:
            for weight, value in zip(self.model.weights, self._own, strict=True):
                weight.assign(value)
            self._own = None

    def on_train_batch_end(self, batch: int, logs=None) -> None:
        self._steps += 1
        decay = min(self.decay, (1 + self._steps) / (WARM_UP + self._steps))
        self._update(tf.constant(1 - decay, tf.float32))

    def on_test_begin(self, logs=None) -> None:
        if self._own is None and self._averages:
            self._own = [weight.numpy() for weight in self.model.weights]
            for weight, average in zip(self.model.weights, self._averages, strict=True):
                weight.assign(average)

    def _move(self, share: tf.Tensor) -> None:
        for average, weight in zip(self._averages, self.model.weights, strict=True):
            average.assign_sub(tf.cast(share, average.dtype) * (average - tf.convert_to_tensor(weight)))
