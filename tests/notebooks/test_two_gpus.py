"""04 on two devices, rehearsed on two logical CPU devices of JAX, and once more after a kill in mid-training.

03 on two such devices, and ResNet50, are rehearsed by test_kaggle_run. Here the small network trains: XLA takes a minute to
compile the gradients of all of ResNet50's layers for two devices.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from fer_utils import files, images
from fer_utils.classes import CLASSES
from fer_utils.data import demo, splits
from fer_utils.pipeline.runs import Run, run_named
from fer_utils.training import frozen_prefix, loop, network

import keras
import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGE_SIZE = 32
SMALL = (
    f"common.image_size={IMAGE_SIZE}",
    "common.batch_size=6",  # two steps an epoch, two pictures left out
    "fine_tune.epochs=2",
    "common.precision=mixed_float16",
    "common.deterministic=yes",
)
# As the profile `strong` has them: every layer with its BatchNormalization, pictures that change, averaged weights.
STRONG = (
    "common.backbone=small",
    "fine_tune.unfreeze_top=45",
    "fine_tune.batch_norm=trained",
    "fine_tune.augmentation=heavy",
    "fine_tune.mixup=0.2",
    "fine_tune.label_smoothing=0.1",
    "fine_tune.schedule=cosine",
    "fine_tune.warmup_epochs=0.5",
    "fine_tune.weight_averaging=0.9",
)


def write_inputs(outputs: Path) -> None:
    """What 04 reads: two drawn faces of each class in TRAIN and in VAL, and a head that is not trained."""
    folders, rng = run_named("demo", str(outputs), ""), np.random.default_rng(1)
    rows = [
        (split, label, f"{split}/{label}/{i}.png") for split in ("TRAIN", "VAL") for label in CLASSES for i in (0, 1)
    ]
    table = pd.DataFrame(rows, columns=["split", "label", "path"]).reindex(columns=splits.MANIFEST_COLUMNS)
    faces = [demo.draw_face(label, rng) for label in table["label"]]
    read_from = table["path"].str.replace("TRAIN/", "TRAIN_BALANCED/")
    for path, face in zip(read_from, faces, strict=True):
        (folders.data / path).parent.mkdir(parents=True, exist_ok=True)
        (folders.data / path).write_bytes(images.encode_png(face))
    table["fingerprint"] = [images.fingerprint(face) for face in faces]
    train = table[table["split"] == "TRAIN"].assign(train_path=table["path"], path=read_from, copy=0)
    files.write_csv(folders.path("manifest.csv"), table)
    files.write_csv(folders.path("balanced.csv"), train[["label", "path", "train_path", "copy"]])
    files.write_csv(folders.folder / "trained_head.csv", train[["train_path"]])
    (folders.folder / "stages").mkdir()  # by it a folder is known as a run's
    keras.utils.set_random_seed(1)
    head = frozen_prefix.split(network.build(IMAGE_SIZE, "none", "small"))[1]
    head.save_weights(folders.folder / "head.weights.h5")
    epoch = {"epoch": 1, "phase": "head", **dict.fromkeys((*loop.HISTORY_FIRST[2:], *loop.SCORES), 0.0)}
    files.write_csv(folders.path("history_head.csv"), pd.DataFrame([epoch]))


def run(outputs: Path, environment: dict[str, str]) -> None:
    overrides = [part for text in (*SMALL, *STRONG) for part in ("-p", text)]
    command = [sys.executable, "run_all.py", "--params", "demo", "--outputs-dir", str(outputs), "--only", "fine_tune"]
    done = subprocess.run(
        [*command, *overrides],
        cwd=ROOT,
        env=os.environ | environment | {"KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, two_devices) -> tuple[Run, Run]:
    """A run of 04, and one that goes on from what a kill in mid-training would have left of it."""
    folder = tmp_path_factory.mktemp("two_devices")
    whole, killed, startup = folder / "whole", folder / "killed", folder / "ipython/profile_default/startup"
    write_inputs(whole)
    shutil.copytree(whole, killed)
    folders = tuple(run_named("demo", str(outputs), "") for outputs in (whole, killed))
    startup.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("copied_checkpoint.py"), startup)
    copied = {"IPYTHONDIR": str(folder / "ipython"), "FER_TEST_CHECKPOINT": str(folders[1].checkpoint("fine_tune"))}
    run(whole, two_devices | copied)
    run(killed, two_devices)
    return folders


def test_two_devices_share_each_batch_in_mixed_precision(runs):
    text = (runs[0].path("notebooks") / "04_fine_tune.ipynb").read_text()
    assert re.search(r"computing on CPU, \d+ cores with jax [\d.]+ in mixed_float16 with deterministic kernels", text)
    assert "2 devices share each batch" in text and "2 steps an epoch" in text


def test_after_a_kill_in_mid_training_it_goes_on_to_the_same_scores_and_weights(runs):
    assert "going on after 1 finished epochs" in (runs[1].path("notebooks") / "04_fine_tune.ipynb").read_text()
    histories = [pd.read_csv(folders.path("history_fine_tune.csv")).drop(columns="seconds") for folders in runs]
    pd.testing.assert_frame_equal(*histories, rtol=1e-5)
    models = [keras.saving.load_model(folders.path("model.keras"), compile=False).get_weights() for folders in runs]
    assert all(np.allclose(one, other, rtol=0, atol=1e-5) for one, other in zip(*models, strict=True))
