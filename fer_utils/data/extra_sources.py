"""Opens pictures beside the two datasets, to train on or to test with, in a layout of fer_utils.data.layouts; never writes to them.

Of `train/` beside `test/` or `val/` training takes the first and testing the second; what is left out is counted. Pictures of
any size, in colour and of any common format become 48×48 grey, flagged.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fer_utils import images
from fer_utils.classes import CLASSES
from fer_utils.data.layouts import parse_classes
from fer_utils.data.sources import DatasetError, Source, open_layout

import numpy as np

MAX_PHOTOGRAPH_BYTES = 100_000_000
MAX_UNPACKED_BYTES = 200_000_000_000  # AffectNet's uncropped pictures are 120 GB
NO_FACE, SEVERAL_FACES = "no_face_found", "several_faces"  # flags

FindFaces = Callable[[np.ndarray], Sequence[np.ndarray]]  # RGB picture → crops, uint8 (48, 48)


@contextmanager
def open_extra(
    path: Path, name: str, part: str, classes: str = "", find_faces: FindFaces | None = None, columns: str = ""
) -> Iterator[Source]:
    """Open the pictures at `path`, as open_layout does.

    part: `train` or `test`, the part to take of a dataset that has both; its rows get that part. classes: see
    parse_classes. find_faces: finds the faces of a picture, which are read instead of the whole; a picture with none or
    several is flagged NO_FACE or SEVERAL_FACES. columns: see layouts.find. `Source.left_out` counts the pictures of other
    classes and parts. Raises DatasetError, naming `path` and the way out.
    """
    limits = (MAX_PHOTOGRAPH_BYTES, MAX_UNPACKED_BYTES)
    with open_layout(path, name, parse_classes(classes), columns, limits, False) as source:
        source.decode = decoder(find_faces)
        found = source.table
        parts = set(found["part"])
        wanted = {"", "train"} if part == "train" else {"", "test" if "test" in parts else "val"}
        taken = found[found["part"].isin(wanted)]
        is_class = taken["label"].isin(CLASSES)
        if not is_class.any():
            holds = ", ".join(part or "no part" for part in sorted(parts)) or "no pictures in class folders"
            others = "".join(f", {label.strip('()')}" for label in dict.fromkeys(taken["label"]))[:99]
            raise DatasetError(
                f"{name}: {path} has no pictures of the seven classes for its {part} part; it holds {holds}{others}. To take another "
                "part, give its folder; the labels of FER2013's competition are in its icml_face_data.csv"
            )
        source.left_out.update(taken["label"][~is_class])
        source.left_out.update("(part " + found["part"][~found["part"].isin(wanted)] + ")")
        source.table = taken[is_class].assign(part=part, usage="").reset_index(drop=True)
        yield source


def decoder(find_faces: FindFaces | None) -> Callable[[bytes, str], tuple[np.ndarray, tuple[str, ...]]]:
    """A function like fer_utils.images.decode for photographs: of the whole picture, or of the one face found in it."""

    def decode(data: bytes, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
        try:
            rgb = images.decode_photograph(data)
        except images.UnreadableImage as error:
            raise images.UnreadableImage(f"{name}: {error}") from error
        flags = [] if (rgb[..., :1] == rgb).all() else ["colour"]
        faces = find_faces(rgb) if find_faces else ()
        if len(faces) == 1:
            face = faces[0]
            flags.append("face_cropped")
        else:
            face = images.as_face(rgb)
            flags += ["resized"] if rgb.shape[:2] != face.shape else []
        flags = flags or ["converted"]
        flags += ["blank"] if images.is_blank(face) else []
        if find_faces and len(faces) != 1:
            flags.append(SEVERAL_FACES if len(faces) else NO_FACE)
        return face, tuple(flags)

    return decode
