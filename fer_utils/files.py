"""Writing that leaves either the old file or the new one, never half of one.

Knows files and folders in general; knows nothing of what stands in them.
"""

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd  # slow to import: a look at what a run holds should not wait for it

PARTIAL = ".partial-"  # the mark of a file or folder that is being written
_OLD = "-old-"  # after the mark: a folder that is giving way to a new one


class OutputError(OSError):
    """An output place cannot be written: full, read-only or no folder."""


class TornFile(ValueError):
    """A file of a run's folder is not whole; the message names it and the way out."""


@contextlib.contextmanager
def replacing(path: Path, before: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which takes its place when the block ends without an error.

    The temporary path keeps the suffix of `path`, since writers choose their format by it. The block may make a file or
    a folder there; a folder at `path` gives way whole. Raises OutputError, naming `path`, where the disk is full or
    read-only; what stood at `path` is then still there. `before` is called with `path` when all is
    written, just before it takes its place.
    """
    path = Path(path)
    temporary = path.with_name(f"{PARTIAL}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if not temporary.is_dir():
            _flush(temporary)
        if before is not None:
            before(path)
        if temporary.is_dir():
            _swap_folder(temporary, path)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        remove(temporary)


def _flush(path: Path) -> None:
    """Have the file on the disk before its name: a machine that stops must not leave the name with nothing in it."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _swap_folder(new: Path, path: Path) -> None:
    old = path.with_name(f"{PARTIAL}{uuid.uuid4().hex[:8]}{_OLD}{path.name}")
    if path.exists():
        os.rename(path, old)
    os.rename(new, path)
    remove(old)


def explained(error: OSError, path: Path) -> OSError:
    """The error as OutputError, with the way out, where the disk is full or read-only; else as it is."""
    if isinstance(error, OutputError):
        return error
    if error.errno == errno.ENOSPC:
        return OutputError(errno.ENOSPC, f"no space left on the disk while writing {path}: free some and run again")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return OutputError(error.errno, f"{path} cannot be written ({error.strerror}): choose another output folder")
    return error


def place_copy(source: Path, path: Path) -> None:
    """Have at `path` what is at `source`, atomically: a copy of a file, or a folder of hard links (else copies) of files."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:  # another disk, or a file system without links
            shutil.copy2(one, other)

    with replacing(path) as temporary:
        if source.is_dir():
            shutil.copytree(source, temporary, copy_function=link)
        else:
            shutil.copy2(source, temporary)


def remove(path: Path) -> None:
    """Remove a file or a whole folder, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_partials(folder: Path) -> list[Path]:
    """Clear what a killed process left half-written directly in `folder`; return the temporary paths found.

    A folder that was giving way when the process died, its successor not yet in place, takes its place again.
    """
    left = sorted(folder.glob(f"{PARTIAL}*")) if folder.is_dir() else []
    for temporary in left:
        _, is_old, name = temporary.name.partition(_OLD)
        if is_old and not (folder / name).exists():
            os.rename(temporary, folder / name)
        else:
            remove(temporary)
    return left


def require_space(folder: Path, needed: int) -> None:
    """Raise OutputError, before any work, where `folder` cannot be written or has less than `needed` bytes free."""
    with replacing(folder / "write_test") as probe:
        probe.write_bytes(b"")
    (folder / "write_test").unlink()
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            errno.ENOSPC,
            f"{folder} has {free / 1e6:,.0f} MB free, this stage writes about {needed / 1e6:,.0f} MB: "
            "free some space or choose another data_dir",
        )


def write_text(path: Path, content: str) -> None:
    """Write `content` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raise TornFile, naming the file, where it is torn."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TornFile(f"{path} is not whole JSON ({error}): remove it and run its stage again") from error


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Write `table` as CSV without its index, atomically."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
