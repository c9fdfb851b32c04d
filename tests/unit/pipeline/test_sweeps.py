"""Sweeps: which runs, what they share, what ranks them."""

import subprocess
import sys
from pathlib import Path

from fer_utils import files
from fer_utils.pipeline import keys, runner, runs, sweeps
from fer_utils.pipeline.parameters import STAGES, ParameterError

import pytest

ROOT = Path(__file__).resolve().parents[3]


def test_points_are_the_product_in_order():
    assert sweeps.points(["train_head.learning_rate=0.001,0.0005", "fine_tune.unfreeze_top=30,50"]) == [
        {"train_head": {"learning_rate": rate}, "fine_tune": {"unfreeze_top": top}}
        for rate in ("0.001", "0.0005")
        for top in ("30", "50")
    ]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["learning_rate=1"], "--sweep learning_rate=1: expected STAGE.NAME=VALUE"),
        (["balance.seed=1,,2"], "expected values set apart by commas"),
        (["balance.seed=1,1"], "none twice"),
        (["balance.seed=1,2", "balance.seed=3,4"], "balance.seed is swept twice"),
    ],
)
def test_a_sweep_of_another_form_is_refused(texts, said):
    with pytest.raises(ParameterError, match=said):
        sweeps.points(texts)


def test_a_name_is_a_plain_folder_name():
    name = sweeps.name_of("demo", {"train_head": {"weights": "../a/b.h5"}, "balance": {"seed": "1"}})
    assert name == "demo__train_head.weights=..-a-b.h5__balance.seed=1"
    assert Path(name).name == name


@pytest.fixture
def sweep(fake_run, monkeypatch):
    """Runs a sweep of fake runs (name → overrides) and returns (executed stages by run, names that failed)."""

    def start(failing: str = "", **runs_of) -> tuple[dict[str, list[str]], list[str]]:
        fakes = {name: fake_run(name, **overrides) for name, overrides in runs_of.items()}
        executed = {name: [] for name in fakes}

        def execute(stage, values, folders, verbose=False):
            executed[values["run"]].append(stage)
            if values["run"] == failing:
                raise runner.StageFailed(f"{stage} failed")
            fakes[values["run"]].do(stage, content=values["run"] if stage in ("fine_tune", "evaluate") else "")

        monkeypatch.setattr(runner, "execute", execute)
        failed = sweeps.run("demo", list(STAGES), {name: fake.values for name, fake in fakes.items()})
        return executed, failed

    return start


def test_what_runs_share_is_done_once(sweep, fake_run):
    tops = {f"top{top}": {"fine_tune": {"unfreeze_top": top}} for top in (30, 40, 50)}
    executed, failed = sweep(**tops)
    assert failed == []
    assert executed == {"top30": list(STAGES), "top40": ["fine_tune", "evaluate"], "top50": ["fine_tune", "evaluate"]}
    assert fake_run("top50", **tops["top50"]).due() == {}  # it stands on its own: all there, all current


def test_pictures_taken_over_take_no_room_and_outlive_their_donor(sweep, fake_run):
    sweep(a={"fine_tune": {"epochs": 1}}, b={"fine_tune": {"epochs": 2}})
    one, two = (fake_run(name).folders.split("TRAIN") / "angry" / "a.png" for name in "ab")
    assert one.stat().st_ino == two.stat().st_ino
    files.remove(fake_run("a").folders.run)
    assert two.read_text() == "TRAIN angry "


def test_a_donor_with_damage_is_no_donor(fake_run):
    donor, run = fake_run("a").do(), fake_run("b")
    (donor.folders.split("TRAIN") / "angry" / "a.png").unlink()
    assert not runner.take_over("merge_split", run.values["merge_split"], run.folders, donor.folders)
    assert not run.folders.manifest.exists()


def test_a_stage_with_another_key_is_not_taken_over(fake_run):
    donor, run = fake_run("a").do(), fake_run("b", merge_split={"seed": 7})
    assert not runner.take_over("merge_split", run.values["merge_split"], run.folders, donor.folders)


def test_a_run_that_fails_does_not_stop_the_rest(sweep, capsys):
    executed, failed = sweep("b", **{name: {"balance": {"seed": seed}} for seed, name in enumerate("abc")})
    assert failed == ["b"] and executed["b"] == ["balance"]
    assert executed["c"] == ["balance"]  # its balanced set came out as in run a: the rest is taken over
    assert "b: balance failed" in capsys.readouterr().err


def _run(name: str, f1: float, accuracy: float) -> runs.Run:
    val = {"macro_f1": f1, "accuracy": accuracy, "loss": 1.0, "macro_f1_interval": [0, 1], "accuracy_interval": [0, 1]}
    return runs.Run(name, None, "demo", {}, {}, {"val": val})  # no TEST: a look at it would fail


def test_val_ranks_and_test_is_never_looked_at():
    rows = sweeps.ranking([_run("low", 0.2, 0.9), _run("tied", 0.5, 0.5), _run("best", 0.5, 0.6)])
    assert [row[:2] for row in rows] == [("1", "best"), ("2", "tied"), ("3", "low")]
    assert not any("TEST" in column for column in sweeps.RANKED)


def test_an_unfinished_run_ranks_last_with_its_state(fake_run):
    run = fake_run("half").do("merge_split", "balance")
    found = [runs.read(run.folders.run), _run("best", 0.5, 0.6)]
    assert [row[:3] for row in sweeps.ranking(found)][1] == ("–", "half", "stopped before train_head")


def test_a_dry_run_of_a_sweep_names_every_run_and_writes_nothing(tmp_path):
    command = [sys.executable, "run_all.py", "--params", "demo", "--outputs-dir", str(tmp_path), "--dry-run"]
    swept = ["--sweep", "train_head.learning_rate=0.001,0.0005", "--sweep", "fine_tune.unfreeze_top=30,50"]
    done = subprocess.run([*command, *swept], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "demo__train_head.learning_rate=0.0005__fine_tune.unfreeze_top=50" in done.stdout
    assert done.stdout.count("unfreeze_top = 30") == 2 and not list(tmp_path.iterdir())


def test_a_value_out_of_range_stops_a_sweep_before_its_first_run(tmp_path):
    command = [sys.executable, "run_all.py", "--params", "demo", "--outputs-dir", str(tmp_path)]
    done = subprocess.run([*command, "--sweep", "fine_tune.epochs=1,0"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "fine_tune.epochs is 0, expected a whole number (>= 1)" in done.stderr
    assert not list(tmp_path.iterdir())


def test_outputs_on_record_are_all_taken_over(fake_run):
    donor, run = fake_run("a").do(), fake_run("b")
    for stage in STAGES:
        assert runner.take_over(stage, run.values[stage], run.folders, donor.folders)
    for stage in STAGES:
        for name in files.read_json(donor.folders.stage_record(stage))["outputs"]:
            assert keys.output_path(name, run.folders).exists()
