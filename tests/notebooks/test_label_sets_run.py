"""The five notebooks with the small network, on FER+'s labels, with targets from the votes, a second output, label issues and
other pictures, twice.

The second run is nbval's: it executes the executed copies again, compares the cells whose output is fixed, and writes
the same run folder anew.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from fer_utils import images
from fer_utils.classes import CLASSES
from fer_utils.data import demo, ferplus, label_sets
from fer_utils.pipeline import pages, runs
from fer_utils.pipeline.parameters import STAGES
from fer_utils.training import loop

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FACES = 640  # of each dataset: with both the copy search has more than one block of rows
SMALL = (
    *(f"merge_split.demo_images={FACES}", "merge_split.labels=ferplus", "evaluate.leave_out=not_a_face"),
    *("train_head.votes_share=1", "fine_tune.votes_share=0.5", "fine_tune.votes_output=1"),
    *("common.backbone=small", "fine_tune.weight_averaging=0.9", "common.find_label_issues=true"),
    "fine_tune.logit_adjustment=true",
    *("common.image_size=32", "train_head.epochs=2", "fine_tune.epochs=2", "fine_tune.unfreeze_top=30"),
    *("fine_tune.warmup_epochs=0.5", "fine_tune.augmentation=light", "fine_tune.mixup=0.2"),
    *("balance.target=64", "balance.target_disgust=24"),  # four classes have augmented copies
    "train_head.batch_size=16",  # more steps an epoch than loop.HEAD_STEPS, though there are fewer pictures
)


N_NEW, N_COPIES = 14, 10


def _write_extra(folder: Path) -> None:
    """Large coloured pictures: N_NEW faces that no dataset has, and N_COPIES copies of TEST's."""
    demo.write_datasets(folder / "as_the_run_draws", FACES, 42)
    held_out = sorted((folder / "as_the_run_draws" / "fer2013" / "test").rglob("*.jpg"))[::7][:N_COPIES]
    faces = [(path.parent.name, np.asarray(Image.open(path))) for path in held_out]
    rng = np.random.default_rng(7)
    faces += [(label, demo.draw_face(label, rng)) for label in CLASSES for _ in range(N_NEW // len(CLASSES))]
    for number, (label, grey) in enumerate(faces):
        place = folder / "mine" / label / f"{'copy' if number < N_COPIES else 'new'}_{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.dstack([cv2.resize(grey, (96, 96), interpolation=cv2.INTER_CUBIC)] * 3)).save(place)
    names = sorted(path.relative_to(folder / "mine").as_posix() for path in (folder / "mine").rglob("*.jpg"))
    rows = [f"{name},{'copy' if 'copy_' in name else 'new'}" for name in names]
    (folder / "mine.csv").write_text("\n".join(["file,kind", *rows]))


def _run(outputs: Path, *arguments: str) -> None:
    mine = outputs / "mine"
    settings = [part for setting in SMALL for part in ("-p", setting)]
    settings += [
        "-p",
        f"merge_split.extra={mine}",
        "-p",
        f"evaluate.also={mine}",
        "-p",
        f"evaluate.also_groups={mine}.csv",
    ]
    command = [sys.executable, "run_all.py", "--params", "demo", "--outputs-dir", str(outputs), *settings, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    _write_extra(folder)
    _run(folder)
    return folder


@pytest.fixture(scope="module")
def folders(outputs) -> runs.Run:
    return runs.run_named("demo", str(outputs), "")


def _table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)


def snapshot(folders: runs.Run) -> dict:
    """What two runs with one seed must have in common."""
    metrics = json.loads(folders.path("metrics.json").read_text())
    balanced = sorted(folders.path("images/TRAIN_BALANCED").rglob("[!.]*.*"))
    return {
        "manifest": folders.path("manifest.csv").read_text(),
        "balanced": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in balanced},
        "scores": {split: metrics[split] for split in ("val", "test")},
        "issues": [(folders.folder / f"label_issues_{name}.csv").read_text() for name in ("train", "val", "test")],
    }


def test_pictures_stand_under_ferplus_labels_and_the_rest_is_accounted_for(folders):
    manifest = _table(folders.path("manifest.csv"))
    manifest = manifest[manifest["source"] != "mine"]
    assert len(manifest) == 2 * FACES
    kept = manifest[manifest["split"] != ""]
    assert (kept["label"] == kept["ferplus_label"]).all() and (kept["label"] != kept["fer2013_label"]).any()
    assert all((folders.data / path).is_file() for path in kept["path"])
    dropped = manifest.loc[manifest["split"] == "", "flags"]
    assert dropped.str.contains(r"dropped:(?:leak|copy|no_label)").all()
    assert dropped.str.contains(label_sets.NO_LABEL).sum() == (manifest["ferplus_label"] == "").sum()


def test_scores_stand_against_both_label_sets(folders):
    metrics = json.loads((folders.folder / "metrics.json").read_text())
    for split in ("val", "test"):
        predictions = _table(folders.folder / f"predictions_{split}.csv")
        both = metrics["label_sets"][split]
        assert both["ferplus"]["accuracy"] == pytest.approx(metrics[split]["accuracy"])  # what the run is scored on
        agreeing = (predictions["fer2013_label"] == predictions["predicted"]).mean()
        assert both["fer2013"]["accuracy"] == pytest.approx(agreeing)
        assert both["divergence"]["n"] == len(predictions)
    page = (folders.folder / "report.html").read_text()
    assert (
        "The labels are FER+&#39;s, not FER2013&#39;s" in page
        and "Against both label sets" in page
        and ferplus.RULE.replace("'", "&#39;") in page
    )
    assert "FER2013&#39;s labels and the votes of FER+" in page


def test_a_second_output_learns_the_votes_and_is_scored_on_them(folders):
    metrics = json.loads(folders.path("metrics.json").read_text())
    models = [keras.saving.load_model(folders.folder / name) for name in ("model.keras", "model_votes.keras")]
    *shared, (own, second) = zip(*(model.layers for model in models), strict=True)
    for one, other in shared:
        assert all(np.array_equal(*pair) for pair in zip(one.get_weights(), other.get_weights(), strict=True))
    assert own.name == second.name and not np.array_equal(own.get_weights()[0], second.get_weights()[0])
    predictions = _table(folders.folder / "predictions_test.csv")
    faces = images.load([folders.data / path for path in predictions["path"]])
    guessed = np.array(CLASSES)[loop.predict(models[1], faces[..., None]).argmax(axis=1)]
    found = metrics["label_sets"]["test"]["votes_output"]
    assert found["n"] == len(predictions)
    assert found["accuracy"] == pytest.approx((guessed == predictions["ferplus_label"]).mean())
    assert "FER+ majority, second output" in folders.path("report.html").read_text()


def test_the_score_that_04_reports_is_of_the_model_with_adjusted_logits_that_it_saves(folders):
    manifest, record = _table(folders.path("manifest.csv")), json.loads(folders.stage_record("fine_tune").read_text())
    assert record["parameters"]["logit_adjustment"] is True
    val = manifest[manifest["split"] == "VAL"]
    faces = images.load([folders.data / path for path in val["path"]])
    probabilities = loop.predict(keras.saving.load_model(folders.folder / "model.keras"), faces[..., None])
    right = np.array(CLASSES)[probabilities.argmax(axis=1)] == val["label"]
    assert record["figures"]["VAL accuracy"] == round(right.mean(), 4)


def test_extra_pictures_train_unless_they_are_copies_of_test(folders):
    manifest = _table(folders.path("manifest.csv"))
    mine = manifest[manifest["source"] == "mine"]
    is_copy = mine["source_path"].str.contains("copy_")
    assert is_copy.sum() == N_COPIES and (mine.loc[is_copy, "flags"].str.contains("dropped:leak")).all()
    assert len(mine[~is_copy]) == N_NEW and (mine.loc[~is_copy, "split"] == "TRAIN").all()
    assert (mine["label"] == mine["source_path"].str.split("/").str[0]).all()
    leaks = json.loads((folders.folder / "leakage.json").read_text())
    assert leaks["dropped_leaks_by_source"]["mine"] == N_COPIES
    trained = set(_table(folders.folder / "trained.csv")["train_path"])
    assert set(mine.loc[~is_copy, "path"]) <= trained


def test_another_test_set_is_scored_beside_test(folders):
    found = json.loads(folders.path("metrics.json").read_text())["also"]["mine"]
    predictions = _table(folders.folder / "predictions_also_mine.csv")
    assert found["n"] == len(predictions) == N_NEW + N_COPIES and found["classes"] == len(CLASSES)
    assert found["seen_in_training"] == N_NEW and found["unseen"]["n"] == N_COPIES
    assert found["accuracy"] == pytest.approx((predictions["label"] == predictions["predicted"]).mean())
    page = folders.path("report.html").read_text()
    assert {name: group["n"] for name, group in found["groups"]["kind"].items()} == {"copy": N_COPIES, "new": N_NEW}
    assert "mine, kind: new" in page
    assert "Other test sets" in page and page.count('alt="Confusion matrix of mine"') == 1
    rows = pages.results([runs.read(folders.folder)])
    assert {"mine accuracy", "mine macro_f1", "mine images seen in training"} <= set(rows.index)


def test_a_second_run_agrees_cell_by_cell_and_in_its_results(folders):
    before = snapshot(folders)
    notebooks = [str(folders.path("notebooks") / file.replace(".py", ".ipynb")) for file in STAGES.values()]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval-lax",
        "--nbval-cell-timeout=1200",
        "-p",
        "no:cacheprovider",
        "-q",
    ]
    done = subprocess.run(
        [*command, f"--rootdir={folders.folder}", "-c", "/dev/null", *notebooks],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    after = snapshot(folders)
    assert after["manifest"] == before["manifest"]
    assert after["balanced"] == before["balanced"]
    assert after["scores"] == before["scores"]
    assert after["issues"] == before["issues"]


def test_issues_are_ranked_for_every_split_and_can_be_left_out(outputs, folders):
    balanced = _table(folders.path("balanced.csv"))
    originals = balanced[balanced["copy"] == 0]
    issues = _table(folders.folder / "label_issues_train.csv")
    assert sorted(issues["path"]) == sorted(originals["train_path"])
    for name in ("train", "val", "test"):
        table = _table(folders.folder / f"label_issues_{name}.csv")
        flagged = table["is_issue"].to_numpy(bool)
        assert flagged.sum() == flagged[: flagged.sum()].sum()  # issues first
        assert (np.diff(table["quality"][flagged]) >= 0).all() and set(table["suggested"]) <= set(CLASSES)
    # An issues file of this run would be read by the stage before the one that writes it: a copy stands for another run's.
    file = outputs / "issues.csv"
    file.write_bytes((folders.folder / "label_issues_train.csv").read_bytes())
    _run(outputs, "--only", "balance", "-p", f"balance.issues_file={file}", "-p", "balance.target=0")
    without = set(_table(folders.path("balanced.csv"))["train_path"])
    doubted = set(issues.loc[issues["is_issue"].astype(bool), "path"])
    assert doubted and not without & doubted
    manifest = _table(folders.path("manifest.csv"))
    in_train = set(manifest.loc[manifest["split"] == "TRAIN", "path"])
    assert without <= in_train - doubted
