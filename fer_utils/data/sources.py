"""Opens the source datasets: a folder, a zip or a table, in a layout of fer_utils.data.layouts; never writes to them.

| found | result |
|---|---|
| dataset, part or class missing; its folder empty | error: what is missing, what to download |
| one wrapping folder (`archive/train`), or the one zip in a folder | read through |
| the same part twice (`train/angry` and `train/train/angry`) | equal pictures count once; otherwise error: keep one |
| FER2013 without usage or labels | known by the pixels |
| links in a folder | followed, each folder once |
| dead links, pipes, devices, sockets; empty, cut-off or foreign images | error before anything is written, or excluded |
| image of another size or in colour | repaired when read, flagged (`fer_utils.images.decode`) |
| entry of a zip that leads out, is a link or is encrypted | error: which entry |
| zip that unpacks to more than any dataset | error before anything is unpacked |
| entry that is longer than it declares | unreadable; no more than declared is unpacked |
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fer_utils import images
from fer_utils.classes import CLASSES, class_of
from fer_utils.data import archives, known_pictures, layouts
from fer_utils.data.archives import DatasetError, FolderReader

import numpy as np
import pandas as pd

FER2013 = "fer2013"
COLUMNS = ("source", "part", "label", "usage", "source_path")
MAX_PHOTOGRAPH_BYTES = 100_000_000
MAX_PHOTOGRAPHS_BYTES = 200_000_000_000  # AffectNet's uncropped pictures are 120 GB
NO_FACE, SEVERAL_FACES = "no_face_found", "several_faces"  # flags
_SAMPLE = 6  # pictures that tell whether a source is FER2013

FindFaces = Callable[[np.ndarray], Sequence[np.ndarray]]  # RGB picture → crops, uint8 (48, 48)


@dataclass
class Source:
    """One open source dataset.

    `table` has one row per image, in natural order of the path: source (its name), part (`train` or `test`), label,
    usage (`Training`, `PublicTest`, `PrivateTest`, or empty if the source does not distinguish them), source_path (inside the
    source; for a table `fer2013.csv#ROW`). `decode` turns an image file's bytes and its name into pixels and flags, as
    fer_utils.images.decode does. `left_out` counts images that the table leaves out.
    """

    name: str
    path: Path
    table: pd.DataFrame
    reader: layouts.Reader
    ignored: list[str] = field(default_factory=list)  # files that are no images
    left_out: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)  # sentences on what was decided
    cells: dict[str, str] = field(default_factory=dict)  # of tables: see layouts.Found
    decode: Callable[[bytes, str], tuple[np.ndarray, tuple[str, ...]]] = images.decode

    def read(self, source_path: str) -> bytes:
        """The bytes of one image file of the table (for a table of pixels: these as PNG)."""
        if source_path in self.cells:
            return _png(self.cells[source_path], f"{self.path}: {source_path}")
        return self.reader.read(source_path)


@contextmanager
def _open_layout(path: Path, name: str, names: Mapping[str, str], columns: str, is_main: bool) -> Iterator[Source]:
    """Open the pictures at `path` in whatever layout; parts and labels are as found. See layouts.find."""
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"{name}: nothing at {path}")
    limits = (MAX_PHOTOGRAPH_BYTES, MAX_PHOTOGRAPHS_BYTES)
    if is_main:
        limits = (archives.MAX_IMAGE_BYTES, archives.MAX_UNPACKED_BYTES)
    reader = _reader(path, name, *limits)
    given = path.name if path.is_file() and isinstance(reader, FolderReader) else ""
    try:
        found = layouts.find(reader, f"{name}: {path}", names, columns, is_main, given)
        table = pd.DataFrame([(name, row.part, row.label, row.usage, row.file) for row in found.rows], columns=COLUMNS)
        yield Source(name, path, table, reader, found.ignored, found.left_out, cells=found.cells)
    finally:
        reader.close()


def _reader(path: Path, name: str, image_bytes: int, unpacked_bytes: int) -> layouts.Reader:
    """What reads the files at `path`; for a table the files beside it."""
    if path.is_dir():
        reader = FolderReader(path, image_bytes)
        files = reader.files()
        packed = [file for file in files if file.lower().endswith(".zip") and not archives.is_hidden(file)]
        is_wrapped = len(packed) == 1 and not any(_is_content(PurePosixPath(file)) for file in files)
        return _reader(path / packed[0], name, image_bytes, unpacked_bytes) if is_wrapped else reader
    if path.is_file() and path.suffix.lower() == ".zip":
        return archives.ZipReader(path, name, image_bytes, unpacked_bytes)
    if path.is_file() and path.suffix.lower() in layouts.TABLES:
        return FolderReader(path.parent, image_bytes)
    more = ", ".join(layouts.TABLES[1:])
    raise DatasetError(
        f"{name}: {path} is neither a folder, a .zip nor a .csv file (nor {more}): unpack other archives"
    )


def _is_content(file: PurePosixPath) -> bool:
    return file.suffix.lower() in images.PHOTOGRAPHS or file.name in layouts.CSV_NAMES


@contextmanager
def open_source(path: Path, name: str) -> Iterator[Source]:
    """Open a dataset that has pictures of all seven classes in a train and a test part.

    Raises DatasetError, naming `path`, what was found there and what to do, if it is none, or its layout is unknown.
    """
    with _open_layout(path, name, {}, "", True) as source:
        if not len(source.table):
            raise DatasetError(
                f"{name}: {path} holds {len(source.ignored)} files, among them no images and none of "
                f"{', '.join(layouts.CSV_NAMES)}; it should hold train/<class>/ and test/<class>/{_not_taken(source)}"
            )
        _require_one_home(source)
        if name == FER2013 and (source.table[["usage", "label"]] == "").any(axis=None):
            _look_up(source)
        table = source.table
        is_known = table["label"].isin((*CLASSES, ""))
        source.left_out.update(table["label"][~is_known])
        table = table[is_known]
        if (table["part"] == "test").any():
            source.left_out.update("(part " + table["part"][table["part"] == "val"] + ")")
            table = table[table["part"] != "val"]
        source.table = table.assign(part=table["part"].replace("val", "test")).reset_index(drop=True)
        _require_whole(source)
        yield source


@contextmanager
def open_extra(
    path: Path, name: str, part: str, classes: str = "", find_faces: FindFaces | None = None, columns: str = ""
) -> Iterator[Source]:
    """Open pictures beside the two datasets, to train on or to test with, in whatever layout.

    part: `train` or `test`, the part to take of a dataset that has both; its rows get that part. classes: see
    layouts.parse_classes. find_faces: finds the faces of a picture, which are read instead of the whole; a picture with none or
    several is flagged NO_FACE or SEVERAL_FACES. columns: see layouts.find. `Source.left_out` counts the pictures of other
    classes and parts. Raises DatasetError, naming `path` and the way out.
    """
    with _open_layout(path, name, layouts.parse_classes(classes), columns, False) as source:
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


def _look_up(source: Source) -> None:
    """Give the pictures part, usage and, where it is lost, label of their rows of FER2013, if that is what they are."""
    table = source.table
    some = table.iloc[:: max(1, len(table) // _SAMPLE)]
    if (_rows_of_fer2013(source, some) == known_pictures.UNKNOWN).mean() > 0.5:
        return
    rows = _rows_of_fer2013(source, table)
    is_known = rows != known_pictures.UNKNOWN
    _, labels, usages = (values[rows[is_known]] for values in known_pictures.fer2013())
    table["part"] = table["part"].replace("val", "test")
    table.loc[is_known, "usage"] = usages
    table.loc[is_known, "part"] = [*map(known_pictures.PARTS.get, usages)]
    table.loc[is_known, "label"] = table["label"][is_known].where(table["label"][is_known] != "", labels)
    table.loc[(table["part"] == "") | (table["label"] == ""), "label"] = "(not known by its pixels)"
    counts = ", ".join(f"{n:,} {usage or 'unknown'}" for usage, n in table["usage"].value_counts().items())
    source.notes.append(f"its pictures are FER2013's, known by their pixels: {counts}")


def _rows_of_fer2013(source: Source, table: pd.DataFrame) -> np.ndarray:
    pixels = np.zeros((len(table), images.SIZE, images.SIZE), np.uint8)
    for row, file in enumerate(table["source_path"]):
        with suppress(images.UnreadableImage):  # splits.read_all says which
            pixels[row] = source.decode(source.read(file), file)[0]
    return known_pictures.find_rows(
        pixels, table["label"].to_numpy(str), table["part"].replace("val", "test").to_numpy(str)
    )


def _require_one_home(source: Source) -> None:
    homes = defaultdict(set)
    for part, usage, file in source.table[["part", "usage", "source_path"]].itertuples(index=False):
        if part and file not in source.cells:
            folders = PurePosixPath(file).parts[:-1]
            of_class = [n for n, name in enumerate(folders) if class_of(name)] or [len(folders) - 1]
            homes[part, usage].add("/".join(folders[: of_class[-1]]))
    for (part, _), found in homes.items():
        if len(found) > 1:
            held = f"{source.name}: {source.path} holds its {part} images"
            raise DatasetError(f"{held} under both {'/ and '.join(sorted(found)[:2])}/: keep one of them")


def _require_whole(source: Source) -> None:
    where, table = f"{source.name}: {source.path}", source.table
    lost = table["source_path"][(table["part"] == "") | (table["label"] == "")]
    if len(lost):
        raise DatasetError(
            f"{where} lacks the column(s) usage: nothing tells part or class of {len(lost):,} pictures, such as {lost.iloc[0]}, and "
            "they are not FER2013's; images should lie at train/<class>/ and test/<class>/. (Of the competition take icml_face_data.csv)"
        )
    again = f"download the dataset again{_not_taken(source)}"
    for part in ("train", "test"):
        missing = set(CLASSES) - set(table.loc[table["part"] == part, "label"])
        if len(missing) == len(CLASSES):
            raise DatasetError(f"{where} has no images under {part}/: {again}")
        if missing:
            lacks = f"{where} has no images of {', '.join(sorted(missing))} under {part}/"
            raise DatasetError(f"{lacks}: the class folder is missing or empty; {again}")


def _not_taken(source: Source) -> str:
    """For an error: how many pictures are of formats that only `extra` takes."""
    others = images.PHOTOGRAPHS - images.SUFFIXES
    found = [file for file in source.ignored if PurePosixPath(file).suffix.lower() in others]
    return f". {len(found)} files such as {found[0]} are left alone: convert them to JPEG, PNG or BMP" if found else ""


def _png(text: str, where: str) -> bytes:
    pixels = text.split()
    side = int(len(pixels) ** 0.5)
    try:
        values = np.array(pixels, int)
    except (ValueError, OverflowError) as error:
        raise images.UnreadableImage(f"{where} has a pixel that is no number") from error
    if side == 0 or side * side != len(pixels) or values.min() < 0 or values.max() > 255:
        raise images.UnreadableImage(f"{where} has {len(pixels)} pixels, no square of 0–255")
    return images.encode_png(values.astype(np.uint8).reshape(side, side))
