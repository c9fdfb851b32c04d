"""Sweeps: which runs, what they share, what ranks them, and how processes share the work."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from fer_utils import files
from fer_utils.pipeline import keys, parameters, runner, sweeps
from fer_utils.pipeline.parameters import STAGES, ParameterError
from fer_utils.pipeline.runs import LONGEST_NAME

import filelock
import numpy as np
import pytest
from study_worker import content, plan

optuna = pytest.importorskip("optuna", reason="sweeps need the extra `sweep`")

ROOT = Path(__file__).resolve().parents[3]
WORKER = Path(__file__).with_name("study_worker.py")


def axes(*texts: str) -> dict:
    return sweeps.axes(texts, parameters.declared())


def test_points_are_the_product_in_order():
    assert sweeps.grid(axes("train_head.learning_rate=0.001,0.0005", "fine_tune.unfreeze_top=30,50")) == [
        {"train_head.learning_rate": rate, "fine_tune.unfreeze_top": top}
        for rate in ("0.001", "0.0005")
        for top in ("30", "50")
    ]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["learning_rate=1"], "--sweep learning_rate=1: expected STAGE.NAME=VALUE"),
        (["balance.seed=1,,2"], "expected values set apart by commas"),
        (["balance.seed=1,1"], "given twice"),
        (["balance.seed=1,2", "balance.seed=3,4"], "given twice"),
        (["fine_tune.learning_rate=1e-3..1e-5:log"], "expected .* a range LOW..HIGH.*low <= high"),
        (["fine_tune.learning_rate=0..1e-5:log"], "low > 0"),
        (["fine_tune.learning_rate=a..b"], "a range LOW..HIGH.*could not convert string to float: 'a'"),
        (["fine_tune.unfreeze_top=1.5..3"], "a range LOW..HIGH.*invalid literal for int"),
    ],
)
def test_a_sweep_of_another_form_is_refused(texts, said):
    with pytest.raises(ParameterError, match=said):
        axes(*texts)


@pytest.mark.parametrize(
    ("text", "low", "high", "is_log", "is_int"),
    [
        ("fine_tune.learning_rate=1e-5..1e-3:log", 1e-5, 1e-3, True, False),
        ("fine_tune.learning_rate=0.5..1.5", 0.5, 1.5, False, False),
        ("fine_tune.learning_rate=.5..1.", 0.5, 1.0, False, False),
        ("train_head.batch_size=32..256:log", 32, 256, True, True),
        ("common.batch_size=32..64", 32, 64, False, True),
    ],
)
def test_a_range_has_two_ends(text, low, high, is_log, is_int):
    ((key, axis),) = axes(text).items()
    assert key == text.partition("=")[0] and isinstance(axis, optuna.distributions.IntDistribution) == is_int
    assert (axis.low, axis.high, axis.log) == (low, high, is_log)


@pytest.mark.parametrize("swept", ["fine_tune.optimizer=0..1", "train_head.find_label_issues=0..1"])
def test_a_parameter_that_is_no_number_has_no_range(answer, tmp_path, swept):
    status, _, errors = answer("--params", "demo", "--outputs-dir", str(tmp_path), "--sweep", swept, "--trials", "3")
    assert status == 2 and f"{swept.partition('=')[0]} is '" in errors and not list(tmp_path.iterdir())


def test_paths_and_words_in_a_list_are_no_range():
    assert axes("common.weights=../a.h5,../b.h5")["common.weights"].choices == ("../a.h5", "../b.h5")
    assert axes("common.weights=../a.h5")["common.weights"].choices == ("../a.h5",)


def test_searched_numbers_are_rounded_as_they_are_named():
    point = sweeps.point_of({"fine_tune.learning_rate": 0.000123456, "fine_tune.unfreeze_top": 7})
    assert point == {"fine_tune.learning_rate": "0.0001235", "fine_tune.unfreeze_top": "7"}
    assert sweeps.sections(point) == {"fine_tune": {"learning_rate": "0.0001235", "unfreeze_top": "7"}}


def test_a_name_is_a_plain_folder_name():
    name = sweeps.name_of("demo", {"train_head.weights": "../a/b.h5", "balance.seed": "1"})
    assert name == "demo__train_head.weights=..-a-b.h5__balance.seed=1"
    assert Path(name).name == name


def test_a_long_name_is_cut_and_stays_its_own():
    points = [{"merge_split.extra": "x" * 300 + end} for end in "ab"]
    names = [sweeps.name_of("demo", point) for point in points]
    assert names[0] != names[1] and all(len(name.encode()) == LONGEST_NAME for name in names)
    assert all(name.startswith("demo__merge_split.extra=xxx") for name in names)
    wide = sweeps.name_of("demo", {"merge_split.extra": "ł" * 100})
    assert len(wide.encode()) <= LONGEST_NAME and wide.startswith("demo__merge_split.extra=łł")
    assert sweeps.name_of("demo", {"balance.seed": "1"}) == "demo__balance.seed=1"


@pytest.fixture
def sweep(fake_run, monkeypatch, tmp_path):
    """Runs a sweep of fake runs; returns (executed stages by run's values, names that failed, study, plan)."""
    monkeypatch.setattr(sweeps, "POLL", 0.1)

    def start(*swept: str, failing: str = "", **how):
        executed: dict[str, list[str]] = {}

        def execute(stage, values, folders, verbose=False):
            executed.setdefault(values["run"], []).append(stage)
            if failing and failing in values["run"]:
                raise runner.StageFailed(f"{stage} failed")
            fake = fake_run(values["run"], **files.read_json(folders.folder / "run.json")["parameters"])
            fake.do(stage, content=content(stage, values["run"]) if stage in ("fine_tune", "evaluate") else "")

        monkeypatch.setattr(runner, "execute", execute)
        made = plan(tmp_path / "outputs", list(swept), **how)
        made.check()
        shared = sweeps.open_study(made, tmp_path / "outputs")
        return executed, sweeps.work(made, shared, tmp_path / "outputs"), shared, made

    return start


def test_what_runs_share_is_done_once(sweep, fake_run):
    executed, failed, *_ = sweep("fine_tune.unfreeze_top=30,40,50")
    assert failed == []
    first, *others = executed.values()
    assert first == list(STAGES) and others == [["fine_tune", "evaluate"]] * 2
    name = list(executed)[2]
    top = {"fine_tune": {"unfreeze_top": int(name.rsplit("=", 1)[1])}}
    assert fake_run(name, **top).due() == {}  # it stands on its own: all there, all current


def test_a_sweep_that_is_done_runs_nothing_again(sweep):
    sweep("fine_tune.unfreeze_top=30,40")
    executed, failed, shared, _ = sweep("fine_tune.unfreeze_top=30,40")
    assert executed == {} and failed == [] and len(shared.trials) == 2


def test_other_parameters_make_another_study_and_take_over_what_is_done(sweep):
    _, _, first, _ = sweep("fine_tune.unfreeze_top=30,40")
    executed, _, second, _ = sweep("fine_tune.unfreeze_top=30,40,50")
    assert first.study_name != second.study_name
    assert list(executed.values()) == [["fine_tune", "evaluate"]]  # the new point alone


def test_other_sources_or_versions_make_another_study(tmp_path, monkeypatch):
    source = {"emotion_detection": "none", "votes": "none", "fer2013": str(tmp_path / "mine")}
    picture = tmp_path / "mine" / "train" / "happy" / "a.png"
    picture.parent.mkdir(parents=True)

    def study(*swept: str) -> str:
        made = plan(tmp_path / "outputs", list(swept), merge_split=source)
        return sweeps.open_study(made, tmp_path / "outputs").study_name

    swept = f"merge_split.fer2013={tmp_path / 'mine'},demo"
    picture.write_text("one")
    first, first_swept = study("fine_tune.unfreeze_top=30,40"), study(swept)
    assert study("fine_tune.unfreeze_top=30,40") == first and study(swept) == first_swept
    picture.write_text("another")
    second = study("fine_tune.unfreeze_top=30,40")
    assert second != first and study(swept) != first_swept
    monkeypatch.setattr(keys, "version", lambda package: "0.0")
    assert study("fine_tune.unfreeze_top=30,40") != second


def test_seeds_of_a_point_are_averaged_on_the_same_data(sweep):
    executed, _, shared, made = sweep("fine_tune.unfreeze_top=30,40", seeds=(1, 2, 3))
    assert len(executed) == 6 and sum("merge_split" in stages for stages in executed.values()) == 1
    assert sum("train_head" in stages for stages in executed.values()) == 3  # one for each seed
    for trial in shared.trials:
        values = list(trial.user_attrs["values"].values())
        assert len(values) == 3 and trial.value == pytest.approx(np.mean(values))
    table = sweeps.ranking(made, shared)
    assert list(table["seeds"]) == [3, 3] and (table["low"] < table["score"]).all()


def test_a_search_has_as_many_trials_as_asked_within_its_ranges(sweep):
    executed, failed, shared, _ = sweep("fine_tune.learning_rate=1e-5..1e-3:log", trials=6)
    done = [trial for trial in shared.trials if trial.state.name == "COMPLETE"]
    assert len(done) == len(executed) == 6 and not failed
    rates = [trial.user_attrs["point"].partition("=")[2] for trial in done]
    assert len(set(rates)) == 6 and all(1e-5 <= float(rate) <= 1e-3 for rate in rates)
    executed, *_ = sweep("fine_tune.learning_rate=1e-5..1e-3:log", trials=8)
    assert len(executed) == 2  # two more points, not eight


def test_a_point_that_is_drawn_again_counts_and_is_not_run_again(sweep):
    executed, failed, shared, made = sweep("fine_tune.unfreeze_top=30..32", trials=9)
    assert len(shared.trials) == 9 and not failed
    again = [trial for trial in shared.trials if trial.state.name == "FAIL"]
    assert len(executed) + len(again) == 9 and 1 <= len(executed) <= 3
    assert len(sweeps.ranking(made, shared)) == len(executed)


def test_a_trial_belongs_to_its_process_however_silent_and_to_nobody_when_that_has_ended(sweep, tmp_path, capsys):
    *_, shared, made = sweep("fine_tune.unfreeze_top=30,40")
    made = plan(tmp_path / "outputs", ["fine_tune.unfreeze_top=50,60"])
    shared = sweeps.open_study(made, tmp_path / "outputs")
    sweeps._queue(made, shared)
    file = sweeps.locks_of(shared, tmp_path / "outputs") / "0.lock"
    file.parent.mkdir(parents=True)
    looks, is_held = [], threading.Event()

    def other_process():
        with filelock.FileLock(file):
            is_held.set()
            while [trial.state.name for trial in shared.trials] != ["RUNNING", "COMPLETE"]:
                time.sleep(0.05)
            time.sleep(0.3)
            looks.append([trial.state.name for trial in shared.trials])

    threading.Thread(target=other_process).start()
    is_held.wait()
    assert sweeps._take(made, shared).number == 0  # its process holds the lock and says nothing
    assert sweeps.work(made, shared, tmp_path / "outputs") == []
    assert looks == [["RUNNING", "COMPLETE"]]
    assert [trial.state.name for trial in shared.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    said = capsys.readouterr().out
    assert "waiting for other processes, which run 1 of them" in said
    assert "the process that ran trial 0 has ended: its point is run again" in said


def test_a_search_of_which_every_run_fails_comes_to_an_end(sweep):
    executed, failed, *_ = sweep("fine_tune.learning_rate=1e-5..1e-3:log", trials=3, failing="demo")
    assert len(failed) == len(executed) == 3
    again, failed, *_ = sweep("fine_tune.learning_rate=1e-5..1e-3:log", trials=3)
    assert set(again) == set(executed) and failed == []  # the next command runs the same points


def test_a_search_runs_the_point_of_a_process_that_died_again(sweep, tmp_path):
    sweep("fine_tune.unfreeze_top=30")  # so that runs are fake
    made = plan(tmp_path / "outputs", ["fine_tune.learning_rate=1e-5..1e-3:log"], trials=2)
    shared = sweeps.open_study(made, tmp_path / "outputs")
    point = sweeps._text(sweeps.point_of(sweeps._take(made, shared).params))  # no process holds its lock
    assert sweeps.work(made, shared, tmp_path / "outputs") == []
    done = [trial.user_attrs["point"] for trial in shared.trials if trial.state.name == "COMPLETE"]
    assert len(done) == 2 and point in done


@pytest.mark.parametrize("n_drawn", [0, 1])
@pytest.mark.parametrize(
    ("swept", "how"),
    [
        (["fine_tune.unfreeze_top=30,40", "train_head.epochs=2,3"], {}),
        (["fine_tune.learning_rate=1e-5..1e-3:log", "train_head.epochs=2,3"], {"trials": 3}),
    ],
)
def test_a_process_that_died_while_it_took_a_point_leaves_it_whole(sweep, tmp_path, monkeypatch, n_drawn, swept, how):
    sweep("fine_tune.unfreeze_top=30")  # so that runs are fake
    made = plan(tmp_path / "outputs", swept, **how)
    shared = sweeps.open_study(made, tmp_path / "outputs")
    sweeps._queue(made, shared)
    draw, drawn = optuna.trial.Trial._suggest, []

    def killed(*arguments):
        if len(drawn) == n_drawn:
            raise KeyboardInterrupt
        drawn.append(arguments)
        return draw(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(optuna.trial.Trial, "_suggest", killed)
        with pytest.raises(KeyboardInterrupt):
            sweeps._take(made, shared)
    for _ in range(2):  # the second command has nothing left to do
        assert sweeps.work(made, shared, tmp_path / "outputs") == []
    done = [trial for trial in shared.trials if trial.state.name == "COMPLETE"]
    assert len({trial.user_attrs["point"] for trial in done}) == len(done) == (2 if how else 4)
    for trial in done:
        assert trial.user_attrs["point"] == sweeps._text(sweeps.point_of(trial.params))


def test_a_plan_that_cannot_be_run_is_refused_first(sweep):
    for swept, how, said in (
        ("fine_tune.learning_rate=1e-5..1e-3", {}, "say with --trials how many"),
        ("fine_tune.unfreeze_top=30,40", {"trials": 3}, "--trials is for ranges"),
        ("fine_tune.epochs=0..3", {"trials": 3}, "epochs is 0, expected a whole number"),
    ):
        with pytest.raises(ParameterError, match=said):
            sweep(swept, **how)


@pytest.mark.parametrize(
    ("swept", "how", "said"),
    [
        ("fine_tune.unfreeze_top=30,40", {"seeds": range(2**32 - 1, 2**32 + 1)}, "seed is 4294967296, expected"),
        (f"balance.seed={','.join(map(str, range(10_001)))}", {}, "more than 10,000 combinations"),
        ("merge_split.extra=a/b,a b", {}, r"gives two runs the name demo__merge_split\.extra=a-b"),
    ],
)
def test_a_plan_beyond_all_bounds_is_refused_first(tmp_path, swept, how, said):
    with pytest.raises(ParameterError, match=said):
        plan(tmp_path / "outputs", [swept], **how).check()


@pytest.mark.parametrize("seeds", ["0", "-5", "10001"])
def test_a_number_of_seeds_beyond_all_bounds_is_refused_first(answer, tmp_path, seeds):
    arguments = ["--params", "demo", "--outputs-dir", str(tmp_path), "--sweep", "balance.seed=1,2", "--seeds", seeds]
    status, _, errors = answer(*arguments)
    assert status == 2 and f"--seeds is {seeds}, expected 1 to 10,000" in errors and not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(36, "File name too long"), KeyError("val"), MemoryError()])
def test_any_failure_of_a_run_is_a_failed_trial_and_poisons_nothing(sweep, tmp_path, monkeypatch, capsys, error):
    run = runner.run

    def fails(profile, stages, values, **how):
        if values["balance"]["seed"] == 2:
            raise error
        return run(profile, stages, values, **how)

    with monkeypatch.context() as broken:
        broken.setattr(runner, "run", fails)
        executed, failed, shared, made = sweep("balance.seed=1,2,3")
        assert failed == ["demo__balance.seed=2"] and len(executed) == 2
        assert f"demo__balance.seed=2: {error or type(error).__name__}" in capsys.readouterr().err
        assert sweeps.work(made, shared, tmp_path / "outputs") == failed
    assert sweeps.work(made, shared, tmp_path / "outputs") == []


def test_damage_beside_a_sweep_fails_none_of_its_trials(sweep, fake_run):
    torn = fake_run("demo__balance.seed=9").do("merge_split")
    torn.folders.stage_record("merge_split").write_text("{")
    (torn.folders.folder.parent / f"demo__{'y' * 200}").mkdir()
    executed, failed, *_ = sweep("balance.seed=1,2")
    assert failed == [] and len(executed) == 2


def test_a_stage_is_taken_over_from_any_run_of_the_outputs_folder(fake_run, monkeypatch):
    for name, stages in (("a [1]__balance.seed=1", ("merge_split",)), ("other", ("merge_split", "balance"))):
        fake_run(name).do(*stages)
    monkeypatch.setattr(runner, "execute", lambda stage, *_: pytest.fail(f"{stage} ran"))
    run = fake_run("a [1]__balance.seed=2")
    runner.run("demo", ["merge_split", "balance"], run.values, is_shared=True)
    taken = [files.read_json(run.folders.stage_record(stage))["taken_from"] for stage in ("merge_split", "balance")]
    assert taken == ["a [1]__balance.seed=1", "other"]


GARBAGE = (b"garbage", b"garbage\n", b"\x00\xff\n\x00\n", b"[]\n", b"null\n", b'{"op_code": 99}\n', b"\n\n")


@pytest.mark.parametrize("content", [*GARBAGE, None])
def test_a_garbage_journal_is_named_with_the_way_out(tmp_path, content):
    made, journal = plan(tmp_path / "outputs", ["balance.seed=1,2"]), tmp_path / "outputs" / "sweep_demo.journal"
    journal.parent.mkdir()
    journal.mkdir() if content is None else journal.write_bytes(content)
    with pytest.raises(
        ParameterError, match=r"sweep_demo\.journal, the sweep's study: cannot be opened .*: move it away"
    ):
        sweeps.open_study(made, tmp_path / "outputs")


# --- several processes -------------------------------------------------------------------------------------------------


class Workers:
    """Processes that share a sweep of eight points."""

    SWEPT = ("train_head.learning_rate=0.001,0.002", "fine_tune.unfreeze_top=30,40,50,60")

    def __init__(self, folder: Path):
        self.outputs, self.log, self.processes = folder / "outputs", folder / "log", []

    def start(self, seconds: float) -> subprocess.Popen:
        command = [
            sys.executable,
            str(WORKER),
            str(self.outputs),
            str(self.log),
            str(seconds),
            *self.SWEPT,
        ]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
        self.processes.append(process)
        return process

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()] if self.log.is_file() else []

    def wait_for(self, *words: str) -> list[str]:
        for _ in range(600):
            for line in self.lines():
                if set(words) <= set(line):
                    return line
            time.sleep(0.05)
        raise AssertionError(f"no line with {words} in {self.lines()}")

    def ended(self) -> list[list[str]]:
        return [line for line in self.lines() if line[-1] == "end"]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def workers(tmp_path):
    made = Workers(tmp_path)
    yield made
    made.end()


