"""Which image goes to TRAIN, VAL and TEST: the specification's rule, on tables alone.

Knows nothing of pixels, files or models.
"""

from fer_utils.classes import CLASSES

import numpy as np
import pandas as pd

SPLITS = ("TRAIN", "VAL", "TEST")
FER2013 = "fer2013"
EMOTION_DETECTION = "emotion_detection"


def assign_splits(table: pd.DataFrame, val_fraction: float, test_usage: str, seed: int) -> pd.Series:
    """Give each image its split.

    TRAIN takes every Emotion Detection FER image and the rest of FER2013's train part, of which VAL takes
    round(n × val_fraction) of each class; TEST takes FER2013's test part: all of it, or with `test_usage="private"` the
    PrivateTest images alone, the others then standing in no split (""). So does an image flagged `unreadable`.

    table: columns source, part, label, usage, flags. Returns a Series of TRAIN, VAL, TEST or "" on the same index.
    Raises ValueError for an unknown `test_usage`, for a fraction outside (0, 1), and for "private" where the source does
    not tell Public from Private.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}, expected a share between 0 and 1")
    readable = ~table["flags"].str.split().map(lambda flags: "unreadable" in flags).astype(bool)
    split = pd.Series("TRAIN", index=table.index).where(readable, "")
    is_fer = readable & (table["source"] == FER2013)
    is_test = is_fer & (table["part"] == "test")
    split[is_test] = "TEST"
    if test_usage == "private":
        if not (table.loc[is_test, "usage"] == "PrivateTest").any():
            raise ValueError("test_usage is 'private', but this FER2013 does not tell PublicTest from PrivateTest")
        split[is_test & (table["usage"] != "PrivateTest")] = ""
    elif test_usage != "all":
        raise ValueError(f"test_usage is {test_usage!r}, expected 'all' or 'private'")
    for code, label in enumerate(CLASSES):
        members = table.index[is_fer & (table["part"] == "train") & (table["label"] == label)]
        chosen = np.random.default_rng([seed, code]).permutation(len(members))[: round(len(members) * val_fraction)]
        split[members[chosen]] = "VAL"
    return split


def count_table(table: pd.DataFrame) -> pd.DataFrame:
    """Images of each class (rows, in CLASSES order, then `total`) in each split (columns)."""
    counts = pd.crosstab(table["label"], table["split"]).reindex(index=CLASSES, columns=SPLITS, fill_value=0)
    counts.loc["total"] = counts.sum()
    counts.columns.name = counts.index.name = None
    return counts
