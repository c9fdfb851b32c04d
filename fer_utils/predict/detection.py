"""Finds faces in photographs with MTCNN or YuNet, and crops them as the training images are cropped.

MTCNN (Zhang et al. 2016, arXiv:1604.02878) comes from the package `mtcnn`, which includes its weights. YuNet (Wu et al.
2023, doi:10.1007/s11633-023-1423-y) is run by OpenCV from a file, which is fetched once into Keras' cache folder.
"""

import contextlib
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from fer_utils import images

import cv2
import numpy as np

LANDMARKS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")  # MTCNN's names, in YuNet's order
SMALLEST = 20  # pixels; the size of a face for MTCNN's first network
UPRIGHT = ((-1, -1), (1, -1), (0, 0), (-0.8, 1), (0.8, 1))  # the landmarks of an upright face, in some unit
PROPORTION = 0.8  # width over height of both detectors' boxes, except of a face that the picture's border cuts
TREMBLE = 5.0  # degrees; about the error of both detectors' landmarks: a smaller turn is none
NEAR = 0.05  # of a box's side: a face so near to the border counts as cut
MIN_SIDE = 48  # pixels; smaller pictures are padded, since MTCNN's pyramid would be empty
OVERLAP = 0.3  # of two YuNet boxes that share more than this of their union, the less confident one is dropped
# Pixels. YuNet was trained on faces up to about 300 px and misses much larger ones; in the astronaut's picture it is
# sure of a face of 500 px, not of one of 600, and takes smooth parts of an enlarged picture for larger faces.
LARGEST = 400
# YuNet's files: name → SHA-256. Both hold the same network and give the same faces. The older one states a fixed size of
# its input, and some engines then refuse any other (opencv/opencv_zoo#310). The newer one is fetched: 230 KB, MIT licence.
YUNET = {
    "face_detection_yunet_2023mar.onnx": "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
    "face_detection_yunet_2026may.onnx": "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0",
}
YUNET_NAME = "face_detection_yunet_2026may.onnx"
YUNET_URL = f"https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/{YUNET_NAME}"
YUNET_BYTES = 1_000_000  # at most, of a file that may be YuNet's


class DetectorMissing(ImportError):
    """The package with the face detector is not installed; or its file is not there, is another one, or cannot be fetched."""


@dataclass(frozen=True)
class Box:
    """A face's position in pixels of the picture, which a face at its border exceeds, and its confidence (0–1).

    landmarks: (x, y) of eyes, nose and corners of the mouth, of a pair the left one in the picture first; or none.
    """

    x: int
    y: int
    width: int
    height: int
    confidence: float
    landmarks: tuple[tuple[float, float], ...] = ()

    def within(self, picture: np.ndarray) -> "Box":
        """The part of the box that lies in the picture."""
        left, right = np.clip((self.x, self.x + self.width), 0, picture.shape[1]).tolist()
        top, bottom = np.clip((self.y, self.y + self.height), 0, picture.shape[0]).tolist()
        return replace(self, x=left, y=top, width=right - left, height=bottom - top)

    def turn(self) -> float:
        """The angle in degrees by which the face is turned clockwise; 0 below TREMBLE and without landmarks."""
        if not self.landmarks:
            return 0.0
        # Of all landmarks: in a profile the eyes alone lie too near each other.
        seen, upright = (np.array(points) @ (1, 1j) for points in (self.landmarks, UPRIGHT))
        turn = math.degrees(np.angle(np.vdot(upright - upright.mean(), seen - seen.mean())))
        return turn if abs(turn) >= TREMBLE else 0.0


class Detector:
    """Finds upright faces, frontal or moderately turned.

    smallest: pixels of the smallest face to find; a larger value is faster, since the picture is shrunk first.
    threshold: smallest confidence of a face, 0 to 1; a lower value finds more faces and more false ones.
    framing: side of a square cropped as FER2013's pictures are, over the mean side of the detector's box.
    """

    framing: float

    def __init__(self, smallest: int, threshold: float):
        self._scale, self._threshold = SMALLEST / smallest, threshold

    def find(self, picture: np.ndarray) -> list[Box]:
        """The faces in an RGB picture, uint8 (height, width, 3), from left to right."""
        raise NotImplementedError


