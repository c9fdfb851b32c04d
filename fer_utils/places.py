"""Looks through what is mounted, within bounds: a mount may hold hundreds of thousands of files.

Knows how to walk and to list folders; knows nothing of what is looked for.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

MAX_DEPTH = 7  # Kaggle mounts a model at models/<owner>/<model>/<framework>/<variation>/<version>
MAX_FOLDERS = 5_000
MAX_ENTRIES = 1_000  # of one folder; folders of images have tens of thousands


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield (folder, names of its folders, names of its files) of `root` and below, the nearest first, names sorted.

    A caller may take names out of the list of folders to leave them out. Stops after MAX_DEPTH levels and MAX_FOLDERS
    folders, and reads MAX_ENTRIES entries of a folder; a folder that cannot be read counts as empty.
    """
    waiting = deque([(root, 0)])
    for _ in range(MAX_FOLDERS):
        if not waiting:
            return
        folder, depth = waiting.popleft()
        folders, files = _entries(folder)
        yield folder, folders, files
        if depth < MAX_DEPTH:
            waiting.extend((folder / name, depth + 1) for name in folders)


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in islice(entries, MAX_ENTRIES):
                (folders if entry.is_dir() else files).append(entry.name)
    except OSError:
        return [], []
    return sorted(folders), sorted(files)


def find_files(root: Path, suffix: str) -> list[Path]:
    """The files below `root` whose names end in `suffix`, whatever its case, the nearest first."""
    return [folder / name for folder, _, files in walk(root) for name in files if name.lower().endswith(suffix)]


def find_parts(root: Path, parts: Sequence[str], classes: Sequence[str]) -> list[Path]:
    """The folders at or below `root` that hold a folder of each part, with a folder of each class in it."""
    found = []
    for folder, folders, _ in walk(root):
        if set(parts) <= set(folders) and all((folder / part / name).is_dir() for part in parts for name in classes):
            found.append(folder)
            folders.clear()
    return found


def describe(root: Path, lines: int = 40) -> str:
    """What is mounted, for an error: the folders of the first three levels with their numbers of entries, a line each."""
    found = []
    for folder, folders, files in walk(root):
        depth = len(folder.relative_to(root).parts)
        if depth >= 3:
            folders.clear()
        if depth:
            shown = ", ".join([*(f"{name}/" for name in _entries(folder)[0][:4]), *files[:4]])
            found.append(f"  {folder}: {shown or 'empty'}")
    if not found:
        return f"nothing is mounted in {root}"
    more = [f"  … and {len(found) - lines} more"] if len(found) > lines else []
    return "\n".join([f"mounted in {root}:", *sorted(found[:lines]), *more])


class NotFoundHere(FileNotFoundError):
    """Something that a stage needs is not where it should be."""


def project_root() -> Path:
    """The folder with `notebooks/`: the working folder or the nearest one above it, else the working folder."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if _holds_notebooks(folder):
            return folder
    return here


def source_root() -> Path:
    """The folder with this project's `notebooks/` and `params/`: the project's root, else where this package lies."""
    root = project_root()
    return root if _holds_notebooks(root) else Path(__file__).resolve().parents[1]


def _holds_notebooks(folder: Path) -> bool:
    return (folder / "notebooks" / "01_merge_split.py").is_file()


def kaggle_root() -> Path:
    """`/kaggle`; the environment variable FER_KAGGLE_ROOT moves it, for tests."""
    return Path(os.environ.get("FER_KAGGLE_ROOT", "/kaggle"))


def on_kaggle() -> bool:
    """Whether this is a Kaggle notebook machine."""
    return (kaggle_root() / "input").is_dir() and (kaggle_root() / "working").is_dir()


def place(given: str) -> Path:
    """A folder as given in a parameter; `/kaggle/…` moves with Kaggle's root, a relative one starts at the project's."""
    path = Path(given)
    if path.is_relative_to("/kaggle"):
        return kaggle_root() / path.relative_to("/kaggle")
    return project_root() / path


def shows_gpu() -> bool:
    """Whether an NVIDIA driver shows a GPU; asks no TensorFlow, whose import takes seconds."""
    return any(Path("/dev").glob("nvidia[0-9]*"))
