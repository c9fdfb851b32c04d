"""Averages a face's probabilities over the pictures of a video or webcam, which makes its label steadier and later."""

import math
from dataclasses import replace

from fer_utils.predict.reader import Reading
from fer_utils.predict.tracking import Tracker

import numpy as np


class Smoother:
    """Exponential averages of each face that a Tracker follows: after `seconds`, a picture counts 1/e (37 %) of what it
    counted at first.

    A face that is not seen for `seconds` begins anew. Pictures without a time, which are no frames, are returned as they are.
    """

    def __init__(self, seconds: float):
        if not seconds > 0:
            raise ValueError(f"seconds is {seconds}; smoothing needs a time over 0")
        self._seconds = seconds
        self._tracker = Tracker()
        self._averages: dict[tuple[str, int], tuple[float, np.ndarray]] = {}  # source, track → when, probabilities

    def smoothed(self, reading: Reading) -> Reading:
        """The reading, its faces numbered, with each face's probabilities averaged over the pictures so far."""
        source, now = reading.picture.source, reading.picture.seconds
        if now is None:
            return reading
        reading, faces = self._tracker.followed(reading), []
        known = {key: entry for key, entry in self._averages.items() if 0 <= now - entry[0] <= self._seconds}
        for face in reading.faces:
            probabilities = np.array(face.probabilities)
            if (source, face.track) in known:
                seen, average = known[source, face.track]
                kept = math.exp(-(now - seen) / self._seconds)
                probabilities = kept * average + (1 - kept) * probabilities
            known[source, face.track] = now, probabilities
            faces.append(replace(face, probabilities=tuple(map(float, probabilities))))
        self._averages = known
        return replace(reading, faces=tuple(faces))
