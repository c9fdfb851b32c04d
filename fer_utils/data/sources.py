"""Opens the source datasets: a folder, a zip, a tar or a table, in a layout of fer_utils.data.layouts; never writes to them.

| found | result |
|---|---|
| dataset, part or class missing; its folder empty | error: what is missing, what to download |
| one wrapping folder (`archive/train`), or the one archive in a folder | read through |
| the same part twice (`train/angry` and `train/train/angry`) | equal pictures count once; otherwise error: keep one |
| FER2013 without usage or labels | known by the pixels |
| links in a folder | followed, each folder once |
| dead links, pipes, devices, sockets; empty, cut-off or foreign images | error before anything is written, or excluded |
| image of another size or in colour | repaired when read, flagged (`fer_utils.images.decode`) |
| entry of an archive that leads out, is a link or is encrypted | error: which entry |
| archive that unpacks to more than any dataset | error before anything is unpacked |
| entry that is longer than it declares | unreadable; no more than declared is unpacked |
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fer_utils import images
from fer_utils.classes import CLASSES
from fer_utils.data import archives, known_pictures, layouts
from fer_utils.data.archives import DatasetError, FolderReader

import numpy as np
import pandas as pd

FER2013 = "fer2013"
COLUMNS = ("source", "part", "label", "usage", "source_path")
MAX_UNPACKED_BYTES = 4_000_000_000  # the larger dataset unpacks to 0.3 GB as CSV
_SAMPLE = 6  # pictures that tell whether a source is FER2013


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
def open_layout(
    path: Path, name: str, names: Mapping[str, str], columns: str, limits: tuple[int, int], is_main: bool
) -> Iterator[Source]:
    """Open the pictures at `path` in whatever layout; parts and labels are as found. See layouts.find.

    limits: bytes of an image, and of all that an archive unpacks to.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"{name}: nothing at {path}")
    reader = _reader(path, name, limits)
    given = path.name if path.is_file() and isinstance(reader, FolderReader) else ""
    try:
        found = layouts.find(reader, f"{name}: {path}", names, columns, is_main, given)
        table = pd.DataFrame([(name, row.part, row.label, row.usage, row.file) for row in found.rows], columns=COLUMNS)
        yield Source(name, path, table, reader, found.ignored, found.left_out, found.notes, found.cells)
    finally:
        reader.close()


def _reader(path: Path, name: str, limits: tuple[int, int]) -> layouts.Reader:
    """What reads the files at `path`; for a table the files beside it."""
    if path.is_dir():
        reader = FolderReader(path, limits[0])
        files = reader.files()
        packed = [file for file in files if file.lower().endswith(archives.SUFFIXES) and not archives.is_hidden(file)]
        is_wrapped = len(packed) == 1 and not any(_is_content(PurePosixPath(file)) for file in files)
        return _reader(path / packed[0], name, limits) if is_wrapped else reader
    if path.is_file() and path.name.lower().endswith(archives.SUFFIXES):
        return archives.ArchiveReader(path, name, *limits)
    if path.is_file() and path.suffix.lower() in layouts.TABLES:
        return FolderReader(path.parent, limits[0])
    more = ", ".join((*archives.SUFFIXES[1:], *layouts.TABLES[1:]))
    raise DatasetError(f"{name}: {path} is neither a folder, a .zip nor a .csv file (nor {more})")


def _is_content(file: PurePosixPath) -> bool:
    return file.suffix.lower() in images.PHOTOGRAPHS or file.name in layouts.CSV_NAMES


@contextmanager
def open_source(path: Path, name: str) -> Iterator[Source]:
    """Open a dataset that has pictures of all seven classes in a train and a test part.

    Raises DatasetError, naming `path`, what was found there and what to do, if it is none, or its layout is unknown.
    """
    with open_layout(path, name, {}, "", (archives.MAX_IMAGE_BYTES, MAX_UNPACKED_BYTES), True) as source:
        if not len(source.table):
            raise DatasetError(
                f"{name}: {path} holds {len(source.ignored)} files, among them no images and none of "
                f"{', '.join(layouts.CSV_NAMES)}; it should hold train/<class>/ and test/<class>/"
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
            homes[part, usage].add("/".join(PurePosixPath(file).parts[:-2]))
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
    for part in ("train", "test"):
        missing = set(CLASSES) - set(table.loc[table["part"] == part, "label"])
        if len(missing) == len(CLASSES):
            raise DatasetError(f"{where} has no images under {part}/: download the dataset again")
        if missing:
            lacks = f"{where} has no images of {', '.join(sorted(missing))} under {part}/"
            raise DatasetError(f"{lacks}: the class folder is missing or empty; download the dataset again")


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
