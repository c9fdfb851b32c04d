"""Seconds, means and shares of a track by hand, and its figure."""

from fer_utils.classes import CLASSES
from fer_utils.predict.detection import Box
from fer_utils.predict.photographs import Picture
from fer_utils.predict.reader import Face, Reading
from fer_utils.predict.tracking import COLOURS, Timeline

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image


def reading(seconds: float | None, source: str = "v", rate: float | None = 10.0, **faces: str) -> Reading:
    """A frame with a face for each `t1="happy"`: the number of its track, and the class that it surely is."""
    shown = tuple(
        Face(Box(0, 0, 9, 9, 1.0), tuple(float(name == other) for other in CLASSES), track=int(track[1:]))
        for track, name in faces.items()
    )
    return Reading(Picture(source, np.zeros((1, 1, 3), np.uint8), 0, seconds, rate), shown)


def times(*readings: Reading) -> Timeline:
    found = Timeline()
    for one in readings:
        found.add(one)
    return found


def test_a_picture_counts_for_the_time_until_the_next_one():
    first, second = times(
        reading(0.0, t1="happy"), reading(1.0, t1="sad", t2="fear"), reading(1.1, t2="fear"), reading(1.5, t1="sad")
    ).tracks()
    assert (first["source"], first["track"], first["first"], first["last"]) == ("v", 1, 0.0, 1.5)
    assert first["seconds"] == pytest.approx(1.0 + 0.1 + 0.4)  # the last one as long as the one before it
    assert first["share"]["happy"] == pytest.approx(1 / 1.5, abs=1e-6) == first["probability"]["happy"]
    assert second["seconds"] == pytest.approx(0.5) and second["share"]["fear"] == 1
    assert sum(first["share"].values()) == pytest.approx(1, abs=1e-5) and tuple(first["share"]) == CLASSES


def test_sources_are_kept_apart_and_photographs_are_no_tracks():
    found = times(
        reading(0.0, t1="happy"),
        reading(0.2, t1="happy"),
        reading(None, "photo.jpg", t1="sad"),
        reading(0.0, "w", t1="sad"),  # its only picture, of which nothing says how long it lasts
        reading(3.0, "webcam 0", None, t1="sad"),
    )
    found.add(reading(3.0, "webcam 0", None, t2="sad"))  # within a millisecond
    *found, last = found.tracks()
    assert (last["track"], last["seconds"]) == (2, 0.001)
    assert [(track["source"], track["seconds"]) for track in found] == [("v", 0.4), ("w", 0.1), ("webcam 0", 0.001)]


@pytest.mark.parametrize("n", [1, 6, 7, 9])
def test_the_figure_grows_with_its_tracks_and_shows_six_at_most(n, tmp_path, monkeypatch):
    save, said = Figure.savefig, []
    monkeypatch.setattr(Figure, "savefig", lambda *a, **k: said.append(a[0].axes[-1].get_xlabel()) or save(*a, **k))
    faces = {f"t{number + 1}": CLASSES[number % 7] for number in range(n)}
    found = times(reading(0.0, **faces), reading(0.5, **faces), reading(1.0, t1="happy"))
    found.draw(tmp_path / "line.png", lambda source: "a $b$ \\frac $ v")
    with Image.open(tmp_path / "line.png") as picture:
        assert picture.width == 1500 and picture.height == pytest.approx(150 * (1 + 1.15 * min(n, 6)), abs=2)
        assert said[0].endswith({1: "seconds", 6: "seconds", 7: "left out: 1", 9: "left out: 3"}[n])
        colours = {tuple(pixel) for pixel in np.array(picture.convert("RGB")).reshape(-1, 3)}
    assert all(
        tuple(bytes.fromhex(COLOURS[CLASSES.index(name)][1:])) in colours for name in {*list(faces.values())[:6]}
    )


def test_a_long_video_is_averaged_in_steps_and_white_where_the_face_is_not_seen(tmp_path):
    """In 1,000 pictures of 0.1 s: happy and sad in turn, then nobody, then fear."""
    names = [*(["happy", "sad"] * 250), *([None] * 250), *(["fear"] * 250)]
    found = times(*(reading(n / 10, **({"t1": name} if name else {})) for n, name in enumerate(names)))
    (track,) = found.tracks()
    assert track["seconds"] == pytest.approx(75) and track["share"]["fear"] == pytest.approx(1 / 3, abs=1e-6)
    found.draw(tmp_path / "line.png", str)
    with Image.open(tmp_path / "line.png") as picture:
        row = np.array(picture.convert("RGB"))[180]  # at about half the height of the areas
    columns = np.flatnonzero((row == tuple(bytes.fromhex(COLOURS[2][1:]))).all(axis=1))
    left, right = columns[0] - 3 * (columns[-1] - columns[0] + 1), columns[-1]  # fear takes the last quarter
    assert (row[left + (right - left) * 6 // 10] == 255).all() and (row[left + (right - left) // 4] != 255).any()
