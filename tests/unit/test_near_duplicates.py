"""The near-duplicate search finds what was done to a picture, and nothing else."""

import io
import os
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fer_utils import near_duplicates
from fer_utils.classes import CLASSES, class_of
from fer_utils.demo import draw_face

ROOT = Path(__file__).resolve().parents[2]
REAL_DATA = Path(os.environ.get("FER_REAL_DATA", ROOT / "../shared/data"))


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    rng = np.random.default_rng(7)
    return np.stack([draw_face(CLASSES[i % 7], rng) for i in range(42)])


def _coded(image: np.ndarray, **how) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, **how)
    return np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("L"))


def _resized(image: np.ndarray) -> np.ndarray:
    return cv2.resize(
        cv2.resize(image, (96, 96), interpolation=cv2.INTER_LINEAR), (48, 48), interpolation=cv2.INTER_AREA
    )


def _line(image: np.ndarray, gain: float, offset: float = 0) -> np.ndarray:
    return np.clip(np.round(gain * image.astype(float) + offset), 0, 255).astype(np.uint8)


CHANGES = {
    "png": ("exact", lambda x: _coded(x, format="PNG")),
    "jpeg40": ("re-encoded", lambda x: _coded(x, format="JPEG", quality=40)),
    "jpeg95": ("re-encoded", lambda x: _coded(x, format="JPEG", quality=95)),
    "resized": ("re-encoded", _resized),
    "brighter": ("re-encoded", lambda x: _line(x, 1.2)),
    "darker": ("re-encoded", lambda x: _line(x, 0.8)),
    "shifted up, clipped": ("re-encoded", lambda x: _line(x, 1, 51)),
    "more contrast": ("re-encoded", lambda x: _line(x, 1.2, -0.2 * x.mean())),
    "less contrast": ("re-encoded", lambda x: _line(x, 0.8, 0.2 * x.mean())),
    "flip": ("flipped", lambda x: x[:, ::-1]),
    "flip, jpeg60": ("flipped", lambda x: _coded(np.ascontiguousarray(x[:, ::-1]), format="JPEG", quality=60)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_paired_with_its_original_and_with_nothing_else(faces, change):
    kind, alter = CHANGES[change]
    pairs = near_duplicates.find_pairs(np.concatenate([faces, [alter(face) for face in faces]]))
    n = len(faces)
    assert pairs[["first", "second"]].to_numpy().tolist() == [[i, i + n] for i in range(n)]
    assert set(pairs["kind"]) == {kind}
    assert pairs["distance"].between(0, near_duplicates.MAX_DISTANCE).all()


def test_different_faces_are_no_pairs(faces):
    pairs = near_duplicates.find_pairs(faces)
    assert pairs.empty
    assert list(pairs.columns) == ["first", "second", "kind", "distance"]
    assert pairs.dtypes.astype(str).tolist() == ["int64", "int64", "object", "float64"]


def test_exact_copies_hang_on_their_first_however_many(faces):
    images = np.concatenate([faces[:2], np.repeat(faces[:1], 50, axis=0), [CHANGES["jpeg40"][1](faces[0])]])
    pairs = near_duplicates.find_pairs(images)
    assert set(pairs["first"]) == {0}
    assert pairs["second"].tolist() == list(range(2, 53))
    assert pairs["kind"].value_counts().to_dict() == {"exact": 50, "re-encoded": 1}


def test_blank_images_are_flagged_and_never_paired(faces):
    rng = np.random.default_rng(0)
    blanks = np.stack([np.full((48, 48), 7), np.full((48, 48), 7), 128 + rng.integers(0, 3, (48, 48))]).astype(np.uint8)
    images = np.concatenate([blanks, faces[:1], faces[:1]])
    assert near_duplicates.is_blank(images).tolist() == [True, True, True, False, False]
    assert near_duplicates.find_pairs(images)[["first", "second"]].to_numpy().tolist() == [[3, 4]]


def test_search_in_many_blocks_finds_what_one_block_finds(faces, monkeypatch):
    changed = [alter(face) for _, alter in CHANGES.values() for face in faces[:10]]
    images = np.random.default_rng(1).permutation(np.concatenate([faces, changed]))
    whole = near_duplicates.find_pairs(images)
    for name, size in {"_ROWS": 7, "_COLUMNS": 13, "_BATCH": 5}.items():
        monkeypatch.setattr(near_duplicates, name, size)
    pd.testing.assert_frame_equal(near_duplicates.find_pairs(images), whole, rtol=1e-3)


def test_progress_ends_at_the_total(faces, monkeypatch):
    monkeypatch.setattr(near_duplicates, "_ROWS", 10)
    calls = []
    near_duplicates.find_pairs(faces, progress=lambda *call: calls.append(call))
    assert calls == [(10, 42), (20, 42), (30, 42), (40, 42), (42, 42)]


@pytest.mark.parametrize("n", [0, 1])
def test_no_pairs_among_none_or_one(faces, n):
    assert near_duplicates.find_pairs(faces[:n]).empty
    assert near_duplicates.is_blank(faces[:n]).shape == (n,)


@pytest.mark.parametrize(
    "images", [np.zeros((3, 48, 48)), np.zeros((3, 48, 48, 1), np.uint8), np.zeros((48, 48), np.uint8)]
)
def test_other_shapes_and_types_are_refused(images):
    with pytest.raises(ValueError, match="expected uint8 images of shape"):
        near_duplicates.find_pairs(images)


def test_groups_are_chains_numbered_by_their_first_image():
    pairs = pd.DataFrame({"first": [5, 1, 2], "second": [6, 4, 5]})
    assert near_duplicates.group(8, pairs).tolist() == [0, 1, 2, 3, 1, 2, 2, 4]
    assert near_duplicates.group(3, pairs[:0]).tolist() == [0, 1, 2]


@pytest.mark.parametrize("second", [3, -1])
def test_a_pair_outside_the_images_is_refused(second):
    with pytest.raises(ValueError, match="outside 0 … 2"):
        near_duplicates.group(3, pd.DataFrame({"first": [0], "second": [second]}))


def test_distance_is_symmetric_and_blind_to_gain_and_offset(faces):
    brighter, others = np.stack([_line(x, 1.2, 20) for x in faces]), np.roll(faces, 1, axis=0)
    there, back = (near_duplicates.picture_distance(*x) for x in ((faces, brighter), (brighter, faces)))
    np.testing.assert_allclose(there, back, atol=1e-6)
    assert there.max() < 0.02
    assert near_duplicates.picture_distance(faces, others).min() > near_duplicates.MAX_DISTANCE
    # A negative never is the same picture, though a straight line leads to it.
    assert near_duplicates.picture_distance(faces, 255 - faces).min() > 0.5


def test_nearest_stranger_passes_over_the_own_group(faces):
    images = np.concatenate([faces, [CHANGES["flip, jpeg60"][1](face) for face in faces]])
    own = near_duplicates.group(len(images), near_duplicates.find_pairs(images))
    strangers = near_duplicates.nearest_strangers(images, own, sample=50, seed=3)
    assert strangers.shape == (50,) and strangers.min() > near_duplicates.MAX_DISTANCE
    alone = near_duplicates.nearest_strangers(images, np.arange(len(images)), sample=50, seed=3)
    assert alone.max() < near_duplicates.MAX_DISTANCE


def test_second_method_finds_copies_and_mirror_images_and_no_strangers(faces):
    queries = np.concatenate([[CHANGES["jpeg40"][1](x) for x in faces[:20]], faces[20:40, :, ::-1], faces[:1] * 0])
    matches = near_duplicates.same_picture_by_gradient(queries, faces)
    assert matches[["query", "match"]].to_numpy().tolist() == [[i, i] for i in range(40)]
    assert near_duplicates.same_picture_by_gradient(faces[:20], faces[20:]).empty


def _test_folder(archive: str) -> tuple[np.ndarray, pd.DataFrame]:
    path = REAL_DATA / archive
    if not path.is_file():
        pytest.skip(f"no real data: {path} not found (set FER_REAL_DATA to the folder with the two zip files)")
    with zipfile.ZipFile(path) as file:
        names = sorted(name for name in file.namelist() if "test/" in name and not name.endswith("/"))
        images = [np.asarray(Image.open(io.BytesIO(file.read(name))).convert("L")) for name in names]
    rows = [(class_of(Path(name).parent.name), Path(name).name.startswith("Public")) for name in names]
    return np.stack(images), pd.DataFrame(rows, columns=["label", "public"])


def test_real_copies_find_their_originals_and_a_second_method_finds_none_after_cleaning():
    originals, about = _test_folder("fer2013.zip")
    copies, copies_about = _test_folder("emotion-detection-fer.zip")
    n = len(originals)
    images = np.concatenate([originals, copies])
    groups = near_duplicates.group(len(images), near_duplicates.find_pairs(images))
    known = set(zip(groups[:n], about["label"], strict=True))
    found = sum(row in known for row in zip(groups[n:], copies_about["label"], strict=True))
    assert found >= n - 5  # the blank ones

    public = about["public"].to_numpy()
    shared = np.isin(groups[:n], groups[:n][public])
    left, lost = originals[~public & ~shared], originals[~public & shared]
    assert len(lost) > 30
    assert len(near_duplicates.same_picture_by_gradient(lost, originals[public])) > len(lost) / 3
    sample = left[np.random.default_rng(0).choice(len(left), 1000, replace=False)]
    assert near_duplicates.same_picture_by_gradient(sample, originals[public]).empty