def test_two_processes_share_a_sweep_and_a_third_joins_in(workers):
    first, second = workers.start(0.2), workers.start(0.2)
    workers.wait_for("evaluate", "end")
    third = workers.start(0.2)
    assert [process.wait(timeout=90) for process in (first, second, third)] == [0, 0, 0]
    per_stage = Counter(line[2] for line in workers.ended())
    assert per_stage == {"merge_split": 1, "balance": 1, "train_head": 2, "fine_tune": 8, "evaluate": 8}
    trained = [line for line in workers.ended() if line[2] == "fine_tune"]
    assert len({line[1] for line in trained}) == 8 and len({line[0] for line in trained}) >= 2
    made = plan(workers.outputs, list(Workers.SWEPT))
    shared = sweeps.open_study(made, workers.outputs)
    table = sweeps.ranking(made, shared)
    assert len(table) == 8 and list(table["rank"]) == [str(rank) for rank in range(1, 9)]
    scores = {
        name: files.read_json(workers.outputs / name / "metrics.json")["val"]["macro_f1"] for name in table["runs"]
    }
    assert list(table["runs"]) == sorted(scores, key=lambda name: -scores[name])


def test_a_killed_process_leaves_its_trial_to_another(workers):
    first, second = workers.start(0.3), workers.start(0.3)
    line = workers.wait_for("fine_tune", "begin", str(first.pid))
    workers.wait_for("begin", str(second.pid))
    os.kill(first.pid, signal.SIGKILL)
    assert second.wait(timeout=90) == 0
    trained = Counter(line[1] for line in workers.ended() if line[2] == "evaluate")
    assert len(trained) == 8 and set(trained.values()) == {1}
    assert trained[line[1]] == 1  # the one that was killed in the middle, too


