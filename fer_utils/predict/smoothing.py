"""Averages a face's probabilities over the pictures of a video or webcam, which makes its label steadier and later."""

import math
from dataclasses import dataclass, replace

from fer_utils.predict.detection import Box
from fer_utils.predict.reader import Reading

import numpy as np

SAME_FACE = 0.3  # smallest overlap (intersection over union) with the box of an earlier picture


@dataclass(eq=False)
class _Track:
    box: Box
    probabilities: np.ndarray
    seconds: float


class Smoother:
    """Exponential averages: after `seconds`, a picture counts 1/e (37 %) of what it counted at first.

    A face is followed by its box's overlap. One that is not seen for `seconds` begins anew. Pictures without a time, which
    are no frames, are returned as they are.
    """

    def __init__(self, seconds: float):
        if not seconds > 0:
            raise ValueError(f"seconds is {seconds}; smoothing needs a time over 0")
        self._seconds = seconds
        self._source = ""
        self._tracks: list[_Track] = []

    def smoothed(self, reading: Reading) -> Reading:
        """The reading with each face's probabilities averaged over the pictures so far."""
        now = reading.picture.seconds
        if now is None:
            return reading
        if reading.picture.source != self._source:
            self._source, self._tracks = reading.picture.source, []
        known = [track for track in self._tracks if 0 <= now - track.seconds <= self._seconds]
        faces, seen = [], []
        for face in reading.faces:
            best = max(known, key=lambda track: overlap(track.box, face.box), default=None)
            probabilities = np.array(face.probabilities)
            if best is not None and overlap(best.box, face.box) >= SAME_FACE:
                known.remove(best)
                kept = math.exp(-(now - best.seconds) / self._seconds)
                probabilities = kept * best.probabilities + (1 - kept) * probabilities
            seen.append(_Track(face.box, probabilities, now))
            faces.append(replace(face, probabilities=tuple(map(float, probabilities))))
        self._tracks = known + seen
        return replace(reading, faces=tuple(faces))


def overlap(first: Box, second: Box) -> float:
    """The intersection of two boxes over their union, 0 to 1."""
    width = min(first.x + first.width, second.x + second.width) - max(first.x, second.x)
    height = min(first.y + first.height, second.y + second.height) - max(first.y, second.y)
    shared = max(0, width) * max(0, height)
    return shared / max(1, first.width * first.height + second.width * second.height - shared)