class Mtcnn(Detector):
    """The detector of the package `mtcnn`. It is not given `min_face_size`: with a larger one mtcnn 1.0.0 builds levels
    too small for its network, and then fails or finds no face."""

    THRESHOLD = 0.9  # measured by tests/benchmarks/detection.py
    # On 240 faces of FER2013's train folder the box has a mean side of 0.909 of the picture (10 %–90 %: 0.75–1.12) and
    # its centre 0.49 across and 0.51 down. The inverse gives the side of a square like FER2013's crops.
    framing = 1.10

    def __init__(self, smallest: int = SMALLEST, threshold: float = THRESHOLD):
        super().__init__(smallest, threshold)
        import keras  # takes seconds, and YuNet does without

        crops, backend = "or give crops of faces with --no-detect", keras.config.backend()
        if backend != "tensorflow":
            said = f"mtcnn computes with TensorFlow alone, and KERAS_BACKEND is {backend}"
            raise DetectorMissing(f"{said}: name YuNet's file with --detector, {crops}")
        try:
            from mtcnn import MTCNN
        except ImportError as error:
            said = f"the face detector is not installed ({error})"
            raise DetectorMissing(f'{said}: `pip install "mtcnn>=1,<2"`, {crops}') from error
        self._network = MTCNN()

    def find(self, picture: np.ndarray) -> list[Box]:
        small = scaled(picture, self._scale)
        bottom, right = (max(0, MIN_SIDE - length) for length in small.shape[:2])
        padded = cv2.copyMakeBorder(small, 0, bottom, 0, right, cv2.BORDER_CONSTANT)
        boxes = (
            _box(face["box"], [face["keypoints"][name] for name in LANDMARKS], face["confidence"], self._scale)
            for face in self._network.detect_faces(padded, threshold_onet=self._threshold)
        )
        return _in_order(boxes, picture)


class YuNet(Detector):
    """OpenCV's FaceDetectorYN, not for several threads at once. file: see yunet_path. Raises DetectorMissing."""

    THRESHOLD = 0.8  # measured by tests/benchmarks/detection.py
    # 274 of 300 faces of FER2013: a mean side of 0.923 (10 %–90 %: 0.74–1.11), the centre 0.49 across and 0.52 down.
    framing = 1.08

    def __init__(self, smallest: int = SMALLEST, threshold: float = THRESHOLD, file: Path | None = None):
        super().__init__(smallest, threshold)
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # OpenCV 5 warns of what is not asked for
        data, nothing = (np.frombuffer(part, np.uint8) for part in (yunet_path(file).read_bytes(), b""))
        self._network = cv2.FaceDetectorYN.create("onnx", data, nothing, (320, 320), threshold, OVERLAP)

    def find(self, picture: np.ndarray) -> list[Box]:
        # Larger pictures are searched several times, each a quarter of the size before, for larger faces.
        bgr = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2BGR)
        scale, faces, is_last = self._scale, [], False
        while not is_last:
            level = scaled(bgr, scale)
            is_last = max(level.shape[:2]) <= 2 * LARGEST
            self._network.setInputSize(level.shape[1::-1])
            # Rows of a box's corner and sides, ten coordinates of landmarks, and the confidence.
            _, found = self._network.detect(level)
            for face in () if found is None else found:
                if is_last or max(face[2:4]) <= LARGEST:
                    faces.append((face[:14] / scale, float(face[14])))
            scale /= 4
        sides, confidences = [points[:4].tolist() for points, _ in faces], [confidence for _, confidence in faces]
        kept = [faces[n] for n in cv2.dnn.NMSBoxes(sides, confidences, self._threshold, OVERLAP)]
        boxes = (_box(points[:4], points[4:].reshape(5, 2), confidence) for points, confidence in kept)
        return _in_order(boxes, picture)


def detector(
    name: str, smallest: int = SMALLEST, threshold: float | None = None, say: Callable[[str], None] = print
) -> Detector:
    """The detector `mtcnn` or `yunet`, YuNet from the file at a path, or for `auto` YuNet if its file is there or can
    be fetched, else MTCNN, and `say` gets the reason. threshold: None is the detector's own. Raises DetectorMissing."""
    if name != "mtcnn":
        try:
            file = None if name in ("auto", "yunet") else Path(name)
            return YuNet(smallest, YuNet.THRESHOLD if threshold is None else threshold, file)
        except DetectorMissing as error:
            if name != "auto":
                raise DetectorMissing(f"--detector {name}: {error}") from error
            say(f"detector: mtcnn; {error}")
    return Mtcnn(smallest, Mtcnn.THRESHOLD if threshold is None else threshold)


