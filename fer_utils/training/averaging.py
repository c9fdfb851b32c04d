"""Averages the weights over the steps of training and scores VAL with the average.

Keras' `use_ema` with `SwapEMAWeights` (3.15) averages only trainable weights, not BatchNormalization's statistics. Its average
has no warm-up, so that initial weights keep a large share. After early stopping, the model has the weights of the last step.
"""

from fer_utils.training import devices

import keras
import numpy as np

WARM_UP = 10.0  # as tf.train.ExponentialMovingAverage: after n steps the decay is at most (1 + n) / (WARM_UP + n)


class WeightAveraging(keras.callbacks.Callback):
    """Keep an exponential moving average of the model's weights (Polyak & Juditsky 1992) and validate with it.

    decay: the share of the average that a step keeps, below 1; it is smaller in the first steps, so that the initial
    weights are forgotten. BatchNormalization's moving statistics are averaged like weights.

    From the start of a validation pass to the next epoch the model has the average: validation scores it, callbacks that
    keep the best weights keep averages, and it remains in the model when training ends. Needs validation data; must come
    before callbacks that read the weights.
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
        decay = min(self.decay, (1 + self._steps) / (WARM_UP + self._steps))
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
