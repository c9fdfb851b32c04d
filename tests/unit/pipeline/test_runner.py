"""Which stages run, which are skipped, and that two processes never work on one run."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import run_all
from fer_utils import digests, files, places
from fer_utils.data import addresses
from fer_utils.pipeline import runner, runs, stages
from fer_utils.pipeline.parameters import STAGES, ParameterError

import pytest
from filelock import FileLock
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[3]
SECOND = "model_votes.keras"


@pytest.fixture
def executed(monkeypatch):
    """The stages that `runner.run` executes, by a stand-in that writes what a fake run writes."""
    names = []

    def execute(stage, values, folders, verbose=False):
        names.append(stage)
        executed.run.do(stage, content=executed.content)

    monkeypatch.setattr(runner, "execute", execute)
    executed.names, executed.content = names, ""
    return executed


def test_nothing_changed_nothing_runs(fake_run, executed, capsys):
    executed.run = fake_run().do()
    assert runner.run("demo", list(STAGES), executed.run.values) == 0
    assert executed.names == []
    assert capsys.readouterr().out.count(": skip: done, and nothing that it depends on changed") == len(STAGES)


def test_the_sources_are_looked_through_once_a_run(fake_run, executed, tmp_path, monkeypatch):
    (tmp_path / "mine" / "happy").mkdir(parents=True)
    executed.run = fake_run(merge_split={"extra": str(tmp_path / "mine")}).do()
    looks, tree_digest = [], digests.of_listing
    monkeypatch.setattr(digests, "of_listing", lambda path: looks.append(path.name) or tree_digest(path))
    runner.run("demo", list(STAGES), executed.run.values, is_shared=True)
    assert executed.names == [] and looks == ["mine"]
    looks.clear()
    executed.run = fake_run("again", merge_split={"extra": str(tmp_path / "mine"), "seed": 7})
    monkeypatch.setattr(executed.run, "do", lambda *_, **__: None)
    runner.run("demo", ["merge_split"], executed.run.values, is_shared=True)
    assert executed.names == ["merge_split"] and looks == ["mine"]


def test_a_first_run_runs_all_and_says_why(fake_run, executed, capsys):
    executed.run = fake_run()
    assert runner.run("demo", list(STAGES), executed.run.values) == len(STAGES)
    assert executed.names == list(STAGES)
    assert "merge_split (01_merge_split.py): run: it has not run yet" in capsys.readouterr().out


def test_an_evaluate_parameter_reruns_05_alone(fake_run, executed, capsys):
    fake_run().do()
    executed.run = fake_run(evaluate={"leave_out": "blanks"})
    runner.run("demo", list(STAGES), executed.run.values)
    assert executed.names == ["evaluate"]
    assert "evaluate (05_evaluate.py): run: leave_out was 'none', is 'blanks'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("parameters", "package", "message"),
    [
        ({"train_head": {"tensorboard": True}}, "tensorboard", "train_head.tensorboard is set, but tensorboard"),
        ({"evaluate": {"find_label_issues": True}}, "cleanlab", "evaluate.find_label_issues is set, but cleanlab"),
    ],
)
def test_a_package_that_a_parameter_needs_is_missed_before_anything_runs(
    parameters, package, message, fake_run, executed, monkeypatch
):
    executed.run = fake_run(**parameters)
    found = importlib.util.find_spec
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(ParameterError, match=f"{message} is not installed: `pip install {package}`"):
        runner.run("demo", list(STAGES), executed.run.values)
    assert executed.names == []


def test_another_seed_of_balance_reruns_02_to_05(fake_run, executed):
    fake_run().do()
    executed.run, executed.content = fake_run(balance={"seed": 7}), "other pictures"
    runner.run("demo", list(STAGES), executed.run.values)
    assert executed.names == ["balance", "train_head", "fine_tune", "evaluate"]


def test_a_stage_that_comes_out_as_before_reruns_nothing_after_it(fake_run, executed):
    fake_run().do()
    executed.run = fake_run(balance={"seed": 7})
    runner.run("demo", list(STAGES), executed.run.values)
    assert executed.names == ["balance"]


def test_stages_asked_for_run_though_they_are_done(fake_run, executed):
    executed.run = fake_run().do()
    runner.run("demo", ["fine_tune", "evaluate"], executed.run.values, repeat=True)
    assert executed.names == ["fine_tune", "evaluate"]


@pytest.mark.parametrize("start", [runner.run, lambda profile, *arguments: runner.print_plan(*arguments)])
def test_a_stage_without_its_inputs_is_refused_before_anything_is_written(fake_run, executed, tmp_path, start):
    executed.run = run = fake_run(name="bare")
    files.remove(run.folders.folder)
    with pytest.raises(places.NotFoundHere) as caught:
        start("demo", ["fine_tune"], run.values, True)
    manifest = run.folders.folder / "manifest.csv"
    assert f"fine_tune reads {manifest}, which merge_split writes: {manifest.name} is missing" in str(caught.value)
    assert executed.names == [] and not run.folders.folder.exists()


def test_a_stage_whose_input_is_damaged_is_refused_unless_its_writer_runs_too(fake_run, executed):
    executed.run = run = fake_run().do()
    (run.folders.folder / "trained.csv").write_text("[")
    with pytest.raises(
        files.TornFile, match=r"trained\.csv, which fine_tune writes: trained\.csv is not what was written"
    ):
        runner.run("demo", ["evaluate"], run.values, repeat=True)
    runner.run("demo", ["fine_tune", "evaluate"], run.values, repeat=True)
    assert executed.names == ["fine_tune", "evaluate"]


def test_04_begun_by_hand_takes_the_network_of_03(fake_run):
    run = fake_run().do("merge_split", "balance", "train_head")
    with pytest.raises(
        ParameterError, match=r"backbone differs between train_head \('resnet50'\) and fine_tune \('small'\)"
    ):
        stages.begin("fine_tune", run.values["fine_tune"] | {"backbone": "small"})
    run.do("fine_tune")
    stages.begin("train_head", run.values["train_head"] | {"backbone": "small"})  # 03 may begin anew


def test_a_truncated_output_reruns_the_stage_that_wrote_it(fake_run, executed, capsys):
    executed.run = fake_run().do()
    executed.run.folders.path("model.keras").write_text("[")
    runner.run("demo", list(STAGES), executed.run.values)
    assert executed.names == ["fine_tune"]
    assert "run: model.keras is not what was written to it" in capsys.readouterr().out


def test_a_dry_run_says_what_a_run_does_and_writes_nothing(fake_run, capsys):
    fake_run().do()
    run = fake_run(balance={"seed": 7})
    before = sorted(run.folders.folder.rglob("*"))
    runner.print_plan(list(STAGES), run.values)
    said = capsys.readouterr().out
    assert "merge_split (01_merge_split.py): skip" in said
    assert "balance (02_balance.py): run: seed was 42, is 7" in said
    assert "train_head (03_train_head.py): run: balanced.csv, images/TRAIN_BALANCED will be written again" in said
    assert "evaluate (05_evaluate.py): run: model.keras, trained.csv will be written again" in said
    assert sorted(run.folders.folder.rglob("*")) == before


def test_a_run_with_nothing_to_do_imports_nothing_slow(fake_run):
    run = fake_run().do()
    code = (
        "import sys, run_all\n"
        f"status = run_all.main(['--params', 'demo', '--outputs-dir', {str(run.folders.folder.parent)!r}])\n"
        "slow = {'tensorflow', 'keras', 'pandas', 'matplotlib', 'papermill', 'jupytext', 'cv2'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": skip: ") == len(STAGES)
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(
        rf"TEST accuracy 0\.\d+ \[.+\], TEST macro F1 0\.\d+ \[.+\]; report: {run.folders.path('report.html')}", last
    )


@pytest.mark.parametrize("text", ["4", "04", "fine_tune", "04_fine_tune", "04_fine_tune.py"])
def test_a_stage_is_named_by_its_number_or_its_name(text):
    assert run_all._parser().parse_args(["--from", text]).first == "fine_tune"
    assert run_all._parser().parse_args(["--only", text]).only == "fine_tune"


@pytest.mark.parametrize("text", ["6", "0", "", "4_fine_tune", "finetune"])
def test_another_name_is_refused_with_the_stages_there_are(text, capsys):
    with pytest.raises(SystemExit) as ended:
        run_all._parser().parse_args(["--from", text])
    assert ended.value.code == 2
    assert f"no stage {text!r}; stages: 01 merge_split, 02 balance, 03 train_head" in capsys.readouterr().err


def _die(stage: stages.Stage) -> None:
    """What the end of its process does."""
    for held in stage.locks:
        held.release()


def test_a_stage_that_only_began_keeps_its_record(fake_run):
    run = fake_run().do()
    stage = stages.begin("fine_tune", dict(run.values["fine_tune"]) | {"epochs": 9})
    stage.show(Figure(), "batch")
    _die(stage)
    assert run.due() == {}


def test_a_figure_that_a_look_drew_again_is_no_reason_and_one_that_is_gone_is(fake_run):
    run = fake_run()
    stage = stages.begin("merge_split", dict(run.values["merge_split"]))
    stage.show(Figure(), "faces")
    run.finish(stage)
    run.folders.figure("faces").write_text("drawn again")
    assert "merge_split" not in run.due()
    run.folders.figure("faces").unlink()
    assert run.due()["merge_split"] == ["faces.png is gone"]


@pytest.mark.parametrize("name", ["balance", "fine_tune"])
def test_a_stage_that_died_after_its_first_output_gave_way_has_no_record(fake_run, name):
    run = fake_run().do()
    before = run.folders.stage_record(name).read_bytes()
    stage = stages.begin(name, dict(run.values[name]))

    def fail(path):
        raise RuntimeError  # before anything gave way

    with pytest.raises(RuntimeError):
        stage.save(fail, "model.keras" if name == "fine_tune" else "balanced.csv")
    assert run.folders.stage_record(name).read_bytes() == before
    if name == "fine_tune":
        stage.save(["model", ""], "model.keras")  # the content on record: its digest would tell nothing
    else:
        run._pictures(stage, "TRAIN_BALANCED", "")
    _die(stage)
    assert run.due()[name] == ["it has not run yet"]


def test_the_record_is_gone_before_the_output_is(fake_run, monkeypatch):
    run = fake_run().do()
    stage = stages.begin("fine_tune", dict(run.values["fine_tune"]))
    _die(stage)

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        stage.save(lambda path: path.write_text("1"), "model.keras")
    assert not run.folders.stage_record("fine_tune").exists()


@pytest.mark.parametrize("days", [1, -1])  # the clock was set back, or the folder copied
def test_a_checkpoint_of_a_later_training_outlives_a_look_whatever_the_clock_says(fake_run, days):
    run = fake_run().do()
    checkpoint = run.folders.checkpoint("fine_tune")
    checkpoint.write_text("some epochs with other parameters")
    later = run.folders.stage_record("fine_tune").stat().st_mtime + days * 86_400
    os.utime(checkpoint, (later, later))
    _die(stages.begin("fine_tune", dict(run.values["fine_tune"])))
    assert checkpoint.exists()


def test_what_a_killed_process_left_is_cleared_before_anything_runs(fake_run, executed):
    executed.run = fake_run().do()
    folders = executed.run.folders
    for place in (folders.folder, folders.folder / "figures", folders.path("notebooks"), folders.data):
        place.mkdir(exist_ok=True)
        (place / ".partial-12345678-thing").write_text("half")
    runner.run("demo", list(STAGES), executed.run.values)
    assert executed.names == []
    assert not list(folders.folder.rglob(".partial-*"))


def test_a_stage_leaves_alone_what_run_all_is_writing_beside_it(fake_run):
    run = fake_run()
    half = run.folders.path("notebooks") / ".partial-12345678-01_merge_split.ipynb"
    half.parent.mkdir()
    half.write_text("half")
    run.do("merge_split")
    assert half.exists()


def test_what_is_written_elsewhere_is_no_output_of_a_stage(fake_run, tmp_path):
    run = fake_run()
    stage = stages.begin("merge_split", dict(run.values["merge_split"]))
    files.write_json(tmp_path / "elsewhere.json", 1)
    stage.finish([], {})
    assert run.folders.all_records()["merge_split"]["outputs"] == {}


def test_a_folder_that_was_giving_way_when_the_process_died_takes_its_place_again(tmp_path):
    (tmp_path / ".partial-12345678-old-TRAIN").mkdir()
    (tmp_path / ".partial-12345678-old-TRAIN" / "a.png").write_text("old")
    (tmp_path / ".partial-87654321-TRAIN").mkdir()
    files.remove_partials(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")] == ["TRAIN/a.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["TRAIN"]


@pytest.mark.parametrize("is_afresh", [False, True])
def test_afresh_forgets_where_training_stood(fake_run, monkeypatch, is_afresh):
    run = fake_run().do("merge_split", "balance")
    run.folders.checkpoint("train_head").write_text("some epochs")
    found = []
    monkeypatch.setattr(runner, "execute", lambda stage, values, run, _: found.append(run.checkpoint(stage).exists()))
    runner.run("demo", ["train_head"], run.values, is_afresh=is_afresh)
    assert found == [not is_afresh]


HOLDER = """
import sys, time
from pathlib import Path
from fer_utils.pipeline import runs
folders = runs.Run(Path(sys.argv[1]), Path(sys.argv[2]))
if sys.argv[3] == "runner":
    with folders.held_by_runner():
        print("held", flush=True)
        time.sleep(600)
