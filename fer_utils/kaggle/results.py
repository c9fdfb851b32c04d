"""Leaves a run's results on Kaggle as few files: Kaggle keeps a notebook's `/kaggle/working`, where many small files are slow."""

import shutil
import zipfile
from pathlib import Path

from fer_utils import files
from fer_utils.pipeline import runs

_COMPRESSED = (".csv", ".json", ".html")  # other files are compressed already


def deliver(run: runs.Run) -> list[Path]:
    """Move confusion matrices, scores, report and model beside the run's folder, and the rest into `<folder>.zip`; return all.

    The image folders, which lie elsewhere (`data_dir`), are left where they are.
    """
    results = [run.figure(f"confusion_matrix_{split}") for split in ("val", "test")]
    results += [run.path(name) for name in ("metrics.json", "report.html", "model.keras")]
    left = []
    for path in results:
        with files.replacing(run.folder.parent / path.name) as temporary:
            shutil.move(path, temporary)
        left.append(run.folder.parent / path.name)
        print(left[-1])
    archive = run.folder.with_name(f"{run.name}.zip")
    with files.replacing(archive) as temporary, zipfile.ZipFile(temporary, "w") as packed:
        for path in sorted(path for path in run.folder.rglob("[!.]*") if path.is_file()):  # without locks
            how = zipfile.ZIP_DEFLATED if path.suffix in _COMPRESSED else zipfile.ZIP_STORED
            packed.write(path, f"run/{path.relative_to(run.folder).as_posix()}", how)
        n_files = len(packed.namelist())
    files.remove(run.folder)
    print(f"{archive}: {n_files:,} files, {archive.stat().st_size / 1e6:,.0f} MB")
    return [*left, archive]
