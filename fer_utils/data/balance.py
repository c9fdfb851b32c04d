"""Balances TRAIN: adds augmented copies to small classes, and removes random images from large ones."""

from collections.abc import Mapping
from pathlib import Path

from fer_utils import files, images, places, progress
from fer_utils.classes import CLASSES
from fer_utils.data import augmentation, loading

import numpy as np
import pandas as pd

BALANCED = "TRAIN_BALANCED"


def without_issues(train: pd.DataFrame, issues_file: str) -> pd.DataFrame:
    """Rows of the manifest without those whose label `issues_file` doubts; prints how many. "" for the file changes nothing.

    A row is doubted if the file, which notebook 03 writes, has an issue (is_issue) with the same pixels and label. Raises
    NotFoundHere if it does not exist, TornFile if it is no such table.
    """
    if not issues_file:
        return train
    path = places.place(issues_file)
    if not path.is_file():
        raise places.NotFoundHere(f"issues_file: nothing at {path}; 03 writes it with find_label_issues")
    issues = loading.read_table(path, ("fingerprint", "label", "is_issue"))
    issues = issues[issues["is_issue"].astype(str) == "True"]
    doubted = (train["fingerprint"] + " " + train["label"]).isin(issues["fingerprint"] + " " + issues["label"])
    print(f"{doubted.sum():,} images whose label {path.name} doubts are left out")
    return train[~doubted]


def plan_balance(table: pd.DataFrame, targets: Mapping[str, int], max_per_class: int, seed: int) -> pd.DataFrame:
    """Decide which images are in TRAIN_BALANCED.

    A class below its target gets augmented copies up to the target, from its images in turn, in a random order; a class at
    or above its target gets none. Then a class with more than `max_per_class` images is reduced to it at random.

    table: columns label and path, one row per TRAIN image. Returns columns label, path (of the TRAIN image), copy (0: the
    image itself; k ≥ 1: its k-th augmented copy), in order of class, path and copy; the choice depends only on `seed` and
    the paths, not on the rows' order. Raises ValueError for a class without images.
    """
    parts = []
    for code, label in enumerate(CLASSES):
        paths = np.sort(table.loc[table["label"] == label, "path"].to_numpy(str))
        if not len(paths):
            raise ValueError(f"TRAIN has no images of {label}: leave fewer out, or add some with merge_split.extra")
        rng = np.random.default_rng([seed, code])
        fill = np.arange(max(0, targets[label] - len(paths)))
        turns = rng.permutation(len(paths))[fill % len(paths)]
        copies = np.concatenate([np.zeros(len(paths), int), 1 + fill // len(paths)])
        plan = pd.DataFrame({"label": label, "path": np.concatenate([paths, paths[turns]]), "copy": copies})
        kept = np.sort(rng.permutation(len(plan))[:max_per_class])
        parts.append(plan.iloc[kept].sort_values(["path", "copy"]))
    return pd.concat(parts, ignore_index=True)


def to_table(plan: pd.DataFrame) -> pd.DataFrame:
    """balanced.csv: label, path, train_path (of the original in TRAIN), both relative to the image folder, and copy."""
    names = [f"{BALANCED}/{balanced_name(path, copy)}" for path, copy in zip(plan["path"], plan["copy"], strict=True)]
    return plan.rename(columns={"path": "train_path"}).assign(path=names)[["label", "path", "train_path", "copy"]]


def count_table(train: pd.DataFrame, plan: pd.DataFrame) -> pd.DataFrame:
    """Number of images per class (rows, in CLASSES order) in TRAIN, in TRAIN_BALANCED, and of augmented ones in it."""
    counts = {
        "TRAIN": train["label"].value_counts(),
        BALANCED: plan["label"].value_counts(),
        "of them augmented": plan.loc[plan["copy"] > 0, "label"].value_counts(),
    }
    return pd.DataFrame(counts).reindex(CLASSES).fillna(0).astype(int).rename_axis(None)


def balanced_name(path: str, copy: int) -> str:
    """`<class>/<file>` of a planned image inside TRAIN_BALANCED."""
    file = Path(path)
    name = file.name if copy == 0 else f"{file.stem}_aug{copy}.png"
    return f"{file.parent.name}/{name}"


def write_balanced(plan: pd.DataFrame, folder: Path, seed: int) -> None:
    """Write every planned image to TRAIN_BALANCED below `folder`; `plan["path"]` is relative to `folder` too.

    Originals are copied byte for byte, augmented copies are written as PNG.
    """
    with files.replacing(folder / BALANCED) as temporary:
        for label in CLASSES:
            (temporary / label).mkdir(parents=True)
        for path, copy in progress.bar(plan[["path", "copy"]].to_numpy(), "writing images"):
            content = (folder / path).read_bytes()
            if copy:
                image, _ = images.decode(content, path)
                content = images.encode_png(augmentation.augmented_copy(image, path, int(copy), seed))
            (temporary / balanced_name(path, copy)).write_bytes(content)
