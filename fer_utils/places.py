"""Finds the project's and Kaggle's folders, and searches mounted folders.

Searches are limited, since a mounted dataset may have hundreds of thousands of files.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

SHIPPED = Path(__file__).parent / "shipped" / "small.onnx"  # the model that comes with this package
MAX_DEPTH = 7  # Kaggle mounts a model at models/<owner>/<model>/<framework>/<variation>/<version>
MAX_FOLDERS = 5_000
MAX_ENTRIES = 1_000  # read from each folder; folders of images have tens of thousands


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield (folder, names of its folders, names of its files) of `root` and below, breadth first, names sorted.

    A caller may remove names from the list of folders to skip them. Stops after MAX_DEPTH levels and MAX_FOLDERS
    folders, and reads at most MAX_ENTRIES entries of a folder. A folder that cannot be read counts as empty.
    """
    waiting = deque([(root, 0)])
    for _ in range(MAX_FOLDERS):
        if not waiting:
            return
        folder, depth = waiting.popleft()
        try:
            with os.scandir(folder) as found:
                entries = sorted((entry.name, entry.is_dir()) for entry in islice(found, MAX_ENTRIES))
        except OSError:
            entries = []
        folders = [name for name, is_folder in entries if is_folder]
        yield folder, folders, [name for name, is_folder in entries if not is_folder]
        if depth < MAX_DEPTH:
            waiting.extend((folder / name, depth + 1) for name in folders)


def find_files(root: Path, suffix: str) -> list[Path]:
    """The files below `root` whose names end in `suffix`, in any case, breadth first."""
    return [folder / name for folder, _, files in walk(root) for name in files if name.lower().endswith(suffix)]


def find_parts(root: Path, parts: Sequence[str], classes: Sequence[str]) -> list[Path]:
    """The folders at or below `root` that have a folder for each part, each with a folder for each class."""
    found = []
    for folder, folders, _ in walk(root):
        if set(parts) <= set(folders) and all((folder / part / name).is_dir() for part in parts for name in classes):
            found.append(folder)
            folders.clear()
    return found


def describe(root: Path, lines: int = 40) -> str:
    """What is mounted, for an error message: a line for each of the first folders with some of its entries."""
    found = [
        f"  {folder}: {', '.join([*(f'{name}/' for name in folders[:4]), *files[:4]]) or 'empty'}"
        for folder, folders, files in islice(walk(root), 1, lines + 1)
    ]
    return (
        "\n".join([f"mounted in {root} (at most {lines} folders are shown):", *sorted(found)])
        if found
        else f"nothing is mounted in {root}"
    )


class NotFoundHere(FileNotFoundError):
    """A file or folder that a stage needs is missing."""


def project_root() -> Path:
    """The working folder or its nearest parent that has `notebooks/`; without one, the working folder."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if _holds_notebooks(folder)), here)


def source_root() -> Path:
    """The folder with this project's `notebooks/` and `params/`: the project's root, or else this package's parent folder."""
    root = project_root()
    return root if _holds_notebooks(root) else Path(__file__).resolve().parents[1]


def _holds_notebooks(folder: Path) -> bool:
    return (folder / "notebooks" / "01_merge_split.py").is_file()


def kaggle_root() -> Path:
    """`/kaggle`, or the folder in the environment variable FER_KAGGLE_ROOT, which tests set."""
    return Path(os.environ.get("FER_KAGGLE_ROOT", "/kaggle"))


def on_kaggle() -> bool:
    """Whether this is a Kaggle notebook machine."""
    return (kaggle_root() / "input").is_dir() and (kaggle_root() / "working").is_dir()


def place(given: str) -> Path:
    """The path for a parameter's value: `/kaggle/…` is below Kaggle's root, a relative path below the project's root."""
    path = Path(given)
    if path.is_relative_to("/kaggle"):
        return kaggle_root() / path.relative_to("/kaggle")
    return Path(os.path.normpath(project_root() / path))


def shows_gpu(root: Path = Path("/")) -> bool:
    """Whether an NVIDIA driver shows a GPU. Does not import TensorFlow, which takes seconds.

    WSL2 shows a GPU of any maker as /dev/dxg; NVIDIA's driver for Windows adds libcuda.
    """
    is_wsl = (root / "dev/dxg").exists() and (root / "usr/lib/wsl/lib/libcuda.so.1").exists()
    return is_wsl or any((root / "dev").glob("nvidia[0-9]*"))
