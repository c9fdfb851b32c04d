"""Reads pictures beside the two datasets, to train on or to test with: class folders, RAF-DB, AffectNet; never writes to them.

| found                                               | result                                                         |
|-----------------------------------------------------|----------------------------------------------------------------|
| folders named as a class, in any usual spelling     | read, at any depth; the nearest folder tells the class         |
| folder of another name                              | error that says how `classes` gives it a class or leaves it out |
| folders named by numbers                            | error until `classes` says whose numbers: datasets differ      |
| `list_patition_label.txt` and `aligned/` (RAF-DB)   | the aligned pictures by that list; the originals are ignored   |
| `images/1.jpg`, `annotations/1_exp.npy` (AffectNet) | read; contempt and pictures without an expression left out     |
| `train/` beside `test/` or `val/`                   | training takes the first, testing the second, both are counted |
| pictures of any size, in colour, any common format  | 48×48 grey, flagged                                            |
| files that are no pictures                          | left out, counted in `Source.ignored`                          |
| links, encrypted entries, too large zips            | as in fer_utils.data.sources                                   |
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fer_utils import images
from fer_utils.classes import CLASSES, class_of
from fer_utils.data.sources import (
    COLUMNS,
    DatasetError,
    FolderReader,
    Source,
    ZipReader,
    is_hidden,
    natural_key,
    require_plain,
)  # fmt: skip

import numpy as np
import pandas as pd

# RAF-DB basic (Li, Deng & Du 2017, doi:10.1109/CVPR.2017.277); the codes are those of its readme.
RAF_DB = {"1": "surprise", "2": "fear", "3": "disgust", "4": "happy", "5": "sad", "6": "angry", "7": "neutral"}
RAF_DB_LIST = "list_patition_label.txt"  # spelled so in the dataset
# AffectNet (Mollahosseini et al. 2017, arXiv:1708.03985), section 3; "" for what is none of the seven classes.
AFFECTNET = {
    "0": "neutral", "1": "happy", "2": "sad", "3": "surprise", "4": "fear", "5": "disgust", "6": "angry",
    "7": "", "8": "", "9": "", "10": "",
}  # fmt: skip
AFFECTNET_OTHERS = {"7": "contempt", "8": "none", "9": "uncertain", "10": "no face"}
NUMBERED = {"raf-db": RAF_DB, "affectnet": AFFECTNET}
PARTS = {
    "train": ("train", "train_set", "training"),
    "test": ("test", "test_set", "testing"),
    "val": ("val", "val_set", "valid", "validation"),
}
MAX_PHOTOGRAPH_BYTES = 100_000_000
MAX_UNPACKED_BYTES = 200_000_000_000  # AffectNet's uncropped pictures are 120 GB
NO_FACE, SEVERAL_FACES = "no_face_found", "several_faces"  # flags

FindFaces = Callable[[np.ndarray], Sequence[np.ndarray]]  # RGB picture → crops, uint8 (48, 48)
_PART_OF = {spelling: part for part, spellings in PARTS.items() for spelling in spellings}
_Row = tuple[str, str, str]  # part or "", class or what it is instead in brackets, file


def parse_classes(given: str) -> dict[str, str]:
    """A parameter such as `joy=happy, unsure=` as folder name → class, "" for folders to leave out.

    `affectnet` and `raf-db` stand for the numbers of these datasets. Raises DatasetError for anything else.
    """
    names: dict[str, str] = {}
    for piece in filter(None, (piece.strip() for piece in given.split(","))):
        folder, equals, spelling = (part.strip() for part in piece.partition("="))
        if piece.lower() in NUMBERED:
            names |= NUMBERED[piece.lower()]
        elif equals and folder and (not spelling or class_of(spelling)):
            names[folder.lower()] = class_of(spelling) or ""
        else:
            raise DatasetError(
                f"classes: {piece!r} is neither {', '.join(sorted(NUMBERED))} nor FOLDER=CLASS, such as joy=happy; the classes "
                f"are {', '.join(CLASSES)}, and FOLDER= leaves the folder out"
            )
    return names


@contextmanager
def open_extra(
    path: Path, name: str, part: str, classes: str = "", find_faces: FindFaces | None = None
) -> Iterator[Source]:
    """Open the pictures at `path`, a folder or a zip; see the table above.

    part: `train` or `test`, the part to take of a dataset that has both; its rows get that part. classes: see
    parse_classes. find_faces: finds the faces of a picture, which are read instead of the whole; a picture with none or
    several is flagged NO_FACE or SEVERAL_FACES. `Source.left_out` counts the pictures of other classes and parts. Raises
    DatasetError, naming `path` and the way out.
    """
    path = Path(path)
    names = parse_classes(classes)
    if not path.exists():
        raise DatasetError(f"{name}: nothing at {path}")
    if not path.is_dir() and not (path.is_file() and path.suffix.lower() == ".zip"):
        raise DatasetError(f"{name}: {path} is neither a folder nor a .zip file")
    if path.is_dir():
        reader = FolderReader(path, MAX_PHOTOGRAPH_BYTES)
    else:
        reader = ZipReader(path, name, MAX_PHOTOGRAPH_BYTES, MAX_UNPACKED_BYTES)
    try:
        files = sorted(reader.files(), key=natural_key)
        rows, ignored = _rows(files, reader, path, name, names)
        table, left_out = _taken(rows, part, path, name)
        yield Source(name, path, table, ignored, reader, decoder(find_faces), left_out)
    finally:
        reader.close()


def decoder(find_faces: FindFaces | None) -> Callable[[bytes, str], tuple[np.ndarray, tuple[str, ...]]]:
    """A function like fer_utils.images.decode for photographs: of the whole picture, or of the one face found in it."""

    def decode(data: bytes, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
        try:
            rgb = images.decode_photograph(data)
        except images.UnreadableImage as error:
            raise images.UnreadableImage(f"{name}: {error}") from error
        faces = None if find_faces is None else find_faces(rgb)
        is_one = faces is not None and len(faces) == 1
        face = faces[0] if is_one else images.as_face(rgb)
        flags = [] if (rgb[..., :1] == rgb).all() else ["colour"]
        if is_one:
            flags.append("face_cropped")
        elif rgb.shape[:2] != (images.SIZE, images.SIZE):
            flags.append("resized")
        flags = flags or ["converted"]
        if images.is_blank(face):
            flags.append("blank")
        if faces is not None and not is_one:
            flags.append(SEVERAL_FACES if len(faces) else NO_FACE)
        return face, tuple(flags)

    return decode


def _rows(files: list[str], reader, path: Path, name: str, names: dict[str, str]) -> tuple[list[_Row], list[str]]:
    """Every picture as (part, class, file), and the files that are none."""
    pictures = [
        file for file in files if not is_hidden(file) and PurePosixPath(file).suffix.lower() in images.PHOTOGRAPHS
    ]
    for file in pictures:
        require_plain(file, path, name)
    lists = [file for file in files if PurePosixPath(file).name == RAF_DB_LIST]
    if lists:
        rows = _rows_of_raf_db(pictures, reader.read(lists[0]).decode("utf-8-sig", "replace"), path, name)
    elif any(file.endswith("_exp.npy") for file in files):
        rows = _rows_of_affectnet(pictures, set(files), reader, path, name)
    else:
        rows = [_row_of_folder(file, path, name, names) for file in pictures]
    taken = {row[2] for row in rows}
    return rows, [file for file in files if file not in taken]


def _row_of_folder(file: str, path: Path, name: str, names: dict[str, str]) -> _Row:
    *above, folder = ["", *PurePosixPath(file).parts[:-1]]
    label = names.get(folder.lower(), class_of(folder)) if folder else None
    if label is not None:
        return _part(above), label or f"({folder})", file
    if folder.isdecimal():
        way_out = f"datasets number their classes differently: say {' or '.join(sorted(NUMBERED))}, or {folder}=happy"
    elif folder:
        way_out = f"the classes are {', '.join(CLASSES)}: say {folder}=happy, or {folder}= to leave the folder out"
    else:
        raise DatasetError(f"{name}: {path} holds {file}; pictures should lie in folders named as their class")
    raise DatasetError(
        f"{name}: {path} has the folder {PurePosixPath(file).parent}, which stands for no class; {way_out}, in the parameter "
        "for the classes of these pictures (extra_classes, also_classes)"
    )


def _rows_of_raf_db(pictures: list[str], text: str, path: Path, name: str) -> list[_Row]:
    aligned = {PurePosixPath(file).name: file for file in pictures if "aligned" in PurePosixPath(file).parts}
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        file, code = (*line.split(), "")[:2]
        stem, label = PurePosixPath(file).stem, RAF_DB.get(code)
        if label is None or not stem.startswith(("train_", "test_")):
            raise DatasetError(
                f"{name}: {path}: {RAF_DB_LIST}, line {number} is {line[:80]!r}; expected such as train_00001.jpg 5"
            )
        found = aligned.get(f"{stem}_aligned.jpg")
        if found is None:
            raise DatasetError(
                f"{name}: {path}: {RAF_DB_LIST} lists {file}, but no folder aligned/ holds {stem}_aligned.jpg: unpack RAF-DB's "
                "Image/aligned.zip beside EmoLabel/"
            )
        rows.append((stem.split("_")[0], label, found))
    return rows


def _rows_of_affectnet(pictures: list[str], files: set[str], reader, path: Path, name: str) -> list[_Row]:
    rows = []
    for file in pictures:
        place = PurePosixPath(file)
        note = (place.parent.parent / "annotations" / f"{place.stem}_exp.npy").as_posix()
        if place.parent.name != "images" or note not in files:
            raise DatasetError(f"{name}: {path} holds {file}, but no {note} that tells its expression")
        try:
            code = str(np.load(io.BytesIO(reader.read(note)), allow_pickle=False).item())
        except (ValueError, EOFError, OSError, MemoryError) as error:
            raise DatasetError(f"{name}: {path}: {note} is not a whole annotation ({error})") from error
        if code not in AFFECTNET:
            raise DatasetError(f"{name}: {path}: {note} holds {code!r}; expected 0 to {len(AFFECTNET) - 1}")
        rows.append((_part(place.parts[:-2]), AFFECTNET[code] or f"({AFFECTNET_OTHERS[code]})", file))
    return rows


def _part(folders: Sequence[str]) -> str:
    """The part that the innermost folder with a part's name tells, or ""."""
    return next((_PART_OF[folder.lower()] for folder in reversed(folders) if folder.lower() in _PART_OF), "")


def _taken(rows: list[_Row], part: str, path: Path, name: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """The table of the pictures to take, and the number of the others by what they are."""
    found = {row[0] for row in rows}
    wanted = {"", "train"} if part == "train" else {"", "test" if "test" in found else "val"}
    taken = [row for row in rows if row[0] in wanted]
    records = [(name, part, label, "", file) for _, label, file in taken if label in CLASSES]
    if not records:
        holds = ", ".join(f"{part or 'no part'}" for part in sorted(found)) or "no pictures in class folders"
        raise DatasetError(
            f"{name}: {path} has no pictures of the seven classes for its {part} part; it holds {holds}. To take another part, "
            "give its folder"
        )
    left_out = Counter(label for _, label, _ in taken if label not in CLASSES)
    left_out.update(f"(part {row[0]})" for row in rows if row[0] not in wanted)
    return pd.DataFrame(records, columns=COLUMNS), dict(left_out)
