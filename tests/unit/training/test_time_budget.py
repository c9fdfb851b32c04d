"""Training says early how long it takes, and stops in time."""

import types
from pathlib import Path

from fer_utils.pipeline import cells
from fer_utils.training.checkpoint import TrainingCheckpoint
from fer_utils.training.time_budget import TimeBudget

import keras
import numpy as np
import pandas as pd
import pytest

STEPS = 20
CELLS = cells.code_cells(
    (Path(__file__).resolve().parents[3] / "notebooks/03_train_head.py").read_text(encoding="utf-8")
)


class Clock:
    """A clock that the tests turn on."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Work(keras.callbacks.Callback):
    """Lets training take time on `clock`, and VAL's loss be what the test says."""

    def __init__(self, clock: Clock, step: float, validation: float, losses: list[float]):
        super().__init__()
        self.clock, self.step, self.validation, self.losses = clock, step, validation, losses
        self.steps_done, self.weights = 0, []

    def on_train_batch_end(self, batch, logs=None):
        self.clock.now += self.step
        self.steps_done += 1

    def on_test_batch_end(self, batch, logs=None):
        self.clock.now += self.validation

    def on_epoch_end(self, epoch, logs=None):
        logs["val_loss"] = self.losses[epoch]
        self.weights.append(self.model.get_weights()[0].copy())


