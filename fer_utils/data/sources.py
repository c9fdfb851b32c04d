"""Reads the two source datasets, as folders, as Kaggle's zip files or as the original CSV; never writes to them.

Handling of unusual input:

| found                                              | result                                                   |
|----------------------------------------------------|----------------------------------------------------------|
| dataset, `train` or `test` missing                 | error: what to download, where to put it                 |
| class folder missing or empty                      | error that names the class                               |
| folder that stands for no class                    | error that lists the spellings known                     |
| one wrapping folder (`archive/train`, `train/train`) | read through                                           |
| the same part twice (`train/angry` and `train/train/angry`) | error: which two, keep one                      |
| files that are no images                           | left out, counted in `Source.ignored`                    |
| links in a folder                                  | followed, each folder once; one that leads nowhere is an unreadable file |
| pipes, devices, sockets                            | unreadable files: only regular files are opened          |
| name of an image with a control character, not in UTF-8, or too long for a disk | error: which image, rename it |
| image of another size or in colour                 | repaired when read, flagged (`fer_utils.images.decode`)  |
| zip entry that leads out, is a link or is encrypted | error: which entry                                       |
| zip that unpacks to more than any dataset          | error before anything is unpacked                        |
| zip entry that is longer than it declares          | unreadable; no more than declared is unpacked            |
| CSV that is not UTF-8, or no whole table           | error: which row                                         |
| empty, cut-off or foreign image                    | error before anything is written, or excluded and flagged |
"""

import csv
import io
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fer_utils import images
from fer_utils.classes import CLASSES, CSV_CODES, class_of

import numpy as np
import pandas as pd

COLUMNS = ("source", "part", "label", "usage", "source_path")
CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
MAX_IMAGE_BYTES = 10_000_000  # a 48×48 picture has about 2,000; a larger entry is no face picture, or a zip bomb
MAX_UNPACKED_BYTES = 4_000_000_000  # the larger dataset unpacks to 0.3 GB as CSV
MAX_LINE, MAX_TABLE = 100_000, 500_000_000  # characters of a CSV; FER2013's has 301 million, up to 9,240 in a row
MAX_NAME = 255  # bytes of a file's name; no usual disk holds a longer one

_NO_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # what a CSV or UTF-8 cannot hold in a file's name
_LABEL_OF = {str(code): label for code, label in enumerate(CSV_CODES)}
_CSV_PARTS = {"Training": "train", "PublicTest": "test", "PrivateTest": "test"}
USAGES = tuple(_CSV_PARTS)


class DatasetError(ValueError):
    """A source dataset is missing or has an unknown layout."""


@dataclass
class Source:
    """One open source dataset.

    `table` has one row per image, in natural order of the path: source (its name), part (`train` or `test`), label,
    usage (`Training`, `PublicTest`, `PrivateTest`, or empty if the source does not distinguish them), source_path (inside the
    source; for a CSV `fer2013.csv#ROW`). `ignored` lists files that are no images. `decode` turns an image file's bytes and its
    name into pixels and flags, as fer_utils.images.decode does. `left_out` counts images that the table leaves out.
    """

    name: str
    path: Path
    table: pd.DataFrame
    ignored: list[str] = field(default_factory=list)
    _reader: "FolderReader | ZipReader | _CsvReader" = None
    decode: Callable[[bytes, str], tuple[np.ndarray, tuple[str, ...]]] = images.decode
    left_out: dict[str, int] = field(default_factory=dict)

    def read(self, source_path: str) -> bytes:
        """The bytes of one image file of the table (for a CSV: its pixels as PNG)."""
        return self._reader.read(source_path)


@contextmanager
def open_source(path: Path, name: str) -> Iterator[Source]:
    """Open the dataset at `path`: a folder, a zip file, a CSV file, or a folder or zip that contains one of these.

    Raises DatasetError, naming `path`, what was found there and what to do, if the layout is unknown.
    """
    path = Path(path)
    if not path.exists():
        raise DatasetError(f"{name}: nothing at {path}")
    reader = _reader(path, name)
    try:
        files = reader.files()
        table, ignored = (reader.table(name), []) if isinstance(reader, _CsvReader) else _table(files, path, name)
        yield Source(name, path, table, ignored, reader)
    finally:
        reader.close()


