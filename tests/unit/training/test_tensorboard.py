"""What TensorBoard reads is the history and VAL's confusion matrix, and training does not notice that it is written."""

import io
import sys

from fer_utils.training import loop, tensorboard
from fer_utils.training.loop import Batches
from fer_utils.training.optimizers import AdamW

import keras
import matplotlib.pyplot as plt
import numpy as np
import pytest
from killing import KillIn, killed
from PIL import Image
from sklearn.metrics import confusion_matrix

pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, EventAccumulator


def _grey() -> bytes:
    """A PNG file of 6 by 4 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (6, 4)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """A grey area instead of VAL's confusion matrix, which takes longer to draw than an epoch here."""
    monkeypatch.setattr(tensorboard, "_drawn", lambda counts, title: _grey())


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
    return table, model, (x, y)


def _events(folder) -> EventAccumulator:
    found = EventAccumulator(str(folder), {SCALARS: 0, IMAGES: 0})
    return found.Reload()


def _scalars(folder) -> dict[str, dict[int, float]]:
    found = _events(folder)
    return {name: {event.step: event.value for event in found.Scalars(name)} for name in found.Tags()["scalars"]}


@pytest.mark.usefixtures("undrawn")
def test_every_column_of_the_history_is_a_scalar_of_each_epoch(tmp_path):
    table, _, _ = _fitted(tmp_path / "logs", first_epoch=4, epochs=3)
    written = _scalars(tmp_path / "logs")
    assert set(written) == set(table.columns) - {"epoch", "phase"}
    for name, steps in written.items():
        assert list(steps) == [5, 6, 7]
        assert list(steps.values()) == pytest.approx(table[name].tolist(), rel=1e-6), name


def test_the_image_is_of_vals_confusion_matrix_after_the_epoch(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(tensorboard, "_drawn", lambda counts, title: drawn.append((counts, title)) or _grey())
    _, model, (x, y) = _fitted(tmp_path / "logs")
    expected = confusion_matrix(y, loop.predict(model, x).argmax(axis=1), labels=range(7))
    assert [title for _, title in drawn] == ["VAL after epoch 1", "VAL after epoch 2"]
    assert drawn[-1][0].tolist() == expected.tolist()
    monkeypatch.undo()
    event = _events(tmp_path / "logs").Images("VAL confusion matrix")[-1]
    assert (event.step, event.width, event.height) == (2, 6, 4)
    assert Image.open(io.BytesIO(event.encoded_image_string)).size == (6, 4)


def test_a_picture_of_counts_is_drawn_and_no_figure_is_left_open():
    drawn = tensorboard._drawn(np.eye(7, dtype=int) * 12, "VAL after epoch 1")
    picture = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB"))
    assert picture.dtype == np.uint8 and picture.shape[2] == 3 and min(picture.shape[:2]) > 300
    assert picture.std() > 20
    assert plt.get_fignums() == []


def test_history_and_weights_are_the_same_with_it(tmp_path):
    (plain, model, _), (logged, watched, _) = _fitted(None), _fitted(tmp_path / "logs")
    assert plain.drop(columns="seconds").equals(logged.drop(columns="seconds"))
    assert all(np.array_equal(*pair) for pair in zip(model.get_weights(), watched.get_weights(), strict=True))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("logged_before", [True, False])
def test_a_resumed_training_has_one_curve(tmp_path, logged_before):
    folder, checkpoint = tmp_path / "logs", (tmp_path / "checkpoint.npz", "key")
    with killed():
        _fitted(folder if logged_before else None, 0, 4, checkpoint, [KillIn(2)])
    table, _, _ = _fitted(folder, 0, 4, checkpoint, [KillIn(-1)])
    for name, steps in _scalars(folder).items():
        assert list(steps) == [1, 2, 3, 4]
        assert list(steps.values()) == pytest.approx(table[name].tolist(), rel=1e-6), name


@pytest.mark.usefixtures("undrawn")
def test_a_training_from_its_first_epoch_replaces_the_curves_of_an_earlier_one_and_nothing_else(tmp_path):
    theirs = [tmp_path / "events.out.tfevents.1.host", tmp_path / "notes.txt"]
    for file in theirs:
        file.write_bytes(b"")
    for epochs in (4, 2):
        _fitted(tmp_path, epochs=epochs)
        assert all(file.is_file() for file in theirs) and len(list(tmp_path.glob(f"*{tensorboard.MARK}"))) == 1
    assert list(_scalars(tmp_path)["loss"]) == [1, 2]


def test_without_tensorboard_the_message_says_what_to_install(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "fer_utils.training.tensorboard")
    with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
        _fitted(tmp_path)