def train(
    minutes=0.0, step=1.0, validation=2.0, epochs=5, losses=None, at_once=1, n=STEPS, spent=0.0, extra=(), path=None
):
    """Train a small model, `spent` seconds after the session began; return (work, budget, model)."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse", steps_per_execution=at_once)
    x = np.random.default_rng(0).normal(size=(n, 3)).astype("float32")
    clock = Clock()
    work = Work(clock, step, validation, losses or [1.0 / (1 + epoch) for epoch in range(epochs)])
    budget = TimeBudget("phase", minutes, clock.now - spent, clock)
    callbacks, done = [work, *extra, budget], 0
    if path:
        checkpoint = TrainingCheckpoint(path, "key")
        done = checkpoint.resume([*extra, budget])
        callbacks.append(checkpoint)
        epochs = done if checkpoint.is_stopped else epochs
    data = {"x": x, "y": x.sum(axis=1), "validation_data": (x[:1], x[:1, :1]), "batch_size": 1}
    model.fit(**data, initial_epoch=done, epochs=epochs, callbacks=callbacks, verbose=0)
    return work, budget, model


def test_without_a_budget_everything_is_trained_and_the_last_weights_stay(capsys):
    work, budget, model = train(0, losses=[1.0, 0.1, 2.0, 3.0, 4.0])
    assert work.steps_done == 5 * STEPS and not budget.stopped
    assert np.array_equal(model.get_weights()[0], work.weights[-1])
    assert "budget" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("step", "of_steps", "of_epochs"),
    [(3.0, ("3,000 ms", "60 s"), "5 min"), (0.00042, ("0.42 ms", "under 1 s"), "under 1 s")],
)
def test_the_estimate_comes_after_the_first_steps_and_is_right(capsys, step, of_steps, of_epochs):
    train(0, step=step, epochs=5)
    said = capsys.readouterr().out
    assert said.startswith(
        f"phase: {of_steps[0]} a step; without validation {of_steps[1]} an epoch of {STEPS} steps, at most {of_epochs} for 5 epochs"
    )
    assert said.count("ms a step") == 1


@pytest.mark.parametrize(("at_once", "n"), [(7, STEPS), (STEPS, STEPS), (1, 1), (1, 3)])
def test_the_estimate_holds_for_steps_at_once_and_for_short_epochs(capsys, at_once, n):
    # The clock turns once an execution, and validation turns it too.
    train(0, step=60.0, validation=1000.0, at_once=at_once, n=n)
    said = capsys.readouterr().out
    assert said.count("ms a step") == 1
    executions = -(-n // at_once)
    seconds = float(said.split(": ")[1].split(" ms")[0].replace(",", "")) / 1000 * n
    assert seconds == pytest.approx(60 * executions, rel=0.35)


def test_a_last_execution_that_is_not_full_counts_its_own_steps(capsys):
    clock = Clock()
    budget = TimeBudget("phase", 0, clock.now, clock)
    budget.set_params({"steps": 33, "epochs": 1})
    budget.on_train_begin()
    budget.on_epoch_begin(0)
    for last_of_32, seconds in ((31, 32), (63, 1)):  # as Keras numbers two executions of 32 and 1 steps
        clock.now += seconds
        budget.on_train_batch_end(last_of_32)
    assert "phase: 1,000 ms a step; without validation 33 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("how", "steps_done", "said"),
    [
        # An epoch takes 20 + 2 seconds, the reserve is 3 x 2 + 60: two epochs end at 44, a third would at 66 + 66 > 120.
        ({"minutes": 2}, 2 * STEPS, "stops training after epoch 2: another would not fit"),
        # No epoch is measured yet when step 7 ends at 70 seconds: 70 + 60 > 120.
        ({"minutes": 2, "step": 10.0}, 7, f"in epoch 1, after 7 of {STEPS} steps"),
        # Epochs end at 1002, 2004, … seconds. The sixth would end at 6012: with 6 for validation and SAVING it would fit
        # into 6120, with 5 % of them it does not.
        ({"minutes": 102, "step": 50.0, "epochs": 9}, 5 * STEPS, "after epoch 5"),
        ({"minutes": 10, "spent": 9.5 * 60}, 1, "in epoch 1, after 1 of"),
    ],
)
def test_it_stops_after_an_epoch_where_another_would_not_fit_or_within_one(capsys, how, steps_done, said):
    work, budget, model = train(**how)
    assert budget.stopped and work.steps_done == steps_done
    assert said in capsys.readouterr().out
    assert len(work.weights) == -(-steps_done // STEPS)  # an epoch that is cut short is validated all the same
    assert np.array_equal(model.get_weights()[0], work.weights[-1])  # phase 1 saves the last weights


def test_the_last_epoch_is_not_called_a_stop():
    work, budget, _ = train(2, epochs=2)
    assert work.steps_done == 2 * STEPS and not budget.stopped
    assert [budget.ended_by(n, 5) for n in (3, 5)] == ["early stopping", "last epoch"]


def test_the_best_weights_so_far_come_back_after_a_stop_and_after_a_kill_that_follows_it(tmp_path):
    ends = []
    for _ in range(2):
        best = keras.callbacks.EarlyStopping(monitor="val_loss", patience=8, restore_best_weights=True)
        losses = [1.0, 0.1, *([0.5] * 6)]
        work, budget, model = train(3, epochs=8, losses=losses, extra=[best], path=tmp_path / "checkpoint.npz")
        ends.append((work, model.get_weights()[0], budget.ended_by(3, 8)))
    (first, weights, ended_by), (again, same, ended_as_well_by) = ends
    assert len(first.weights) > 2 and np.array_equal(weights, first.weights[1])
    assert not np.array_equal(weights, first.weights[-1])
    assert not again.weights and np.array_equal(same, weights)
    assert ended_by == ended_as_well_by == "time budget"


def test_phase_1_reports_its_last_epoch_whose_weights_it_saves():
    history = pd.DataFrame(
        {"epoch": [1, 2], "val_loss": [0.5, 0.9], "val_accuracy": [0.7, 0.6], "val_macro_f1": [0.7, 0.6]}
    )
    history.attrs["ended_by"] = "time budget"
    finished = {}
    stage = types.SimpleNamespace(show=print, finish=lambda outputs, figures: finished.update(figures))
    look = [code for code in CELLS if "idxmin()" in code or "stage.finish(" in code]
    variables = {"history": history, "stage": stage, "plots": types.SimpleNamespace(learning_curves=len)}
    exec("\n".join(look), variables)
    assert finished["VAL accuracy"] == finished["VAL macro F1"] == 0.6 and finished["ended by"] == "time budget"
