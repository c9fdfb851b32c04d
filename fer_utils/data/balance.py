"""Balances TRAIN: fills small classes with augmented copies, thins out large ones.

Knows targets and the augmentation pipeline; knows nothing of sources, splits or models.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from fer_utils import images
from fer_utils.classes import CLASSES
from fer_utils.data import augmentation

import cv2
import numpy as np
import pandas as pd

_POOL_PAYS_FROM = 2_000  # augmentations; under about two seconds of work, starting processes costs more


def plan_balance(table: pd.DataFrame, targets: Mapping[str, int], max_per_class: int, seed: int) -> pd.DataFrame:
    """Decide which images TRAIN_BALANCED holds.

    A class under its target is filled up to it with augmented copies, its images taking turns in a random order; a
    class at or above its target gets none. Then a class over `max_per_class` is thinned to it at random.

    table: columns label and path, one row a TRAIN image. Returns columns label, path (of the TRAIN image), copy (0: the
    image itself; k ≥ 1: its k-th augmented copy), in order of class, path and copy; the choice depends on `seed` and
    the paths alone, not on the rows' order. Raises ValueError for a class without images.
    """
    parts = []
    for code, label in enumerate(CLASSES):
        paths = np.sort(table.loc[table["label"] == label, "path"].to_numpy(str))
        if not len(paths):
            raise ValueError(f"TRAIN has no images of {label}: there is nothing to balance")
        rng = np.random.default_rng([seed, code])
        fill = np.arange(max(0, targets[label] - len(paths)))
        turns = rng.permutation(len(paths))[fill % len(paths)]
        plan = pd.DataFrame(
            {
                "label": label,
                "path": np.concatenate([paths, paths[turns]]),
                "copy": np.concatenate([np.zeros(len(paths), int), 1 + fill // len(paths)]),
            }
        )
        kept = np.sort(rng.permutation(len(plan))[:max_per_class])
        parts.append(plan.iloc[kept].sort_values(["path", "copy"]))
    return pd.concat(parts, ignore_index=True)


def balanced_name(path: str, copy: int) -> str:
    """`<class>/<file>` of a planned image inside TRAIN_BALANCED."""
    file = Path(path)
    name = file.name if copy == 0 else f"{file.stem}_aug{copy}.png"
    return f"{file.parent.name}/{name}"


def write_balanced(
    plan: pd.DataFrame, read_from: Path, folder: Path, seed: int, workers: int, progress: Callable[[Iterable], Iterable]
) -> None:
    """Write every planned image below `folder`; `plan["path"]` is relative to `read_from`.

    Originals are copied byte for byte, augmented copies written as PNG by `workers` processes. 0 workers: one a core, or
    this process alone where there is little to do.
    """
    for label in CLASSES:
        (folder / label).mkdir(parents=True, exist_ok=True)
    originals, copies = plan[plan["copy"] == 0], plan[plan["copy"] > 0]
    for path in progress(originals["path"]):
        (folder / balanced_name(path, 0)).write_bytes((read_from / path).read_bytes())
    jobs = [
        (path, int(copy), read_from, folder, seed) for path, copy in zip(copies["path"], copies["copy"], strict=True)
    ]
    workers = workers or (os.cpu_count() or 1 if len(jobs) >= _POOL_PAYS_FROM else 1)
    if workers == 1:
        for job in progress(jobs):
            _write_augmented(job)
        return
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        for _ in progress(pool.map(_write_augmented, jobs, chunksize=64)):
            pass


def _write_augmented(job: tuple) -> None:
    path, copy, read_from, folder, seed = job
    image, _ = images.decode((read_from / path).read_bytes(), path)
    (folder / balanced_name(path, copy)).write_bytes(
        images.encode_png(augmentation.augmented_copy(image, path, copy, seed))
    )
