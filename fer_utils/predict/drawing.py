"""Writes copies of pictures and videos with a frame and a label for every face; sources are never changed."""

import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from fer_utils import files
from fer_utils.predict.detection import Box
from fer_utils.predict.photographs import Picture, for_opencv

import cv2
import numpy as np
from PIL import Image

COLOUR = (0, 230, 118)  # RGB
MARK = "_faces"  # added to the name of a copy
RATE = 10.0  # frames per second of a copy if the source's rate is unknown
MAX_RATE = 240.0  # of a copy; a file without a rate of its own may claim 1000, the unit of its times
LONGEST = 10.0  # seconds for which a copy shows one frame, so that a wrong time in a source cannot fill the disk
FONT = cv2.FONT_HERSHEY_SIMPLEX


def drawn(picture: np.ndarray, boxes: Sequence[Box], labels: Sequence[str], note: str = "") -> np.ndarray:
    """A copy of an RGB picture with boxes and labels, in proportion to its size, and a note at its foot."""
    copy = np.ascontiguousarray(picture).copy()
    scale = max(copy.shape[:2]) / 1000
    thickness, size = max(1, round(2 * scale)), max(0.4, 0.7 * scale)
    for box, label in zip(boxes, labels, strict=True):
        cv2.rectangle(copy, (box.x, box.y), (box.x + box.width, box.y + box.height), COLOUR, max(2, thickness))
        fitting = min(size, copy.shape[1] / cv2.getTextSize(label, FONT, 1, thickness)[0][0])
        (width, height), below = cv2.getTextSize(label, FONT, fitting, thickness)
        left, foot = max(0, min(box.x, copy.shape[1] - width)), max(box.y - below, height + below)
        cv2.rectangle(copy, (left, foot - height - below), (left + width, foot + below), COLOUR, cv2.FILLED)
        cv2.putText(copy, label, (left, foot), FONT, fitting, (0, 0, 0), thickness, cv2.LINE_AA)
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

    A video's copy has a fixed rate and plays as long as its source: it shows a frame until the next one's time. After
    an error the unfinished one is deleted. A copy takes a free name, and replaces no file.
    """

    def __init__(self, folder: Path):
        super().__init__()  # it holds the video that is being written
        self._folder = folder
        self._source, self._writer = "", cv2.VideoWriter()
        # Of the video: the last frame, its time, and how many frames of the copy are due by then and written.
        self._last: np.ndarray = np.empty(0)
        self._seconds, self._due, self._written = 0.0, 0.0, 0

    def add(self, picture: Picture, rgb: np.ndarray, every: int = 1) -> None:
        """Write the annotated copy `rgb` of a picture, or of a frame of a video of which each `every`-th is read. The
        copy of a video ends with the next source or with this object."""
        if picture.seconds is not None:
            self._add_frame(picture.source, rgb, picture.seconds, (picture.rate or RATE) / every)
            return
        with files.replacing(self._path(picture.source, ".png")) as temporary:
            Image.fromarray(rgb).save(temporary)

    def _add_frame(self, source: str, rgb: np.ndarray, seconds: float, rate: float) -> None:
        rate, bgr = min(rate, MAX_RATE), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        if self._source != source:
            self.close()  # the video before
            path, size = self._path(source, ".mp4"), (rgb.shape[1], rgb.shape[0])
            temporary = self.enter_context(files.replacing(path))
            self._writer = cv2.VideoWriter(for_opencv(temporary), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
            if not self._writer.isOpened():
                raise files.OutputError(f"{path}: this OpenCV cannot write MP4 videos; leave out --annotate")
            self.callback(self._writer.release)
            self._source, self._seconds, self._due, self._written = source, seconds, 0.0, 0
        self._due += min(seconds - self._seconds, LONGEST) * rate
        # The frame before until this one's time, then this one, unless a frame was written for this time already.
        due, written = round(self._due), self._written
        for frame in [self._last] * (due - written) + [bgr] * (due >= written):
            self._writer.write(frame)
        self._last, self._seconds, self._written = bgr, seconds, max(written, due + 1)

    def _path(self, source: str, suffix: str) -> Path:
        stem = os.fsencode(Path(source).stem)[:200].decode(errors="ignore")  # a whole name has 255 bytes at most
        return free(self._folder / f"{stem}{MARK}{suffix}")


def free(path: Path) -> Path:
    """The path, or if something is there, the first that is free with _2, _3, … at the end of its stem."""
    others = (path.with_stem(f"{path.stem}_{n}") for n in itertools.count(2))
    return next(one for one in itertools.chain([path], others) if not os.path.lexists(one))
