"""run_all.py's answers that need no training: choices, refusals, exit status."""

import subprocess
import sys
from pathlib import Path

import run_all

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-p", "fine_tune.epoch=3"], "unknown parameter fine_tune.epoch; did you mean 'epochs'?"),
        (["-p", "fine_tune.epochs=0"], "fine_tune.epochs is 0, expected a whole number (>= 1)"),
        (["-p", "fine_tune.epochs=many"], "fine_tune.epochs is 'many', expected a whole number"),
        (["-p", "balanse.seed=1"], "unknown section 'balanse'; did you mean 'balance'?"),
        (["-p", "balance.epochs=1"], "it belongs to train_head and fine_tune"),
        (["-p", "nonsense"], "expected STAGE.NAME=VALUE"),
        (["--params", "params/nowhere.yaml"], "no such profile; profiles there: clean.yaml, cpu.yaml"),
        (["--run", "../elsewhere"], "expected a plain folder name"),
        (["-p", "merge_split.fer2013=/nowhere"], "Download https://www.kaggle.com/datasets/msambare/fer2013"),
        (["-p", "evaluate.picture=nowhere.png"], f"evaluate.picture is 'nowhere.png': no file at {ROOT}/nowhere.png"),
        (["-p", "train_head.weights=none", "-p", "fine_tune.weights=imagenet"], "weights differs"),
        (
            ["-p", "fine_tune.backbone=small"],
            "backbone differs between train_head ('resnet50') and fine_tune ('small')",
        ),
        (["-p", "common.backbone=vgg"], "common.backbone is 'vgg', expected text on one line (resnet50 | small)"),
        (
            ["-p", "common.backbone=small", "-p", "common.weights=imagenet"],
            "weights is 'imagenet', and the backbone small has none: small has shipped, resnet50 has imagenet",
        ),
        (["-p", "common.backbone=small"], "fine_tune.unfreeze_top is 136: the backbone small has 45 layers"),
        (
            ["-p", "fine_tune.schedule=cosine", "-p", "fine_tune.epochs=2", "-p", "fine_tune.warmup_epochs=2"],
            "warmup_epochs is 2.0, expected less than epochs, which is 2",
        ),
        (["--dry-run", "-p", "fine_tune.unfreeze_top=500"], "the backbone resnet50 has 175 layers"),
        (["--seeds", "3"], "--seeds goes with --sweep"),
        (["--trials", "3"], "--trials goes with --sweep"),
        (["--storage", "sqlite:///x.db", "--dry-run"], "--storage goes with --sweep"),
        (["--objective", "accuracy"], "--objective goes with --sweep"),
        (["--kaggle-user", "me"], "--kaggle-user goes with --export-kaggle"),
        (["--export-kaggle", "k", "--sweep", "balance.seed=1,2"], "--export-kaggle cannot be given with --sweep"),
        (["--export-kaggle", "k", "--dry-run"], "--export-kaggle cannot be given with --dry-run"),
        (["--dry-run", "--download"], "--dry-run cannot be given with --download"),
        (["--compare", "a", "b", "--dry-run"], "--compare cannot be given with --dry-run"),
        (["--export-model", "a", "b", "--dry-run"], "--export-model cannot be given with --dry-run"),
        (["--to-mlflow", "a", "--dry-run"], "--to-mlflow cannot be given with --dry-run"),
        (["-p", "fine_tune.unfreeze_top=176"], "fine_tune.unfreeze_top is 176: the backbone resnet50 has 175 layers"),
    ],
)
def test_a_fault_stops_it_before_anything_runs(arguments, expected, answer, tmp_path):
    status, _, errors = answer("--params", "params/demo.yaml", "--outputs-dir", str(tmp_path), *arguments)
    assert status == 2
    assert expected in errors
    assert not list(tmp_path.rglob("*.ipynb"))


