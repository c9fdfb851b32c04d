"""Transfers a run from one Kaggle notebook to the next as one zip file.

Kaggle keeps only a notebook's `/kaggle/working`, where many small files are slow, and mounts it read-only in the next
notebook. The next notebook finds the zip by the record that each finished stage writes.
"""

import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from fer_utils import files, places
from fer_utils.pipeline import parameters, runs

# The image folders that later stages read. TRAIN: only 02, and 05 with other test sets, in which it looks for copies of TRAIN.
_IMAGES_LEFT = {
    "merge_split": ("TRAIN", "VAL", "TEST"),
    "balance": ("TRAIN_BALANCED", "VAL", "TEST"),
    "train_head": ("TRAIN_BALANCED", "VAL", "TEST"),
    "fine_tune": ("VAL", "TEST"),
    "evaluate": (),
}
_RUN = "run"  # the folder in the zip with the run's files; the image folders are beside it
_COMPRESSED = (".csv", ".json", ".html")  # other files are compressed already


def images_left(stage: str, also: str) -> tuple[str, ...]:
    """The image folders that stages after `stage` read; also: the parameter of 05."""
    folders = _IMAGES_LEFT[stage]
    return ("TRAIN", *folders) if also and folders and "TRAIN" not in folders else folders


def pack(folders: runs.RunFolders, images: Sequence[str] = ()) -> Path:
    """Move the run's files, and these image folders, into `<folder of the run>.zip`; return it.

    The image folders must lie outside the run's folder (`data_dir` given).
    """
    archive = folders.run.with_name(f"{folders.run.name}.zip")
    with files.replacing(archive) as temporary, zipfile.ZipFile(temporary, "w") as packed:
        for path in _files_in(folders.run):
            _add(packed, path, f"{_RUN}/{path.relative_to(folders.run).as_posix()}")
        for split in images:
            for path in _files_in(folders.path(f"images/{split}")):
                _add(packed, path, path.relative_to(folders.data).as_posix())
        n_files = len(packed.namelist())
    files.remove(folders.run)
    print(f"{archive}: {n_files:,} files, {archive.stat().st_size / 1e6:,.0f} MB")
    return archive


def deliver(folders: runs.RunFolders) -> list[Path]:
    """Move confusion matrices, scores, report and model beside the run's folder, and the rest into one zip."""
    results = [
        *(folders.path(f"confusion_matrix_{split.lower()}.png") for split in ("VAL", "TEST")),
        folders.path("metrics.json"),
        folders.path("report.html"),
        folders.path("model.keras"),
    ]
    left = []
    for path in results:
        with files.replacing(folders.run.parent / path.name) as temporary:
            shutil.move(path, temporary)
        left.append(folders.run.parent / path.name)
        print(left[-1])
    return [*left, pack(folders)]


def restore(stage: str, folders: runs.RunFolders) -> None:
    """Unpack the output of the stage before `stage`, unless it is there already.

    Searches everything mounted for a zip that `pack` wrote, or a folder with its content, by the record of the previous
    stage. Raises NotFoundHere, saying what to attach and what is mounted, if none or several are found.
    """
    names = list(parameters.STAGES)
    before = names[names.index(stage) - 1]
    if folders.stage_record(before).is_file():
        print(f"{folders.run} holds the output of {before}")
        return
    inputs = places.kaggle_root() / "input"
    mark = f"{_RUN}/stages/{before}.json"
    found = [path for path in places.find_files(inputs, ".zip") if _holds(path, mark)]
    found += [folder for folder, _, _ in places.walk(inputs) if (folder / mark).is_file()]
    if len(found) != 1:
        what = f"several outputs of {before} are mounted: {', '.join(map(str, found))}; detach all but one"
        raise places.NotFoundHere(
            what
            if found
            else f"{stage}: attach the output of the notebook {Path(parameters.STAGES[before]).stem} (Add Input, Notebooks); "
            f"none is there, {places.describe(inputs)}"
        )
    folders.data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folders.data, prefix=files.PARTIAL) as temporary:
        if found[0].is_dir():
            shutil.copytree(found[0], temporary, dirs_exist_ok=True)
        else:
            with zipfile.ZipFile(found[0]) as packed:
                packed.extractall(temporary)
        # The run's folder comes last: its record says that everything is there.
        for unpacked in sorted(Path(temporary).iterdir(), key=lambda path: path.name == _RUN):
            with files.replacing(
                folders.run if unpacked.name == _RUN else folders.path(f"images/{unpacked.name}")
            ) as placed:
                shutil.move(unpacked, placed)
    print(f"{before}'s output: {found[0]}")


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("[!.]*") if path.is_file())  # without hidden files, such as locks


def _add(packed: zipfile.ZipFile, path: Path, name: str) -> None:
    packed.write(path, name, zipfile.ZIP_DEFLATED if path.suffix in _COMPRESSED else zipfile.ZIP_STORED)


def _holds(path: Path, name: str) -> bool:
    try:
        with zipfile.ZipFile(path) as packed:
            return name in packed.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
