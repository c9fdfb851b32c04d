"""The audit tells what the pairs of copies mean, and the policies do what they say."""

from fer_utils.classes import CLASSES
from fer_utils.data import audit, near_duplicates
from fer_utils.data.archives import DatasetError
from fer_utils.data.audit import LeakageError, apply_policy, describe_copies
from fer_utils.data.splits import SPLITS

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# Seven images: 0, 1, 2 are one picture, 3 and 4 another, 5 and 6 have no copy.
TABLE = pd.DataFrame(
    {
        "split": ["TRAIN", "TRAIN", "TEST", "TRAIN", "VAL", "VAL", "TEST"],
        "label": ["sad", "sad", "angry", "fear", "fear", "happy", "happy"],
        "flags": ["", "blank", "", "", "", "", ""],
    }
)
PAIRS = pd.DataFrame(
    [(0, 1, "re-encoded", 0.1), (0, 2, "exact", 0.0), (3, 4, "flipped", 0.1)],
    columns=["first", "second", "kind", "distance"],
)
NO_PAIRS = PAIRS.iloc[:0]


@st.composite
def audited(draw) -> pd.DataFrame:
    """Up to 40 images in random splits, labels and groups."""
    n = draw(st.integers(1, 40))
    table = pd.DataFrame(
        {
            "split": draw(st.lists(st.sampled_from(["TRAIN", "VAL", "TEST", ""]), min_size=n, max_size=n)),
            "label": draw(st.lists(st.sampled_from(["sad", "fear", "happy"]), min_size=n, max_size=n)),
            "flags": draw(st.lists(st.sampled_from(["", "blank", "colour resized"]), min_size=n, max_size=n)),
        }
    )
    ends = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] < pair[1])
    links = draw(st.lists(ends, max_size=n, unique=True)) if n > 1 else []
    kinds = draw(st.lists(st.sampled_from(near_duplicates.KINDS), min_size=len(links), max_size=len(links)))
    rows = [(*link, kind, 0.0) for link, kind in zip(links, kinds, strict=True)]
    pairs = pd.DataFrame(rows, columns=PAIRS.columns).astype({"first": int, "second": int})
    return describe_copies(table, pairs)


def test_a_group_is_a_chain_of_copies():
    assert describe_copies(TABLE, PAIRS)["group"].tolist() == [0, 0, 0, 1, 1, 2, 3]


def test_the_relation_is_the_closest_tie():
    relation = describe_copies(TABLE, PAIRS)["relation"].tolist()
    assert relation == ["exact", "re-encoded", "exact", "flipped", "flipped", "", ""]


def test_the_order_of_pairs_does_not_matter():
    assert describe_copies(TABLE, PAIRS.iloc[::-1]).equals(describe_copies(TABLE, PAIRS))


def test_a_conflict_is_a_group_with_two_labels():
    assert describe_copies(TABLE, PAIRS)["label_conflict"].tolist() == [True, True, True, False, False, False, False]


def test_without_pairs_every_image_stands_alone():
    table = describe_copies(TABLE, NO_PAIRS)
    assert table["group"].is_unique and set(table["relation"]) == {""} and not table["label_conflict"].any()


def test_each_direction_is_counted():
    expected = dict.fromkeys(audit.cross_split_counts(describe_copies(TABLE, NO_PAIRS)), 0)
    assert len(expected) == 6
    expected |= {
        "train_images_in_test": 2,
        "test_images_in_train": 1,
        "train_images_in_val": 1,
        "val_images_in_train": 1,
    }
    assert audit.cross_split_counts(describe_copies(TABLE, PAIRS)) == expected


def test_keep_changes_nothing():
    table = describe_copies(TABLE, PAIRS)
    assert apply_policy(table, "keep", "one").equals(table)


def test_drop_takes_copies_of_val_and_test_out_of_train_and_says_so():
    before = describe_copies(TABLE, PAIRS)
    after = apply_policy(before, "drop", "one")
    assert after["split"].tolist() == ["", "", "TEST", "", "VAL", "VAL", "TEST"]
    assert after["flags"].tolist() == ["dropped:leak", "blank dropped:leak", "", "dropped:leak", "", "", ""]
    assert before.equals(describe_copies(TABLE, PAIRS))  # the caller's table is left alone


def test_drop_takes_copies_of_test_out_of_val():
    table = describe_copies(TABLE.assign(split=["VAL", "TRAIN", "TEST", "TRAIN", "TRAIN", "VAL", "TEST"]), PAIRS)
    after = apply_policy(table, "drop", "all")
    assert after["split"].tolist() == ["", "", "TEST", "TRAIN", "TRAIN", "VAL", "TEST"]


def test_one_keeps_the_first_image_with_the_commonest_label():
    table = pd.DataFrame({"split": "TRAIN", "label": ["fear", "sad", "sad", "happy"], "flags": ""}, index=range(4))
    pairs = pd.DataFrame([(0, 1, "exact", 0.0), (1, 2, "exact", 0.0)], columns=PAIRS.columns)
    one = apply_policy(describe_copies(table, pairs), "drop", "one")
    assert one["split"].tolist() == ["", "TRAIN", "", "TRAIN"]
    assert one["flags"].tolist() == ["dropped:copy", "", "dropped:copy", ""]
    assert apply_policy(describe_copies(table, pairs), "drop", "all")["split"].eq("TRAIN").all()


