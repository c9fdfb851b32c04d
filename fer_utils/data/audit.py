"""The leakage audit: which images are copies of which, across splits and within, and what is done about it.

Knows splits, labels and groups of copies; leaves finding copies to `near_duplicates`.
"""

from itertools import combinations
from typing import Any

from fer_utils.data import near_duplicates
from fer_utils.data.splits import SPLITS

import numpy as np
import pandas as pd

POLICIES = ("keep", "drop", "fail")
_STRENGTH = {kind: strength for strength, kind in enumerate(near_duplicates.KINDS)}


class LeakageError(ValueError):
    """Copies stand across splits where the policy allows none."""


def describe_copies(table: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Add what the pairs of copies say of each image.

    group: a number that all copies of one picture share. relation: the closest tie of the image to another of its group,
    `exact`, `re-encoded`, `cropped` or `flipped`; "" where it has no copy. label_conflict: whether the group's labels disagree.
    pairs: as `near_duplicates.find_pairs` gives them for the table's rows.
    """
    groups = near_duplicates.group(len(table), pairs)
    both = pd.concat(
        [
            pairs[["first", "kind"]].set_axis(["row", "kind"], axis=1),
            pairs[["second", "kind"]].set_axis(["row", "kind"], axis=1),
        ]
    )
    closest = both.assign(strength=both["kind"].map(_STRENGTH)).sort_values("strength").drop_duplicates("row")
    relation = pd.Series("", index=range(len(table)), dtype=object)
    relation[closest["row"].to_numpy()] = closest["kind"].to_numpy()
    n_labels = table["label"].groupby(groups).transform("nunique")
    return table.assign(group=groups, relation=relation.to_numpy(), label_conflict=n_labels.to_numpy() > 1)


def shares_group_with(table: pd.DataFrame, *splits: str) -> pd.Series:
    """Whether an image's group also stands in one of `splits`: bool, on the table's index."""
    return _in_groups_of(table, table["split"].isin(splits))


def seen_in_training(manifest: pd.DataFrame, trained: pd.Series) -> pd.Series:
    """Whether the model has seen an image's picture: whether it trained on a copy of it. Bool, on the manifest's index.

    trained: paths of the images of TRAIN that the model was trained on, as `datasets.originals` gives them. These are
    fewer than TRAIN holds: 02 thins out large classes, and `limit_per_class` draws from what is left. Raises ValueError
    for a path that is not an image of the manifest's TRAIN.
    """
    train = manifest.loc[manifest["split"] == "TRAIN", "path"]
    unknown = trained[~trained.isin(train)]
    if len(unknown):
        raise ValueError(
            f"the model was trained on {unknown.iloc[0]}, which manifest.csv does not list in TRAIN: run 02_balance and "
            "the notebooks after it again"
        )
    return _in_groups_of(manifest, manifest["path"].isin(trained))


def _in_groups_of(table: pd.DataFrame, rows: pd.Series) -> pd.Series:
    return table["group"].isin(set(table.loc[rows, "group"]))


def apply_policy(table: pd.DataFrame, policy: str, train_copies: str) -> pd.DataFrame:
    """Act on the audit.

    `keep` changes nothing. `drop` takes out of TRAIN every image whose group stands in VAL or TEST, out of VAL every
    image whose group stands in TEST, and with `train_copies="one"` leaves one image of a group in TRAIN, the first that
    carries the group's commonest label; what is taken out has split "" and the flag `dropped:leak` or `dropped:copy`.
    `fail` raises LeakageError, with the counts, where any group stands in two splits.
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
        first = (
            train.assign(votes=votes)
            .sort_values(["group", "votes"], ascending=[True, False], kind="stable")
            .drop_duplicates("group")
        )
        _drop(table, (table["split"] == "TRAIN") & ~table.index.isin(first.index), "dropped:copy")
    require_no_leak(table)
    return table


def _drop(table: pd.DataFrame, rows: pd.Series, flag: str) -> None:
    table.loc[rows, "split"] = ""
    table.loc[rows, "flags"] = (table.loc[rows, "flags"] + " " + flag).str.strip()


def require_no_leak(table: pd.DataFrame) -> None:
    """Raise LeakageError, with the counts, where a group of copies stands in two splits."""
    crossing = cross_split_counts(table)
    if any(crossing.values()):
        counts = "; ".join(f"{count:,} {key.replace('_', ' ')}" for key, count in crossing.items() if count)
        raise LeakageError(
            f"pictures stand in two splits: {counts}. leakage=drop (params/clean.yaml) takes them out of TRAIN"
        )


def cross_split_counts(table: pd.DataFrame) -> dict[str, int]:
    """For each ordered pair of splits how many images of the first have a copy in the second."""
    counts = {}
    for one, two in combinations(SPLITS, 2):
        for first, second in ((one, two), (two, one)):
            inside = (table["split"] == first) & shares_group_with(table, second)
            counts[f"{first.lower()}_images_in_{second.lower()}"] = int(inside.sum())
    return counts


def count_table(counts: dict[str, int]) -> pd.DataFrame:
    """The counts of cross_split_counts, a row each: `TEST images with a copy in TRAIN`."""
    names = [" images with a copy in ".join(key.upper().split("_IMAGES_IN_")) for key in counts]
    return pd.DataFrame({"under the split as specified": counts.values()}, names)


def pairs_across_splits(table: pd.DataFrame) -> list[list[int]]:
    """For each image of VAL and TEST with a copy in TRAIN: its row, and the row of the first such copy."""
    held_out = table.index[table["split"].isin(["VAL", "TEST"]) & shares_group_with(table, "TRAIN")]
    in_train = table[table["split"] == "TRAIN"].drop_duplicates("group").reset_index().set_index("group")["index"]
    return [[row, in_train[table["group"][row]]] for row in held_out]


def groups_with_conflicting_labels(table: pd.DataFrame) -> list[list[int]]:
    """For each group of copies whose labels disagree: the rows of one copy of each label."""
    conflicts = table[table["label_conflict"]].drop_duplicates(["group", "label"])
    return [list(rows) for rows in conflicts.groupby("group").groups.values()]


def summary(table: pd.DataFrame, pairs: pd.DataFrame, policy: str) -> dict[str, Any]:
    """The content of leakage.json: of the splits as they stand, and of the sources as they came."""
    sizes = np.bincount(table["group"])
    return {
        "policy": policy,
        **cross_split_counts(table),
        "images": {split: int((table["split"] == split).sum()) for split in SPLITS},
        "dropped_leaks": int(table["flags"].str.contains("dropped:leak").sum()),
        "dropped_copies": int(table["flags"].str.contains("dropped:copy").sum()),
        "blank_images": int(table["flags"].str.contains("blank").sum()),
        "distinct_pictures": len(sizes),
        "groups_of_copies": int((sizes > 1).sum()),
        "images_in_groups_with_conflicting_labels": int(table["label_conflict"].sum()),
        "pairs": {kind: int((pairs["kind"] == kind).sum()) for kind in near_duplicates.KINDS},
    }
