"""Faces keep their numbers: while they move, cross, and are missed; a new one has a new number."""

from fer_utils.predict.detection import Box
from fer_utils.predict.photographs import Picture
from fer_utils.predict.reader import Face, Reading
from fer_utils.predict.tracking import Tracker, overlap

import numpy as np
import pytest

SURE = (1.0,) + (0.0,) * 6
SIDE = 80


def box(x: float, y: float = 100, side: float = SIDE, has_landmarks: bool = True) -> Box:
    """A face with its centre there."""
    places = ((-0.2, -0.15), (0.2, -0.15), (0, 0.05), (-0.15, 0.25), (0.15, 0.25))
    points = tuple((x + side * across, y + side * down) for across, down in places)
    left, top = round(x - side / 2), round(y - side / 2)
    return Box(left, top, round(side), round(side), 1.0, points if has_landmarks else ())


def reading(seconds: float | None, *boxes: Box, source: str = "v") -> Reading:
    picture = Picture(source, np.zeros((1, 1, 3), np.uint8), 0, seconds)
    return Reading(picture, tuple(Face(one, SURE) for one in boxes))


def numbers(tracker: Tracker, seconds: float | None, *boxes: Box, source: str = "v") -> list[int | None]:
    return [face.track for face in tracker.followed(reading(seconds, *boxes, source=source)).faces]


def test_faces_are_numbered_as_they_appear_whatever_their_order_in_the_picture():
    tracker = Tracker()
    assert numbers(tracker, 0, box(300)) == [1]
    assert numbers(tracker, 0.1, box(100), box(300)) == [2, 1]
    assert numbers(tracker, 0.2, box(305), box(104), box(600)) == [1, 2, 3]


@pytest.mark.parametrize("missed", [0.1, 0.5, 0.8])
def test_a_face_that_is_missed_for_half_a_second_keeps_its_number(missed):
    tracker = Tracker()
    for seconds in np.arange(10) / 30:
        assert numbers(tracker, seconds, box(100 + 90 * seconds)) == [1]
    for seconds in np.arange(10, 10 + 30 * missed) / 30:
        assert numbers(tracker, seconds) == []
    seconds = 0.3 + missed
    assert numbers(tracker, seconds, box(100 + 90 * seconds)) == [1]


def test_a_face_that_stops_while_it_is_missed_keeps_its_number():
    tracker = Tracker()
    for seconds in np.arange(10) / 30:
        numbers(tracker, seconds, box(100 + 300 * seconds))
    assert numbers(tracker, 0.8, box(195)) == [1]


def test_after_more_than_a_second_and_in_another_video_numbers_begin_anew():
    tracker = Tracker()
    assert numbers(tracker, 0, box(100)) == [1]
    assert numbers(tracker, 0.1) == []
    assert numbers(tracker, 1.2, box(100)) == [2]
    assert numbers(tracker, 1.3, box(100), source="w") == [1]
    assert numbers(tracker, None, box(100), source="photograph") == [None]


def test_a_face_is_followed_in_a_video_of_which_a_picture_every_three_seconds_is_read():
    tracker = Tracker()
    assert [numbers(tracker, seconds, box(100)) for seconds in (0, 3, 6)] == [[1]] * 3


def test_a_moving_face_is_followed_where_pictures_are_so_far_apart_that_its_boxes_hardly_overlap():
    tracker = Tracker()
    found = [numbers(tracker, seconds, box(100 + 150 * seconds), box(500)) for seconds in np.arange(0, 2, 0.4)]
    assert found == [[1, 2]] * 5


def test_another_face_that_appears_a_width_away_in_the_next_picture_is_new():
    tracker = Tracker()
    assert numbers(tracker, 0, box(100)) == [1]
    assert numbers(tracker, 1 / 30, box(170)) == [2]


@pytest.mark.parametrize("has_landmarks", [True, False])
@pytest.mark.parametrize(("speed", "step"), [(60, 1 / 30), (200, 1 / 30), (800, 1 / 30), (60, 0.1), (300, 0.1)])
@pytest.mark.parametrize("hides_from", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_two_faces_that_cross_keep_their_numbers(has_landmarks, speed, step, hides_from, seed):
    """One passes before the other, which is not found where they overlap by more than `hides_from`."""
    rng, tracker, seen = np.random.default_rng(seed), Tracker(), []
    for seconds in np.arange(0, 400 / speed, step):
        front, back = 100 + speed * seconds, 500 - speed * seconds
        boxes = {
            "front": box(front + rng.normal(0, 1), 100 + rng.normal(0, 1), SIDE + rng.normal(0, 1), has_landmarks),
            "back": box(back + rng.normal(0, 1), 110 + rng.normal(0, 1), SIDE + rng.normal(0, 1), has_landmarks),
        }
        if overlap(boxes["front"], boxes["back"]) > hides_from:
            del boxes["back"]
        named = sorted(boxes, key=lambda name: boxes[name].x)  # as a detector gives them
        seen.append(dict(zip(named, numbers(tracker, seconds, *(boxes[name] for name in named)), strict=True)))
    assert {one["front"] for one in seen} == {seen[0]["front"]}
    assert {one["back"] for one in seen if "back" in one} == {seen[0]["back"]} and len(seen[0]) == 2