def test_pictures_taken_over_take_no_room_and_outlive_their_donor(sweep, fake_run):
    executed, *_ = sweep("fine_tune.epochs=1,2")
    names = list(executed)
    one, two = (fake_run(name).folders.path("images/TRAIN") / "angry" / "a.png" for name in names)
    assert one.stat().st_ino == two.stat().st_ino
    files.remove(fake_run(names[0]).folders.folder)
    assert two.read_text() == "TRAIN angry "


def _takes_over(stage: str, run, donor) -> bool:
    key = keys.key_of(stage, run.values[stage], run.folders, run.folders.all_records())
    return runner.take_over(stage, run.values[stage], run.folders, donor.folders, key)


def test_a_donor_with_damage_is_no_donor(fake_run):
    donor, run = fake_run("a").do(), fake_run("b")
    (donor.folders.path("images/TRAIN") / "angry" / "a.png").unlink()
    assert not _takes_over("merge_split", run, donor)
    assert not run.folders.path("manifest.csv").exists()


def test_a_stage_with_another_key_is_not_taken_over(fake_run):
    donor, run = fake_run("a").do(), fake_run("b", merge_split={"seed": 7})
    assert not _takes_over("merge_split", run, donor)


def test_a_run_that_fails_does_not_stop_the_rest_and_is_run_by_the_next_command(sweep, capsys):
    executed, failed, shared, made = sweep("balance.seed=1,2,3", failing="seed=2")
    assert failed == ["demo__balance.seed=2"] and executed["demo__balance.seed=2"][-1] == "balance"
    assert len(executed) == 3
    assert "demo__balance.seed=2: balance failed" in capsys.readouterr().err
    table = sweeps.ranking(made, shared)
    assert list(table["state"]) == ["done", "done", "failed"] and table["rank"].iloc[-1] == "–"
    executed, failed, shared, made = sweep("balance.seed=1,2,3")
    assert list(executed) == ["demo__balance.seed=2"] and failed == []
    assert list(sweeps.ranking(made, shared)["state"]) == ["done"] * 3


