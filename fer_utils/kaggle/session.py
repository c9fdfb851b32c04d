"""What an exported notebook does on Kaggle beside its stages: first it chooses a backend, last it packs the results.

Kaggle keeps all of `/kaggle/working`, and is slow with many small files.
"""

import importlib.util
import os
import shutil
import zipfile
from pathlib import Path

from fer_utils import files, places
from fer_utils.pipeline import runs

_CUDA = ("jax_cuda12_plugin", "jax_cuda13_plugin")  # with which JAX computes on GPUs; Kaggle's image has the first


def choose_backend() -> str:
    """Set KERAS_BACKEND to `jax` where JAX can use several GPUs, else to `tensorflow`; return sentences that say why.

    A value that is set stays. GPUs are counted by NVIDIA's files in `/dev`, the folder beside Kaggle's root.
    """
    if given := os.environ.get("KERAS_BACKEND"):
        return f"Keras computes with {given}, as KERAS_BACKEND says"
    n_gpus = len(list((places.kaggle_root().parent / "dev").glob("nvidia[0-9]*")))
    has_cuda = any(importlib.util.find_spec(name) for name in _CUDA)
    os.environ["KERAS_BACKEND"] = backend = "jax" if n_gpus > 1 and has_cuda else "tensorflow"
    return (
        f"Keras computes with {backend}. GPUs: {n_gpus}. JAX for CUDA: {'installed' if has_cuda else 'not installed'}."
    )


def deliver(run: runs.Run) -> list[Path]:
    """Move confusion matrices, scores, report and model beside the run's folder, and the rest into `<folder>.zip`;
    return all. The image folders, which lie elsewhere (`data_dir`), are left where they are."""
    left = []
    results = [run.figure(f"confusion_matrix_{split}") for split in ("val", "test")]
    for path in [*results, *map(run.path, ("metrics.json", "report.html", "model.keras"))]:
        with files.replacing(run.folder.parent / path.name) as temporary:
            shutil.move(path, temporary)
        left.append(run.folder.parent / path.name)
        print(left[-1])
    archive = run.folder.with_name(f"{run.name}.zip")
    with files.replacing(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(path for path in run.folder.rglob("[!.]*") if path.is_file()):  # without locks
            packed.write(path, f"run/{path.relative_to(run.folder).as_posix()}")
        n_files = len(packed.namelist())
    files.remove(run.folder)
    print(f"{archive}: {n_files:,} files, {archive.stat().st_size / 1e6:,.0f} MB")
    return [*left, archive]
