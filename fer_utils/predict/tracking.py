"""Follows faces through a video or webcam: numbers and smooths them, sums each up over time, and draws it."""

import math
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fer_utils import files
from fer_utils.classes import CLASSES
from fer_utils.predict import drawing
from fer_utils.predict.detection import Box
from fer_utils.predict.reader import Face, Reading, by_class

import numpy as np

SAME_FACE = 0.3  # smallest overlap (intersection over union) with the box where a face is expected
# Face widths a second, one width at most: where few pictures are read, a face so near to its expected box is the same.
FASTEST = 2.5
MISSED = 1.0  # seconds for which a face that is not found keeps its number
SETTLING = 0.15  # seconds over which a face's speed is averaged, since the detectors' boxes tremble
SHOWN = 6  # tracks in a figure
STEPS = 400  # of its time axis; the pictures of a step are averaged
# Paul Tol's, for the colour-blind, one for each class.
COLOURS = ("#cc3311", "#999933", "#aa3377", "#ddcc77", "#4477aa", "#ee7733", "#bbbbbb")


@dataclass(eq=False)
class _Track:
    face: Face  # as it was seen last, numbered and smoothed
    seconds: float
    speed: np.ndarray = field(default_factory=lambda: np.zeros(2))  # pixels a second

    def at(self, seconds: float) -> Box:
        """The box where it is expected at that time, if it moves on as before."""
        box, (right, down) = self.face.box, self.speed * (seconds - self.seconds)
        points = tuple((x + right, y + down) for x, y in box.landmarks)
        return replace(box, x=round(box.x + right), y=round(box.y + down), landmarks=points)

    def found(self, face: Face, seconds: float, smooth: float) -> "_Track":
        """The track with the face's new box, and its probabilities averaged over `smooth` seconds."""
        step = max(seconds - self.seconds, 1e-3)
        kept = math.exp(-step / SETTLING)
        speed = (_points(face.box) - _points(self.face.box)).mean(axis=0) / step
        speed = kept * self.speed + (1 - kept) * speed
        kept = math.exp(-step / smooth) if step <= smooth else 0.0
        averaged = kept * np.array(self.face.probabilities) + (1 - kept) * np.array(face.probabilities)
        return _Track(replace(face, track=self.face.track, probabilities=tuple(averaged.tolist())), seconds, speed)


class Tracker:
    """Numbers the faces of each source, from 1 in the order in which they appear, and averages their probabilities.

    A face goes on as the one whose expected box overlaps its own, or is near. Where several do, as when faces cross,
    the nearest landmarks decide, or without landmarks the corners of the boxes.
    smooth: seconds, 0 to average nothing. The average is exponential: after `smooth` a picture counts 1/e (37 %) of
    what it counted at first. A face that is not seen for longer begins anew.
    """

    def __init__(self, smooth: float = 0.0) -> None:
        self._smooth = smooth
        self._source = ""
        self._tracks: list[_Track] = []
        self._before = 0.0  # seconds of the picture before
        self._n = 0

    def followed(self, reading: Reading) -> Reading:
        """The reading, its faces numbered and smoothed; without a time, which makes it no frame, as it is."""
        now = reading.picture.seconds
        if now is None:
            return reading
        if reading.picture.source != self._source:
            self._source, self._tracks, self._n = reading.picture.source, [], 0
        since = min(now - MISSED, self._before)  # of a video of which few pictures are read, one is long after another
        known, self._before = [track for track in self._tracks if since <= track.seconds <= now], now
        pairs = []  # of a track and a face that may be its own; tracks that go on as before come before those that stop
        for track in known:
            reach = min(1.0, FASTEST * (now - track.seconds)) * track.face.box.width
            for stops, expected in enumerate((track.at(now), track.face.box)):
                for index, face in enumerate(reading.faces):
                    apart = np.linalg.norm(_points(expected) - _points(face.box), axis=1).mean()
                    if apart <= reach or overlap(expected, face.box) >= SAME_FACE:
                        pairs.append((stops, apart, index, track))
        of_face: dict[int, _Track] = {}
        for _, _, index, track in sorted(pairs, key=lambda pair: pair[:3]):
            if index not in of_face and track in known:
                known.remove(track)
                of_face[index] = track.found(reading.faces[index], now, self._smooth)
        for index, face in enumerate(reading.faces):
            if index not in of_face:
                self._n += 1
                of_face[index] = _Track(replace(face, track=self._n), now)
        self._tracks = known + list(of_face.values())
        return replace(reading, faces=tuple(of_face[index].face for index in range(len(reading.faces))))


def _points(box: Box) -> np.ndarray:
    corners = (box.x, box.y), (box.x + box.width, box.y + box.height)
    return np.array(box.landmarks or corners, float)