def _filled() -> pd.DataFrame:
    """An image of each class in each split, no two the same."""
    rows = [(split, label) for split in SPLITS for label in CLASSES]
    return describe_copies(pd.DataFrame(rows, columns=["split", "label"]).assign(flags=""), NO_PAIRS)


def test_splits_with_which_nothing_could_be_trained_are_refused_in_01():
    table = _filled()
    audit.require_filled(table)
    train, val = table["split"] == "TRAIN", table["split"] == "VAL"
    audit.require_filled(table.assign(split=table["split"].mask(val & (table["label"] == "disgust"), "")))
    for rows, said in ((val, "in VAL; 0 copies"), (train & (table["label"] == "sad"), "in TRAIN/sad; 0 copies")):
        with pytest.raises(DatasetError, match=f"no image is left {said}"):
            audit.require_filled(table.assign(split=table["split"].mask(rows, "")))
    again = pd.DataFrame({"first": range(7), "second": range(14, 21), "kind": "exact", "distance": 0.0})
    dropped = apply_policy(describe_copies(table, again), "drop", "one")  # TEST holds the pictures of TRAIN
    with pytest.raises(
        DatasetError, match=r"in TRAIN/angry, .*TRAIN/neutral; 7 copies of images of VAL or TEST and 0 copies"
    ):
        audit.require_filled(dropped)


def test_fail_raises_with_the_counts_and_passes_clean_splits():
    with pytest.raises(LeakageError, match=r"2 train images in test; 1 test images in train.*leakage=drop"):
        apply_policy(describe_copies(TABLE, PAIRS), "fail", "one")
    clean = describe_copies(TABLE, NO_PAIRS)
    assert apply_policy(clean, "fail", "one").equals(clean)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="'remove', expected one of keep, drop, fail"):
        apply_policy(describe_copies(TABLE, PAIRS), "remove", "one")


@settings(max_examples=80, deadline=None)
@given(audited(), st.sampled_from(["one", "all"]))
def test_after_drop_no_group_stands_in_two_splits_and_test_is_untouched(table, copies):
    after = apply_policy(table, "drop", copies)
    standing = after[after["split"] != ""]
    assert (standing.groupby("group")["split"].nunique() <= 1).all()
    assert (after["split"] == "TEST").equals(table["split"] == "TEST")
    moved = after["split"] != table["split"]
    assert (after.loc[moved, "split"] == "").all()
    assert (moved == (after["flags"] != table["flags"])).all()
    assert after["flags"][moved].str.contains("dropped:").all()
    # Nothing is dropped without need: a picture that stood only in TRAIN, or only in VAL, is still there.
    only = table[table["split"] != ""].groupby("group")["split"].agg(set)
    kept = set(standing["group"])
    assert set(only.index) == kept
    assert len(standing) >= len(only)


@settings(max_examples=80, deadline=None)
@given(audited())
def test_with_one_each_train_group_has_one_image_with_its_commonest_label(table):
    leaks_out = apply_policy(table, "drop", "all")
    after = apply_policy(table, "drop", "one")
    train, many = after[after["split"] == "TRAIN"], leaks_out[leaks_out["split"] == "TRAIN"]
    assert train["group"].is_unique and set(train["group"]) == set(many["group"])
    votes = many.groupby("group")["label"].value_counts()
    for row in train.itertuples():
        assert votes[row.group][row.label] == votes[row.group].max()


@settings(max_examples=50, deadline=None)
@given(audited())
def test_counts_are_zero_just_where_no_group_crosses(table):
    crosses = (table[table["split"] != ""].groupby("group")["split"].nunique() > 1).any()
    assert any(audit.cross_split_counts(table).values()) == bool(crosses)


def test_the_summary_counts_what_was_found_and_what_was_done():
    table = apply_policy(describe_copies(TABLE, PAIRS), "drop", "one")
    found = audit.summary(table.assign(source=list("abbaaab")), PAIRS, "drop")
    assert found["policy"] == "drop" and found["test_images_in_train"] == found["val_images_in_train"] == 0
    assert found["images"] == {"TRAIN": 0, "VAL": 2, "TEST": 2}
    assert (found["dropped_leaks"], found["dropped_copies"], found["blank_images"]) == (3, 0, 1)
    assert found["dropped_leaks_by_source"] == {"a": 2, "b": 1}
    assert (found["distinct_pictures"], found["groups_of_copies"]) == (4, 2)
    assert found["images_in_groups_with_conflicting_labels"] == 3
    assert found["pairs"] == {"exact": 1, "re-encoded": 1, "cropped": 0, "flipped": 1}
    assert all(not isinstance(value, np.generic) for value in found.values())  # JSON takes it