def test_val_ranks_and_test_is_never_looked_at(sweep, tmp_path, capsys):
    *_, shared, made = sweep("fine_tune.unfreeze_top=30,31,32,33,34,35")
    assert sweeps.ranking(made, shared)["score"].nunique() > 1
    for name in sweeps.ranking(made, shared)["runs"]:
        path = tmp_path / "outputs" / name / "metrics.json"
        metrics = files.read_json(path)
        del metrics["test"]  # a look at it would fail
        files.write_json(path, metrics)
    table = sweeps.ranking(made, shared)
    assert list(table["score"]) == sorted(table["score"], reverse=True)
    assert not any("TEST" in column or "test" in column for column in table)
    sweeps.print_ranking(made, shared, tmp_path / "outputs")
    sheet, said = tmp_path / "outputs" / "sweep_demo.csv", capsys.readouterr().out
    assert f"6 of 6 points finished; ranked by VAL macro F1: {sheet}" in said
    assert [line.split()[1] for line in said.splitlines() if "unfreeze_top=" in line][-6:] == list(table["point"])
    assert (
        sheet.read_text()
        .splitlines()[0]
        .startswith("rank,point,score,low,high,seeds,state,trial,fine_tune.unfreeze_top")
    )


def test_the_interval_over_seeds_is_students(sweep):
    *_, shared, made = sweep("fine_tune.unfreeze_top=30", seeds=(1, 2, 3))
    ((_, row),) = sweeps.ranking(made, shared).iterrows()
    scores = list(shared.trials[0].user_attrs["values"].values())
    half = 4.302653 * np.std(scores, ddof=1) / 3**0.5
    assert half > 0 and (row["low"], row["high"]) == pytest.approx((row["score"] - half, row["score"] + half), abs=1e-6)
    *_, shared, made = sweep("fine_tune.unfreeze_top=30")
    assert sweeps.ranking(made, shared)[["low", "high"]].isna().all(axis=None)


