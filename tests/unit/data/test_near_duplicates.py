"""The near-duplicate search finds what was done to a picture, and nothing else."""

import io

from fer_utils.classes import CLASSES
from fer_utils.data import near_duplicates
from fer_utils.data.demo import draw_face
from fer_utils.images import is_blank

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image


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


def _cropped(image: np.ndarray, scale: float, right: float, down: float) -> np.ndarray:
    crop = np.array([[scale, 0.0, right], [0.0, scale, down]])
    return cv2.warpAffine(image, crop, (48, 48), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


@pytest.mark.parametrize("kind", ["cropped", "flipped"])
@pytest.mark.parametrize("crop", [(1, 1.5, 0), (1.06, -1, -2), (0.95, 1, 2)])
def test_another_crop_of_one_picture_is_paired_with_it_and_with_nothing_else(faces, crop, kind):
    crops = np.stack([_line(_cropped(face, *crop), 0.9, 10) for face in faces])
    assert (near_duplicates.picture_distance(faces, crops) > near_duplicates.MAX_DISTANCE).mean() > 0.9
    crops = crops[:, :, ::-1] if kind == "flipped" else crops
    pairs = near_duplicates.find_pairs(np.concatenate([faces, crops]))
    n = len(faces)
    assert (pairs["second"] - pairs["first"] == n).all() and len(pairs) >= 0.9 * n
    assert (pairs["kind"] == kind).mean() > 0.9 and set(pairs["kind"]) <= {kind, "re-encoded"}
    assert pairs["distance"].between(0, near_duplicates.MAX_DISTANCE).all()


def test_an_alignment_works_both_ways_and_only_over_a_few_pixels(faces):
    near = np.stack([_cropped(face, 1.06, -1, -2) for face in faces])
    far = np.stack([_cropped(face, 1, 16, 0) for face in faces])
    there, back = near_duplicates.aligned_distance(faces, near), near_duplicates.aligned_distance(near, faces)
    np.testing.assert_array_equal(there, back)
    assert np.median(there) < 0.1
    others = np.roll(faces, 1, axis=0)
    assert min(near_duplicates.aligned_distance(faces, x).min() for x in (far, others)) > near_duplicates.MAX_DISTANCE
    flat = np.zeros_like(faces[:1])
    assert near_duplicates.aligned_distance(flat, faces[:1]).tolist() == [1]


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


def test_blank_images_are_flagged_and_paired_only_with_exact_copies(faces):
    rng = np.random.default_rng(0)
    blanks = np.stack([np.full((48, 48), 7), np.full((48, 48), 7), 128 + rng.integers(0, 3, (48, 48))]).astype(np.uint8)
    images = np.concatenate([blanks, faces[:1], faces[:1]])
    assert [is_blank(image) for image in images] == [True, True, True, False, False]
    assert near_duplicates.find_pairs(images)[["first", "second"]].to_numpy().tolist() == [[0, 1], [3, 4]]


def test_files_that_could_not_be_read_are_copies_of_nothing(faces):
    """Their pixels are 0, as those of a black picture."""
    images = np.concatenate([np.zeros((4, 48, 48), np.uint8), faces[:1]])
    pairs = near_duplicates.compare(images, {0, 2})[0]
    assert pairs[["first", "second"]].to_numpy().tolist() == [[1, 3]]


def test_search_in_many_blocks_finds_what_one_block_finds(faces, monkeypatch):
    changed = [alter(face) for _, alter in CHANGES.values() for face in faces[:10]]
    images = np.random.default_rng(1).permutation(np.concatenate([faces, changed]))
    whole = near_duplicates.find_pairs(images)
    for name, size in {"_ROWS": 7, "_COLUMNS": 13, "_BATCH": 5}.items():
        monkeypatch.setattr(near_duplicates, name, size)
    pd.testing.assert_frame_equal(near_duplicates.find_pairs(images), whole, rtol=1e-3)


@pytest.mark.parametrize("n", [0, 1])
def test_no_pairs_among_none_or_one(faces, n):
    assert near_duplicates.find_pairs(faces[:n]).empty


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
    with pytest.raises(ValueError, match="index"):
        near_duplicates.group(3, pd.DataFrame({"first": [0], "second": [second]}))


def test_distance_is_symmetric_and_blind_to_gain_and_offset(faces):
    brighter, others = np.stack([_line(x, 1.2, 20) for x in faces]), np.roll(faces, 1, axis=0)
    there, back = (near_duplicates.picture_distance(*x) for x in ((faces, brighter), (brighter, faces)))
    np.testing.assert_allclose(there, back, atol=1e-6)
    assert there.max() < 0.02
    assert near_duplicates.picture_distance(faces, others).min() > near_duplicates.MAX_DISTANCE
    # A negative never is the same picture, though a straight line leads to it.
    assert near_duplicates.picture_distance(faces, 255 - faces).min() > 0.5


def test_candidates_that_are_no_copies_come_with_their_distances(faces, monkeypatch):
    images = np.concatenate([faces, [CHANGES["flip, jpeg60"][1](face) for face in faces]])
    alone = near_duplicates.find_pairs(images)
    monkeypatch.setattr(near_duplicates, "MIN_SIMILARITY", 0.3)  # other faces are candidates too
    pairs, others = near_duplicates.compare(images)
    pd.testing.assert_frame_equal(pairs, alone)
    group = near_duplicates.group(len(images), pairs)
    assert len(others) > 20 and list(others.columns) == list(pairs.columns)
    assert (group[others["first"]] != group[others["second"]]).all()
    assert others["distance"].between(near_duplicates.MAX_DISTANCE, 1, inclusive="right").all()