def overlap(first: Box, second: Box) -> float:
    """The intersection of two boxes over their union, 0 to 1."""
    width = min(first.x + first.width, second.x + second.width) - max(first.x, second.x)
    height = min(first.y + first.height, second.y + second.height) - max(first.y, second.y)
    shared = max(0, width) * max(0, height)
    return shared / max(1, first.width * first.height + second.width * second.height - shared)


class Timeline:
    """The times of each source's pictures, and in which of them each track was seen with which probabilities."""

    def __init__(self) -> None:
        self._times: dict[str, array] = {}
        self._tracks: dict[tuple[str, int], array] = {}  # source, number → rows of a picture's index and probabilities

    def add(self, reading: Reading) -> None:
        """Add a video's next picture, its faces numbered; one without a time is no video's."""
        source, seconds = reading.picture.source, reading.picture.seconds
        if seconds is not None:
            times = self._times.setdefault(source, array("d"))
            for face in reading.faces:
                assert face.track is not None, "a Tracker numbers the faces first"
                self._tracks.setdefault((source, face.track), array("d")).extend((len(times), *face.probabilities))
            times.append(seconds)

    def _seen(self) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray]]:
        """For each track its summary, and for each of the source's pictures: when it begins, for how many seconds the
        track is seen in it, and its probabilities. A picture lasts until the next one, the last like the one before."""
        for (source, number), seen in sorted(self._tracks.items()):
            begins, table = np.array(self._times[source]), np.array(seen).reshape(-1, 1 + len(CLASSES))
            steps = np.maximum(np.diff(begins), 1e-3)
            lasts, probabilities = np.zeros(len(begins)), np.zeros((len(begins), len(CLASSES)))
            indices = table[:, 0].astype(int)
            lasts[indices] = np.append(steps, steps[-1:] if steps.size else 1 / drawing.RATE)[indices]
            probabilities[indices] = table[:, 1:]
            total = lasts.sum()
            shares = np.bincount(probabilities.argmax(axis=1), lasts, len(CLASSES)) / total
            times = {"first": begins[indices[0]], "last": begins[indices[-1]], "seconds": total}
            times = {name: round(float(value), 3) for name, value in times.items()}
            summary: dict[str, Any] = {"source": source, "track": number} | times
            summary |= {"probability": by_class(lasts @ probabilities / total), "share": by_class(shares)}
            yield summary, begins, lasts, probabilities

    def tracks(self) -> list[dict[str, Any]]:
        """A summary of each track: when it was first and last seen, for how many seconds in all, the mean of its
        probabilities, and the share of that time for which each expression was the likeliest."""
        return [summary for summary, *_ in self._seen()]

    def draw(self, path: Path, name_of: Callable[[str], str]) -> None:
        """Write the figure: for each track, those seen longest, the probabilities over time, stacked.

        name_of: a source's name in it.
        """
        from matplotlib.figure import Figure  # takes a while to import

        longest = sorted((track["seconds"] for track in self.tracks()), reverse=True)
        shown = [seen for seen in self._seen() if seen[0]["seconds"] >= longest[:SHOWN][-1]][:SHOWN]
        figure = Figure(figsize=(10, 1 + 1.15 * len(shown)), layout="constrained")
        grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (summary, begins, lasts, probabilities) in zip(grid, shown, strict=True):
            first = np.arange(0, len(begins), -(-len(begins) // STEPS))  # picture of each step
            sums = np.add.reduceat(probabilities * lasts[:, None], first)
            heights = sums / np.maximum(sums.sum(axis=1, keepdims=True), 1e-9)  # 0 where the face is not seen
            edges = np.append(begins[first], begins[-1] + max(lasts[-1], 1e-3))
            axes.stackplot(edges, *np.vstack([heights, heights[-1:]]).T, step="post", colors=COLOURS, lw=0)
            axes.set_title(described(summary, name_of(summary["source"])), loc="left", fontsize=9, parse_math=False)
            axes.set(ylim=(0, 1), yticks=(0, 1))
            axes.margins(x=0)
            axes.spines[["top", "right"]].set_visible(False)
        n_others = len(longest) - len(shown)
        others = f"; tracks that were seen for a shorter time and are left out: {n_others}" if n_others else ""
        grid[-1].set_xlabel(f"seconds{others}")
        figure.supylabel("probability", fontsize="medium")
        figure.legend(grid[0].collections, CLASSES, loc="outside upper center", ncols=len(CLASSES), frameon=False)
        with files.replacing(path) as temporary:
            figure.savefig(temporary, dpi=150)


def described(track: dict[str, Any], source: str) -> str:
    """A track in a line of text, without expressions under one per cent."""
    shares = sorted(track["share"].items(), key=lambda entry: -entry[1])
    expressions = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
    span = f"{track['seconds']:.1f} s from {track['first']:.1f} to {track['last']:.1f}"
    return f"track {track['track']} of {source}: seen {span}, {expressions}"
