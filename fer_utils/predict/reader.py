"""Predicts the expressions of faces in pictures, with a face detector and a model."""

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fer_utils import images, places
from fer_utils.classes import CLASSES
from fer_utils.predict import detection, drawing, photographs
from fer_utils.predict.detection import Box, face_finder  # noqa: F401 (notebook 05 takes face_finder from here)
from fer_utils.predict.photographs import PassedOver, Picture
from fer_utils.training import model_files

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Item = TypeVar("Item")

BATCH = 64  # faces per step of the model, at most
DRAWN = "This model was trained on drawn faces: what it says about a photograph means nothing."
UNKNOWN = "What this model was trained on is not known: its file does not say so."
SUM_ERROR = 0.01  # of seven probabilities in float16


def by_class(values: Iterable[float]) -> dict[str, float]:
    """Seven values by the names of the classes, rounded to six digits."""
    return {name: round(float(value), 6) for name, value in zip(CLASSES, values, strict=True)}


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
    def named(self) -> dict[str, float]:
        """The probabilities by class, rounded."""
        return by_class(self.probabilities)

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

    def read(self, pictures: Iterable[Picture | PassedOver]) -> Generator[Reading | PassedOver, None, None]:
        """Yield each picture's faces, in order, and PassedOver as it is. Decoding and detection each have a thread."""
        with closing(ahead(pictures)) as decoded:
            located = (one if isinstance(one, PassedOver) else self._located(one) for one in decoded)
            with closing(ahead(located)) as found:
                for one in found:
                    yield one if isinstance(one, PassedOver) else self._answered(one)

    def read_one(self, picture: Picture) -> Reading:
        """One picture's faces."""
        return self._answered(self._located(picture))

    def _located(self, picture: Picture) -> Reading:
        """The faces, still without probabilities; of each box the part that lies in the picture."""
        rgb = picture.rgb
        if self._detector is None:
            faces = [Face(Box(0, 0, rgb.shape[1], rgb.shape[0], 1.0), (), images.as_face(rgb))]
        else:
            framing, boxes = self._detector.framing, self._detector.find(rgb)
            faces = [Face(box.within(rgb), (), detection.crop(rgb, box, framing)) for box in boxes]
        return Reading(picture, tuple(faces), self.note)

    def _answered(self, located: Reading) -> Reading:
        if not located.faces:
            return located
        rows = self.probabilities(np.array([face.crop for face in located.faces])).tolist()
        faces = (replace(face, probabilities=tuple(row)) for face, row in zip(located.faces, rows, strict=True))
        return replace(located, faces=tuple(faces))

    def probabilities(self, crops: np.ndarray) -> np.ndarray:
        """Probabilities for grey crops, uint8 (n, height, width): float32 (n, 7). Raises NotOurModel for others."""
        starts = range(0, len(crops), BATCH)
        found = np.concatenate([self._predict(crops[i : i + BATCH, ..., None].astype(np.float32)) for i in starts])
        is_whole = (found >= 0).all(axis=1) & np.isclose(found.sum(axis=1), 1, atol=SUM_ERROR)
        if not is_whole.all():
            shown = ", ".join(f"{value:.3g}" for value in found[~is_whole][0])
            reason = "its weights are damaged, or its last layer is no softmax"
            raise model_files.NotOurModel(f"{self._file}: gives no probabilities, for example {shown}: {reason}")
        return found


def ahead(items: Iterable[Item]) -> Generator[Item, None, None]:
    """Yield the items, of which none is None, in order; a thread fetches the next one while this one is used.

    What `items` raises is raised here, after what came before it. The thread ends with this iterator.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        coming = pool.submit(next, iterator, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, iterator, None)
            yield item


def load_if_given(path: str) -> Picture | None:
    """The photograph at the path in a notebook's parameter; None for an empty path. Raises UnreadableImage."""
    picture = next(photographs.read(places.place(path))) if path else None
    if isinstance(picture, PassedOver):
        raise images.UnreadableImage(f"{picture.source}: {picture.reason}")
    return picture


def read_photograph(model_file: Path, photograph: Picture) -> dict[str, Reading]:
    """The faces of one photograph, found by MTCNN, which needs no file, and read by the model, and by the shipped one
    where the package has it, as it has not on Kaggle."""
    detector = detection.Mtcnn()
    named = {"this run's model": model_file, "the shipped model": places.SHIPPED}
    return {name: Reader(file, detector).read_one(photograph) for name, file in named.items() if file.is_file()}


def note(model_file: Path) -> str:
    """A sentence for every answer of a model, by what its file says it was trained on: DRAWN, UNKNOWN, or none."""
    origin = model_files.read_origin(model_file)
    if origin is None:
        return UNKNOWN
    return DRAWN if origin["faces"] == model_files.DRAWN else ""
