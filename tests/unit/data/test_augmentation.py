"""What training sees follows from seed, epoch and batch alone, changes as far as it should, and keeps labels honest."""

import dataclasses

from fer_utils.data import augmentation
from fer_utils.data.augmentation import STRENGTHS, Changes, Strength
from fer_utils.training.loop import Batches

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

STILL = Strength(shift=0.0, degrees=0, zoom=0.0, light=0.0, erased=0.0)


def _images(n: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, without the extremes that brightness would clip."""
    coarse = np.random.default_rng(seed).integers(60, 200, (n, 6, 6, 1))
    return coarse.repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_picture_at_rest_is_itself_or_its_mirror_image_half_the_time_each():
    images = _images(400)
    seen = augmentation.augment(images, STILL, _rng())
    mirrored = (seen == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (seen == images).all(axis=(1, 2, 3))).all()
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize("shift", [0.1, 0.2])
def test_a_shift_moves_a_point_as_far_as_it_says_in_each_direction_and_no_farther(shift):
    images = np.zeros((300, 48, 48, 1), np.uint8)
    images[:, 23:25, 23:25] = 255  # mirrored, it lies where it did
    seen = augmentation.augment(images, dataclasses.replace(STILL, shift=shift), _rng())[..., 0].astype(float)
    total = seen.sum(axis=(1, 2))
    for axis in (1, 2):
        moved = (seen.sum(axis=3 - axis) * np.arange(48)).sum(axis=1) / total - 23.5
        assert np.abs(moved).max() <= 48 * shift + 0.1
        assert moved.min() < -0.9 * 48 * shift and moved.max() > 0.9 * 48 * shift


def test_brightness_moves_the_mean_and_contrast_the_spread_within_their_limits():
    images = _images(300)
    seen = augmentation.augment(images, dataclasses.replace(STILL, light=0.2), _rng()).astype(float)
    brighter = seen.mean(axis=(1, 2, 3)) - images.mean(axis=(1, 2, 3))
    wider = seen.std(axis=(1, 2, 3)) / images.std(axis=(1, 2, 3))
    assert 40 < brighter.max() < 52 and -52 < brighter.min() < -40
    assert 1.1 < wider.max() < 1.21 and 0.75 < wider.min() < 0.9
    assert abs(np.corrcoef(brighter, wider)[0, 1]) < 0.2  # drawn apart from each other


def test_erasing_takes_a_rectangle_of_the_right_size_from_as_many_pictures_as_it_says():
    images = np.full((400, 48, 48, 1), 128, np.uint8)
    seen = augmentation.augment(images, dataclasses.replace(STILL, erased=0.5), _rng())
    touched = (seen != 128)[..., 0]
    erased = touched.any(axis=(1, 2))
    assert 150 < erased.sum() < 250
    for picture in touched[erased]:
        rows, columns = np.flatnonzero(picture.any(axis=1)), np.flatnonzero(picture.any(axis=0))
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert 0.015 < area / picture.size < 0.36
        assert picture.sum() > 0.9 * area  # noise hits 128 itself once in 256


@pytest.mark.parametrize("degrees, zoom", [(10, 0.0), (0, 0.2), (10, 0.2)])
def test_angle_and_zoom_are_uniform_up_to_their_limits_in_both_directions(degrees, zoom):
    """Measured by two bright points, left and right of the centre: the line between them turns and grows."""
    images = np.zeros((600, 97, 97, 1), np.uint8)
    images[:, 47:50, 23:26] = images[:, 47:50, 71:74] = 255  # mirrored, each lies where the other did
    seen = augmentation.augment(images, dataclasses.replace(STILL, degrees=degrees, zoom=zoom), _rng())[..., 0]
    columns, rows = np.meshgrid(np.arange(97), np.arange(97))
    right = seen * (columns > 48) / (seen * (columns > 48)).sum(axis=(1, 2), keepdims=True)
    x, y = (right * (columns - 48)).sum(axis=(1, 2)), (right * (rows - 48)).sum(axis=(1, 2))
    for drawn, limit in ((np.degrees(np.arctan2(y, x)), degrees), (np.hypot(x, y) / 24 - 1, zoom)):
        assert np.abs(drawn).max() <= 1.03 * limit + 0.005
        quarters = np.quantile(drawn, [0.25, 0.5, 0.75])
        assert quarters == pytest.approx([-limit / 2, 0, limit / 2], abs=0.12 * limit + 0.005)


def test_all_changes_together_keep_the_spread_of_each():
    """Standard deviations of `heavy`'s uniform amounts, its centre of mass moved by shifts alone."""
    images = np.zeros((800, 96, 96, 1), np.uint8)
    images[:, 46:50, 46:50] = 255
    strength = dataclasses.replace(STRENGTHS["heavy"], light=0.0, erased=0.0)
    seen = augmentation.augment(images, strength, _rng())[..., 0].astype(float)
    total = seen.sum(axis=(1, 2))
    for axis in (1, 2):
        moved = (seen.sum(axis=3 - axis) * np.arange(96)).sum(axis=1) / total - 47.5
        assert moved.mean() == pytest.approx(0, abs=1.5)
        assert moved.std() == pytest.approx(0.2 * 96 / 3**0.5, rel=0.06)
    assert total.std() / total.mean() == pytest.approx(2 * 0.2 / 3**0.5, rel=0.12)  # the square of the zoom


def test_pictures_that_are_not_square_are_moved_by_shares_of_their_own_sides():
    images = np.zeros((200, 24, 60, 1), np.uint8)
    images[:, 11:13, 29:31] = 255
    seen = augmentation.augment(images, dataclasses.replace(STILL, shift=0.2), _rng())[..., 0].astype(float)
    for axis, side in ((1, 24), (2, 60)):
        moved = (seen.sum(axis=3 - axis) * np.arange(side)).sum(axis=1) / seen.sum(axis=(1, 2)) - (side - 1) / 2
        assert 0.9 * 0.2 * side < np.abs(moved).max() <= 0.2 * side + 0.1


@pytest.mark.parametrize("name", STRENGTHS)
def test_pictures_of_one_batch_are_changed_apart_from_each_other(name):
    images = np.repeat(_images(1), 20, axis=0)
    seen = augmentation.augment(images, STRENGTHS[name], _rng())
    assert seen.shape == images.shape and seen.dtype == np.uint8
    assert len({picture.tobytes() for picture in seen}) == 20


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(0, 3))
def test_a_batch_is_the_same_whatever_was_shown_before_it(seed, epoch, index):
    images, labels, changes = _images(14), np.arange(14) % 7, Changes("heavy", 0.2, 0.1)
    straight = Batches(images, labels, 4, seed, 0, changes)
    for earlier in range(index):
        straight[earlier]
    straight.begin_epoch(epoch)
    resumed = Batches(images, labels, 4, seed, epoch, changes)
    for one, two in zip(straight[index], resumed[index], strict=True):
        assert np.array_equal(one, two)


