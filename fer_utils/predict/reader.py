"""Predicts the expressions of faces in pictures, with a face detector and a model."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fer_utils import files, images, places
from fer_utils.classes import CLASSES
from fer_utils.predict import detection, drawing, overlap, photographs
from fer_utils.predict.detection import Box
from fer_utils.predict.photographs import PassedOver, Picture
from fer_utils.training import model_files

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 64  # faces per step of the model
HELD_BYTES = 200_000_000  # limit for pictures that wait for a full batch
DRAWN = "This model was trained on drawn faces: what it says about a photograph means nothing."
UNKNOWN = "What this model was trained on is not known: neither its file nor a metrics.json beside it says so."
SUM_ERROR = 0.01  # of seven probabilities in float16


@dataclass(frozen=True)
class Face:
    """A face and its seven probabilities, in the order of CLASSES.

    crop: as the model sees it, uint8 grey (48, 48). track: of a video, the number that a Tracker gave it.
    """

    box: Box
    probabilities: tuple[float, ...]
    crop: np.ndarray | None = field(default=None, compare=False, repr=False)
    track: int | None = None

    @property
    def expression(self) -> str:
        """The likeliest class."""
        return CLASSES[int(np.argmax(self.probabilities))]

    @property
    def label(self) -> str:
        return f"{self.expression} {max(self.probabilities):.2f}"


@dataclass(frozen=True)
class Reading:
    """A picture and its faces, and a sentence that must stand beside them, or none."""

    picture: Picture
    faces: tuple[Face, ...]
    note: str = ""

    def drawn(self) -> np.ndarray:
        """The picture with its faces framed and the note at its foot, RGB."""
        boxes = [face.box for face in self.faces]
        labels = [f"{face.track or ''} {face.label}".lstrip() for face in self.faces]
        return drawing.drawn(self.picture.rgb, boxes, labels, self.note if self.faces else "")

    def figure(self) -> "Figure":
        """The picture with its faces framed, as a figure."""
        import matplotlib.pyplot as plt  # takes a while to import

        figure, axes = plt.subplots(layout="constrained")
        axes.imshow(self.drawn())
        axes.set_axis_off()
        axes.set_title(self.note, wrap=True, fontsize="small")
        return figure


class Reader:
    """Predicts expressions with a model and a detector; without a detector each picture is the crop of one face."""

    def __init__(self, model_file: Path, detector: detection.Detector | None):
        self._file, self._predict = model_file, model_files.load(model_file)
        self._detector = detector
        self.note = note(model_file)
        self.probabilities(np.zeros((1, images.SIZE, images.SIZE), np.uint8))  # refuses a broken model at once

    def read(
        self, pictures: Iterable[Picture | PassedOver], batch: int = BATCH, is_live: bool = False
    ) -> Iterator[Reading | PassedOver]:
        """Yield each picture's faces, in order; faces of several pictures share a step. PassedOver is passed on.

        Decoding, detection and the model overlap, each in a thread. is_live: pictures that come faster than they are read
        are left out, so that what is shown is of now.
        """
        coming = overlap.ahead(pictures, 1 if is_live else 2, lambda item: is_live and isinstance(item, Picture))
        held, crops = [], []
        with contextlib.closing(overlap.ahead(self._all_located(coming), 1 if is_live else 2)) as located:
            for picture, boxes, faces in located:
                held.append((picture, boxes))
                crops += faces
                waiting = sum(item.rgb.nbytes for item, _ in held if isinstance(item, Picture))
                if is_live or len(crops) >= batch or len(held) >= 4 * batch or waiting >= HELD_BYTES:
                    yield from self._read_held(held, crops, batch)
                    held, crops = [], []
        yield from self._read_held(held, crops, batch)

    def _all_located(self, pictures: Iterator[Picture | PassedOver]) -> Iterator[tuple]:
        with contextlib.closing(pictures):
            for picture in pictures:
                yield self._located(picture)

    def _located(self, picture: Picture | PassedOver) -> tuple[Picture | PassedOver, list[Box], list[np.ndarray]]:
        """The picture, the parts of its faces' boxes that lie in it, and the faces' crops."""
        if isinstance(picture, PassedOver):
            return picture, [], []
        if self._detector is None:
            height, width = picture.rgb.shape[:2]
            return picture, [Box(0, 0, width, height, 1.0)], [images.as_face(picture.rgb)]
        boxes = self._detector.find(picture.rgb)
        crops = [detection.crop(picture.rgb, box, self._detector.framing) for box in boxes]
        return picture, [box.within(picture.rgb) for box in boxes], crops

    def _read_held(self, held: list, crops: list[np.ndarray], batch: int) -> Iterator[Reading | PassedOver]:
        rows = zip(self.probabilities(np.array(crops), batch) if crops else (), crops, strict=True)
        for picture, boxes in held:
            if isinstance(picture, PassedOver):
                yield picture
            else:
                found = zip(boxes, rows, strict=False)  # boxes end first: no row of the next picture is taken
                faces = tuple(Face(box, tuple(map(float, row)), crop) for box, (row, crop) in found)
                yield Reading(picture, faces, self.note)

    def probabilities(self, crops: np.ndarray, batch: int = BATCH) -> np.ndarray:
        """Seven probabilities for each grey crop, uint8 (n, height, width): float32 (n, 7).

        Raises NotOurModel where the model gives something else: NaN, or scores that are no probabilities.
        """
        starts = range(0, len(crops), batch)
        found = np.concatenate([self._predict(crops[i : i + batch, ..., None].astype(np.float32)) for i in starts])
        is_whole = (found >= 0).all(axis=1) & np.isclose(found.sum(axis=1), 1, atol=SUM_ERROR)
        if not is_whole.all():
            shown = ", ".join(f"{value:.3g}" for value in found[~is_whole][0])
            raise model_files.NotOurModel(
                f"{self._file}: gives no probabilities, for example {shown}: its weights are damaged, or its last layer is no "
                "softmax"
            )
        return found


def load_if_given(path: str) -> Picture | None:
    """The photograph at the path in a notebook's parameter; None for an empty path. Raises UnreadableImage."""
    return photographs.load(places.place(path)) if path else None


def face_finder(faces: str) -> Callable[[np.ndarray], list[np.ndarray]] | None:
    """See fer_utils.predict.detection.face_finder."""
    return detection.face_finder(faces)


def read_photograph(model_file: Path, photograph: Picture) -> dict[str, Reading]:
    """The faces of one photograph, found by MTCNN, which needs no file, by the model, and by the shipped one where it is there.

    On Kaggle it is not: the notebooks carry the package without it.
    """
    detector = detection.Mtcnn()
    files_of = {"this run's model": model_file, "the shipped model": places.SHIPPED}
    readings = {}
    for name, file in files_of.items():
        if file.is_file():
            (readings[name],) = Reader(file, detector).read([photograph])
    return readings


def note(model_file: Path) -> str:
    """A sentence for every answer about a photograph, by what the model was trained on: DRAWN, UNKNOWN, or none.

    The model's file says what it is. For a file that does not, the metrics.json beside it does.
    """
    from fer_utils.evaluation import report  # pandas takes a while to import

    origin, metrics_file = model_files.read_origin(model_file), model_file.parent / "metrics.json"
    if origin is not None:
        return DRAWN if origin["faces"] == model_files.DRAWN else ""
    if not metrics_file.is_file():
        return UNKNOWN
    with files.reading_json(metrics_file) as metrics:
        return DRAWN if report.drawn_line(metrics) else ""
