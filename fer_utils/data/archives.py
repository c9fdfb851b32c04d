"""Reads the files of a folder or a zip in place: nothing is unpacked beside it, so no entry's name can lead out of it."""

import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO

from fer_utils import files, images

MAX_IMAGE_BYTES = 10_000_000  # a 48×48 picture has about 2,000; a larger entry is no face picture, or a zip bomb
MAX_UNPACKED_BYTES = 4_000_000_000  # the larger of the two datasets unpacks to 0.3 GB as CSV
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what is packed by others zipfile unpacks without a limit


class DatasetError(ValueError):
    """A source dataset is missing or has an unknown layout."""


class FolderReader:
    """The files of a folder."""

    def __init__(self, path: Path, image_bytes: int = MAX_IMAGE_BYTES):
        self.path, self.image_bytes = path, image_bytes

    def files(self) -> list[str]:
        """Every file below the folder, through links to folders too, each folder once; a link that leads nowhere is a file."""
        try:
            found = [(at, name) for at, _, names in files.walk(self.path) for name in names]
        except OSError as error:
            raise DatasetError(f"{error}") from error
        return [(at / name).relative_to(self.path).as_posix() for at, name in found]

    def read(self, file: str) -> bytes:
        try:
            return images.read_file(self.path / file, self.image_bytes)
        except images.UnreadableImage as error:
            raise images.UnreadableImage(f"{self.path}: {file} {error}") from error

    def open(self, file: str) -> IO[bytes]:
        if not (self.path / file).is_file():
            raise DatasetError(f"{self.path}: {file} cannot be read (it is no regular file): give the table itself")
        return (self.path / file).open("rb")

    def close(self) -> None:
        pass


class ZipReader:
    """The files of a zip. One with an entry that no dataset has is refused as a whole."""

    def __init__(self, path: Path, name: str, image_bytes: int, unpacked_bytes: int):
        self.path, self.image_bytes = path, image_bytes
        where = f"{name}: {path}"
        with ExitStack() as opened:
            try:
                self._archive = opened.enter_context(zipfile.ZipFile(path))
            except Exception as error:  # zipfile raises about ten types for damaged bytes
                raise DatasetError(f"{where} is not a whole zip file ({error}): download it again") from error
            entries = self._archive.infolist()
            for entry in entries:
                if fault := _fault(entry):
                    raise DatasetError(
                        f"{where} holds the entry {entry.filename[-300:]!r}, {fault}: get the zip from its source"
                    )
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > unpacked_bytes:
                raise DatasetError(f"{where} unpacks to {unpacked:,} bytes; no dataset of faces is that large")
            twice = sorted(name for name, times in Counter(self._archive.namelist()).items() if times > 1)
            if twice:
                raise DatasetError(f"{where} holds the entry {twice[0]} twice ({len(twice)} such): download it again")
            self.close = opened.pop_all().close

    def files(self) -> list[str]:
        return [entry.filename for entry in self._archive.infolist() if not entry.is_dir()]

    def read(self, file: str) -> bytes:
        size = self._archive.getinfo(file).file_size
        if size > self.image_bytes:
            raise images.UnreadableImage(f"{self.path}: {file} unpacks to {size:,} bytes, no face picture")
        try:
            with self.open(file) as entry:
                return entry.read(size)  # read() unpacks everything, however little the entry declares
        except Exception as error:  # zipfile and zlib raise about ten types for damaged bytes
            raise images.UnreadableImage(f"{self.path}: {file} cannot be unpacked ({error})") from error

    def open(self, file: str) -> IO[bytes]:
        return self._archive.open(file)


def _fault(entry: zipfile.ZipInfo) -> str:
    """What no entry of a dataset is, or ""."""
    parts = entry.filename.replace("\\", "/").split("/")
    if ".." in parts or not parts[0] or ":" in parts[0]:
        return "whose name leads out of the folder"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "which is a link"
    if entry.flag_bits & 1:
        return "which is encrypted"
    is_usual = entry.compress_type in _PACKED
    return "" if is_usual else "which is packed by another method than zip's usual one"


def is_hidden(file: str) -> bool:
    """Whether a file is no part of a dataset by its path: hidden, or a Mac's copy of metadata."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(file).parts)


def tails(path: str) -> Iterator[str]:
    """A path, and what remains of it without its outer folders: a/b/c.jpg, b/c.jpg, c.jpg."""
    parts = PurePosixPath(path).parts
    return ("/".join(parts[n:]) for n in range(len(parts)))


def natural_key(text: str) -> list:
    """Sort key that puts im2 before im10."""
    pieces = re.split(r"(\d+)", text)
    pieces[1::2] = [(len(digits), digits) for digits in (piece.lstrip("0") for piece in pieces[1::2])]
    return pieces