def test_each_epoch_and_each_batch_show_other_pictures():
    images, changes = np.repeat(_images(1), 8, axis=0), Changes("light")
    batches = [Batches(images, np.zeros(8, int), 4, 1, epoch, changes)[index] for epoch in (0, 1) for index in (0, 1)]
    assert len({pictures.tobytes() for pictures, _ in batches}) == 4


def test_the_pictures_themselves_are_left_as_they_are():
    images = _images(8)
    before = images.copy()
    Batches(images, np.zeros(8, int), 8, 1, 0, Changes("heavy", 0.2))[0]
    assert np.array_equal(images, before)


def test_without_changes_inputs_and_labels_pass_untouched():
    images, labels = _images(3), np.array([1, 2, 3])
    assert Changes()(images, labels, _rng()) == (images, labels)
    assert not Changes().of_pictures and not Changes(label_smoothing=0.1).of_pictures
    assert Changes("light").of_pictures and Changes(mixup=0.2).of_pictures


def test_smoothing_gives_a_share_of_the_label_to_all_classes_alike():
    soft = augmentation.soften(np.array([3, 0]), 0.07)
    assert soft[0] == pytest.approx([0.01, 0.01, 0.01, 0.94, 0.01, 0.01, 0.01])
    assert soft[1, 0] == pytest.approx(0.94) and soft.sum(axis=1) == pytest.approx([1, 1])


def test_smoothing_leaves_the_votes_beside_a_label_as_they_are():
    votes = np.array([[0.2, 0, 0, 0.3, 0, 0, 0], np.zeros(7)], np.float32)
    rows = augmentation.soften(np.hstack([np.eye(7, dtype=np.float32)[[3, 0]], votes]), 0.07)
    assert rows[:, :7] == pytest.approx(augmentation.soften(np.array([3, 0]), 0.07))
    assert (rows[:, 7:] == votes).all() and rows.dtype == np.float32


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_a_picture_and_its_label_are_mixed_by_the_same_shares(alpha):
    labels = np.arange(70) % 7
    images = (labels * 10).astype(np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    mixed, soft = Changes(mixup=alpha)(images, labels, _rng())
    assert mixed.dtype == soft.dtype == np.float32
    assert soft.sum(axis=1) == pytest.approx(np.ones(70), abs=1e-6)
    assert mixed[:, 0, 0, 0] == pytest.approx(soft @ (np.arange(7) * 10), abs=1e-4)
    assert (soft.max(axis=1) < 0.99).sum() > 15


def test_an_alpha_below_one_leaves_most_pictures_nearly_whole():
    images, labels = np.zeros((500, 2, 2, 1), np.uint8), np.arange(500) % 7
    own = [Changes(mixup=alpha)(images, labels, _rng())[1].max(axis=1).mean() for alpha in (0.2, 1.0)]
    assert own[0] > own[1] + 0.1


@pytest.mark.parametrize("inputs", [np.zeros((4, 2, 2, 8), np.float32), (np.zeros((4, 8)), np.zeros((4, 3)))])
def test_computed_activations_are_neither_augmented_nor_mixed(inputs):
    for changes in (Changes("light"), Changes(mixup=0.2)):
        with pytest.raises(TypeError, match="change raw pictures"):
            changes(inputs, np.zeros(4, int), _rng())
    same, soft = Changes(label_smoothing=0.1)(inputs, np.zeros(4, int), _rng())
    assert same is inputs and soft.shape == (4, 7)


def test_changes_without_a_seed_are_refused():
    with pytest.raises(ValueError, match="changes need a seed"):
        Batches(_images(4), np.zeros(4, int), 2, changes=Changes("light"))
