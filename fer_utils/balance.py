"""Balances TRAIN: fills small classes with augmented copies, thins out large ones.

Knows targets and the augmentation pipeline; knows nothing of sources, splits or models.
"""

import os
import random
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

from fer_utils import images
from fer_utils.classes import CLASSES

import cv2
import numpy as np
import pandas as pd

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look at PyPI on import

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


@lru_cache(maxsize=1)
def augmentation():
    """The specification's pipeline: flip, rotation, shear, brightness, contrast, hue shift.

    It takes and returns RGB. A hue shift leaves a grey picture as it is (its saturation is 0); it stands in the pipeline
    because the specification names it, and would act on colour pictures.
    """
    import albumentations as A  # noqa: N812 (the library's own convention); slow to import

    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.Affine(
                rotate=(-15, 15),  # degrees: heads tilt, they do not lie down
                shear=(-8, 8),  # degrees
                border_mode=cv2.BORDER_REFLECT_101,  # no black corners for the network to learn
                p=0.9,
            ),
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.8),
            A.HueSaturationValue(hue_shift_limit=10, sat_shift_limit=0, val_shift_limit=0, p=0.3),
        ]
    )


def augment(image: np.ndarray, path: str, copy: int, seed: int) -> np.ndarray:
    """The `copy`-th augmentation of one image: uint8 grey (48, 48) in and out.

    It depends on (seed, path, copy) alone, so neither the number of workers nor the order of the work changes it.
    """
    own_seed = np.random.SeedSequence([seed, copy, *path.encode()]).generate_state(1)[0]
    pipeline = augmentation()
    # One stream for all steps: `set_random_seed` would start each step's own stream at the same number, so that flip,
    # rotation and brightness happen together or not at all, and a copy in eleven is the very image it was made from.
    pipeline.set_random_state(np.random.default_rng(own_seed), random.Random(int(own_seed)))
    return pipeline(image=np.repeat(image[..., None], 3, axis=2))["image"][..., 0]


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
    (folder / balanced_name(path, copy)).write_bytes(images.encode_png(augment(image, path, copy, seed)))