def _reader(path: Path, name: str) -> "FolderReader | ZipReader | _CsvReader":
    if path.is_file() and path.suffix.lower() == ".csv":
        return _CsvReader(path.open("rb"), path.name, path)
    if not path.is_dir() and not (path.is_file() and path.suffix.lower() == ".zip"):
        raise DatasetError(f"{name}: {path} is neither a folder, a .zip nor a .csv file")
    reader = FolderReader(path) if path.is_dir() else ZipReader(path, name)
    files = reader.files()
    if any(PurePosixPath(file).suffix.lower() in images.SUFFIXES for file in files):
        return reader
    for file in files:
        if PurePosixPath(file).name in CSV_NAMES:
            return _CsvReader(reader.open(file), PurePosixPath(file).name, path)
    zips = [file for file in files if file.lower().endswith(".zip")]
    if path.is_dir() and len(zips) == 1:
        return _reader(path / zips[0], name)
    raise DatasetError(
        f"{name}: {path} holds {len(files)} files, among them no images and none of {', '.join(CSV_NAMES)}; "
        "it should hold train/<class>/ and test/<class>/"
    )


class FolderReader:
    def __init__(self, path: Path, image_bytes: int = MAX_IMAGE_BYTES):
        self.path, self.image_bytes = path, image_bytes

    def files(self) -> list[str]:
        """Every file below the folder, through links to folders too, each folder once; a link that leads nowhere is a file."""
        found, starts = [], [self.path]
        entered = set(
            map(str, Path(os.path.realpath(self.path)).parents)
        )  # a link to these would lead over the whole disk
        for start in starts:  # grows by the links on the way; a folder's own place comes before those of links to it
            for folder, folders, names in os.walk(start):
                place, real = Path(folder), os.path.realpath(folder)
                if real in entered:
                    folders.clear()
                    continue
                entered.add(real)
                folders.sort()
                starts += [place / name for name in folders if (place / name).is_symlink()]
                found += [(place / name).relative_to(self.path).as_posix() for name in names]
        return found

    def read(self, file: str) -> bytes:
        try:
            return images.read_file(self.path / file, self.image_bytes)
        except images.UnreadableImage as error:
            raise images.UnreadableImage(f"{self.path}: {file} {error}") from error

    def open(self, file: str) -> BinaryIO:
        if not (self.path / file).is_file():
            raise DatasetError(f"{self.path}: {file} is no regular file: give the table itself")
        return (self.path / file).open("rb")

    def close(self) -> None:
        pass


class ZipReader:
    """Reads entries without extracting them, so that no entry's name can lead out of the folder."""

    def __init__(self, path: Path, name: str, image_bytes: int | None = None, unpacked_bytes: int | None = None):
        """The limits are MAX_IMAGE_BYTES and MAX_UNPACKED_BYTES unless given."""
        self.path, self.image_bytes = path, image_bytes or MAX_IMAGE_BYTES
        try:
            self.zip = zipfile.ZipFile(path)
        except Exception as error:  # zipfile raises about eight types for damaged bytes
            raise DatasetError(f"{name}: {path} is not a whole zip file ({error}): download it again") from error
        try:
            self._check(name, unpacked_bytes or MAX_UNPACKED_BYTES)
        except DatasetError:
            self.zip.close()
            raise

    def _check(self, name: str, unpacked_bytes: int) -> None:
        for info in self.zip.infolist():
            fault = _fault_of(info)
            if fault:
                raise DatasetError(
                    f"{name}: {self.path} holds the entry {info.filename[-300:]!r}, {fault}: get the zip from its source"
                )
        unpacked = sum(info.file_size for info in self.zip.infolist())
        if unpacked > unpacked_bytes:
            raise DatasetError(f"{name}: {self.path} unpacks to {unpacked:,} bytes; no dataset of faces is that large")
        twice = sorted(entry for entry, times in Counter(self.zip.namelist()).items() if times > 1)
        if twice:
            raise DatasetError(
                f"{name}: {self.path} holds the entry {twice[0]} twice ({len(twice)} such): download it again"
            )

    def files(self) -> list[str]:
        return [entry for entry in self.zip.namelist() if not entry.endswith("/")]

    def read(self, file: str) -> bytes:
        info = self.zip.getinfo(file)
        if info.file_size > self.image_bytes:
            raise images.UnreadableImage(f"{self.path}: {file} unpacks to {info.file_size:,} bytes, no face picture")
        try:
            with self.zip.open(info) as entry:
                return entry.read(info.file_size)  # read() unpacks everything, however little the entry declares
        except Exception as error:  # zipfile and zlib raise about ten types for damaged bytes
            raise images.UnreadableImage(f"{self.path}: {file} cannot be unpacked ({error})") from error

    def open(self, file: str) -> BinaryIO:
        return self.zip.open(file)

    def close(self) -> None:
        self.zip.close()


