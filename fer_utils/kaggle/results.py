"""Leaves a run's results on Kaggle as few files: Kaggle keeps a notebook's `/kaggle/working`, where many small files are slow."""

import shutil
import zipfile
from pathlib import Path

from fer_utils import files
from fer_utils.pipeline import runs

_COMPRESSED = (".csv", ".json", ".html")  # other files are compressed already


def deliver(folders: runs.RunFolders) -> list[Path]:
    """Move confusion matrices, scores, report and model beside the run's folder, and the rest into `<folder>.zip`; return all.

    The image folders, which lie elsewhere (`data_dir`), are left where they are.
    """
    results = [folders.figure(f"confusion_matrix_{split}") for split in ("val", "test")]
    results += [folders.path(name) for name in ("metrics.json", "report.html", "model.keras")]
    left = []
    for path in results:
        with files.replacing(folders.run.parent / path.name) as temporary:
            shutil.move(path, temporary)
        left.append(folders.run.parent / path.name)
        print(left[-1])
    archive = folders.run.with_name(f"{folders.run.name}.zip")
    with files.replacing(archive) as temporary, zipfile.ZipFile(temporary, "w") as packed:
        for path in sorted(path for path in folders.run.rglob("[!.]*") if path.is_file()):  # without locks
            how = zipfile.ZIP_DEFLATED if path.suffix in _COMPRESSED else zipfile.ZIP_STORED
            packed.write(path, f"run/{path.relative_to(folders.run).as_posix()}", how)
        n_files = len(packed.namelist())
    files.remove(folders.run)
    print(f"{archive}: {n_files:,} files, {archive.stat().st_size / 1e6:,.0f} MB")
    return [*left, archive]
