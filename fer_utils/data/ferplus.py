"""FER+: ten people's votes on each picture of FER2013, and the labels that follow from them.

Barsoum et al. 2016 (arXiv:1608.01041), github.com/microsoft/FERPlus. The file `fer2013new.csv` has a row for each row of the
original fer2013.csv, in its order.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from fer_utils.classes import CLASSES, class_of
from fer_utils.data import addresses, known_pictures
from fer_utils.data.archives import DatasetError

import numpy as np
import pandas as pd

LABEL_SETS = ("fer2013", "ferplus")
NO_FACE = "not_a_face"  # flag of a picture of which most votes say so
# The file's columns, and what a vote in each says.
VOTES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "NF")
ANSWERS = (*(class_of(name) or name for name in VOTES[:-1]), "not a face")
NO_MAJORITY = "no majority"
OUTCOMES = (*CLASSES, "contempt", "unknown", "not a face", NO_MAJORITY)
RULE = "FER+ majority: single votes dropped, more than half of the rest; contempt, unknown and not a face left out"

# A digit for the label of each row, and the votes' SHA-256. It lies beside the votes of drawn faces; FER2013's own is part of
# this package.
LABELS_FILE = "fer2013_labels.txt"
MAX_BYTES = 20_000_000  # that are read of the votes; FER+'s have 1.6 million

_CLASS_COLUMNS = [ANSWERS.index(label) for label in CLASSES]


@dataclass(frozen=True)
class Votes:
    """The votes on each row of fer2013.csv.

    counts: int (n, 10), how many of ten people gave each of ANSWERS. usages and labels: str (n,), FER2013's own.
    """

    counts: np.ndarray
    usages: np.ndarray
    labels: np.ndarray


def read(path: Path) -> Votes:
    """Read `fer2013new.csv`. Raises DatasetError, naming the file, if it is another one than FER+ published."""
    drawn = path.with_name(LABELS_FILE)
    labels = drawn.read_bytes() if drawn.is_file() else known_pictures.shipped("labels.txt")
    digits, published = labels.decode("ascii").split()
    with path.open("rb") as file:
        content = file.read(MAX_BYTES).replace(b"\r\n", b"\n")  # as Git writes it on Windows
    if hashlib.sha256(content).hexdigest() != published:
        raise DatasetError(
            f"{path} is not the file that FER+ published, whose rows are those of fer2013.csv in their order: download it "
            f"again from {addresses.VOTES_ADDRESS}"
        )
    table = pd.read_csv(io.BytesIO(content), keep_default_na=False)
    usages = table["Usage"].to_numpy(object)
    return Votes(table[list(VOTES)].to_numpy(int), usages, known_pictures.labels_of(digits))


def outcome(counts: np.ndarray) -> np.ndarray:
    """The answer of the majority of each row, one of OUTCOMES: str (n,). counts: int (n, 10).

    FER+'s own rule (its src/ferplus.py, mode `majority`): answers with a single vote are dropped, and the most frequent
    answer needs more than half of the remaining votes.
    """
    kept = np.where(counts > 1, counts, 0)
    has_majority = 2 * kept.max(axis=1) > kept.sum(axis=1)
    return np.where(has_majority, np.array(ANSWERS)[kept.argmax(axis=1)], NO_MAJORITY)


def majority(counts: np.ndarray) -> np.ndarray:
    """The class that RULE gives each row, "" for none: str (n,). counts: int (n, 10)."""
    found = outcome(counts)
    return np.where(np.isin(found, CLASSES), found, "")


def distribution(counts: np.ndarray) -> np.ndarray:
    """The shares of the seven classes among the votes, single votes dropped: float32 (n, 7), in order of CLASSES.

    Votes for contempt, unknown and not a face are left out. A row without any other vote has only zeros.
    """
    kept = np.where(counts > 1, counts, 0)[:, _CLASS_COLUMNS]
    return (kept / np.maximum(kept.sum(axis=1, keepdims=True), 1)).astype(np.float32)


def is_no_face(counts: np.ndarray) -> np.ndarray:
    """Whether more than half of the votes say that there is no face: bool (n,)."""
    return 2 * counts[:, ANSWERS.index("not a face")] > counts.sum(axis=1)


def as_text(counts: np.ndarray) -> list[str]:
    """Votes (n, 10) as the manifest's column `votes`: ten counts in order of ANSWERS, such as `4 0 0 1 3 2 0 0 0 0`."""
    return [" ".join(map(str, row)) for row in counts]


def from_text(column: pd.Series) -> np.ndarray:
    """The column `votes` as int (n, 10); zeros for a picture without votes."""
    rows = [[int(count) for count in text.split()] or [0] * len(ANSWERS) for text in column]
    return np.array(rows, int).reshape(-1, len(ANSWERS))


def soft_targets(labels: np.ndarray, votes: pd.Series, votes_share: float) -> np.ndarray:
    """What to train on with soft labels: float32 (n, 7), rows sum to 1.

    The distribution of a picture's votes times `votes_share`, and its label for the rest; the label alone for a picture
    without votes for a class. labels: int (n,), indices into CLASSES. votes: the manifest's column.
    """
    hard = np.eye(len(CLASSES), dtype=np.float32)[labels]
    shares = distribution(from_text(votes))
    voted = shares.sum(axis=1, keepdims=True) > 0
    return np.where(voted, np.float32(votes_share) * shares + np.float32(1 - votes_share) * hard, hard)


def append_votes(targets: np.ndarray, votes: pd.Series, weight: float) -> np.ndarray:
    """Targets for a network with two outputs: float32 (n, 14), `targets` (n, 7), and the votes' distribution times `weight`.

    Its loss counts `weight` beside the labels'. The seven columns are 0 for a picture without votes for a class.
    """
    return np.hstack([targets, np.float32(weight) * distribution(from_text(votes))])