def _fault_of(info: zipfile.ZipInfo) -> str | None:
    """A description of why an entry is rejected, or None."""
    parts = PurePosixPath(info.filename.replace("\\", "/")).parts
    if ".." in parts or parts[:1] == ("/",) or ":" in info.filename.split("/")[0]:
        return "whose name leads out of the folder"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "which is a link"
    if info.flag_bits & 1:
        return "which is encrypted"
    if info.compress_type not in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
    ):  # of others zipfile unpacks without a limit
        return "which is packed by another method than zip's usual one"
    return None


class _CsvReader:
    """The original `emotion,pixels,Usage` table; `icml_face_data.csv` has another order of columns and spaces in their names."""

    def __init__(self, stream: BinaryIO, file: str, path: Path):
        self.file, self.path, self.rows = file, path, []
        try:
            with stream:
                lines = _lines(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))
                for row in csv.DictReader(lines, skipinitialspace=True, strict=True):
                    self.rows.append({(key or "").strip().lower(): value for key, value in row.items()})
        except Exception as error:  # csv, zipfile and the decoder raise about ten types for damaged bytes
            raise DatasetError(
                f"{path}: {file} cannot be read past its first {len(self.rows):,} rows ({error}): save it as CSV in UTF-8, or "
                "download it again"
            ) from error
        missing = {"emotion", "pixels", "usage"} - set(self.rows[0] if self.rows else ())
        if missing:
            raise DatasetError(f"{path}: {file} lacks the column(s) {', '.join(sorted(missing))}")

    def files(self) -> list[str]:
        return [f"{self.file}#{row}" for row in range(len(self.rows))]

    def table(self, name: str) -> pd.DataFrame:
        records = []
        for number, row in enumerate(self.rows):
            usage, code = ((row[column] or "").strip() for column in ("usage", "emotion"))  # None: the row ends early
            if usage not in _CSV_PARTS or code not in _LABEL_OF:
                raise DatasetError(
                    f"{self.path}: {self.file} row {number} has Usage {usage[:20]!r} and emotion {code[:20]!r}; "
                    f"expected one of {', '.join(USAGES)} and 0–{len(CSV_CODES) - 1}"
                )
            records.append((name, _CSV_PARTS[usage], _LABEL_OF[code], usage, f"{self.file}#{number}"))
        table = pd.DataFrame(records, columns=COLUMNS)
        _require_all_classes(table, self.path, name)
        return table

    def read(self, source_path: str) -> bytes:
        pixels = (self.rows[int(source_path.rsplit("#", 1)[1])]["pixels"] or "").split()
        side = int(len(pixels) ** 0.5)
        try:
            values = np.array(pixels, int)
        except (ValueError, OverflowError) as error:
            raise images.UnreadableImage(f"{self.path}: {source_path} has a pixel that is no number") from error
        if side == 0 or side * side != len(pixels) or values.min() < 0 or values.max() > 255:
            raise images.UnreadableImage(f"{self.path}: {source_path} has {len(pixels)} pixels, no square of 0–255")
        return images.encode_png(values.astype(np.uint8).reshape(side, side))

    def close(self) -> None:
        pass


