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
    return all. The image folders, which lie elsewhere (`data_dir`), are left where they are.

    Called again, after an error or after its end, it goes on with what is still in the folder.
    """
    results = [run.figure(f"confusion_matrix_{split}") for split in ("val", "test")]
    results += map(run.path, ("metrics.json", "report.html", "model.keras"))
    archive, left = run.folder.with_name(f"{run.name}.zip"), [run.folder.parent / path.name for path in results]
    if run.folder.is_dir():
        found = [path for path in run.folder.rglob("[!.]*") if path.is_file()]  # without locks
        with files.replacing(archive) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted({*found}.difference(results)):
                packed.write(path, f"run/{path.relative_to(run.folder).as_posix()}")
        for path in filter(Path.exists, results):
            with files.replacing(run.folder.parent / path.name) as temporary:
                shutil.move(path, temporary)
        # Renamed first: of a folder that is half removed, no new zip must be made.
        files.remove(run.folder.rename(run.folder.with_name(f".{run.name}")))
    print(*left, f"{archive}: {archive.stat().st_size / 1e6:,.0f} MB", sep="\n")
    return [*left, archive]
