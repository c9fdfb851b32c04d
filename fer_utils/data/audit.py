"""The leakage audit: describes copies across and within splits, and applies the leakage policy."""

from itertools import combinations
from typing import Any

from fer_utils.classes import CLASSES
from fer_utils.data import near_duplicates
from fer_utils.data.archives import DatasetError
from fer_utils.data.splits import SPLITS

import numpy as np
import pandas as pd

POLICIES = ("keep", "drop", "fail")


class LeakageError(ValueError):
    """Copies are in different splits, which the policy does not allow."""


def describe_copies(table: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Add the columns group, relation and label_conflict.

    group: a number shared by all copies of one picture. relation: the closest relation to another image of the group,
    `exact`, `re-encoded`, `cropped` or `flipped`, or "" without a copy. label_conflict: whether the group's labels differ.
    pairs: the result of `near_duplicates.find_pairs` for the table's rows.
    """
    relation = np.full(len(table), "", object)
    for kind in reversed(near_duplicates.KINDS):  # the closest last
        relation[pairs.loc[pairs["kind"] == kind, ["first", "second"]].to_numpy(int)] = kind
    return mark_conflicts(table.assign(group=near_duplicates.group(len(table), pairs), relation=relation))


def mark_conflicts(table: pd.DataFrame) -> pd.DataFrame:
    """The table with label_conflict: whether the labels of a picture's group differ."""
    return table.assign(label_conflict=table.groupby("group")["label"].transform("nunique") > 1)


def shares_group_with(table: pd.DataFrame, *splits: str) -> pd.Series:
    """Whether an image of the same group is in one of `splits`: bool, on the table's index."""
    return _in_groups_of(table, table["split"].isin(splits))


def seen_in_training(manifest: pd.DataFrame, trained: pd.Series) -> pd.Series:
    """Whether the model was trained on an image or a copy of it: bool, on the manifest's index.

    trained: paths of the images of TRAIN that the model was trained on, from `loading.originals`; not all of TRAIN, since 02
    reduces large classes. Raises ValueError for a path that is not an image of the manifest's TRAIN.
    """
    unknown = trained[~trained.isin(manifest.loc[manifest["split"] == "TRAIN", "path"])]
    if len(unknown):
        raise ValueError(
            f"the model was trained on {unknown.iloc[0]}, which manifest.csv does not list in TRAIN: run 02_balance and "
            "the notebooks after it again"
        )
    return _in_groups_of(manifest, manifest["path"].isin(trained))


def _in_groups_of(table: pd.DataFrame, rows: pd.Series) -> pd.Series:
    return table["group"].isin(table.loc[rows, "group"])


def apply_policy(table: pd.DataFrame, policy: str, train_copies: str) -> pd.DataFrame:
    """The table under a leakage policy.

    `keep` changes nothing. `drop` removes every image from TRAIN whose group is in VAL or TEST, and every image from VAL
    whose group is in TEST. With `train_copies="one"` it keeps one image of each group in TRAIN, the first with the group's
    most common label. A removed image has split "" and the flag `dropped:leak` or `dropped:copy`. `fail` raises
    LeakageError, with the counts, if any group is in two splits.
    """
    if policy not in POLICIES:
        raise ValueError(f"leakage is {policy!r}, expected one of {', '.join(POLICIES)}")
    if policy == "fail":
        require_no_leak(table)
    if policy != "drop":
        return table
    table = table.copy()
    _drop(table, (table["split"] == "VAL") & shares_group_with(table, "TEST"), "dropped:leak")
    _drop(table, (table["split"] == "TRAIN") & shares_group_with(table, "VAL", "TEST"), "dropped:leak")
    if train_copies == "one":
        train = table[table["split"] == "TRAIN"]
        votes = train.groupby(["group", "label"])["label"].transform("size")
        order = votes.sort_values(ascending=False, kind="stable").index
        first = train.loc[order].drop_duplicates("group")
        _drop(table, (table["split"] == "TRAIN") & ~table.index.isin(first.index), "dropped:copy")
    require_no_leak(table)
    return table


def require_filled(table: pd.DataFrame) -> None:
    """Raise DatasetError, with what was dropped, if VAL or TEST has no image, or TRAIN none of a class."""
    held = {*table["split"], *(table["split"] + "/" + table["label"])}
    if lacking := [name for name in ("VAL", "TEST", *(f"TRAIN/{label}" for label in CLASSES)) if name not in held]:
        leaks, copies = (table["flags"].str.contains(flag).sum() for flag in ("dropped:leak", "dropped:copy"))
        raise DatasetError(
            f"no image is left in {', '.join(lacking)}; {leaks:,} copies of images of VAL or TEST and {copies:,} copies within TRAIN "
            "were taken out. Add images that are no copies (merge_split.extra adds to TRAIN), or for VAL raise val_fraction"
        )


def _drop(table: pd.DataFrame, rows: pd.Series, flag: str) -> None:
    table.loc[rows, "split"] = ""
    add_flag(table, rows, flag)


def add_flag(table: pd.DataFrame, rows: pd.Series | pd.Index, flag: str) -> None:
    """Add a flag to these rows of the table, in place."""
    table.loc[rows, "flags"] = (table.loc[rows, "flags"] + " " + flag).str.strip()


def require_no_leak(table: pd.DataFrame) -> None:
    """Raise LeakageError, with the counts, if a group of copies is in two splits."""
    crossing = cross_split_counts(table)
    if any(crossing.values()):
        counts = "; ".join(f"{count:,} {key.replace('_', ' ')}" for key, count in crossing.items() if count)
        raise LeakageError(
            f"copies are in two splits: {counts}. leakage=drop (params/clean.yaml) removes them from TRAIN"
        )


def cross_split_counts(table: pd.DataFrame) -> dict[str, int]:
    """For each ordered pair of splits, the number of images of the first with a copy in the second."""
    counts = {}
    for pair in combinations(SPLITS, 2):
        for first, second in (pair, pair[::-1]):
            inside = (table["split"] == first) & shares_group_with(table, second)
            counts[f"{first.lower()}_images_in_{second.lower()}"] = int(inside.sum())
    return counts


def pairs_across_splits(table: pd.DataFrame) -> list[list[int]]:
    """For each image of VAL and TEST with a copy in TRAIN: its row, and the row of the first copy in TRAIN."""
    held_out = table.index[table["split"].isin(["VAL", "TEST"]) & shares_group_with(table, "TRAIN")]
    in_train = table[table["split"] == "TRAIN"].drop_duplicates("group").reset_index().set_index("group")["index"]
    return [[row, in_train[table["group"][row]]] for row in held_out]


def groups_with_conflicting_labels(table: pd.DataFrame) -> list[list[int]]:
    """For each group of copies with different labels: the rows of one copy of each label."""
    conflicts = table[table["label_conflict"]].drop_duplicates(["group", "label"])
    return [list(rows) for rows in conflicts.groupby("group").groups.values()]


def summary(table: pd.DataFrame, pairs: pd.DataFrame, policy: str) -> dict[str, Any]:
    """The content of leakage.json: counts for the final splits and for the sources."""
    sizes = np.bincount(table["group"])
    leaks = table["flags"].str.contains("dropped:leak")
    return {
        "policy": policy,
        **cross_split_counts(table),
        "images": {split: int((table["split"] == split).sum()) for split in SPLITS},
        "dropped_leaks": int(leaks.sum()),
        "dropped_leaks_by_source": table.loc[leaks, "source"].value_counts(sort=False).to_dict(),
        "dropped_copies": int(table["flags"].str.contains("dropped:copy").sum()),
        "blank_images": int(table["flags"].str.contains("blank").sum()),
        "distinct_pictures": len(sizes),
        "groups_of_copies": int((sizes > 1).sum()),
        "images_in_groups_with_conflicting_labels": int(table["label_conflict"].sum()),
        "pairs": {kind: int((pairs["kind"] == kind).sum()) for kind in near_duplicates.KINDS},
    }
