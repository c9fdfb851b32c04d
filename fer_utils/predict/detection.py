"""Faces in photographs: where they are, and the crop that the model was trained to see.

Knows MTCNN (Zhang et al. 2016, arXiv:1604.02878) as the package `mtcnn` carries it, its weights inside; knows nothing of
files, of expressions or of the model. The package is imported with the first detector, not with this module.
"""

from dataclasses import dataclass

from fer_utils.images import SIZE

import cv2
import numpy as np

SMALLEST = 20  # pixels: what MTCNN's first network sees as one face; asking it for larger ones makes 1.0.0 fail (below)
THRESHOLD = 0.9  # smallest confidence of a face; measured by tests/benchmarks/detection.py
MIN_SIDE = 48  # pixels; smaller pictures are framed in black, MTCNN's pyramid would be empty
# Measured on 240 faces of FER2013's train folder: MTCNN's box has a mean side of 0.909 of the picture (10 %–90 %: 0.75–1.12)
# and its centre lies in the middle, 0.49 across and 0.51 down. The inverse is the square that frames a face likewise.
FRAMING = 1.10


class DetectorMissing(ImportError):
    """The package with the face detector is not installed."""


@dataclass(frozen=True)
class Box:
    """A face's place in pixels of the picture, and how sure the detector is (0–1)."""

    x: int
    y: int
    width: int
    height: int
    confidence: float


class Detector:
    """Finds upright faces, frontal or turned within reason.

    smallest: pixels of the smallest face to look for; a larger one is faster, since the picture is shrunk first.
    threshold: smallest confidence of a face, 0 to 1; a lower one finds more faces and more that are none.
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

        The picture is scaled, never `min_face_size`: with a larger one mtcnn 1.0.0 builds levels too small for its
        network, and then fails or says that there is no face.
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
    """The picture, black to the right and below where a side is too short: boxes keep their place."""
    bottom, right = (max(0, side - length) for length in picture.shape[:2])
    return cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_CONSTANT) if bottom or right else picture


def _box(face: dict, scale: float, width: int, height: int) -> Box:
    x, y, w, h = (round(value / scale) for value in face["box"])
    left, top = min(max(x, 0), width), min(max(y, 0), height)
    right, bottom = min(max(x + w, 0), width), min(max(y + h, 0), height)
    return Box(left, top, right - left, bottom - top, round(float(face["confidence"]), 4))


def crop(picture: np.ndarray, box: Box) -> np.ndarray:
    """The face as FER2013 frames faces: uint8 grey (48, 48), a square of FRAMING times the box's mean side.

    What lies outside the picture repeats its edge.
    """
    side = max(1, round(FRAMING * (box.width * box.height) ** 0.5))
    left = round(box.x + box.width / 2 - side / 2)
    top = round(box.y + box.height / 2 - side / 2)
    height, width = picture.shape[:2]
    rows = np.clip(np.arange(top, top + side), 0, height - 1)
    columns = np.clip(np.arange(left, left + side), 0, width - 1)
    return as_model_input(picture[np.ix_(rows, columns)])


def as_model_input(picture: np.ndarray) -> np.ndarray:
    """A whole RGB picture as the training images are: uint8 grey (48, 48), shrunk by area as `images.decode` does."""
    grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
    shrinks = min(grey.shape) > SIZE
    return cv2.resize(grey, (SIZE, SIZE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
