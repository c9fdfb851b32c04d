"""Views of an image are the ones named, and their predictions are averaged."""

from fer_utils.evaluation import inference

import keras
import numpy as np
import pytest
from keras import layers


@pytest.fixture
def top_left() -> keras.Model:
    """A model that says of an image the value of its first pixel."""
    raw = keras.Input((None, None, 1))
    return keras.Model(raw, layers.Reshape((1,))(raw[:, :1, :1]))


@pytest.fixture
def faces() -> np.ndarray:
    return np.arange(2 * 20 * 20).reshape(2, 20, 20, 1).astype(np.uint8)


def test_a_flip_is_the_mean_of_both_sides(top_left, faces):
    expected = (faces[:, 0, 0].astype(float) + faces[:, 0, -1]) / 2
    assert inference.predict_with_views(top_left, faces, "flip") == pytest.approx(expected)


def test_ten_crops_are_corners_and_centre_and_their_mirror_images(top_left, faces):
    first = [faces[:, y, x] for y, x in [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]]
    mirrored = [faces[:, y, x] for y, x in [(0, 17), (0, 19), (2, 17), (2, 19), (1, 18)]]
    expected = np.mean([pixels.astype(float) for pixels in first + mirrored], axis=0)
    assert inference.predict_with_views(top_left, faces, "ten_crop") == pytest.approx(expected)
    assert all(view.shape == (2, 18, 18, 1) for view in inference.views(faces, "ten_crop"))
