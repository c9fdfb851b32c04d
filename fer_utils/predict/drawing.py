"""Writes copies of pictures and videos with a frame and a label for every face; sources are never changed."""

import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from fer_utils import files
from fer_utils.predict.detection import Box

import cv2
import numpy as np

COLOUR = (0, 230, 118)  # RGB
MARK = "_faces"  # added to the name of a copy
RATE = 10.0  # frames per second of a copy if the source's rate is unknown
MAX_RATE = 240.0  # of a copy; a file without a rate of its own may claim 1000, the unit of its times
LONGEST = 10.0  # seconds for which a copy shows one frame, so that a wrong time in a source cannot fill the disk
FONT = cv2.FONT_HERSHEY_SIMPLEX


def drawn(picture: np.ndarray, boxes: Sequence[Box], labels: Sequence[str], note: str = "") -> np.ndarray:
    """A copy of an RGB picture with boxes and labels, with lines and letters in proportion to its size, a note at its foot."""
    copy = np.ascontiguousarray(picture).copy()
    scale = max(copy.shape[:2]) / 1000
    thickness, size = max(1, round(2 * scale)), max(0.4, 0.7 * scale)
    for box, label in zip(boxes, labels, strict=True):
        cv2.rectangle(copy, (box.x, box.y), (box.x + box.width, box.y + box.height), COLOUR, max(2, thickness))
        (width, height), below = cv2.getTextSize(label, FONT, size, thickness)
        foot = max(box.y - below, height + below)
        cv2.rectangle(copy, (box.x, foot - height - below), (box.x + width, foot + below), COLOUR, cv2.FILLED)
        cv2.putText(copy, label, (box.x, foot), FONT, size, (0, 0, 0), thickness, cv2.LINE_AA)
    if note:  # as large as the width allows
        height, width = copy.shape[:2]
        (wide, high), below = cv2.getTextSize(note, FONT, 1, 1)
        size = 0.96 * width / wide
        strip, base = round(1.6 * size * (high + below)), round(0.3 * size * (high + below)) + round(size * below)
        cv2.rectangle(copy, (0, max(0, height - strip)), (width, height), (0, 0, 0), cv2.FILLED)
        cv2.putText(copy, note, (round(0.02 * width), height - base), FONT, size, (255, 255, 255), 1, cv2.LINE_AA)
    return copy


class Copies(contextlib.ExitStack):
    """Writes annotated copies to a folder: PNG files of pictures, one MP4 of each video, all atomically.

    A video's copy has a fixed rate and plays as long as its source: it shows a frame until the next one's time. After an
    error the unfinished one is deleted. A copy takes a free name: it replaces neither a source, nor another file, nor a copy
    of an earlier call.
    """

    def __init__(self, folder: Path):
        super().__init__()  # it holds the video that is being written
        self._folder = folder
        self._source = ""
        self._writer: cv2.VideoWriter
        self._last: (
            np.ndarray
        )  # frame of the video, its time, and the frames of the copy that are due by then and written
        self._seconds, self._due, self._written = 0.0, 0.0, 0

    def add_picture(self, source: str, rgb: np.ndarray) -> Path:
        """Write a picture's copy; return its path."""
        path = self._path(source, ".png")
        with files.replacing(path) as temporary:
            temporary.write_bytes(cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes())
        return path

    def add_frame(self, source: str, rgb: np.ndarray, seconds: float, rate: float) -> None:
        """Write a frame to the copy of its video, which ends with the next source or with this object."""
        rate = min(rate, MAX_RATE)
        if self._source != source:
            self.close()  # the video before
            self._begin_video(source, rgb.shape, rate)
            self._source, self._seconds, self._due, self._written = source, seconds, 0.0, 0
        self._due += min(seconds - self._seconds, LONGEST) * rate
        while self._written < round(self._due):
            self._write(self._last)
        self._seconds, self._last = seconds, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        if self._written == round(self._due):  # else a frame was written for this time already
            self._write(self._last)

    def _write(self, bgr: np.ndarray) -> None:
        self._writer.write(bgr)
        self._written += 1

    def _begin_video(self, source: str, shape: tuple[int, ...], rate: float) -> None:
        path = self._path(source, ".mp4")
        temporary = self.enter_context(files.replacing(path))
        self._writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), rate, (shape[1], shape[0]))
        if not self._writer.isOpened():
            raise files.OutputError(f"{path}: this OpenCV cannot write MP4 videos; leave out --annotate")
        self.callback(self._writer.release)

    def _path(self, source: str, suffix: str) -> Path:
        """The first name that is free in this folder."""
        stem = Path(source).stem + MARK
        names = (f"{stem}{'' if n == 1 else f'_{n}'}{suffix}" for n in itertools.count(1))
        return next(path for path in map(self._folder.joinpath, names) if not os.path.lexists(path))