locks = folders.hold()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(monkeypatch):
    """Starts processes that hold a run's lock: holder(folders, kind) → process, ended with the test."""
    monkeypatch.setitem(runs._PATIENCE, "stage", 0.3)
    started = []

    def start(folders: runs.Run, kind: str) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLDER, str(folders.folder), str(folders.data), kind]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("kind", ["runner", "stage"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path, holder, kind, elsewhere):
    folders = runs.Run(tmp_path / "run", tmp_path / ("images" if elsewhere else "run/images"))
    process = holder(folders, kind)
    shared = runs.Run(tmp_path / "other", folders.data) if elsewhere else folders
    with pytest.raises(runs.RunIsBusy, match="another process works on this run"), shared.held_by_runner():
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with shared.held_by_runner():
        pass


def test_the_folder_that_is_busy_is_named_though_another_begins_with_its_name(tmp_path, holder):
    run, data = tmp_path / "demo", tmp_path / "demo_images"
    holder(runs.Run(tmp_path / "other", data), "stage")
    with pytest.raises(runs.RunIsBusy) as caught:
        runs.Run(run, data).hold()
    assert str(caught.value).startswith(f"{data}: another process")


def test_a_second_run_all_stops_with_a_clear_message(fake_run, holder):
    run = fake_run()
    holder(run.folders, "runner")
    command = [sys.executable, "run_all.py", "--params", "demo", "--outputs-dir", str(run.folders.folder.parent)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "another process works on this run" in done.stderr and "another name with --run" in done.stderr


def test_a_notebook_opened_twice_in_one_process_is_no_clash(fake_run):
    run = fake_run().do("merge_split")
    stages.begin("balance", dict(run.values["balance"]))
    run.do("balance")
    assert list(run.due()) == ["train_head", "fine_tune", "evaluate"]
    assert not FileLock(run.folders.path(".stage.lock"), is_singleton=True).is_locked


def test_a_record_names_all_that_the_stage_wrote(fake_run):
    run = fake_run().do()
    record = json.loads(run.folders.stage_record("evaluate").read_text())
    assert set(record["outputs"]) == {"metrics.json", "predictions_val.csv", "predictions_test.csv"}


def test_key_figures_are_numbers_or_words():
    assert runs.one_line({"epochs": 1200, "ended by": "last epoch", "F1": 0.5}) == (
        "epochs 1,200, ended by last epoch, F1 0.5"
    )


def test_what_was_done_by_hand_is_a_reason_to_run(fake_run):
    run = fake_run()
    variables = dict(run.values["merge_split"])
    stage = stages.begin("merge_split", variables)
    before = stage.checkpoint
    variables["seed"] = 3
    assert stage.checkpoint != before  # a checkpoint of it is no other training's
    run.finish(stage)
    record = run.folders.all_records()["merge_split"]
    assert record["parameters"]["seed"] == 3
    assert json.loads(run.folders.path("run.json").read_text())["parameters"]["merge_split"]["seed"] == 3
    assert run.due()["merge_split"] == ["seed became 3 after the setup"]


@pytest.mark.parametrize("name", ["balance", "fine_tune"])
def test_a_stage_that_has_ended_computes_and_writes_nothing(fake_run, name, capsys):
    run = fake_run().do()
    stage = stages.begin(name, dict(run.values[name]))
    run.finish(stage)
    stage_files = {path: path.stat() for path in run.folders.folder.rglob("*") if path.is_file()}
    for act in (lambda: stage.checkpoint, lambda: run.finish(stage, "more"), lambda: stage.finish([], {})):
        with pytest.raises(RuntimeError, match=f"{name} has ended: .*run the notebook from its setup cell"):
            act()
    capsys.readouterr()
    stage.show(Figure(), "batch")  # a plot that is drawn again is shown
    assert "Image" in capsys.readouterr().out
    assert {path: path.stat() for path in run.folders.folder.rglob("*") if path.is_file()} == stage_files
    assert run.due() == {}


def test_what_a_notebook_wrote_while_the_lock_was_awaited_counts(fake_run, executed, monkeypatch):
    executed.run = fake_run().do()
    hold = runs.Run.hold

    def hold_after_02_ended(self, kind="stage"):
        if kind == "stage":
            monkeypatch.setattr(runs.Run, "hold", hold)
            executed.run.do("balance", content="other pictures")
        return hold(self, kind)

    monkeypatch.setattr(runs.Run, "hold", hold_after_02_ended)
    assert runner.run("demo", list(STAGES), executed.run.values) >= 2
    assert executed.names[:2] == ["train_head", "fine_tune"]


def _with_second_output(run, content: str) -> None:
    stage = stages.begin("fine_tune", dict(run.values["fine_tune"]))
    stage.save(["second", content], "model_votes.keras")
    run.finish(stage, "")


def test_05_reads_a_second_output_only_of_the_training_that_wrote_it(fake_run):
    run = fake_run().do()
    _with_second_output(run, "one")
    assert run.due() == {"evaluate": [f"{SECOND} changed"]}
    assert stages.begin("evaluate", dict(run.values["evaluate"])).has(SECOND)
    run.do("fine_tune")  # a training without one leaves the file
    assert (run.folders.folder / SECOND).is_file()
    assert not stages.begin("evaluate", dict(run.values["evaluate"])).has(SECOND)


def test_a_second_output_that_is_gone_or_another_is_noticed(fake_run):
    run = fake_run().do()
    _with_second_output(run, "one")
    (run.folders.folder / SECOND).write_text("another")
    with pytest.raises(files.TornFile, match=f"{SECOND} .*run fine_tune again"):
        stages.begin("evaluate", dict(run.values["evaluate"]))
    (run.folders.folder / SECOND).unlink()
    with pytest.raises(places.NotFoundHere, match=f"{SECOND} is gone; run fine_tune first"):
        stages.begin("evaluate", dict(run.values["evaluate"]))
    with pytest.raises(places.NotFoundHere, match=f"evaluate reads .*{SECOND}, which fine_tune writes"):
        runner.run("demo", ["evaluate"], run.values, repeat=True)


@pytest.mark.parametrize(
    ("stage", "parameter", "value"),
    [("merge_split", "labels", "ferplus"), ("train_head", "votes_share", 0.5), ("fine_tune", "votes_output", 1.0)],
)
def test_votes_that_are_needed_are_missed_before_anything_runs(stage, parameter, value, fake_run, executed, tmp_path):
    sources = {name: str(tmp_path / name) for name in addresses.DATASETS}
    for path in sources.values():
        Path(path).mkdir()
    given = {"merge_split": {**sources, "votes": "none"}}
    given[stage] = given.get(stage, {}) | {parameter: value}
    executed.run = fake_run(**given)
    with pytest.raises(
        places.NotFoundHere, match=rf"{stage}\.{parameter}: FER\+'s votes are needed.*put fer2013new\.csv into data/"
    ):
        runner.run("demo", list(STAGES), executed.run.values)
    assert executed.names == []
    votes = tmp_path / "votes.csv"
    votes.write_text("there")
    executed.run = fake_run(**given | {"merge_split": given["merge_split"] | {"votes": str(votes)}})
    runner.run("demo", list(STAGES), executed.run.values)
    assert executed.names == list(STAGES)