def test_a_dry_run_shows_resolved_values_and_writes_nothing(answer, tmp_path):
    status, said, _ = answer(
        "--params",
        "params/demo.yaml",
        "--dry-run",
        "--outputs-dir",
        str(tmp_path),
        "-p",
        "train_head.learning_rate=1e-3",
    )
    assert status == 0
    assert "learning_rate = 0.001" in said
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_named_keeps_its_profile(answer, tmp_path):
    """Its stages would otherwise run again with the parameters of the machine's profile."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text('{"profile": "strong", "parameters": {}}')
    arguments = ["--outputs-dir", str(tmp_path), "--dry-run", "--run"]
    _, said, _ = answer(*arguments, "mine")
    assert "profile strong: the run mine was made with it" in said and "unfreeze_top = 175" in said
    _, said, _ = answer(*arguments, "mine", "--params", "demo")
    assert "unfreeze_top = 136" in said
    _, said, _ = answer(*arguments, "another")
    assert "was made with it" not in said
    _, said, _ = answer("--dry-run", "--run", "mine", "-p", f"common.outputs_dir={tmp_path}")
    assert "profile strong: the run mine was made with it" in said
    _, said, _ = answer("--outputs-dir", str(tmp_path), "--dry-run", "-p", "common.run=mine")
    assert "profile strong: the run mine was made with it" in said


@pytest.mark.parametrize(("more", "goes_on"), [([], True), (["--list"], False), (["--dry-run"], False)])
def test_an_interrupt_says_how_to_go_on_where_stages_ran(more, goes_on, answer, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_all, "_answer", interrupted)
    status, _, errors = answer(*more)
    assert status == 130 and "stopped" in errors
    assert ("the same command, without --force, --from and --only, goes on" in errors) == goes_on


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_stage_without_what_it_reads_is_refused_with_the_stage_that_writes_it(more, answer, tmp_path):
    arguments = ["--params", "params/demo.yaml", "--only", "balance", "--outputs-dir", str(tmp_path), *more]
    status, _, errors = answer(*arguments)
    assert status == 2
    assert "manifest.csv, which merge_split writes: manifest.csv is missing" in errors
    assert not list(tmp_path.iterdir())


def test_paths_given_to_options_start_where_the_user_stands(tmp_path):
    (tmp_path / "mine.yaml").write_text("merge_split: {fer2013: demo, emotion_detection: demo, seed: 7}")
    command = [sys.executable, str(ROOT / "run_all.py"), "--params", "mine.yaml", "--outputs-dir", "here/../results"]
    done = subprocess.run([*command, "--dry-run"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "seed = 7" in done.stdout and f"outputs_dir = '{tmp_path}/results'" in done.stdout


def test_each_option_that_names_a_path_is_anchored(tmp_path, monkeypatch):
    here, project = tmp_path / "here", tmp_path / "project"
    for folder in (here, project):
        folder.mkdir()
    monkeypatch.setattr(run_all, "ROOT", project)
    monkeypatch.chdir(here)
    options = run_all._parser().parse_args(
        ["--params", "a.yaml", "--outputs-dir", "b", "--export-model", "demo", "../c"]
    )
    assert options.params == f"{here}/a.yaml" and options.outputs_dir == f"{here}/b"
    assert options.export_model == ["demo", f"{tmp_path}/c"]
    options = run_all._parser().parse_args(["--tracking-uri", "sqlite:///x.db", "--storage", "mysql://host"])
    assert (options.tracking_uri, options.storage) == (f"sqlite:///{here}/x.db", "mysql://host")
    assert str(run_all._parser().parse_args(["--export-kaggle"]).export_kaggle) == "outputs/kaggle"
    monkeypatch.chdir(project)
    options = run_all._parser().parse_args(["--params", "demo", "--outputs-dir", "outputs", "--export-kaggle", "k"])
    assert (options.params, options.outputs_dir, options.export_kaggle) == ("demo", "outputs", "k")
