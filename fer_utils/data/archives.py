"""Reads the files of a folder, a zip or a tar in place: nothing is unpacked beside it, so no entry's name can lead out of it."""

import gzip
import os
import re
import stat
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fer_utils import images

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_IMAGE_BYTES = 10_000_000  # a 48×48 picture has about 2,000; a larger entry is no face picture, or a zip bomb
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what is packed by others zipfile unpacks without a limit
_GZIP = b"\x1f\x8b"


class DatasetError(ValueError):
    """A source dataset is missing or has an unknown layout."""


class FolderReader:
    def __init__(self, path: Path, image_bytes: int = MAX_IMAGE_BYTES):
        self.path, self.image_bytes = path, image_bytes

    def files(self) -> list[str]:
        """Every file below the folder, through links to folders too, each folder once; a link that leads nowhere is a file."""
        found, starts = [], [self.path]
        entered = {str(above) for above in Path(os.path.realpath(self.path)).parents}  # a link there: the whole disk
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
            raise DatasetError(f"{self.path}: {file} cannot be read (it is no regular file): give the table itself")
        return (self.path / file).open("rb")

    def close(self) -> None:
        pass


class ArchiveReader:
    """A zip, or a tar, which may be packed by gzip. An archive with an entry that no dataset has is refused as a whole."""

    def __init__(self, path: Path, name: str, image_bytes: int, unpacked_bytes: int):
        self.path, self.image_bytes, self._open = path, image_bytes, {}
        kind, entries = ("zip", _zip) if path.suffix.lower() == ".zip" else ("tar", _tar)
        unpacked, names = 0, []
        with ExitStack() as opened:
            try:
                found = list(entries(path, opened, unpacked_bytes))
            except Exception as error:  # zipfile, tarfile and gzip raise about ten types for damaged bytes
                raise DatasetError(f"{name}: {path} is not a whole {kind} file ({error}): download it again") from error
            for entry, size, fault, opener in found:
                parts = entry.replace("\\", "/").split("/")
                if ".." in parts or not parts[0] or ":" in parts[0]:
                    fault = "whose name leads out of the folder"
                if fault:
                    raise DatasetError(
                        f"{name}: {path} holds the entry {entry[-300:]!r}, {fault}: get the {kind} from its source"
                    )
                unpacked += size
                names.append(entry)
                if not entry.endswith("/"):
                    self._open[entry] = (size, opener)
            if unpacked > unpacked_bytes:
                raise DatasetError(f"{name}: {path} unpacks to {unpacked:,} bytes; no dataset of faces is that large")
            twice = sorted(entry for entry, times in Counter(names).items() if times > 1)
            if twice:
                raise DatasetError(
                    f"{name}: {path} holds the entry {twice[0]} twice ({len(twice)} such): download it again"
                )
            self._held = opened.pop_all()

    def files(self) -> list[str]:
        return list(self._open)

    def read(self, file: str) -> bytes:
        size = self._open[file][0]
        if size > self.image_bytes:
            raise images.UnreadableImage(f"{self.path}: {file} unpacks to {size:,} bytes, no face picture")
        try:
            with self.open(file) as entry:
                return entry.read(size)  # read() unpacks everything, however little the entry declares
        except Exception as error:  # zipfile and zlib raise about ten types for damaged bytes
            raise images.UnreadableImage(f"{self.path}: {file} cannot be unpacked ({error})") from error

    def open(self, file: str) -> BinaryIO:
        return self._open[file][1]()

    def close(self) -> None:
        self._held.close()


_Entry = tuple[str, int, str, Callable[[], BinaryIO]]  # name, a folder's with / at its end; bytes; fault or ""; opener


def _zip(path: Path, opened: ExitStack, unpacked_bytes: int) -> Iterator[_Entry]:
    archive = opened.enter_context(zipfile.ZipFile(path))
    for info in archive.infolist():
        fault = "which is a link" if stat.S_ISLNK(info.external_attr >> 16) else ""
        fault = fault or ("which is encrypted" if info.flag_bits & 1 else "")
        if not fault and info.compress_type not in _PACKED:
            fault = "which is packed by another method than zip's usual one"
        yield info.filename, info.file_size, fault, lambda info=info: archive.open(info)


def _tar(path: Path, opened: ExitStack, unpacked_bytes: int) -> Iterator[_Entry]:
    file = opened.enter_context(path.open("rb"))
    if file.read(2) == _GZIP:  # reading entries out of order would unpack it again for each
        file = opened.enter_context(tempfile.TemporaryFile())  # noqa: SIM115, closed by the reader
        with gzip.open(path) as packed:
            while block := packed.read(1 << 20):
                if file.write(block) and file.tell() > unpacked_bytes:
                    raise tarfile.ReadError(f"it unpacks to more than {unpacked_bytes:,} bytes")
    file.seek(0)
    archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115, it holds nothing but the file
    for info in archive:
        fault = "which is a link" if info.issym() or info.islnk() else ""
        fault = fault or ("" if info.isfile() or info.isdir() else "which is no regular file")
        name = PurePosixPath(info.name).as_posix() + "/" * info.isdir()
        yield name, info.size, fault, lambda info=info: archive.extractfile(info)
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile ends at a damaged entry without a word
        raise tarfile.ReadError("it has no end")


def is_hidden(file: str) -> bool:
    """Whether a file is no part of a dataset by its path: hidden, or a Mac's copy of metadata."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(file).parts)


def natural_key(text: str) -> list:
    """Sort key that puts im2 before im10."""
    pieces = re.split(r"(\d+)", text)
    pieces[1::2] = [(len(digits), digits) for digits in (piece.lstrip("0") for piece in pieces[1::2])]
    return pieces
