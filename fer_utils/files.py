"""Atomic writing of files and folders, and reading of JSON files with clear errors.

A folder that is written here holds a list of its files. Only a folder that holds nothing else is ever replaced or removed.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_utils import places

if TYPE_CHECKING:
    import pandas as pd  # slow to import, and not needed to list runs
    from filelock import BaseFileLock

PARTIAL = ".partial-"  # prefix of a file or folder that is being written
_OLD = "-old-"  # after the prefix: a folder that is being replaced
WRITTEN = ".written.json"  # in a folder that this project wrote: the time, and the size of each file
FILE_MANAGERS = {".ds_store", "thumbs.db", "desktop.ini", "__macosx"}  # what they leave in folders, in lower case
_NOT_WRITABLE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
_NOT_WRITABLE |= {errno.EILSEQ}  # a name that is not UTF-8, on macOS
_CLOCKS = 2  # seconds by which times on one disk may be rounded


class OutputError(OSError):
    """An output path cannot be written: the disk is full, read-only, or there is no folder."""


class TornFile(ValueError):
    """A file in a run's folder is damaged; the message names the file and says what to do."""


@contextlib.contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Raise an OutputError that names `path` and says what to do, where the disk is full or nothing can be written there."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):  # Windows has no EDQUOT
            raise OutputError(f"no space left on the disk while writing {path}: free some and run again") from error
        if error.errno in _NOT_WRITABLE:
            # On Windows a file that a program has open, such as a table in Excel, cannot be replaced.
            close = "close the program that has it open, or " if sys.platform == "win32" else ""
            way = "a shorter name" if error.errno == errno.ENAMETOOLONG else "another output folder"
            message = f"{path} cannot be written ({error.strerror}): {close}choose {way}"
            raise OutputError(message) from error
        raise


