"""Labels that are wrong are found by confident learning, from probabilities that never saw their picture."""

import sys

from fer_utils.classes import CLASSES
from fer_utils.evaluation import label_issues

import numpy as np
import pandas as pd
import pytest

PER_CLASS, WRONG = 40, 3


@pytest.fixture
def noisy():
    """Features of seven separate classes, and labels of which WRONG in each class are the next class's."""
    rng = np.random.default_rng(0)
    true = np.repeat(np.arange(7), PER_CLASS)
    features = rng.normal(0, 0.4, (len(true), 12)) + 3 * np.eye(7, 12)[true]
    is_wrong = np.arange(len(true)) % PER_CLASS < WRONG
    return features.astype(np.float32), np.where(is_wrong, (true + 1) % 7, true), is_wrong


def _pictures(labels: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(len(labels))],
            "label": [CLASSES[code] for code in labels],
            "group": np.arange(len(labels)),
            "row_in_train": np.arange(len(labels)),
        }
    )


def test_wrong_labels_come_first_and_are_flagged(noisy):
    features, labels, is_wrong = noisy
    found = label_issues.find_in_training(_pictures(labels), features, seed=1)
    assert len(found) == len(labels)
    wrong = set(np.flatnonzero(is_wrong))
    first = found["row_in_train"].iloc[: len(wrong)]
    assert len(set(first) & wrong) >= 0.9 * len(wrong)
    assert found["is_issue"].iloc[: len(wrong) // 2].all() and found["is_issue"].sum() < 2 * len(wrong)
    assert (found.loc[found["row_in_train"].isin(wrong), "quality"] < 0.5).mean() > 0.9
    repeated = label_issues.find_in_training(_pictures(labels), features, seed=1)
    assert repeated.equals(found)


def test_copies_of_a_picture_are_never_in_different_folds(noisy):
    """Noise that only a copy can explain: with its copy in the fit the probe would know it by heart."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(140, 800)).astype(np.float32)
    labels = np.arange(140) % 7
    twice, labels, groups = np.tile(features, (2, 1)), np.tile(labels, 2), np.tile(np.arange(140), 2)
    together = label_issues.probe(twice.copy(), labels, groups, seed=0)
    apart = label_issues.probe(twice.copy(), labels, np.arange(280), seed=0)
    right = [(found.argmax(axis=1) == labels).mean() for found in (together, apart)]
    assert right[0] < 0.3 < 0.8 < right[1]


def test_more_features_than_pictures_make_no_difference(noisy):
    """Features that are all 0 change nothing."""
    features, labels, _ = noisy
    few, many = features, np.pad(features, ((0, 0), (0, 2 * len(labels))))
    found = [label_issues.probe(each, labels, np.arange(len(labels)), seed=0) for each in (few, many)]
    assert found[0] == pytest.approx(found[1], abs=1e-4)  # the tolerance of the probe's solver


def test_probabilities_are_out_of_sample_and_sum_to_one(noisy):
    features, labels, _ = noisy
    found = label_issues.probe(features, labels, np.arange(len(labels)), seed=0)
    assert found.sum(axis=1) == pytest.approx(np.ones(len(labels)))


def test_a_class_with_fewer_pictures_than_folds_is_named(noisy):
    features, labels, _ = noisy
    kept = (labels != CLASSES.index("disgust")) | (np.arange(len(labels)) % PER_CLASS < 2)
    with pytest.raises(ValueError, match=r"TRAIN has \d different pictures of disgust; 5 folds need as many"):
        label_issues.probe(features[kept], labels[kept], np.arange(kept.sum()), seed=0)


def test_without_cleanlab_the_message_says_what_to_install(noisy, monkeypatch):
    _, labels, _ = noisy
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(ImportError, match="pip install cleanlab"):
        label_issues.find(_pictures(labels), np.full((len(labels), 7), 1 / 7))


def _issues() -> pd.DataFrame:
    """Ten issues of `sad`, the most doubtful first; FER+ contradicts 1, 2, 4 and 9, has no majority on 3, no votes on 10."""
    said = {
        "sad": "0 0 0 10 0 0 0 0 0 0",
        "happy": "0 10 0 0 0 0 0 0 0 0",
        "nothing": "5 5 0 0 0 0 0 0 0 0",
        "none": "",
    }
    answers = ["happy", "happy", "nothing", "happy", "sad", "sad", "sad", "sad", "happy", "none"]
    return pd.DataFrame(
        {"label": "sad", "votes": [said[name] for name in answers], "is_issue": [True] * 3 + [False] * 7}
    )


def test_the_worth_of_issues_counts_pictures_with_a_majority():
    table = label_issues.worth(_issues(), tops=(4,))
    own, first = table.loc["cleanlab's own threshold"], table.loc["first 4"]
    assert (own["pictures"], own["precision"], own["recall"]) == (2, 1.0, pytest.approx(2 / 4))
    assert (first["pictures"], first["precision"], first["recall"]) == (4, 0.75, pytest.approx(3 / 4))
    assert own["chance"] == pytest.approx(4 / 8) and first["times chance"] == pytest.approx(1.5)


def test_where_ferplus_contradicts_nothing_there_is_no_worth():
    issues = _issues()
    assert label_issues.worth(issues.assign(votes="")).empty
    assert label_issues.worth(issues.assign(votes="0 0 0 10 0 0 0 0 0 0")).empty