def yunet_path(given: Path | None = None) -> Path:
    """YuNet's file: the one given, else the one in Keras' cache folder, fetched if it is not there.

    Raises DetectorMissing, naming the file and the way out.
    """
    folder = Path(os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser()) / "models"
    cached = next((folder / name for name in YUNET if (folder / name).is_file()), None)
    path = given or cached or _fetched(folder / YUNET_NAME)
    if not path.is_file():
        raise DetectorMissing(f"no file at {path}: YuNet's is {YUNET_URL}")
    with path.open("rb") as file:
        found = hashlib.sha256(file.read(YUNET_BYTES)).hexdigest()
    if found not in YUNET.values():
        known = " or ".join(YUNET)
        raise DetectorMissing(f"{path} is not {known} (its SHA-256 begins with {found[:8]}): take it from {YUNET_URL}")
    return path


def _fetched(cached: Path) -> Path:
    import keras  # takes seconds to import

    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras shows its progress, and standard output is for rows
            return Path(keras.utils.get_file(YUNET_NAME, YUNET_URL, cache_subdir="models", file_hash=YUNET[YUNET_NAME]))
    except Exception as error:  # Keras raises a plain Exception without a network, ValueError for another hash
        reason, way = str(error).splitlines()[0], f"put {YUNET_URL} at {cached}, or name its path with --detector"
        raise DetectorMissing(f"YuNet's file could not be fetched ({reason}): {way}") from error


def scaled(picture: np.ndarray, scale: float) -> np.ndarray:
    """The picture with both sides times `scale`, at least one pixel; for a scale of 1 itself."""
    height, width = picture.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return picture if scale == 1 else cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _box(sides, landmarks, confidence: float, scale: float = 1) -> Box:
    """A box from its corner and sides and its landmarks, all of them divided by `scale`."""
    points = tuple((float(x) / scale, float(y) / scale) for x, y in landmarks)
    x, y, width, height = (round(float(value) / scale) for value in sides)
    return Box(x, y, width, height, round(float(confidence), 4), points)


def _in_order(boxes: Iterable[Box], picture: np.ndarray) -> list[Box]:
    """The boxes of which a part lies in the picture, from left to right, those of cut faces completed."""
    height, width = picture.shape[:2]
    found = []
    for box in boxes:
        part = box.within(picture)
        if part.width and part.height:
            x, wide = _completed(box.x, box.width, round(PROPORTION * box.height), width)
            y, high = _completed(box.y, box.height, round(box.width / PROPORTION), height)
            found.append(replace(box, x=x, y=y, width=wide, height=high))
    return sorted(found, key=lambda box: (box.x, box.y))


def _completed(begin: int, length: int, whole: int, end: int) -> tuple[int, int]:
    """Begin and length of a box's side, made `whole` over the picture's border, 0 or `end`, where it lies at one."""
    missing, near = max(0, whole - length), NEAR * length
    if begin <= near:
        return begin - missing, length + missing
    return begin, length + (missing if begin + length >= end - near else 0)


def crop(picture: np.ndarray, box: Box, framing: float) -> np.ndarray:
    """The face cropped as in FER2013: uint8 grey (48, 48), a square of `framing` times the box's mean side, turned
    until the face is upright, if its landmarks are known. Outside the picture the edge is repeated."""
    side = max(1, round(framing * (box.width * box.height) ** 0.5))
    turn = box.turn()
    margin = math.ceil(side * (2**0.5 - 1) / 2) if turn else 0  # a square turned by 45° reaches so much further
    reach = side + 2 * margin
    left = round(box.x + box.width / 2 - side / 2) - margin
    top = round(box.y + box.height / 2 - side / 2) - margin
    middle = (reach - 1) / 2
    square = cv2.getRectSubPix(picture, (reach, reach), (left + middle, top + middle))
    if turn:
        matrix = cv2.getRotationMatrix2D((middle, middle), turn, 1)
        square = cv2.warpAffine(square, matrix, (reach, reach), borderMode=cv2.BORDER_REPLICATE)
    return images.as_face(square[margin : margin + side, margin : margin + side])


def face_finder(faces: str) -> Callable[[np.ndarray], list[np.ndarray]] | None:
    """For `detect` a function that gives the crops of the faces in an RGB picture, for `whole` None. Raises
    DetectorMissing."""
    if faces == "whole":
        return None
    mtcnn = Mtcnn()  # it needs no file: what a run trains on must not depend on what a machine has fetched
    return lambda picture: [crop(picture, box, mtcnn.framing) for box in mtcnn.find(picture)]
