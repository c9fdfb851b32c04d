"""FER+'s file is checked against FER2013 row by row, and its majority rule is the published one."""

import hashlib

from fer_utils.classes import CLASSES
from fer_utils.data import addresses, ferplus, known_pictures
from fer_utils.data.sources import DatasetError

import numpy as np
import pandas as pd
import pytest


def _counts(**votes: int) -> np.ndarray:
    """One row of votes by answer; `_` for a space."""
    named = {name.replace("_", " "): n for name, n in votes.items()}
    return np.array([[named.pop(answer, 0) for answer in ferplus.ANSWERS]])


@pytest.fixture
def votes_file(drawn, tmp_path):
    """The drawn faces' votes, to damage: the file, and its text's lines."""
    folder = drawn[0].parent / "ferplus"
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / addresses.VOTES_FILE


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ({"happy": 6, "neutral": 4}, "happy"),
        ({"happy": 5, "neutral": 5}, ferplus.NO_MAJORITY),  # half is not more than half
        ({"happy": 5, "neutral": 3, "sad": 1, "fear": 1}, "happy"),  # 5 of 8 once single votes are dropped
        ({"happy": 4, "neutral": 2, "sad": 2, "fear": 1, "disgust": 1}, ferplus.NO_MAJORITY),  # 4 of 8
        ({"contempt": 6, "neutral": 4}, "contempt"),
        ({"unknown": 8, "sad": 2}, "unknown"),
        ({"not_a_face": 10}, "not a face"),
        ({"happy": 1, "sad": 1, "fear": 1}, ferplus.NO_MAJORITY),
    ],
)
def test_the_majority_is_what_ferplus_itself_decides(votes, expected):
    assert ferplus.outcome(_counts(**votes)).tolist() == [expected]
    assert ferplus.majority(_counts(**votes)).tolist() == [expected if expected in CLASSES else ""]


def test_a_distribution_leaves_out_single_votes_and_what_is_no_class():
    counts = _counts(happy=6, neutral=2, sad=1, contempt=1)
    expected = {"happy": 0.75, "neutral": 0.25}
    assert ferplus.distribution(counts)[0] == pytest.approx([expected.get(label, 0) for label in CLASSES])
    assert not ferplus.distribution(_counts(not_a_face=10)).any()


def test_soft_targets_are_the_votes_or_the_label_where_there_are_none():
    votes = pd.Series([*ferplus.as_text(_counts(happy=8, neutral=2)), "", *ferplus.as_text(_counts(not_a_face=10))])
    targets = ferplus.soft_targets(np.array([CLASSES.index("sad"), 4, 5]), votes, 1.0)
    assert targets.sum(axis=1) == pytest.approx([1, 1, 1])
    assert targets[0, CLASSES.index("happy")] == pytest.approx(0.8) and targets[0, CLASSES.index("sad")] == 0
    assert targets[1:].argmax(axis=1).tolist() == [4, 5] and targets[1:].max(axis=1).tolist() == [1, 1]


def test_a_soft_target_can_leave_a_share_on_the_label():
    votes = pd.Series([*ferplus.as_text(_counts(happy=8, neutral=2)), ""])
    targets = ferplus.soft_targets(np.array([CLASSES.index("sad"), 4]), votes, 0.4)
    expected = {"sad": 0.6, "happy": 0.32, "neutral": 0.08}
    assert targets[0] == pytest.approx([expected.get(label, 0) for label in CLASSES])
    assert targets[1].tolist() == np.eye(len(CLASSES))[4].tolist() and targets.dtype == np.float32


def test_votes_beside_the_labels_weigh_as_much_as_asked_and_nothing_where_there_are_none():
    votes = pd.Series([*ferplus.as_text(_counts(happy=8, neutral=2)), "", *ferplus.as_text(_counts(not_a_face=10))])
    labels = np.array([CLASSES.index("sad"), 4, 5])
    soft = ferplus.soft_targets(labels, votes, 1.0)
    targets = ferplus.append_votes(soft, votes, 0.5)
    assert targets.shape == (3, 14) and targets.dtype == np.float32
    assert (targets[:, :7] == soft).all()
    expected = {"happy": 0.4, "neutral": 0.1}
    assert targets[0, 7:] == pytest.approx([expected.get(label, 0) for label in CLASSES]) and not targets[1:, 7:].any()


def test_no_face_is_what_more_than_half_say():
    counts = np.concatenate([_counts(not_a_face=6, sad=4), _counts(not_a_face=5, sad=5)])
    assert ferplus.is_no_face(counts).tolist() == [True, False]


def test_votes_are_the_same_as_text():
    counts = np.concatenate([_counts(happy=10), _counts(sad=4, fear=6)])
    assert (ferplus.from_text(pd.Series(ferplus.as_text(counts))) == counts).all()
    assert (ferplus.from_text(pd.Series([""])) == 0).all()


def test_the_drawn_votes_are_read(votes_file):
    votes = ferplus.read(votes_file)
    assert votes.counts.shape == (350, 10) and len(votes.labels) == len(votes.usages) == 350
    assert set(votes.labels) == set(CLASSES)


def test_lines_of_windows_change_nothing(votes_file):
    counts = ferplus.read(votes_file).counts
    votes_file.write_bytes(votes_file.read_bytes().replace(b"\n", b"\r\n"))
    assert (ferplus.read(votes_file).counts == counts).all()


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:-1],
        lambda lines: [lines[0].replace("happiness", "joy"), *lines[1:]],
        lambda lines: [lines[0], *sorted(lines[1:281], key=lambda line: line[::-1]), *lines[281:]],
        lambda lines: [lines[0], lines[1].replace("Training", "Train"), *lines[2:]],
        lambda lines: [lines[0], ",".join([*lines[1].split(",")[:2], *["5"] * 10]), *lines[2:]],
        lambda lines: ["<html>", "not found", "</html>"],
        lambda lines: [],
    ],
)
def test_a_file_that_is_not_the_published_one_is_refused(damage, votes_file):
    lines = votes_file.read_text().splitlines()
    votes_file.write_text("\n".join([*damage(lines), ""]))
    with pytest.raises(DatasetError, match="is not the file that FER\\+ published") as error:
        ferplus.read(votes_file)
    assert str(votes_file) in str(error.value) and addresses.VOTES_ADDRESS in str(error.value)


def test_fer2013s_own_labels_are_part_of_the_package():
    labels = known_pictures.fer2013()[1]
    assert len(labels) == 35_887
    train = pd.Series(labels[:28_709]).value_counts()  # the counts of FER2013's train folder
    assert train[list(CLASSES)].tolist() == [3995, 436, 4097, 7215, 4830, 3171, 4965]


def test_the_real_votes_give_the_known_numbers(real_data):
    path = real_data["fer2013"].parent / "ferplus" / addresses.VOTES_FILE
    if not path.is_file():
        pytest.skip(f"no real votes: {path} not found")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == addresses.VOTES_SHA256
    votes = ferplus.read(path)
    has_class = ferplus.majority(votes.counts) != ""
    assert [int(has_class[votes.usages == usage].sum()) for usage in known_pictures.USAGES] == [24_941, 3_186, 3_137]
