"""Follows faces through a video or webcam: each face has a number, which it keeps from picture to picture.

On request it averages each face's probabilities over time, which makes its label steadier, and later.
"""

import math
from dataclasses import dataclass, replace

from fer_utils.predict.detection import Box
from fer_utils.predict.reader import Face, Reading

import numpy as np

SAME_FACE = 0.3  # smallest overlap (intersection over union) with the box where a face is expected
# Face widths a second, one width at most: where few pictures are read, a face this near to its expected box is the same one.
FASTEST = 2.5
MISSED = 1.0  # seconds for which a face that is not found keeps its number
SETTLING = 0.15  # seconds over which a face's speed is averaged, since the detectors' boxes tremble


@dataclass(eq=False)
class _Track:
    number: int
    box: Box
    seconds: float
    speed: np.ndarray  # pixels a second, (2,)
    probabilities: np.ndarray

    def at(self, seconds: float) -> Box:
        """The box where it is expected at that time, if it moves on as before."""
        right, down = self.speed * (seconds - self.seconds)
        points = tuple((x + right, y + down) for x, y in self.box.landmarks)
        return replace(self.box, x=round(self.box.x + right), y=round(self.box.y + down), landmarks=points)

    def found(self, face: Face, seconds: float, smooth: float) -> "_Track":
        """The track with the face's new box, and its probabilities averaged over `smooth` seconds."""
        step = max(seconds - self.seconds, 1e-3)
        weight = 1 - math.exp(-step / SETTLING)
        seen = (_points(face.box) - _points(self.box)).mean(axis=0) / step
        kept = math.exp(-step / smooth) if step <= smooth else 0.0
        probabilities = kept * self.probabilities + (1 - kept) * np.array(face.probabilities)
        return _Track(self.number, face.box, seconds, (1 - weight) * self.speed + weight * seen, probabilities)


class Tracker:
    """Numbers the faces of each source, from 1 in the order in which they appear, and averages their probabilities.

    A face goes on as the one whose expected box overlaps its own, or is near. Where several do, as when faces cross, the
    landmarks that lie nearest decide; without landmarks the corners of the boxes do.

    smooth: seconds, 0 to average nothing. The average is exponential: after `smooth` a picture counts 1/e (37 %) of what it
    counted at first. A face that is not seen for longer begins anew.
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
            for stops, expected in enumerate((track.at(now), track.box)):
                for index, face in enumerate(reading.faces):
                    apart = np.linalg.norm(_points(expected) - _points(face.box), axis=1).mean()
                    reach = min(1.0, FASTEST * (now - track.seconds)) * track.box.width
                    if apart <= reach or overlap(expected, face.box) >= SAME_FACE:
                        pairs.append((stops, apart, index, track.number, track))
        of_face: dict[int, _Track] = {}
        for _, _, index, _, track in sorted(pairs):
            if index not in of_face and track in known:
                known.remove(track)
                of_face[index] = track.found(reading.faces[index], now, self._smooth)
        for index, face in enumerate(reading.faces):
            if index not in of_face:
                self._n += 1
                of_face[index] = _Track(self._n, face.box, now, np.zeros(2), np.array(face.probabilities))
        self._tracks = known + list(of_face.values())
        faces = (
            replace(face, track=of_face[index].number, probabilities=tuple(of_face[index].probabilities.tolist()))
            for index, face in enumerate(reading.faces)
        )
        return replace(reading, faces=tuple(faces))


def _points(box: Box) -> np.ndarray:
    corners = (box.x, box.y), (box.x + box.width, box.y + box.height)
    return np.array(box.landmarks or corners, float)


def overlap(first: Box, second: Box) -> float:
    """The intersection of two boxes over their union, 0 to 1."""
    width = min(first.x + first.width, second.x + second.width) - max(first.x, second.x)
    height = min(first.y + first.height, second.y + second.height) - max(first.y, second.y)
    shared = max(0, width) * max(0, height)
    return shared / max(1, first.width * first.height + second.width * second.height - shared)
