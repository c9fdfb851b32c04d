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
| links in a folder                                  | followed; one that leads nowhere is an unreadable file   |
| image of another size or in colour                 | repaired when read, flagged (`fer_utils.images.decode`)  |
| zip entry that leads out, is a link or is encrypted | error: which entry                                       |
| zip that unpacks to more than any dataset          | error before anything is unpacked                        |
| empty, cut-off or foreign image                    | error before anything is written, or excluded and flagged |
"""

import csv
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fer_utils import images
from fer_utils.classes import CLASSES, CSV_CODES, class_of

import numpy as np
import pandas as pd

COLUMNS = ("source", "part", "label", "usage", "source_path")
CSV_NAMES = ("fer2013.csv", "icml_face_data.csv")
MAX_IMAGE_BYTES = 10_000_000  # a 48×48 picture has about 2,000; a larger entry is no face picture, or a zip bomb
MAX_UNPACKED_BYTES = 4_000_000_000  # the larger dataset unpacks to 0.3 GB as CSV

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
        return _CsvReader(path.open(newline="", encoding="utf-8-sig"), path.name, path)
    if path.is_file() and path.suffix.lower() != ".zip":
        raise DatasetError(f"{name}: {path} is neither a folder, a .zip nor a .csv file")
    reader = FolderReader(path) if path.is_dir() else ZipReader(path, name)
    files = reader.files()
    if any(PurePosixPath(file).suffix.lower() in images.SUFFIXES for file in files):
        return reader
    for file in files:
        if PurePosixPath(file).name in CSV_NAMES:
            return _CsvReader(reader.open_text(file), PurePosixPath(file).name, path)
    zips = [file for file in files if file.lower().endswith(".zip")]
    if path.is_dir() and len(zips) == 1:
        return _reader(path / zips[0], name)
    raise DatasetError(
        f"{name}: {path} holds {len(files)} files, among them no images and none of {', '.join(CSV_NAMES)}; "
        "it should hold train/<class>/ and test/<class>/"
    )


class FolderReader:
    def __init__(self, path: Path):
        self.path = path

    def files(self) -> list[str]:
        """Every file below the folder, through links to folders too; a link that leads nowhere counts as a file."""
        found = []
        for folder, folders, names in os.walk(self.path, followlinks=True):
            place = Path(folder)
            folders[:] = [name for name in folders if not _leads_back(place, place / name)]
            found += [(place / name).relative_to(self.path).as_posix() for name in names]
        return found

    def read(self, file: str) -> bytes:
        try:
            return (self.path / file).read_bytes()
        except OSError as error:
            raise images.UnreadableImage(f"{self.path}: {file} cannot be read ({error.strerror})") from error

    def open_text(self, file: str):
        return (self.path / file).open(newline="", encoding="utf-8-sig")

    def close(self) -> None:
        pass


def _leads_back(folder: Path, inside: Path) -> bool:
    """Whether `inside` is a link to `folder` or to a folder around it, so that to follow it would never end."""
    return inside.is_symlink() and folder.resolve().is_relative_to(inside.resolve())


class ZipReader:
    """Reads entries without extracting them, so that no entry's name can lead out of the folder."""

    def __init__(self, path: Path, name: str, image_bytes: int | None = None, unpacked_bytes: int | None = None):
        """The limits are MAX_IMAGE_BYTES and MAX_UNPACKED_BYTES unless given."""
        self.path, self.image_bytes = path, image_bytes or MAX_IMAGE_BYTES
        try:
            self.zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise DatasetError(f"{name}: {path} is not a whole zip file ({error}): download it again") from error
        names = self.zip.namelist()
        for info in self.zip.infolist():
            fault = _fault_of(info)
            if fault:
                self.zip.close()
                raise DatasetError(
                    f"{name}: {path} holds the entry {info.filename!r}, {fault}: get the zip from its source"
                )
        unpacked = sum(info.file_size for info in self.zip.infolist())
        if unpacked > (unpacked_bytes or MAX_UNPACKED_BYTES):
            self.zip.close()
            raise DatasetError(f"{name}: {path} unpacks to {unpacked:,} bytes; no dataset of faces is that large")
        twice = sorted({entry for entry in names if names.count(entry) > 1}) if len(set(names)) < len(names) else []
        if twice:
            raise DatasetError(
                f"{name}: {path} holds the entry {twice[0]} twice ({len(twice)} such): download it again"
            )

    def files(self) -> list[str]:
        return [entry for entry in self.zip.namelist() if not entry.endswith("/")]

    def read(self, file: str) -> bytes:
        info = self.zip.getinfo(file)
        if info.file_size > self.image_bytes:
            raise images.UnreadableImage(f"{self.path}: {file} unpacks to {info.file_size:,} bytes, no face picture")
        try:
            return self.zip.read(info)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise images.UnreadableImage(f"{self.path}: {file} cannot be unpacked ({error})") from error

    def open_text(self, file: str):
        import io

        return io.TextIOWrapper(self.zip.open(file), encoding="utf-8-sig", newline="")

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
    return None


class _CsvReader:
    """The original `emotion,pixels,Usage` table; `icml_face_data.csv` has another order of columns and spaces in their names."""

    def __init__(self, stream, file: str, path: Path):
        with stream:
            rows = list(csv.DictReader(stream, skipinitialspace=True))
        self.file, self.path = file, path
        self.rows = [{(key or "").strip().lower(): value for key, value in row.items()} for row in rows]
        missing = {"emotion", "pixels", "usage"} - set(self.rows[0] if self.rows else ())
        if missing:
            raise DatasetError(f"{path}: {file} lacks the column(s) {', '.join(sorted(missing))}")

    def files(self) -> list[str]:
        return [f"{self.file}#{row}" for row in range(len(self.rows))]

    def table(self, name: str) -> pd.DataFrame:
        records = []
        for number, row in enumerate(self.rows):
            usage, code = ((row[column] or "").strip() for column in ("usage", "emotion"))  # None: the row ends early
            if usage not in _CSV_PARTS or not code.isdigit() or int(code) >= len(CSV_CODES):
                raise DatasetError(
                    f"{self.path}: {self.file} row {number} has Usage {usage!r} and emotion {code!r}; "
                    f"expected one of {', '.join(USAGES)} and 0–{len(CSV_CODES) - 1}"
                )
            records.append((name, _CSV_PARTS[usage], CSV_CODES[int(code)], usage, f"{self.file}#{number}"))
        table = pd.DataFrame(records, columns=COLUMNS)
        _require_all_classes(table, self.path, name)
        return table

    def read(self, source_path: str) -> bytes:
        pixels = self.rows[int(source_path.rsplit("#", 1)[1])]["pixels"].split()
        side = int(len(pixels) ** 0.5)
        try:
            values = np.array(pixels, int)
        except ValueError as error:
            raise images.UnreadableImage(f"{self.path}: {source_path} has a pixel that is no number") from error
        if side == 0 or side * side != len(pixels) or values.min() < 0 or values.max() > 255:
            raise images.UnreadableImage(f"{self.path}: {source_path} has {len(pixels)} pixels, no square of 0–255")
        return images.encode_png(values.astype(np.uint8).reshape(side, side))

    def close(self) -> None:
        pass


def _table(files: list[str], path: Path, name: str) -> tuple[pd.DataFrame, list[str]]:
    records, ignored, homes = [], [], {}
    for file in files:
        parts = PurePosixPath(file).parts
        if is_hidden(file) or PurePosixPath(file).suffix.lower() not in images.SUFFIXES:
            ignored.append(file)
            continue
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
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", text)]
