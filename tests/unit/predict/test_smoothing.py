"""Probabilities averaged over time: by hand for one face, each face its own, and a new one begins anew."""

import math

from fer_utils.classes import CLASSES
from fer_utils.predict.detection import Box
from fer_utils.predict.photographs import Picture
from fer_utils.predict.reader import Face, Reading
from fer_utils.predict.tracking import Tracker, overlap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

LEFT, RIGHT = Box(0, 0, 40, 40, 1.0), Box(200, 0, 40, 40, 1.0)


def sure_of(name: str) -> tuple[float, ...]:
    return tuple(float(name == other) for other in CLASSES)


def reading(seconds: float | None, *faces: tuple[Box, str], source: str = "v") -> Reading:
    picture = Picture(source, np.zeros((1, 1, 3), np.uint8), 0, seconds)
    return Reading(picture, tuple(Face(box, sure_of(name)) for box, name in faces))


def test_a_change_shows_as_an_exponential_average():
    tracker = Tracker(0.5)
    assert tracker.followed(reading(0.0, (LEFT, "happy"))).faces[0].probabilities == sure_of("happy")
    (face,) = tracker.followed(reading(0.1, (LEFT, "sad"))).faces
    kept = math.exp(-0.2)
    assert face.probabilities[CLASSES.index("happy")] == pytest.approx(kept)
    assert face.probabilities[CLASSES.index("sad")] == pytest.approx(1 - kept)
    (face,) = tracker.followed(reading(0.3, (LEFT, "sad"))).faces
    assert face.probabilities[CLASSES.index("happy")] == pytest.approx(math.exp(-0.6))


def test_two_faces_that_change_places_in_the_list_keep_their_own_averages():
    tracker = Tracker(1.0)
    tracker.followed(reading(0.0, (LEFT, "happy"), (RIGHT, "angry")))
    right, left = tracker.followed(reading(0.1, (RIGHT, "angry"), (LEFT, "happy"))).faces
    assert (right.expression, left.expression) == ("angry", "happy")
    assert max(right.probabilities) == pytest.approx(1) and max(left.probabilities) == pytest.approx(1)


@pytest.mark.parametrize(
    "second",
    [
        reading(0.1, (RIGHT, "sad")),  # elsewhere
        reading(1.1, (LEFT, "sad")),  # after too long a time
        reading(0.1, (LEFT, "sad"), source="other"),
        reading(None, (LEFT, "sad")),  # no frame
    ],
)
def test_another_face_begins_anew(second):
    tracker = Tracker(1.0)
    tracker.followed(reading(0.0, (LEFT, "happy")))
    assert tracker.followed(second).faces[0].probabilities == sure_of("sad")


@given(st.lists(st.tuples(st.floats(0.01, 2), st.sampled_from(CLASSES)), min_size=1, max_size=20))
def test_probabilities_still_sum_to_one(steps):
    tracker, now = Tracker(0.7), 0.0
    for step, name in steps:
        now += step
        (face,) = tracker.followed(reading(now, (LEFT, name))).faces
        assert sum(face.probabilities) == pytest.approx(1) and min(face.probabilities) >= 0


def test_overlap_is_intersection_over_union():
    assert overlap(LEFT, LEFT) == 1 and overlap(LEFT, RIGHT) == 0
    assert overlap(Box(0, 0, 20, 10, 1.0), Box(10, 0, 20, 10, 1.0)) == pytest.approx(1 / 3)


def test_a_time_of_zero_averages_nothing():
    tracker = Tracker(0)
    tracker.followed(reading(0.0, (LEFT, "happy")))
    assert tracker.followed(reading(0.0, (LEFT, "sad"))).faces[0].probabilities == sure_of("sad")