def test_a_database_holds_the_study_too_and_one_that_cannot_be_opened_is_named(tmp_path, sweep):
    made = plan(tmp_path / "outputs", ["fine_tune.unfreeze_top=30,40"])
    url = f"sqlite:///{tmp_path}/study.db"
    assert (
        sweeps.open_study(made, tmp_path / "outputs", url).study_name
        == sweeps.open_study(made, tmp_path, url).study_name
    )
    with pytest.raises(ParameterError, match="--storage postgres"):
        sweeps.open_study(made, tmp_path, "postgresql+psycopg2://nobody@localhost:1/none")
    with pytest.raises(ParameterError, match="--storage nonsense"):
        sweeps.open_study(made, tmp_path, "nonsense")


def test_a_dry_run_of_a_sweep_names_every_run_and_writes_nothing(answer, tmp_path):
    swept = ["--sweep", "train_head.learning_rate=0.001,0.0005", "--sweep", "fine_tune.unfreeze_top=30,50"]
    status, said, errors = answer("--params", "demo", "--outputs-dir", str(tmp_path), "--dry-run", *swept)
    assert status == 0, errors
    assert "demo__train_head.learning_rate=0.0005__fine_tune.unfreeze_top=50" in said
    assert said.count("unfreeze_top = 30") == 2 and not list(tmp_path.iterdir())


def test_a_value_out_of_range_stops_a_sweep_before_its_first_run(answer, tmp_path):
    status, _, errors = answer("--params", "demo", "--outputs-dir", str(tmp_path), "--sweep", "fine_tune.epochs=1,0")
    assert status == 2 and "fine_tune.epochs is 0, expected a whole number (>= 1)" in errors
    assert not list(tmp_path.iterdir())


def test_outputs_on_record_are_all_taken_over(fake_run):
    donor, run = fake_run("a").do(), fake_run("b")
    for stage in STAGES:
        assert _takes_over(stage, run, donor)
    for stage in STAGES:
        for name in files.read_json(donor.folders.stage_record(stage))["outputs"]:
            assert run.folders.path(name).exists()
