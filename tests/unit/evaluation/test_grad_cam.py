"""Grad-CAM finds what speaks for a class, where it is known."""

from fer_utils.classes import CLASSES
from fer_utils.evaluation import inference
from fer_utils.export import formats
from fer_utils.training import network

import keras
import numpy as np
import pytest
from keras import layers
from precision import precision


@pytest.fixture(scope="module", params=["float32", "mixed_float16"])
def bright_is_happy(request) -> keras.Model:
    """A model in the layout of ours: brightness speaks for happy and against sad; all else counts nothing."""
    with precision(request.param):
        yield _bright_is_happy()


def _bright_is_happy() -> keras.Model:
    raw = keras.Input((6, 6, 1))
    preprocessing = keras.Model(raw, layers.Rescaling(1 / 255)(raw), name=network.PREPROCESSING)
    pixels = keras.Input((6, 6, 1))
    brightness = layers.Conv2D(1, 1, kernel_initializer="ones", name="brightness_out")(pixels)
    backbone = keras.Model(pixels, brightness, name=network.RESNET50)
    x = layers.GlobalAveragePooling2D(name=network.FEATURES)(backbone(preprocessing(raw)))
    x = layers.Dense(1, kernel_initializer="ones", name=network.HEAD_LAYERS[0])(x)
    x = layers.BatchNormalization(name=network.HEAD_LAYERS[1])(x)
    x = layers.Dropout(0.4, name=network.HEAD_LAYERS[2])(x)
    last = layers.Dense(len(CLASSES), activation="softmax", dtype="float32", name=network.HEAD_LAYERS[3])
    whole = keras.Model(raw, last(x))
    votes = np.zeros((1, len(CLASSES)), np.float32)
    votes[0, CLASSES.index("happy")], votes[0, CLASSES.index("sad")] = 1, -1
    last.set_weights([votes, np.zeros(len(CLASSES))])
    return whole


def test_heat_lies_where_the_class_is_told_from(bright_is_happy):
    images = np.zeros((40, 6, 6, 1), np.uint8)  # more than a batch
    images[:, 1, 4] = 200
    images[:, 5, 0] = 100
    heat = inference.grad_cam(bright_is_happy, images, np.full(40, CLASSES.index("happy")))
    expected = np.zeros((6, 6))
    expected[1, 4], expected[5, 0] = 1, 0.5
    assert heat.shape == (40, 6, 6) and heat == pytest.approx(np.broadcast_to(expected, heat.shape), abs=1e-6)


def test_what_speaks_against_a_class_is_cold(bright_is_happy):
    images = np.full((1, 6, 6, 1), 90, np.uint8)
    assert (inference.grad_cam(bright_is_happy, images, np.array([CLASSES.index("sad")])) == 0).all()


@pytest.mark.parametrize("backbone", [network.RESNET50, network.SMALL])
def test_the_maps_of_a_model_have_squares_enough_and_those_of_an_exported_one_are_the_same(backbone):
    faces = np.random.default_rng(0).integers(0, 255, (1, 48, 48, 1), np.uint8)
    model = network.build(48, "none", backbone)
    heat = inference.grad_cam(model, faces, np.array([3]))
    assert heat.shape == (1, 6, 6) and heat.max() in (0, 1) and heat.min() >= 0
    assert (inference.grad_cam(formats.for_any_colour(model), faces, np.array([3])) == heat).all()
