"""tests/benchmarks/gpu.py carries the pictures of 01 to another machine unchanged, makes of TRAIN what 02 makes, and its table counts
right."""

from pathlib import Path

from fer_utils import files, images
from fer_utils.classes import CLASSES
from fer_utils.data import balance, loading
from fer_utils.data.splits import MANIFEST_COLUMNS

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
VALUES = {"target": 5, "target_disgust": 3, "max_per_class": 6, "seed": 7}


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # the module sets it where it is not set
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


@pytest.fixture
def run(tmp_path) -> Path:
    """A run after 01: a row for each picture of three splits, and one that no split took."""
    rng, rows = np.random.default_rng(0), []
    for number in range(70):
        label, split = CLASSES[number % 7], ("TRAIN", "TRAIN", "VAL", "TEST", "")[number // 14]
        path = f"{split}/{label}/{number}.png" if split else ""
        face = rng.integers(0, 256, (48, 48), np.uint8)
        if path:
            file = tmp_path / "run/images" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(images.encode_png(face))
        votes = "" if number % 3 else "1 2 3"
        rows.append(
            dict.fromkeys(MANIFEST_COLUMNS, "")
            | {"path": path, "label": label, "split": split, "votes": votes}
            | {"fingerprint": images.fingerprint(face)}
        )
    files.write_csv(tmp_path / "run/manifest.csv", pd.DataFrame(rows))
    return tmp_path / "run"


def test_the_tar_gives_every_picture_back_with_its_row(gpu, run, tmp_path):
    gpu.pack(run, tmp_path / "faces.tar")
    found = gpu.unpack(tmp_path / "faces.tar")
    manifest = loading.read_table(run / "manifest.csv", MANIFEST_COLUMNS)
    expected = manifest[manifest["split"] != ""].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.manifest[list(expected)], expected)
    assert np.array_equal(found.grey, images.load([run / "images" / path for path in expected["path"]]))
    for split in ("VAL", "TEST"):
        faces = loading.load_faces(expected[expected["split"] == split], run / "images")
        assert np.array_equal(found.split(split, 0).images, faces.images)
        assert np.array_equal(found.split(split, 0).labels, faces.labels)


def test_train_is_balanced_as_02_does_it(gpu, run, tmp_path):
    gpu.pack(run, tmp_path / "faces.tar")
    found = gpu.unpack(tmp_path / "faces.tar").balanced(VALUES, 0)
    train = loading.read_table(run / "manifest.csv", MANIFEST_COLUMNS).query("split == 'TRAIN'")
    targets = dict.fromkeys(CLASSES, VALUES["target"]) | {"disgust": VALUES["target_disgust"]}
    plan = balance.plan_balance(train, targets, VALUES["max_per_class"], VALUES["seed"])
    balance.write_balanced(plan, run / "images", VALUES["seed"])
    expected = loading.load_faces(balance.to_table(plan), run / "images")
    assert (found.table["copy"] > 0).any()
    assert np.array_equal(found.images, expected.images) and np.array_equal(found.labels, expected.labels)


def test_the_table_says_the_share_of_the_peak_and_the_ratio_to_plain_keras(gpu):
    timed = {"below": 2e9, "above": 1e9, "compiling": 0.0}
    ours, plain = timed | {"pass": 49_450.0, "epoch": 9_890.0}, timed | {"epoch": 9_890.0}
    of = {
        "device": "NVIDIA H100 80GB HBM3 with jax 0.10",
        "precision": "mixed_float16",
        "deterministic": "no",
        "size": 224,
    }
    both = {f"{side} {phase}": value for phase in (1, 2) for side, value in (("ours", ours), ("plain", plain))}
    text = gpu.report({"of": of, **both, "counts": {"train": 98_900, "val": 0}})
    assert "phase 2, this project: one pass through the frozen layers | 49,450 | 98.9 | 10%" in text
    assert "phase 2, plain Keras: an epoch | 9,890 | 49.5 | 5%" in text
    assert "304 s, plain Keras 300 s, 0.99 times as long" in text  # two passes of 2 s, and 30 epochs of 10 s
    assert "%" not in gpu.report({"of": of | {"device": "another GPU"}, **both}).replace("95 %", "")


def test_a_call_ends_before_an_epoch_that_would_end_too_late_but_trains_one(gpu):
    late, early = gpu.Clock(deadline=0.0), gpu.Clock(deadline=gpu.time.monotonic() + 60)
    for clock in (late, early):
        clock.on_epoch_begin(3)
        clock.on_epoch_end(3)
    early.on_epoch_begin(4)
    with pytest.raises(KeyboardInterrupt):
        late.on_epoch_begin(4)
