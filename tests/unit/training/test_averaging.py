"""Averages are what the formula says, VAL scores them, the best ones are kept, and a killed run ends as any other."""

from fer_utils.data.augmentation import Changes
from fer_utils.training import loop, optimizers
from fer_utils.training.loop import Batches

import keras
import numpy as np
import pandas as pd
import pytest
from killing import KillIn, killed

EPOCHS, N, BATCH = 5, 40, 8
DECAY = 0.5
CHANGES = Changes("heavy", 0.2, 0.1)


class _Watch(keras.callbacks.Callback):
    """Notes the weights after each step and at the end of each epoch."""

    STATE = ()

    def on_train_begin(self, logs=None):
        self.steps, self.ends = [self.model.get_weights()], []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(self.model.get_weights())

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(self.model.get_weights())


def _data(signal: int = 18) -> tuple[np.ndarray, np.ndarray]:
    """Noise whose brightness tells the label; without a signal training can only learn it by heart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, N + 20).astype(np.int32)
    images = rng.integers(0, 120, (N + 20, 12, 12, 1)) + signal * labels[:, None, None, None]
    return images.astype(np.uint8), labels


def _model(schedule: str) -> keras.Model:
    keras.utils.set_random_seed(5)
    layers = [
        keras.layers.Rescaling(1 / 255),
        keras.layers.Flatten(),
        keras.layers.Dense(8, activation="relu"),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(7, activation="softmax"),
    ]
    model = keras.Sequential([keras.Input((12, 12, 1)), *layers])
    rate = optimizers.make_rate(schedule, 0.02, N // BATCH, EPOCHS, 1.0)
    loop.compile_for_training(model, optimizers.make_optimizer("adamw", rate, 0.01))
    return model


def _fit(
    *extra, path=None, schedule="cosine", averaging=True, changes=CHANGES, **data
) -> tuple[pd.DataFrame, keras.Model]:
    images, labels = _data(**data)
    model = _model(schedule)
    callbacks = [optimizers.WeightAveraging(DECAY)] if averaging else []
    checkpoint = (path, "k") if path else None
    train = Batches(images[:N], labels[:N], BATCH, 1, 3, changes)
    val = Batches(images[N:], labels[N:], 20)
    table = loop.fit(model, train, val, "fine_tune", 3, EPOCHS, [*callbacks, *extra], checkpoint)
    return table.drop(columns="seconds"), model


def _best() -> keras.callbacks.EarlyStopping:
    return keras.callbacks.EarlyStopping(monitor="val_loss", patience=EPOCHS, restore_best_weights=True)


def _averages(steps: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
    """The average after each step, from the weights before the first one and after each."""
    average, found = steps[0], []
    for n, weights in enumerate(steps[1:], start=1):
        decay = min(DECAY, (1 + n) / (10 + n))
        average = [decay * old + (1 - decay) * new for old, new in zip(average, weights, strict=True)]
        found.append(average)
    return found


def _close(one, two, tolerance: float = 1e-5) -> bool:
    return all(np.allclose(a, b, atol=tolerance) for a, b in zip(one, two, strict=True))


def test_each_epoch_ends_with_the_average_of_all_steps_and_the_next_goes_on_from_the_weights_themselves():
    watch = _Watch()
    _fit(watch)
    per_epoch = N // BATCH
    averages = _averages(watch.steps)
    for epoch in range(EPOCHS):
        assert _close(watch.ends[epoch], averages[(epoch + 1) * per_epoch - 1])
    plain = _Watch()
    _fit(plain, averaging=False)
    assert _close(watch.steps[-1], plain.steps[-1])  # averaging leaves training alone
    assert not _close(watch.ends[-1], plain.ends[-1], 1e-3)


def test_validation_scores_the_average_with_the_plain_cross_entropy():
    table, model = _fit()
    images, labels = _data()
    given = loop.predict(model, images[N:])
    expected = -np.log(given[np.arange(20), labels[N:]]).mean()
    assert table["val_loss"].iloc[-1] == pytest.approx(expected, rel=1e-5)
    assert table["val_accuracy"].iloc[-1] == pytest.approx((given.argmax(axis=1) == labels[N:]).mean())


def test_early_stopping_keeps_the_best_average():
    watch = _Watch()
    # Without changes TRAIN is memorised and VAL gets worse.
    table, model = _fit(watch, _best(), changes=None, signal=0)
    best = table["val_loss"].idxmin()
    assert best < EPOCHS - 1  # else the last weights would do
    assert _close(model.get_weights(), watch.ends[best], 0)


def test_training_that_is_stopped_within_an_epoch_ends_with_the_average():
    watch = _Watch()
    _, model = _fit(watch, KillIn(5, lambda model: setattr(model, "stop_training", True)))  # as a time budget does
    assert len(watch.steps) == 1 + 2 * (N // BATCH) + 3
    assert _close(model.get_weights(), _averages(watch.steps)[-1])


@pytest.mark.parametrize("kills", [[4], [3, 5, 7]])
def test_after_kills_history_and_weights_are_those_of_an_uninterrupted_training(tmp_path, kills):
    table, model = _fit(_best())
    for epoch in kills:
        with killed():
            _fit(_best(), KillIn(epoch), path=tmp_path / "c.npz")
    resumed, again = _fit(_best(), path=tmp_path / "c.npz")
    pd.testing.assert_frame_equal(resumed, table, rtol=1e-5)
    assert _close(again.get_weights(), model.get_weights())
    assert table["learning_rate"].nunique() == EPOCHS


def test_a_finished_training_that_is_taken_up_again_holds_the_average(tmp_path):
    (table, model), (again_table, again) = (_fit(path=tmp_path / "c.npz") for _ in range(2))
    pd.testing.assert_frame_equal(again_table, table)
    assert _close(again.get_weights(), model.get_weights(), 0)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1])
def test_a_decay_that_averages_nothing_or_never_moves_is_refused(decay):
    with pytest.raises(ValueError, match="expected one between 0 and 1"):
        optimizers.WeightAveraging(decay)
