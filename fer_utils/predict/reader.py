"""Predicts the expressions of faces in pictures, with a face detector and a model."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fer_utils import images, places
from fer_utils.classes import CLASSES
from fer_utils.predict import detection, drawing, photographs
from fer_utils.predict.detection import Box
from fer_utils.predict.photographs import PassedOver, Picture

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 64  # faces per step of the model
HELD_BYTES = 200_000_000  # limit for pictures that wait for a full batch


class NotOurModel(ValueError):
    """The file is not a model of this project."""


@dataclass(frozen=True)
class Face:
    """A face and its seven probabilities, in the order of CLASSES."""

    box: Box
    probabilities: tuple[float, ...]

    @property
    def expression(self) -> str:
        """The likeliest class."""
        return CLASSES[int(np.argmax(self.probabilities))]

    @property
    def label(self) -> str:
        return f"{self.expression} {max(self.probabilities):.2f}"


@dataclass(frozen=True)
class Reading:
    """A picture and its faces."""

    picture: Picture
    faces: tuple[Face, ...]

    def drawn(self) -> np.ndarray:
        """The picture with its faces framed, RGB."""
        return drawing.drawn(self.picture.rgb, [face.box for face in self.faces], [face.label for face in self.faces])

    def figure(self) -> "Figure":
        """The picture with its faces framed, as a figure."""
        import matplotlib.pyplot as plt  # takes a while to import

        figure, axes = plt.subplots(layout="constrained")
        axes.imshow(self.drawn())
        axes.set_axis_off()
        return figure


class Reader:
    """Predicts expressions with a model and a detector; without a detector each picture is the crop of one face."""

    def __init__(self, model_file: Path, detector: detection.Detector | None):
        from fer_utils.training.network import compiled  # TensorFlow takes seconds to import

        self._step = compiled(load_model(model_file))
        self._detector = detector

    def read(self, pictures: Iterable[Picture | PassedOver], batch: int = BATCH) -> Iterator[Reading | PassedOver]:
        """Yield each picture's faces, in order; faces of several pictures share a step. PassedOver is passed on."""
        held, crops = [], []
        for picture in pictures:
            boxes, faces = self._crops(picture)
            held.append((picture, boxes))
            crops += faces
            waiting = sum(item.rgb.nbytes for item, _ in held if isinstance(item, Picture))
            if len(crops) >= batch or len(held) >= 4 * batch or waiting >= HELD_BYTES:
                yield from self._read_held(held, crops, batch)
                held, crops = [], []
        yield from self._read_held(held, crops, batch)

    def _crops(self, picture: Picture | PassedOver) -> tuple[list[Box], list[np.ndarray]]:
        if isinstance(picture, PassedOver):
            return [], []
        if self._detector is None:
            height, width = picture.rgb.shape[:2]
            return [Box(0, 0, width, height, 1.0)], [images.as_face(picture.rgb)]
        boxes = self._detector.find(picture.rgb)
        return boxes, [detection.crop(picture.rgb, box, self._detector.framing) for box in boxes]

    def _read_held(self, held: list, crops: list[np.ndarray], batch: int) -> Iterator[Reading | PassedOver]:
        rows = iter(self.probabilities(np.array(crops), batch) if crops else ())
        for picture, boxes in held:
            if isinstance(picture, PassedOver):
                yield picture
            else:
                yield Reading(picture, tuple(Face(box, tuple(map(float, next(rows)))) for box in boxes))

    def probabilities(self, crops: np.ndarray, batch: int = BATCH) -> np.ndarray:
        """Seven probabilities for each grey crop, uint8 (n, height, width): float32 (n, 7)."""
        starts = range(0, len(crops), batch)
        return np.concatenate([self._step(crops[i : i + batch, ..., None].astype(np.float32)) for i in starts])


def given(path: str) -> Picture | None:
    """The photograph at the path in a notebook's parameter; None for an empty path. Raises UnreadableImage."""
    return photographs.load(places.place(path)) if path else None


def face_finder(faces: str) -> Callable[[np.ndarray], list[np.ndarray]] | None:
    """See fer_utils.predict.detection.face_finder."""
    return detection.face_finder(faces)


def read_photograph(model_file: Path, photograph: Picture) -> Reading:
    """The faces of one photograph, found by MTCNN, which needs no file."""
    (reading,) = Reader(model_file, detection.Mtcnn()).read([photograph])
    return reading


def load_model(path: Path):
    """Load a model of this project, safely: raw grey in, seven probabilities out. Raises NotOurModel, naming the file."""
    import keras

    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras, zipfile and h5py raise many types for a file that is no model
        raise NotOurModel(f"{path}: not a whole Keras model ({str(error).splitlines()[0]})") from error
    shapes = model.input_shape, model.output_shape
    if shapes[0][-1:] != (1,) or shapes[1] != (None, len(CLASSES)):
        raise NotOurModel(
            f"{path}: takes {shapes[0]} and gives {shapes[1]}; expected grey pictures and {len(CLASSES)} classes, "
            "as outputs/<run>/model.keras"
        )
    return model
