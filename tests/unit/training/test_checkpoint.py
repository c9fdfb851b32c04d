"""Training that was killed goes on as if it had not been."""

import contextlib
import re
import signal
import sys

from fer_utils import files
from fer_utils.training import devices, loop, optimizers
from fer_utils.training.checkpoint import TrainingCheckpoint
from fer_utils.training.loop import Batches

import keras
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from killing import KillIn, killed
from precision import precision
from tqdm import tqdm

EPOCHS = 12


def _model() -> keras.Model:
    """All that has a state: BatchNormalization, dropout's seeds, an optimiser with slots, a rate and a decay that change."""
    keras.utils.set_random_seed(5)
    layers = [
        keras.layers.Dense(8, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.4),
        keras.layers.Dense(7, activation="softmax"),
    ]
    model = keras.Sequential([keras.Input((5,)), *layers])
    loop.compile_for_training(model, optimizers.make_optimizer("adamw", 0.03, 0.01, clip_norm=0.5))
    return model


def _callbacks(stop_patience: int) -> list[keras.callbacks.Callback]:
    return [
        keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=2),
        optimizers.IncreaseWeightDecayOnLRDrop(2.0, 0.1),
        keras.callbacks.EarlyStopping(monitor="val_loss", patience=stop_patience, restore_best_weights=True),
    ]


def _data() -> tuple[Batches, Batches]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)).astype("float32")
    y = (x @ rng.normal(size=(5, 7)) + rng.normal(size=(60, 7))).argmax(axis=1).astype("int32")
    return Batches(x[:40], y[:40], 8, 1, 3), Batches(x[40:], y[40:], 20)


def _train(path, stop_patience=4, kill_in=None, key="k", extra=()) -> tuple[pd.DataFrame, list[np.ndarray]]:
    model, callbacks = _model(), [*_callbacks(stop_patience), *extra]
    if kill_in is not None:
        callbacks.append(KillIn(kill_in))
    checkpoint = (path, key) if path else None
    train, val = _data()
    table = loop.fit(model, train, val, "fine_tune", 3, EPOCHS, callbacks, checkpoint)
    return table.drop(columns="seconds"), model.get_weights()


@pytest.fixture(scope="module")
def uninterrupted():
    return _train(None)


def test_the_example_uses_every_callback(uninterrupted):
    table, _ = uninterrupted
    assert table["learning_rate"].nunique() > 1
    drops = np.log2(0.03 / table["learning_rate"])  # each doubles the decay, up to its cap
    assert table["weight_decay"].to_numpy() == pytest.approx(np.minimum(0.01 * 2**drops, 0.1), rel=1e-5)
    assert 5 < len(table) < EPOCHS  # early stopping ends it, and takes the best weights back


def test_a_checkpoint_changes_nothing_of_a_training_and_one_that_had_ended_is_not_taken_further(
    uninterrupted, tmp_path
):
    for _ in range(2):
        table, weights = _train(tmp_path / "c.npz")
        assert table.equals(uninterrupted[0])
        assert all(np.array_equal(one, two) for one, two in zip(weights, uninterrupted[1], strict=True))


@pytest.mark.parametrize("kills", [[3], [4], [6], [5, 7, 8]])
def test_after_kills_history_and_weights_are_those_of_an_uninterrupted_training(uninterrupted, tmp_path, kills):
    path = tmp_path / "c.npz"
    for epoch in kills:
        with killed():
            _train(path, kill_in=epoch)
        assert [file.name for file in tmp_path.iterdir()] == ["c.npz"]
    table, weights = _train(path)
    pd.testing.assert_frame_equal(table, uninterrupted[0], rtol=1e-5)
    assert all(one == pytest.approx(two, abs=1e-5) for one, two in zip(weights, uninterrupted[1], strict=True))


@pytest.fixture(autouse=True)
def interrupts():
    """Python's own answer to SIGINT: a process that a script starts in the background ignores it from its start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _interrupt(*_) -> None:
    """What JupyterLab's button does."""
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("stops", [[3], [3, 4], [4], [6], [5, 7, 8]])
def test_interrupted_training_goes_on_with_the_same_objects_to_the_same_end(uninterrupted, tmp_path, stops):
    model, (train, val), path = _model(), _data(), tmp_path / "c.npz"
    callbacks = [*_callbacks(4), *(KillIn(epoch, _interrupt) for epoch in stops)]
    for epoch in stops:
        kept = f"stopped in epoch {epoch + 1}; finished epochs kept in c.npz: {epoch - 3}"
        with pytest.raises(loop.Interrupted, match=f"fine_tune {kept}"):
            loop.fit(model, train, val, "fine_tune", 3, EPOCHS, callbacks, (path, "k"))
        assert not tqdm._instances  # else the next bar would be drawn a line below
    table = loop.fit(model, train, val, "fine_tune", 3, EPOCHS, callbacks, (path, "k"))
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), uninterrupted[0], rtol=1e-5)
    assert all(
        one == pytest.approx(two, abs=1e-5) for one, two in zip(model.get_weights(), uninterrupted[1], strict=True)
    )


