"""Small trainings in a process with two logical devices: `distributed_training.py FOLDER` prints what they gave as JSON.

`histories`, by strategy and precision: the model is the specification's head on fixed features; what is under test is how a
batch spreads, not what learns. TRAIN's labels are soft, gradients are clipped and the weights are averaged, so that what
those need spreads too.

`stopped`: a training on two devices in mixed precision, BatchNormalization included, once in one go and once with a stop in
the middle, with both histories and the last VAL loss as the model itself gives it, and how often each of its trainings began
to read its pictures. Then one on pictures whose gradients overflow float16 on the second device alone.
"""

import json
import sys
from pathlib import Path
from typing import ClassVar

from fer_utils.data.augmentation import Changes
from fer_utils.training import devices, loop, optimizers
from fer_utils.training.averaging import WeightAveraging

import keras
import numpy as np
import tensorflow as tf

SAMPLES, BATCH, EPOCHS = 70, 16, 3  # the last batch is not full


class _KeepStatistics(keras.callbacks.Callback):
    """The moving means of BatchNormalization on each device after the last step, and those that VAL is scored with."""

    STATE = ()

    def on_train_batch_end(self, batch, logs=None):
        self.of_devices = self._now()

    def on_test_begin(self, logs=None):
        self.scored = self._now()

    def _now(self) -> list[list[float]]:
        mean = self.model.layers[1].moving_mean
        values = self.model.distribute_strategy.experimental_local_results(mean.value)
        return [value.numpy().tolist() for value in values]


class _CountStarts(loop._EveryEpoch):
    """Counts how often each training reads its first batch: once for every iterator, and to learn the shapes."""

    starts: ClassVar[list[int]] = []

    def __init__(self, batches: loop.Batches, first_epoch: int):
        super().__init__(batches, first_epoch)
        self.starts.append(0)

    def __getitem__(self, index: int) -> tuple:
        self.starts[-1] += index == 0
        return super().__getitem__(index)


def stopped(folder: Path) -> dict:
    devices.choose_precision("mixed_float16")
    devices.make_reproducible(1, "yes")
    random = np.random.default_rng(2)
    features, labels = random.normal(size=(SAMPLES, 12)).astype(np.float32), random.integers(0, 7, SAMPLES)
    val = features[:49], labels[:49].astype(np.int32)  # an odd number: the last of its batches is of one picture

    statistics = _KeepStatistics()
    loop._EveryEpoch = _CountStarts

    def train(file: str, epochs: int, features=features, seed=3) -> tuple[keras.Model, list]:
        keras.utils.set_random_seed(1)
        with devices.scope(devices.choose_strategy("mirrored")):
            layers = [
                keras.layers.Dense(16, activation="relu"),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.4),
                keras.layers.Dense(7, activation="softmax", dtype="float32"),
            ]
            model = keras.Sequential([keras.Input((12,)), *layers])
            loop.compile_for_training(model, optimizers.make_optimizer("adamw", 0.01, 0.1, 1.0), loop.HEAD_STEPS)
        train = loop.Batches(features, labels.astype(np.int32), BATCH, seed)
        checkpoint = (folder / file, "key")
        history = loop.fit(model, train, loop.Batches(*val, 256), "test", 0, epochs, (statistics,), checkpoint)
        return model, history[["loss", "val_loss", "val_accuracy"]].to_numpy().tolist()

    train("stopped.npz", EPOCHS - 1)
    model, resumed = train("stopped.npz", EPOCHS)
    answers = loop.predict(model, val[0])
    itself = -np.log(answers[np.arange(len(answers)), val[1]]).mean()
    second = np.arange(SAMPLES) % BATCH >= BATCH // 2  # in order, these rows of a batch go to the second device
    _, overflowing = train("large.npz", 1, np.where(second[:, None], 300 * features, features), seed=None)
    whole = train("whole.npz", EPOCHS)[1]
    found = {
        "whole": whole,
        "resumed": resumed,
        "itself": float(itself),
        "overflowing": overflowing,
        "starts": _CountStarts.starts,
    }
    return found | {"statistics": statistics.of_devices, "averaged": statistics.scored}


def history(strategy: str, precision: str) -> dict:
    replicas = devices.choose_strategy(strategy)
    devices.choose_precision(precision)
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(2)
    features, labels = random.normal(size=(SAMPLES, 12)).astype(np.float32), random.integers(0, 7, SAMPLES)
    with devices.scope(replicas):
        layers = [
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(7, activation="softmax", dtype="float32"),
        ]
        model = keras.Sequential([keras.Input((12,)), *layers])
        # The parts of a batch have other gradients than the batch: clipping each would train something else.
        loop.compile_for_training(model, optimizers.make_optimizer("adamw", 0.01, 0.1, clip_norm=0.2))
    labels = labels.astype(np.int32)
    table = loop.fit(
        model,
        loop.Batches(features, labels, BATCH, seed=3, changes=Changes(label_smoothing=0.1)),
        loop.Batches(features, labels, BATCH),
        "test",
        first_epoch=0,
        epochs=EPOCHS,
        callbacks=[WeightAveraging(0.9), optimizers.IncreaseWeightDecayOnLRDrop()],
    )
    names = ["loss", "accuracy", "macro_f1", "val_loss", "val_accuracy", "val_macro_f1", "weight_decay"]
    return {"replicas": replicas.num_replicas_in_sync if replicas else 1} | {n: table[n].tolist() for n in names}


if __name__ == "__main__":
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    histories = {
        f"{strategy} {precision}": history(strategy, precision)
        for strategy in ("none", "mirrored")
        for precision in ("float32", "mixed_float16")
    }
    print(json.dumps({"histories": histories, "stopped": stopped(Path(sys.argv[1]))}))