@contextlib.contextmanager
def replacing(path: Path, before: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` when the block ends without an error.

    The temporary path keeps the suffix of `path`, since writers choose their format by it. The block may create a file or
    a folder there; a folder at `path` is replaced as a whole. Raises OutputError, naming `path`, if the disk is full or
    read-only, or if the folder at `path` holds what this project did not write; the old content of `path` is then
    unchanged. `before` is called with `path` when everything is written, just before the replacement.
    """
    path = Path(path)
    prefix = f"{PARTIAL}{uuid.uuid4().hex[:8]}"
    temporary, old = path.with_name(f"{prefix}-{path.name}"), path.with_name(f"{prefix}{_OLD}{path.name}")
    try:
        with _explaining(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            is_folder = temporary.is_dir()
            if is_folder:
                note_written(temporary)
                require_own(path)
            else:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())  # else a crash could leave an empty file under the final name
            if before is not None:
                before(path)
            if is_folder and path.exists():
                os.rename(path, old)
            os.replace(temporary, path)
            remove(old)
    finally:
        if os.path.lexists(temporary):
            remove(temporary)


def acquired(lock: Path, seconds: float) -> "BaseFileLock | None":
    """The lock of a lock file, acquired within `seconds`, -1 for any time. Raises TimeoutError if another process keeps it.

    A process may acquire it several times. On Kaggle it is None: a session is alone with its folders, and may lack `filelock`.
    """
    if places.on_kaggle():
        return None
    from filelock import FileLock

    with _explaining(lock.parent):
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock, is_singleton=True)
        held.acquire(timeout=seconds)
    return held


@contextlib.contextmanager
def one_at_a_time(lock: Path, waits: Callable[[], None]) -> Iterator[None]:
    """Let only one process at a time into the block, by a lock file; `waits` is called once if another one is inside."""
    try:
        held = acquired(lock, 0)
    except TimeoutError:
        waits()
        held = acquired(lock, -1)
    try:
        yield
    finally:
        if held:
            held.release()


def note_written(folder: Path) -> None:
    """Write the list by which `folder` is later known as this project's own, with all that it holds now."""
    noted = folder / WRITTEN
    noted.unlink(missing_ok=True)  # it may be a link to the list of the folder that this one was copied from
    sizes = {name: stat.st_size for name, stat in _entries(folder)}
    noted.write_text(json.dumps({"written": time.time(), "files": sizes}), encoding="utf-8")


def foreign(path: Path, names_only: bool = False) -> str | None:
    """What this project did not write at `path`, or None: then `path` may be replaced or removed.

    Names and sizes tell it, and times in a folder that is not a copy. Digests would mean to read every picture again.
    names_only: a file that has changed counts as this project's, as what a crash tore.
    """
    if not os.path.lexists(path):
        return None
    if path.is_symlink() or not path.is_dir():
        return f"{path} is no folder that this project wrote"
    try:
        noted = json.loads((path / WRITTEN).read_text(encoding="utf-8"))
        sizes, written = noted["files"], noted["written"]
        is_copy = abs((path / WRITTEN).stat().st_mtime - written) > _CLOCKS
    except (OSError, ValueError, KeyError, TypeError):
        sizes, written, is_copy = {}, 0, True
    for name, stat in _entries(path):
        if name not in sizes:
            return f"{path} holds {name}, which is on no list of what this project wrote there"
        is_changed = stat.st_size != sizes[name] or (not is_copy and stat.st_mtime > written + _CLOCKS)
        if is_changed and not names_only:
            return f"{path / name} was changed after this project wrote it"
    return None


def require_own(path: Path, names_only: bool = False) -> None:
    """Raise OutputError, naming the first fault, unless `path` may be replaced or removed: see foreign."""
    if fault := foreign(path, names_only):
        raise OutputError(f"{fault}: move it away, or choose another folder")


def walk(top: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As os.walk, sorted, through links to folders too: each folder once, its own path before those of links to it.

    No link leads to a folder above `top`, since one to the root would be the whole disk. Raises OSError, with the way out, for
    a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise OSError(f"{error.filename} cannot be read ({error.strerror}): change its permissions") from error

    starts = [Path(top)]
    entered = {str(above) for above in Path(os.path.realpath(top)).parents}
    for start in starts:  # grows by the links on the way
        for at, folders, names in os.walk(start, onerror=refuse):
            if (real := os.path.realpath(at)) in entered:
                folders.clear()
                continue
            entered.add(real)
            folders.sort()
            yield Path(at), folders, sorted(names)
            starts += [Path(at, name) for name in folders if Path(at, name).is_symlink()]


def _entries(folder: Path, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Everything below `folder` that is no folder, links not followed: its name and stat."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path), f"{below}{entry.name}/")
        elif entry.name != WRITTEN and entry.name.lower() not in FILE_MANAGERS:
            yield below + entry.name, entry.stat(follow_symlinks=False)


def place_copy(source: Path, path: Path) -> None:
    """Copy `source` to `path`, atomically: a file as a copy, a folder as hard links to its files, or copies without links."""

    def link(existing: str, new: str) -> None:
        try:
            os.link(existing, new)
        except OSError:  # another disk, or a file system without links
            shutil.copy2(existing, new)

    with replacing(path) as temporary:
        if source.is_dir():
            shutil.copytree(source, temporary, copy_function=link)
        else:
            shutil.copy2(source, temporary)


def remove(path: Path) -> None:
    """Remove a file or a whole folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_partials(folder: Path) -> list[Path]:
    """Remove what a killed process left directly in `folder`, and return the temporary paths found.

    If it died while it replaced a folder, and the new folder is not in place, the old one is restored.
    """
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    left = [path for path in found if re.match(rf"{re.escape(PARTIAL)}[0-9a-f]{{8}}-", path.name)]
    for temporary in left:
        _, is_old, name = temporary.name.partition(_OLD)
        if is_old and not (folder / name).exists():
            os.rename(temporary, folder / name)
        else:
            remove(temporary)
    return left


def require_space(folder: Path, needed: int) -> None:
    """Raise OutputError if `folder` cannot be written or has less than `needed` bytes free."""
    with _explaining(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    free = shutil.disk_usage(folder).free
    if free < needed:
        found = f"{folder} has {free / 1e6:,.0f} MB free, this stage writes about {needed / 1e6:,.0f} MB"
        raise OutputError(f"{found}: free some space or choose another data_dir")


def write_text(path: Path, content: str, before: Callable[[Path], None] | None = None) -> None:
    """Write `content` as UTF-8, atomically; `before` as for `replacing`."""
    with replacing(path, before) as temporary:
        temporary.write_text(content, encoding="utf-8")


def write_json(path: Path, content: Any, before: Callable[[Path], None] | None = None) -> None:
    """Write `content` as indented JSON, atomically; `before` as for `replacing`."""
    write_text(path, json.dumps(content, indent=2) + "\n", before)


def read_json(path: Path) -> Any:
    """Read a JSON file; raise TornFile, naming the file, if it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of 5,000 digits; nested too deeply
        raise TornFile(f"{path} is not whole JSON ({error}): remove it and run its stage again") from error


@contextlib.contextmanager
def reading_json(path: Path) -> Iterator[Any]:
    """Yield a JSON file's content to a block that reads it. Raises TornFile where the block finds something else in it."""
    content = read_json(path)
    try:
        yield content
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        found = f"{path} does not hold what belongs there ({type(error).__name__}: {error})"
        raise TornFile(f"{found}: remove it, or write it again with what wrote it") from error


def write_csv(path: Path, table: "pd.DataFrame", before: Callable[[Path], None] | None = None) -> None:
    """Write `table` as CSV without its index, atomically; `before` as for `replacing`."""
    with replacing(path, before) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
