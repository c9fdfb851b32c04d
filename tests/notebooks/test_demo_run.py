"""The five notebooks, headless, on the demo profile: the run itself and its results."""

import json
import subprocess
import sys
from pathlib import Path

from fer_utils import images
from fer_utils.classes import CLASSES
from fer_utils.data import addresses, ferplus
from fer_utils.pipeline import keys, runs
from fer_utils.pipeline.parameters import STAGES
from fer_utils.training import model_files

import keras
import nbformat
import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[runs.Run, subprocess.CompletedProcess]:
    """The folders of a finished demo run, and what it printed."""
    outputs = tmp_path_factory.mktemp("outputs")
    command = [sys.executable, "run_all.py", "--params", "params/demo.yaml", "--outputs-dir", str(outputs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return runs.run_named("demo", str(outputs), ""), done


@pytest.fixture(scope="module")
def folders(finished) -> runs.Run:
    return finished[0]


def test_it_learns_faces_that_training_never_saw(folders):
    metrics = json.loads(folders.path("metrics.json").read_text())
    assert metrics["leakage"]["test_images_seen_in_training"] == 0
    assert metrics["test"]["accuracy"] >= 0.85  # tests/benchmarks/demo_seeds.py runs other seeds and roundings


def test_a_log_of_it_tells_stages_estimates_and_scores_line_by_line(finished):
    folders, done = finished
    said = done.stdout.splitlines()
    assert "\r" not in done.stdout + done.stderr and "\x1b" not in done.stdout + done.stderr
    assert "IPKernelApp" not in done.stderr and "|" not in done.stderr
    for stage, file in STAGES.items():
        assert said.count(f"{stage} ({file}): run: it has not run yet") == 1
        assert sum(line.startswith(f"{stage}: done in ") for line in said) == 1
    assert sum(" ms a step; without validation " in line for line in said if line.startswith("fine_tune: ")) == 1
    assert said[-1].startswith("TEST accuracy 0.") and said[-1].endswith(f"; report: {folders.path('report.html')}")


def test_its_report_says_that_the_faces_are_drawn(folders):
    page = folders.path("report.html").read_text()
    assert page.index("The faces are drawn") < page.index("<img")


def test_its_model_says_that_it_was_trained_on_drawn_faces(folders):
    assert model_files.read_origin(folders.path("model.keras")) == {
        "faces": "drawn",
        "labels": "fer2013",
        "leakage": "drop",
    }


def test_every_stage_leaves_its_record_and_its_notebook(folders):
    assert list(folders.all_records()) == list(STAGES)
    for file in STAGES.values():
        notebook = nbformat.read(folders.path("notebooks") / file.replace(".py", ".ipynb"), as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
        assert all(cell.execution_count for cell in code)
        assert any("injected-parameters" in cell.metadata.get("tags", []) for cell in code)


def test_every_input_is_an_output_of_an_earlier_stage(folders):
    found, names = folders.all_records(), list(STAGES)
    for stage in STAGES:
        read, inputs = found[stage]["key"]["inputs"], keys.inputs_of(stage, found)
        assert set(read) == set(inputs or (*addresses.DATASETS, "votes"))
        for name, writer in inputs.items():
            assert names.index(writer) < names.index(stage)
            assert read[name] == found[writer]["outputs"][name]["digest"]


def test_nothing_half_written_is_left(folders):
    assert not list(folders.folder.rglob(".partial-*"))


def test_the_manifest_accounts_for_every_file(folders):
    manifest = pd.read_csv(folders.path("manifest.csv"), keep_default_na=False)
    listed = set(manifest.loc[manifest["path"] != "", "path"])
    split_folders = [folders.path(f"images/{split}") for split in ("TRAIN", "VAL", "TEST")]
    on_disk = {
        path.relative_to(folders.data).as_posix() for folder in split_folders for path in folder.rglob("[!.]*.*")
    }
    assert listed == on_disk
    drawn = [path for path in (folders.data / "demo_sources").rglob("[!.]*.*") if path.is_file()]
    votes = {path.name for path in drawn if path.parent.name == "ferplus"}
    assert votes == {addresses.VOTES_FILE, ferplus.LABELS_FILE}
    assert len(manifest) == len(drawn) - len(votes)


def test_metrics_hold_what_the_design_names(folders):
    metrics = json.loads(folders.path("metrics.json").read_text())
    six = {"n", "loss", "accuracy", "macro_precision", "macro_recall", "macro_f1"}
    assert six <= set(metrics["val"])
    assert six | {"public", "private"} <= set(metrics["test"])
    assert {"policy", "val_images_seen_in_training", "test_images_seen_in_training"} <= set(metrics["leakage"])
    assert {"params", "versions", "seed", "seconds_per_stage"} <= set(metrics["run"])
    assert metrics["test"]["n"] == metrics["test"]["public"]["n"] + metrics["test"]["private"]["n"]


def test_what_trained_is_on_record(folders):
    balanced = set(pd.read_csv(folders.path("balanced.csv"))["train_path"])
    manifest = pd.read_csv(folders.path("manifest.csv"), keep_default_na=False)
    assert balanced < set(manifest.loc[manifest["split"] == "TRAIN", "path"])  # thinned
    assert set(pd.read_csv(folders.folder / "trained_head.csv")["train_path"]) == balanced
    assert set(pd.read_csv(folders.folder / "trained.csv")["train_path"]) == balanced


def test_epochs_count_on_from_phase_one(folders):
    head, fine = pd.read_csv(folders.path("history_head.csv")), pd.read_csv(folders.path("history_fine_tune.csv"))
    assert list(pd.concat([head, fine])["epoch"]) == list(range(1, len(head) + len(fine) + 1))


def test_the_saved_model_gives_the_predictions_on_record(folders):
    predictions = pd.read_csv(folders.path("predictions_test.csv"))
    model = keras.saving.load_model(folders.path("model.keras"), compile=False, safe_mode=True)
    faces = images.load([folders.data / path for path in predictions["path"][:20]])
    on_record = predictions[[f"p_{label}" for label in CLASSES]].to_numpy()[:20]
    assert np.allclose(model.predict(faces[..., None], verbose=0), on_record, atol=1e-4)


def test_the_report_stands_alone(folders):
    page = folders.path("report.html").read_text()
    assert page.count("data:image/png;base64,") >= 8
    not_saved = page.partition("Figures that this run has not saved")[2].partition("</p>")[0]
    assert not any(
        part in not_saved for part in ("onfus", "Grad-CAM", "mistakes", "Reliability", "scaling", "rate", "class")
    )
    assert 'src="http' not in page
