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
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from fer_utils import images

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_IMAGE_BYTES = 10_000_000  # a 48×48 picture has about 2,000; a larger entry is no face picture, or a zip bomb
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what is packed by others zipfile unpacks without a limit
_GZIP = b"\x1f\x8b"


class DatasetError(ValueError):
    """A source dataset is missing or has an unknown layout."""


class FolderReader:
    """The files of a folder."""

    def __init__(self, path: Path, image_bytes: int = MAX_IMAGE_BYTES):
        self.path, self.image_bytes = path, image_bytes

    def files(self) -> list[str]:
        """Every file below the folder, through links to folders too, each folder once; a link that leads nowhere is a file."""
        found, starts = [], [self.path]
        entered = {str(above) for above in Path(os.path.realpath(self.path)).parents}  # a link there: the whole disk
        for start in starts:  # grows by the links on the way; a folder's own path comes before those of links to it
            for folder, folders, names in os.walk(start):
                path, real = Path(folder), os.path.realpath(folder)
                if real in entered:
                    folders.clear()
                    continue
                entered.add(real)
                folders.sort()
                starts += [path / name for name in folders if (path / name).is_symlink()]
                found += [(path / name).relative_to(self.path).as_posix() for name in names]
        return found

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


_Entry = tuple[
    str, int, str, Callable[[], IO[bytes] | None]
]  # name, a folder's with / at its end; bytes; fault; opener


class ArchiveReader:
    """A zip, or a tar, which may be packed by gzip. An archive with an entry that no dataset has is refused as a whole."""

    def __init__(self, path: Path, name: str, image_bytes: int, unpacked_bytes: int):
        self.path, self.image_bytes = path, image_bytes
        where, kind = f"{name}: {path}", "zip" if path.suffix.lower() == ".zip" else "tar"
        with ExitStack() as opened:
            try:
                found = list((_zip if kind == "zip" else _tar)(path, opened, unpacked_bytes))
            except Exception as error:  # zipfile, tarfile and gzip raise about ten types for damaged bytes
                raise DatasetError(f"{where} is not a whole {kind} file ({error}): download it again") from error
            for entry, _, fault, _ in found:
                parts = entry.replace("\\", "/").split("/")
                if ".." in parts or not parts[0] or ":" in parts[0]:
                    fault = "whose name leads out of the folder"
                if fault:
                    fault = f"holds the entry {entry[-300:]!r}, {fault}"
                    raise DatasetError(f"{where} {fault}: get the {kind} from its source")
            unpacked = sum(size for _, size, _, _ in found)
            if unpacked > unpacked_bytes:
                raise DatasetError(f"{where} unpacks to {unpacked:,} bytes; no dataset of faces is that large")
            twice = sorted(entry for entry, times in Counter(entry for entry, *_ in found).items() if times > 1)
            if twice:
                raise DatasetError(f"{where} holds the entry {twice[0]} twice ({len(twice)} such): download it again")
            self._entries = {entry: (size, opener) for entry, size, _, opener in found if not entry.endswith("/")}
            self._held = opened.pop_all()

    def files(self) -> list[str]:
        return list(self._entries)

    def read(self, file: str) -> bytes:
        size = self._entries[file][0]
        if size > self.image_bytes:
            raise images.UnreadableImage(f"{self.path}: {file} unpacks to {size:,} bytes, no face picture")
        try:
            with self.open(file) as entry:
                return entry.read(size)  # read() unpacks everything, however little the entry declares
        except Exception as error:  # zipfile and zlib raise about ten types for damaged bytes
            raise images.UnreadableImage(f"{self.path}: {file} cannot be unpacked ({error})") from error

    def open(self, file: str) -> IO[bytes]:
        opened = self._entries[file][1]()
        assert opened is not None  # tarfile opens no folder or link, which are no entries here
        return opened

    def close(self) -> None:
        self._held.close()


def _zip(path: Path, opened: ExitStack, unpacked_bytes: int) -> Iterator[_Entry]:
    archive = opened.enter_context(zipfile.ZipFile(path))
    for info in archive.infolist():
        fault = "which is packed by another method than zip's usual one" if info.compress_type not in _PACKED else ""
        fault = "which is encrypted" if info.flag_bits & 1 else fault
        fault = "which is a link" if stat.S_ISLNK(info.external_attr >> 16) else fault
        yield info.filename, info.file_size, fault, partial(archive.open, info)


def _tar(path: Path, opened: ExitStack, unpacked_bytes: int) -> Iterator[_Entry]:
    file: IO[bytes] = opened.enter_context(path.open("rb"))
    if file.read(2) == _GZIP:  # reading entries out of order would unpack it again for each
        file = opened.enter_context(tempfile.TemporaryFile())  # noqa: SIM115, closed by the reader
        with gzip.open(path) as packed:
            while block := packed.read(1 << 20):
                if file.write(block) and file.tell() > unpacked_bytes:
                    raise tarfile.ReadError(f"it unpacks to more than {unpacked_bytes:,} bytes")
    file.seek(0)
    archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115, it holds nothing but the file
    for info in archive:
        fault = "" if info.isfile() or info.isdir() else "which is no regular file"
        fault = "which is a link" if info.issym() or info.islnk() else fault
        name = PurePosixPath(info.name).as_posix() + "/" * info.isdir()
        yield name, info.size, fault, partial(archive.extractfile, info)
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile ends at a damaged entry without an error
        raise tarfile.ReadError("it has no end")


def is_hidden(file: str) -> bool:
    """Whether a file is no part of a dataset by its path: hidden, or a Mac's copy of metadata."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(file).parts)


def tails(path: str) -> list[str]:
    """A path, and what remains of it without its outer folders: a/b/c.jpg, b/c.jpg, c.jpg."""
    parts = PurePosixPath(path).parts
    return ["/".join(parts[n:]) for n in range(len(parts))]


def natural_key(text: str) -> list:
    """Sort key that puts im2 before im10."""
    pieces = re.split(r"(\d+)", text)
    pieces[1::2] = [(len(digits), digits) for digits in (piece.lstrip("0") for piece in pieces[1::2])]
    return pieces
