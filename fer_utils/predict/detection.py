"""Finds faces in photographs with MTCNN, and crops them as the training images are cropped.

MTCNN (Zhang et al. 2016, arXiv:1604.02878) comes from the package `mtcnn`, which includes its weights. The package is
imported with the first detector, not with this module.
"""

from collections.abc import Callable
from dataclasses import dataclass

from fer_utils import images

import cv2
import numpy as np

SMALLEST = (
    20  # pixels; size of a face for MTCNN's first network; mtcnn 1.0.0 fails with a larger value (see Detector.find)
)
THRESHOLD = 0.9  # smallest confidence of a face; measured by tests/benchmarks/detection.py
MIN_SIDE = 48  # pixels; smaller pictures are padded, since MTCNN's pyramid would be empty
# Measured on 240 faces of FER2013's train folder: MTCNN's box has a mean side of 0.909 of the picture (10 %–90 %: 0.75–1.12)
# and its centre is in the middle, 0.49 across and 0.51 down. The inverse gives the side of a square like FER2013's crops.
FRAMING = 1.10


class DetectorMissing(ImportError):
    """The package with the face detector is not installed."""


@dataclass(frozen=True)
class Box:
    """A face's position in pixels of the picture, and the detector's confidence (0–1)."""

    x: int
    y: int
    width: int
    height: int
    confidence: float


class Detector:
    """Finds upright faces, frontal or moderately turned.

    smallest: pixels of the smallest face to find; a larger value is faster, since the picture is shrunk first.
    threshold: smallest confidence of a face, 0 to 1; a lower value finds more faces and more false ones.
    """

    def __init__(self, smallest: int = SMALLEST, threshold: float = THRESHOLD):
        if smallest < SMALLEST:
            raise ValueError(f"smallest is {smallest} pixels, the detector sees nothing under {SMALLEST}")
        if not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold}; it is a confidence between 0 and 1")
        self._threshold = threshold
        self._scale = SMALLEST / smallest
        self._network = _load_network()

    def find(self, picture: np.ndarray) -> list[Box]:
        """The faces in an RGB picture, uint8 (height, width, 3), from left to right.

        The picture is scaled instead of setting `min_face_size`: with a larger one mtcnn 1.0.0 builds levels too small
        for its network, and then fails or finds no face.
        """
        height, width = picture.shape[:2]
        scaled = _at_least(_scaled(picture, self._scale), MIN_SIDE)
        found = self._network.detect_faces(scaled, threshold_onet=self._threshold)
        boxes = [_box(face, self._scale, width, height) for face in found]
        return sorted((box for box in boxes if box.width and box.height), key=lambda box: (box.x, box.y))


def _load_network():
    try:
        from mtcnn import MTCNN
    except ImportError as error:
        raise DetectorMissing(
            f"the face detector is not installed ({error}): `pip install 'mtcnn>=1,<2'`, or give crops of faces with --no-detect"
        ) from error
    return MTCNN()


def _scaled(picture: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return picture
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _at_least(picture: np.ndarray, side: int) -> np.ndarray:
    """The picture, padded in black at the right and bottom if a side is too short; boxes keep their coordinates."""
    bottom, right = (max(0, side - length) for length in picture.shape[:2])
    return cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_CONSTANT) if bottom or right else picture


def _box(face: dict, scale: float, width: int, height: int) -> Box:
    x, y, w, h = (round(value / scale) for value in face["box"])
    left, top = min(max(x, 0), width), min(max(y, 0), height)
    right, bottom = min(max(x + w, 0), width), min(max(y + h, 0), height)
    return Box(left, top, right - left, bottom - top, round(float(face["confidence"]), 4))


def crop(picture: np.ndarray, box: Box) -> np.ndarray:
    """The face cropped as in FER2013: uint8 grey (48, 48), a square of FRAMING times the box's mean side.

    Outside the picture the edge pixels are repeated.
    """
    side = max(1, round(FRAMING * (box.width * box.height) ** 0.5))
    left = round(box.x + box.width / 2 - side / 2)
    top = round(box.y + box.height / 2 - side / 2)
    height, width = picture.shape[:2]
    rows = np.clip(np.arange(top, top + side), 0, height - 1)
    columns = np.clip(np.arange(left, left + side), 0, width - 1)
    return images.as_face(picture[np.ix_(rows, columns)])


def face_finder(faces: str) -> Callable[[np.ndarray], list[np.ndarray]] | None:
    """A function that returns the crops of the faces in an RGB picture, or None for `whole`. faces: `whole` or `detect`.

    Raises DetectorMissing.
    """
    if faces == "whole":
        return None
    detector = Detector()
    return lambda picture: [crop(picture, box) for box in detector.find(picture)]
