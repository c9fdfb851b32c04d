"""The splits are the specification's: exact counts, nothing lost, nothing twice, the same for the same seed."""

from fer_utils.classes import CLASSES
from fer_utils.data.splits import EMOTION_DETECTION, FER2013, SPLITS, assign_splits, count_table

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# FER2013's images of each class, in the order of CLASSES.
REAL_TRAIN = dict(zip(CLASSES, (3995, 436, 4097, 7215, 4830, 3171, 4965), strict=True))
REAL_TEST = dict(zip(CLASSES, (958, 111, 1024, 1774, 1247, 831, 1233), strict=True))

sizes = st.fixed_dictionaries({label: st.integers(0, 30) for label in CLASSES})
fractions = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**32 - 1)


def _table(train: dict, test: dict, second: int | None = None) -> pd.DataFrame:
    """Both sources; the second holds the first's images, or `second` of each class."""
    rows = []
    for source in (FER2013, EMOTION_DETECTION):
        for part, counts in (("train", train), ("test", test)):
            for label, n in counts.items():
                for i in range(n if source == FER2013 or second is None else second):
                    usage = "Training" if part == "train" else ("PublicTest", "PrivateTest")[i % 2]
                    rows.append((source, part, label, usage if source == FER2013 else "", ""))
    return pd.DataFrame(rows, columns=["source", "part", "label", "usage", "flags"])


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, fractions, seeds)
def test_val_takes_its_rounded_share_of_each_class_and_nothing_is_lost(train, test, fraction, seed):
    table = _table(train, test, second=2)
    split = assign_splits(table, fraction, "all", seed)
    assert list(split.index) == list(table.index) and set(split) <= set(SPLITS)
    val = table[split == "VAL"]
    assert set(val["source"]) <= {FER2013} and set(val["part"]) <= {"train"}
    for label, n in train.items():
        assert (val["label"] == label).sum() == round(n * fraction)
    is_test = (table["source"] == FER2013) & (table["part"] == "test")
    assert ((split == "TEST") == is_test).all()
    assert (split[table["source"] == EMOTION_DETECTION] == "TRAIN").all()


@settings(max_examples=25, deadline=None)
@given(sizes, fractions, seeds)
def test_the_split_follows_from_the_seed(train, fraction, seed):
    table = _table(train, train, second=0)
    assert assign_splits(table, fraction, "all", seed).equals(assign_splits(table, fraction, "all", seed))


def test_another_seed_chooses_other_images():
    table = _table(dict.fromkeys(CLASSES, 40), dict.fromkeys(CLASSES, 2))
    assert not assign_splits(table, 0.25, "all", 1).equals(assign_splits(table, 0.25, "all", 2))


def test_one_class_does_not_move_another():
    few, many = dict.fromkeys(CLASSES, 20), dict.fromkeys(CLASSES, 20) | {"angry": 25}
    chosen = []
    for train in (few, many):
        table = _table(train, few, second=0)
        split = assign_splits(table, 0.25, "all", 5)
        chosen.append(split[(table["label"] == "sad") & (table["part"] == "train")].tolist())
    assert chosen[0] == chosen[1] and "VAL" in chosen[0]


@settings(max_examples=25, deadline=None)
@given(sizes, seeds)
def test_private_takes_the_private_part_alone_and_leaves_the_rest_as_it_is(test, seed):
    test = test | {"fear": 4}
    table = _table(dict.fromkeys(CLASSES, 8), test)
    private, everything = (assign_splits(table, 0.25, usage, seed) for usage in ("private", "all"))
    is_public = (table["source"] == FER2013) & (table["usage"] == "PublicTest")
    assert (private[is_public] == "").all() and (everything[is_public] == "TEST").all()
    assert private[~is_public].equals(everything[~is_public])


def test_private_needs_a_source_that_tells():
    table = _table(dict.fromkeys(CLASSES, 4), dict.fromkeys(CLASSES, 2)).assign(usage="")
    with pytest.raises(ValueError, match="does not tell"):
        assign_splits(table, 0.25, "private", 0)


def test_an_unreadable_image_stands_in_no_split_and_counts_for_none():
    table = _table(dict.fromkeys(CLASSES, 8), dict.fromkeys(CLASSES, 4))
    table.loc[table.groupby(["source", "part", "label"]).head(4).index, "flags"] = "unreadable"
    split = assign_splits(table, 0.25, "all", 0)
    assert ((split == "") == (table["flags"] == "unreadable")).all()
    assert (split == "VAL").sum() == 7 * round(4 * 0.25)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(ValueError, match="val_fraction"):
        assign_splits(_table(dict.fromkeys(CLASSES, 1), {}), fraction, "all", 0)


def test_an_unknown_usage_is_refused():
    with pytest.raises(ValueError, match="'public', expected 'all' or 'private'"):
        assign_splits(_table(dict.fromkeys(CLASSES, 1), {}), 0.25, "public", 0)


def test_the_real_class_totals_give_the_specified_counts():
    table = _table(REAL_TRAIN, REAL_TEST)
    counts = count_table(table.assign(split=assign_splits(table, 0.25, "all", 42)))
    assert abs(counts.loc["total", "TRAIN"] - 57_418) <= 2
    assert abs(counts.loc["total", "VAL"] - 7_178) <= 2
    assert counts.loc["total", "TEST"] == 7_178
    assert counts["TEST"].drop("total").to_dict() == REAL_TEST
    for label, n in REAL_TRAIN.items():
        assert counts.loc[label, "VAL"] == round(n / 4)
        assert counts.loc[label, "TRAIN"] == 2 * n - round(n / 4) + REAL_TEST[label]


def test_the_count_table_leaves_out_what_stands_in_no_split():
    table = pd.DataFrame({"label": ["fear", "fear", "sad"], "split": ["TRAIN", "", "VAL"]})
    counts = count_table(table)
    assert list(counts.index) == [*CLASSES, "total"] and list(counts.columns) == list(SPLITS)
    assert counts.loc["fear"].tolist() == [1, 0, 0] and counts.loc["total"].tolist() == [1, 1, 0]
