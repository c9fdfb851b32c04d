"""Shows that a command or a call changed nothing outside the folders that it may write."""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path


def digest(folder: Path) -> dict[str, str]:
    """Every entry below `folder` but Python's caches: its relative path → digest of a file, target of a link, or its kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" in path.parts:
            continue
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "special"
    return found


@contextlib.contextmanager
def unchanged(*folders: Path) -> Iterator[None]:
    """Assert that the block leaves each of these folders as it was: no entry more, none less, none changed."""
    before = [digest(folder) for folder in folders]
    yield
    assert [digest(folder) for folder in folders] == before


def make_socket(path: Path) -> None:
    """A socket at `path`: a file that is no regular one."""
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket may have 100 bytes only
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)