def test_a_notebook_shows_one_line_of_an_interrupt(tmp_path, capsys):
    shell = InteractiveShell(user_ns={"training": loop, "model": _model(), "data": _data()})
    shell.user_ns |= {"checkpoint": (tmp_path / "c.npz", "k"), "stop": KillIn(4, _interrupt)}
    shell.run_cell("training.fit(model, *data, 'fine_tune', 3, 6, [stop], checkpoint)")
    said = capsys.readouterr().out.split("\r")[-1].strip()
    shell.reset()  # else the shell and Python's last error hold the training, and its iterators, to the end of all tests
    shell.InteractiveTB.tb = sys.last_traceback = sys.last_value = None
    assert said == (
        "Interrupted: fine_tune stopped in epoch 5; finished epochs kept in c.npz: 1.\nRun this cell again to go on after "
        "them; after a restart of the kernel, run the notebook from its top"
    )


def test_an_interrupted_prediction_says_so_and_leaves_no_bar(monkeypatch):
    monkeypatch.setattr(loop, "compiled", lambda model: _interrupt)
    with pytest.raises(loop.Interrupted, match=r"stopped; nothing of this pass is kept\. Run this cell again"):
        loop.predict(_model(), np.zeros((4, 5), "float32"))
    assert not tqdm._instances


def test_a_checkpoint_with_another_key_is_left_alone_and_then_replaced(uninterrupted, tmp_path, capsys):
    path = tmp_path / "c.npz"
    with killed():
        _train(path, kill_in=6, key="another")
    table, _ = _train(path)
    assert table.equals(uninterrupted[0])
    assert "c.npz is of other parameters, code or inputs" in capsys.readouterr().out


def test_a_training_in_another_precision_starts_from_its_first_epoch(tmp_path, capsys):
    """`auto` may choose another on another machine; the optimiser then has other variables."""
    with killed():
        _train(tmp_path / "c.npz", kill_in=5)
    with precision("mixed_float16"):
        model = _model()
    train, val = _data()
    table = loop.fit(model, train, val, "fine_tune", 3, 1, (), (tmp_path / "c.npz", "k"))
    assert len(table) == 1 and "starts from its first epoch" in capsys.readouterr().out


def test_a_disk_that_fills_in_training_is_explained_and_training_goes_on_once_there_is_room(uninterrupted, tiny_disk):
    path, ballast = tiny_disk / "c.npz", tiny_disk / "ballast"

    def fill_disk(_) -> None:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"0" * 4096)

    with pytest.raises(files.OutputError, match=r"no space left on the disk while writing .*c\.npz: free some"):
        _train(path, extra=[KillIn(6, fill_disk)])
    assert sorted(file.name for file in tiny_disk.iterdir()) == ["ballast", "c.npz"]
    ballast.unlink()
    table, _ = _train(path)
    pd.testing.assert_frame_equal(table, uninterrupted[0], rtol=1e-5)


@pytest.fixture
def left(tmp_path):
    """The checkpoint of a training that was killed in its second epoch."""
    with killed():
        _train(tmp_path / "c.npz", kill_in=4)
    return tmp_path / "c.npz"


def _end_early(share: float):
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def _damage_a_byte(path):
    with np.load(path) as file:
        weights = file["model.0"].tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(weights) + len(weights) // 2] ^= 0xFF
    path.write_bytes(content)


def _write_pickles(path):
    np.savez(path, state=np.array([{"an": "object"}], dtype=object))


@pytest.mark.parametrize(
    ("harm", "why"),
    [*((_end_early(share), "") for share in (0, 0.3, 0.98)), (_damage_a_byte, ""), (_write_pickles, "allow_pickle")],
)
def test_a_checkpoint_that_is_not_whole_is_an_error_that_names_it(left, harm, why):
    harm(left)
    with pytest.raises(
        files.TornFile, match=rf"c\.npz is not a whole checkpoint .*{why}.*: remove it, and training starts"
    ):
        _train(left)


def _another_network() -> keras.Model:
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(7, activation="softmax")])
    loop.compile_for_training(model, optimizers.AdamW(0.03, 0.01))
    return model


def _another_optimiser() -> keras.Model:
    model = _model()
    loop.compile_for_training(model, keras.optimizers.SGD(0.03))
    return model


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (_another_network, "model arrays that do not fit the 2 here"),
        (_another_optimiser, "optimizer arrays that do not fit"),
    ],
)
def test_a_checkpoint_of_another_network_or_optimiser_is_refused_and_changes_no_weight(left, make, found):
    model = make()
    before = model.get_weights()
    with pytest.raises(files.TornFile, match=rf"c\.npz holds \d+ {found}"):
        loop.fit(model, *_data(), "fine_tune", 3, EPOCHS, (), (left, "k"))
    assert all(np.array_equal(one, two) for one, two in zip(before, model.get_weights(), strict=True))


def test_a_checkpoint_of_another_backend_is_refused_and_kept(left, monkeypatch):
    before = left.read_bytes()
    monkeypatch.setattr(devices, "BACKEND", "jax")
    expected = f"{left} holds a training on tensorflow, this is jax: set KERAS_BACKEND=tensorflow"
    with pytest.raises(ValueError, match="^" + re.escape(expected)):
        TrainingCheckpoint(left, "k").resume([])
    assert left.read_bytes() == before


def test_a_callback_that_does_not_say_what_it_remembers_is_refused(tmp_path):
    with pytest.raises(TypeError, match="LambdaCallback does not say what it remembers"):
        TrainingCheckpoint(tmp_path / "c.npz", "k").resume([keras.callbacks.LambdaCallback()])