def _lines(text: io.TextIOBase) -> Iterator[str]:
    """The lines of a text, as its own iterator gives them; but no line over MAX_LINE is read, and no text over MAX_TABLE."""
    total = 0
    while line := text.readline(MAX_LINE):
        total += len(line)
        if len(line) == MAX_LINE or total > MAX_TABLE:
            raise ValueError(f"more than {MAX_LINE:,} characters in a line, or {MAX_TABLE:,} in all")
        yield line


def _table(files: list[str], path: Path, name: str) -> tuple[pd.DataFrame, list[str]]:
    records, ignored, homes = [], [], {}
    for file in files:
        parts = PurePosixPath(file).parts
        if is_hidden(file) or PurePosixPath(file).suffix.lower() not in images.SUFFIXES:
            ignored.append(file)
            continue
        require_plain(file, path, name)
        part, label, home = _place(file, path, name)
        homes.setdefault(part, set()).add(home)
        records.append((name, part, label, _usage(parts[-1]), file))
    for part, found in homes.items():
        if len(found) > 1:
            first, second = sorted(found)[:2]
            raise DatasetError(
                f"{name}: {path} holds its {part} images under both {first}/ and {second}/: keep one of them"
            )
    table = pd.DataFrame(records, columns=COLUMNS)
    _require_all_classes(table, path, name)
    order = sorted(range(len(table)), key=lambda row: natural_key(table["source_path"].iat[row]))
    return table.iloc[order].reset_index(drop=True), sorted(ignored)


def is_hidden(file: str) -> bool:
    """Whether a file is no part of a dataset by its path: hidden, or a Mac's copy of metadata."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(file).parts)


def require_plain(file: str, path: Path, name: str) -> None:
    """Raise DatasetError for an image whose name manifest.csv cannot hold."""
    fault = "a control character, or is not UTF-8" if _NO_NAME.search(file) else ""
    if not fault and len(PurePosixPath(file).name.encode()) > MAX_NAME:
        fault = f"more than {MAX_NAME} bytes"
    if fault:
        raise DatasetError(f"{name}: {path} holds {file[-300:]!r}; its name has {fault}: rename it")


def _place(file: str, path: Path, name: str) -> tuple[str, str, str]:
    """The part, the class and the folder above the part's classes of an image file's path."""
    parts = PurePosixPath(file).parts
    part = parts[-3].lower() if len(parts) >= 3 else ""
    if part not in ("train", "test"):
        raise DatasetError(f"{name}: {path} holds {file}; images should lie at train/<class>/ and test/<class>/")
    label = class_of(parts[-2])
    if label is None:
        raise DatasetError(
            f"{name}: {path} has the folder {'/'.join(parts[:-1])}, which stands for no class; the classes are "
            f"{', '.join(CLASSES)} (also disgusted, fearful, surprised): rename or remove it"
        )
    return part, label, "/".join(parts[:-2])


def _require_all_classes(table: pd.DataFrame, path: Path, name: str) -> None:
    for part in ("train", "test"):
        found = set(table.loc[table["part"] == part, "label"])
        if not found:
            raise DatasetError(f"{name}: {path} has no images under {part}/: download the dataset again")
        missing = [label for label in CLASSES if label not in found]
        if missing:
            raise DatasetError(
                f"{name}: {path} has no images of {', '.join(missing)} under {part}/: the class folder is missing or "
                "empty; download the dataset again"
            )


def _usage(file_name: str) -> str:
    prefix = file_name.split("_")[0]
    return prefix if prefix in USAGES else ""


def natural_key(text: str) -> list:
    """Sort key that puts im2 before im10."""
    pieces = re.split(r"(\d+)", text)
    pieces[1::2] = [(len(digits), digits) for digits in (piece.lstrip("0") for piece in pieces[1::2])]
    return pieces
