"""Predicts the expressions of faces in pictures, with a face detector and a model."""

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from fer_utils import files, images, places
from fer_utils.classes import CLASSES
from fer_utils.predict import detection, drawing, photographs
from fer_utils.predict.detection import Box, face_finder  # noqa: F401 (notebook 05 takes face_finder from here)
from fer_utils.predict.photographs import PassedOver, Picture
from fer_utils.training import model_files

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Item = TypeVar("Item")

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
    def named(self) -> dict[str, float]:
        """The probabilities by class."""
        return dict(zip(CLASSES, self.probabilities, strict=True))

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


class _Located(NamedTuple):
    """A picture, the parts of its faces' boxes that lie in it, and the faces' crops."""

    picture: Picture | PassedOver
    boxes: Sequence[Box] = ()
    crops: Sequence[np.ndarray] = ()


class Reader:
    """Predicts expressions with a model and a detector; without a detector each picture is the crop of one face."""

    def __init__(self, model_file: Path, detector: detection.Detector | None):
        self._file, self._predict = model_file, model_files.load(model_file)
        self._detector = detector
        self.note = note(model_file)
        self.probabilities(np.zeros((1, images.SIZE, images.SIZE), np.uint8))  # refuses a broken model at once

    def read(
        self, pictures: Iterable[Picture | PassedOver], batch: int = BATCH
    ) -> Generator[Reading | PassedOver, None, None]:
        """Yield each picture's faces, in order; PassedOver is passed on. Decoding, detection and the model each have a thread.

        batch: number of pictures, or of faces, that share a step of the model; with 1 each picture is answered at once.
        """
        with (
            contextlib.closing(ahead(pictures)) as decoded,
            contextlib.closing(ahead(map(self._located, decoded))) as located,
        ):
            held: list[_Located] = []
            for one in located:
                held.append(one)
                n_faces = sum(len(other.crops) for other in held)
                n_bytes = sum(other.picture.rgb.nbytes for other in held if isinstance(other.picture, Picture))
                if max(len(held), n_faces) >= batch or n_bytes >= HELD_BYTES:
                    yield from self._readings(held)
                    held = []
            yield from self._readings(held)

    def read_one(self, picture: Picture) -> Reading:
        """One picture's faces."""
        (reading,) = self._readings([self._located(picture)])
        assert isinstance(reading, Reading)
        return reading

    def _located(self, picture: Picture | PassedOver) -> _Located:
        if isinstance(picture, PassedOver):
            return _Located(picture)
        if self._detector is None:
            height, width = picture.rgb.shape[:2]
            return _Located(picture, [Box(0, 0, width, height, 1.0)], [images.as_face(picture.rgb)])
        boxes = self._detector.find(picture.rgb)
        crops = [detection.crop(picture.rgb, box, self._detector.framing) for box in boxes]
        return _Located(picture, [box.within(picture.rgb) for box in boxes], crops)

    def _readings(self, located: Sequence[_Located]) -> Iterator[Reading | PassedOver]:
        crops = [crop for one in located for crop in one.crops]
        rows = iter(self.probabilities(np.array(crops)) if crops else ())
        for picture, boxes, of_picture in located:
            if isinstance(picture, PassedOver):
                yield picture
                continue
            faces = [
                Face(box, tuple(map(float, next(rows))), crop) for box, crop in zip(boxes, of_picture, strict=True)
            ]
            yield Reading(picture, tuple(faces), self.note)

    def probabilities(self, crops: np.ndarray) -> np.ndarray:
        """Seven probabilities for each grey crop, uint8 (n, height, width): float32 (n, 7).

        Raises NotOurModel where the model gives something else: NaN, or scores that are no probabilities.
        """
        starts = range(0, len(crops), BATCH)
        found = np.concatenate([self._predict(crops[i : i + BATCH, ..., None].astype(np.float32)) for i in starts])
        is_whole = (found >= 0).all(axis=1) & np.isclose(found.sum(axis=1), 1, atol=SUM_ERROR)
        if not is_whole.all():
            shown = ", ".join(f"{value:.3g}" for value in found[~is_whole][0])
            raise model_files.NotOurModel(
                f"{self._file}: gives no probabilities, for example {shown}: its weights are damaged, or its last layer is no "
                "softmax"
            )
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
    return photographs.load(places.place(path)) if path else None


def read_photograph(model_file: Path, photograph: Picture) -> dict[str, Reading]:
    """The faces of one photograph, read by the model, and by the shipped one where it is there.

    On Kaggle it is not: the notebooks carry the package without it. The detector is MTCNN, which needs no file.
    """
    detector = detection.Mtcnn()
    named = {"this run's model": model_file, "the shipped model": places.SHIPPED}
    return {name: Reader(file, detector).read_one(photograph) for name, file in named.items() if file.is_file()}


def note(model_file: Path) -> str:
    """A sentence for every answer about a photograph, by what the model was trained on: DRAWN, UNKNOWN, or none.

    The model's file says what it is. For a file that does not, the metrics.json beside it does.
    """
    origin, metrics_file = model_files.read_origin(model_file), model_file.parent / "metrics.json"
    if origin is not None:
        faces = origin["faces"]
    elif metrics_file.is_file():
        with files.reading_json(metrics_file) as metrics:
            faces = model_files.faces_of(metrics["run"]["params"].get("merge_split", {}))
    else:
        return UNKNOWN
    return DRAWN if faces == model_files.DRAWN else ""
