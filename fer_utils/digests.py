"""Digests of files and folders: descriptions of what a stage wrote, and whether it is damaged."""

import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fer_utils import files


def of_bytes(content: bytes) -> str:
    """The digest of bytes."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def describe(path: Path) -> dict[str, Any]:
    """The digest of an output; for a folder also that of names, sizes and times."""
    if not path.is_dir():
        return {"digest": of_file(path)}
    found, content = _listed(path), hashlib.blake2b(digest_size=16)
    for name in found:
        content.update(os.fsencode(name) + b"\0" + (path / name).read_bytes())
    return {"listing": _listing(found), "digest": content.hexdigest()}


def damage(path: Path, recorded: Mapping[str, Any]) -> str | None:
    """A description of the damage to a recorded output, or None.

    A file is read completely. Of a folder names, sizes and times are compared, which takes a second for 100,000 pictures.
    Only where one differs, as the times in a copied run, its files are read and their content decides.
    """
    if not path.exists():
        return f"{path.name} is gone"
    is_listed = path.is_dir() and _listing(_listed(path)) == recorded.get("listing")
    is_whole = is_listed or describe(path)["digest"] == recorded["digest"]
    return None if is_whole else f"{path.name} is not what was written to it"


def of_file(path: Path) -> str:
    """The digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()


def of_listing(path: Path) -> str:
    """A digest of names, sizes and times of a file or folder, since reading 70,000 pictures would take too long."""
    return _listing(_listed(path) if path.is_dir() else {"": path.stat()})


def _listing(found: Mapping[str, os.stat_result]) -> str:
    lines = "\n".join(f"{name} {about.st_size} {about.st_mtime_ns}" for name, about in found.items())
    return of_bytes(os.fsencode(lines))


def _listed(folder: Path) -> dict[str, os.stat_result]:
    """Every regular file below a folder with its stat, without hidden ones and what file managers leave.

    Links are followed, see files.walk, which raises OSError for a folder that cannot be read.
    """
    found: dict[str, os.stat_result] = {}
    for at, folders, names in files.walk(folder):
        folders[:] = filter(_counts, folders)
        below = "" if at == folder else f"{at.relative_to(folder).as_posix()}/"
        paths = {name: at / name for name in names if _counts(name)}
        found |= {below + name: path.stat() for name, path in paths.items() if path.is_file()}
    return found


def _counts(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in files.FILE_MANAGERS
