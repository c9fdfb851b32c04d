"""Corruptions harm pictures as their strength says, and scores under them are those of the corrupted pictures."""

from fer_utils.classes import CLASSES
from fer_utils.data import demo, loading
from fer_utils.evaluation import inference

import keras
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

KINDS = list(inference.STRENGTHS)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.stack([demo.draw_face(label, rng) for label in CLASSES * 6])[..., None]


def _level(images: np.ndarray, kind: str, level: int, seed: int = 1) -> np.ndarray:
    return inference.corrupt(images, kind, level, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stronger_corruption_changes_a_picture_more(kind, images):
    before = images.copy()
    changes = []
    for level in inference.FIVE:
        harder = _level(images, kind, level)
        assert harder.shape == images.shape and harder.dtype == np.uint8
        changes.append(np.abs(harder.astype(int) - images).mean())
    assert changes[0] > 0 and changes == sorted(changes)
    assert (images == before).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_pictures(kind, images):
    assert (_level(images, kind, 2) == _level(images, kind, 2)).all()
    is_drawn = kind in ("noise", "rotation")
    assert (_level(images, kind, 2, seed=1) == _level(images, kind, 2, seed=2)).all() == (not is_drawn)


def test_strengths_are_what_they_say(images):
    grey = np.full((200, 48, 48, 1), 128, np.uint8)
    assert (_level(grey, "noise", 4).astype(float) - 128).std() == pytest.approx(0.11 * 255, rel=0.05)
    assert (_level(images, "low light", 1) == np.round(images * 0.5)).all()
    expected = ndimage.gaussian_filter(images[0, ..., 0].astype(float), 1.2, mode="mirror")
    assert np.abs(_level(images, "blur", 2)[0, ..., 0] - expected).mean() < 1
    mouth = _level(images, "covered mouth", 4)
    assert (mouth[:, :26] == images[:, :26]).all() and mouth[:, 26:].std(axis=(1, 2)).max() == 0  # 22 of 48 rows
    eyes = _level(images, "covered eyes", 0)
    changed = np.flatnonzero((eyes != images).any(axis=(0, 2, 3)))
    assert (changed.min(), changed.max()) == (16, 19)  # 4 rows about row 18


def test_pictures_are_turned_by_the_angle_to_either_side():
    images = np.zeros((40, 48, 48, 1), np.uint8)
    images[:, 4:8, 22:26] = 255  # a spot above the centre
    turned = inference.corrupt(images, "rotation", 2, seed=1)
    angles = []
    for image in turned[..., 0]:
        rows, columns = np.nonzero(image > 128)
        angles.append(np.degrees(np.arctan2(columns.mean() - 23.5, 23.5 - rows.mean())))
    assert np.abs(angles) == pytest.approx(np.full(40, 30), abs=1.5)
    assert 8 < (np.array(angles) > 0).sum() < 32


def test_scores_are_of_every_kind_and_level(images):
    labels = np.tile(np.arange(7), 6).astype(np.int32)
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(42)], "label": [CLASSES[code] for code in labels]})
    faces = loading.Faces(images, labels, table, labels)
    inputs = keras.Input((48, 48, 1))
    bright = keras.layers.GlobalAveragePooling2D()(inputs) / 255
    model = keras.Model(inputs, keras.layers.Dense(7, activation="softmax")(bright))
    found = inference.score_corrupted(model, faces, seed=1)
    assert found[["corruption", "level"]].to_numpy().tolist() == [[kind, n] for kind in KINDS for n in range(1, 6)]
    expected = (model(_level(images, "low light", 4)).numpy().argmax(axis=1) == labels).mean()
    row = found[(found["corruption"] == "low light") & (found["level"] == 5)].iloc[0]
    assert row["accuracy"] == pytest.approx(expected) and row["strength"] == 0.18
    means = inference.corruption_summary(found)
    assert means["mean_accuracy"] == pytest.approx(found["accuracy"].mean())
    assert means["by_kind"]["blur"]["accuracy_by_level"] == found["accuracy"][:5].tolist()


def test_examples_are_of_one_picture(images):
    shown = inference.corruption_examples(images[0], seed=1)
    assert list(shown) == KINDS and all(faces.shape == (5, 48, 48) for faces in shown.values())
