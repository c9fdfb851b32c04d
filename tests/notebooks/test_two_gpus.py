"""03 to 05 as two T4 would run them, rehearsed on two logical CPU devices, and once more after a kill in mid-training."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from fer_utils import paths

import nbformat
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    "merge_split.demo_images=350",
    "balance.target=30",
    "balance.target_disgust=20",
    "balance.max_per_class=40",
    "common.image_size=32",
    "common.batch_size=16",
    "common.limit_per_class=8",
    "train_head.epochs=2",
    "fine_tune.epochs=3",
)
# As the profile `strong` has them: every layer with its BatchNormalization, pictures that change, averaged weights.
STRONG = (
    "fine_tune.unfreeze_top=175",
    "fine_tune.batch_norm=trained",
    "fine_tune.augmentation=heavy",
    "fine_tune.mixup=0.2",
    "fine_tune.label_smoothing=0.1",
    "fine_tune.schedule=cosine",
    "fine_tune.warmup_epochs=1",
    "fine_tune.weight_averaging=0.9",
    "common.strategy=mirrored",  # so few pixels a step are too few for `auto`
)


def run(outputs: Path, ipython: Path, *arguments: str, kill_after: int = 0) -> subprocess.CompletedProcess:
    parameters = [part for text in (*SMALL, *STRONG) for part in ("-p", text)]
    environment = os.environ | {"IPYTHONDIR": str(ipython), "TF_ENABLE_ONEDNN_OPTS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if kill_after:
        environment["FER_TEST_KILL_AFTER"] = str(kill_after)
    return subprocess.run(
        [sys.executable, "run_all.py", "--params", "demo", "--outputs-dir", str(outputs), *parameters, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, two_gpus) -> tuple[paths.RunFolders, paths.RunFolders]:
    """A whole run, and a copy of it as it was before 04."""
    outputs = tmp_path_factory.mktemp("whole")
    before = tmp_path_factory.mktemp("killed") / "outputs"
    done = run(outputs, two_gpus, "--only", "merge_split")
    for stage in ("balance", "train_head"):
        done = done if done.returncode else run(outputs, two_gpus, "--only", stage)
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.copytree(outputs, before)
    done = run(outputs, two_gpus)
    assert done.returncode == 0, done.stderr[-3000:]
    return paths.run_folders("demo", str(outputs), ""), paths.run_folders("demo", str(before), "")


def test_both_phases_take_what_two_t4_would_take(uninterrupted):
    folders, _ = uninterrupted
    for stage in ("03_train_head", "04_fine_tune"):
        text = (folders.notebooks / f"{stage}.ipynb").read_text()
        assert "computing on Tesla T4, Tesla T4 in mixed_float16 with deterministic kernels" in text
    printed = "".join(
        output.get("text", "")
        for cell in nbformat.read(folders.notebooks / "04_fine_tune.ipynb", as_version=4).cells
        for output in cell.get("outputs", [])
    )
    assert "2 devices share each batch" in printed
    metrics = json.loads(folders.metrics.read_text())
    assert 0 < metrics["test"]["accuracy"] <= 1


def test_after_a_kill_in_mid_training_it_goes_on_to_the_same_scores(uninterrupted, two_gpus):
    whole, killed = uninterrupted
    outputs = killed.run.parent
    done = run(outputs, two_gpus, kill_after=2)
    assert done.returncode == 1 and "its kernel died" in done.stderr
    assert killed.checkpoint("fine_tune").is_file() and not killed.model.exists()
    done = run(outputs, two_gpus)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "going on after 2 finished epochs" in (killed.notebooks / "04_fine_tune.ipynb").read_text()
    histories = [pd.read_csv(folders.history_fine_tune).drop(columns="seconds") for folders in (whole, killed)]
    pd.testing.assert_frame_equal(*histories, rtol=1e-5)
    scores = [json.loads(folders.metrics.read_text()) for folders in (whole, killed)]
    for split in ("val", "test"):
        assert scores[1][split] == pytest.approx(scores[0][split], abs=1e-5)
