"""TensorBoard reads what the history holds, and training does not notice that it is written."""

from fer_utils.training import loop
from fer_utils.training.loop import Batches
from fer_utils.training.optimizers import AdamW

import keras
import numpy as np
import pytest
from killing import KillIn, killed

pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
from tensorboard.util.tensor_util import make_ndarray


def _fitted(folder, first_epoch=0, epochs=2, checkpoint=None, callbacks=()):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 5)).astype("float32"), rng.integers(0, 7, 30).astype("int32")
    keras.utils.set_random_seed(0)
    layers = [keras.Input((5,)), keras.layers.Dropout(0.3), keras.layers.Dense(7, activation="softmax")]
    model = keras.Sequential(layers, name="tiny")
    loop.compile_for_training(model, AdamW(0.01, 0.2))
    train, val = Batches(x, y, 8, 3), Batches(x, y, 16)
    table = loop.fit(
        model, train, val, "head", first_epoch, epochs, callbacks, checkpoint=checkpoint, tensorboard=folder
    )
    return table, model


def _scalars(folder) -> dict[str, dict[int, float]]:
    """Column of the history → epoch → value."""
    found = {}
    for part, prefix in (("train", ""), ("validation", "val_")):
        events = EventAccumulator(str(folder / part), {TENSORS: 0}).Reload()
        for name in events.Tags()["tensors"]:
            column = prefix + name.removeprefix("epoch_")
            found[column] = {event.step: float(make_ndarray(event.tensor_proto)) for event in events.Tensors(name)}
    return found


def _check(folder, table, epochs):
    written = _scalars(folder)
    assert set(table.columns) - {"epoch", "phase"} <= set(written)
    for name in set(table.columns) - {"epoch", "phase"}:
        assert list(written[name]) == epochs
        assert list(written[name].values()) == pytest.approx(table[name].tolist(), rel=1e-6), name


def test_every_column_of_the_history_is_a_scalar_of_each_epoch(tmp_path):
    table, _ = _fitted(tmp_path / "logs", first_epoch=4, epochs=3)
    _check(tmp_path / "logs", table, [4, 5, 6])


def test_history_and_weights_are_the_same_with_it(tmp_path):
    (plain, model), (logged, watched) = _fitted(None), _fitted(tmp_path / "logs")
    assert plain.drop(columns="seconds").equals(logged.drop(columns="seconds"))
    assert all(np.array_equal(*pair) for pair in zip(model.get_weights(), watched.get_weights(), strict=True))


def test_a_resumed_training_has_one_curve(tmp_path):
    folder, checkpoint = tmp_path / "logs", (tmp_path / "checkpoint.npz", "key")
    with killed():
        _fitted(folder, 0, 4, checkpoint, [KillIn(2)])
    table, _ = _fitted(folder, 0, 4, checkpoint, [KillIn(-1)])
    _check(folder, table, [0, 1, 2, 3])
