"""Gives each picture its row of FER2013, its votes of FER+, and the label that a run trains and scores on."""

from pathlib import Path, PurePosixPath

from fer_utils.classes import CLASSES
from fer_utils.data import addresses, audit, ferplus
from fer_utils.data.ferplus import Votes
from fer_utils.data.sources import DatasetError
from fer_utils.data.splits import EMOTION_DETECTION, FER2013, SPLITS, has_flag

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

NO_ROW = -1
WITHOUT_VOTES = ("unreadable", "blank", "no row found")
NO_LABEL = "dropped:no_label"  # flag
CLEAR_VOTES = 9  # of ten: pictures with so many votes for another class are shown as labels that nobody would give


def find_rows(table: pd.DataFrame, pixels: np.ndarray, votes: Votes) -> pd.Series:
    """The row of fer2013.csv that each picture is, NO_ROW if it is not known: int, on the table's index.

    A picture of the original CSV has its row's number in its path. `train/<class>/imK.png` of Emotion Detection FER is the
    K-th row of that class among the Training rows, `test/<class>/imK.png` among the other rows. A picture of FER2013's
    folders gets the row of its copy in Emotion Detection FER with the same label and usage; of several copies each picture
    gets another one, the nearest by mean difference of grey levels. The numbers in `Image name` are no rows.

    table: columns source, part, label, usage, source_path, group. pixels: uint8 (n, 48, 48). Raises DatasetError if a CSV's
    labels are not those of the votes' rows, or if a number is larger than a class has rows.
    """
    rows = pd.Series(NO_ROW, index=table.index)
    is_voted = table["source"].isin((FER2013, EMOTION_DETECTION))  # the rows of another table have numbers of their own
    is_csv = is_voted & table["source_path"].str.contains(r"\.csv#\d+$", case=False)
    rows[is_csv] = _rows_of_csv(table[is_csv], votes)
    is_numbered = ~is_csv & (table["source"] == EMOTION_DETECTION)
    rows[is_numbered] = _rows_of_names(table[is_numbered], votes)
    is_copy = ~is_csv & (table["source"] == FER2013)
    rows[is_copy] = _rows_of_copies(table, pixels, rows.to_numpy(), is_copy.to_numpy(), votes)
    return rows


def _rows_of_csv(table: pd.DataFrame, votes: Votes) -> np.ndarray:
    rows = table["source_path"].str.rsplit("#", n=1).str[1].astype(int).to_numpy()
    fits = rows < len(votes.labels)
    fits[fits] = votes.labels[rows[fits]] == table["label"].to_numpy()[fits]
    if not fits.all():
        path = table["source_path"].iloc[int(np.argmin(fits))]
        raise DatasetError(
            f"{path} has another label than FER2013's row of that number, so the votes of {addresses.VOTES_FILE} cannot be matched: "
            "use FER2013's own CSV, or set merge_split.votes to none"
        )
    return rows


def _rows_of_names(table: pd.DataFrame, votes: Votes) -> np.ndarray:
    parts = np.where(votes.usages == "Training", "train", "test")
    rows_of = pd.DataFrame({"part": parts, "label": votes.labels}).groupby(["part", "label"]).indices
    found = []
    for part, label, path in zip(table["part"], table["label"], table["source_path"], strict=True):
        number, rows = PurePosixPath(path).stem.removeprefix("im"), rows_of[part, label]
        if number.isdecimal() and int(number) >= len(rows):
            raise DatasetError(
                f"{path}: FER2013 has {len(rows):,} {label} rows in its {part} part, numbered from 0, so these files are not "
                "numbered as Emotion Detection FER's are, and FER+'s votes cannot be matched. Download the dataset again, "
                "or set merge_split.votes to none"
            )
        found.append(int(rows[int(number)]) if number.isdecimal() else NO_ROW)
    return np.array(found, int)


def _rows_of_copies(
    table: pd.DataFrame, pixels: np.ndarray, rows: np.ndarray, is_copy: np.ndarray, votes: Votes
) -> np.ndarray:
    """The rows of the pictures `is_copy`, from the pictures of the same group, label and usage whose rows are known."""
    known = rows != NO_ROW
    has_usages = (table["usage"][is_copy] != "").all()  # otherwise PublicTest and PrivateTest are one part
    part = np.where(known, votes.usages[rows], table["usage"]) if has_usages else table["part"]
    block = table["group"].astype(str) + " " + table["label"] + " " + part
    found = np.full(len(table), NO_ROW)
    for members in table.groupby(block).indices.values():
        wanting, offered = members[is_copy[members]], members[known[members]]
        if len(wanting) and len(offered):
            difference = np.abs(pixels[wanting][:, None].astype(np.int16) - pixels[offered][None]).mean(axis=(2, 3))
            first, second = linear_sum_assignment(difference) if difference.size > 1 else ([0], [0])
            found[wanting[first]] = rows[offered[second]]
    return found[is_copy]


def add_votes(table: pd.DataFrame, pixels: np.ndarray, file: Path | None) -> pd.DataFrame:
    """Add the columns fer2013_label, row, votes and ferplus_label, "" where unknown; flag pictures that are no face.

    table: as for find_rows, with flags. file: FER+'s votes, or None for none.
    """
    table = table.assign(fer2013_label=table["label"], row="", votes="", ferplus_label="")
    if file is None:
        return table
    votes = ferplus.read(file)
    rows = find_rows(table, pixels, votes)
    matched = (rows != NO_ROW).to_numpy()
    counts = votes.counts[rows[matched]]
    table.loc[matched, "row"] = rows[matched].astype(str)
    table.loc[matched, "votes"] = ferplus.as_text(counts)
    table.loc[matched, "ferplus_label"] = ferplus.majority(counts)
    no_face = np.flatnonzero(matched)[ferplus.is_no_face(counts)]
    audit.add_flag(table, table.index[no_face], ferplus.NO_FACE)
    return table


def choose(table: pd.DataFrame, labels: str) -> pd.DataFrame:
    """Set `label` to FER2013's label or to FER+'s (see ferplus.RULE); a picture without one leaves its split, flagged.

    labels: `fer2013` or `ferplus`. Pictures of other sources keep their label. Splits are assigned before, so that both sets
    of labels are trained and scored on the same pictures. Under `ferplus` a picture whose label changes gets FER2013's label
    in its file name: names repeat from class to class. Raises DatasetError if there are no votes, or a split would have no
    picture left.
    """
    if labels == "fer2013":
        return table
    if not (table["votes"] != "").any():
        raise DatasetError(
            f"labels is 'ferplus', but there are no votes: {addresses.GET_VOTES}. "
            f"The file is at {addresses.VOTES_ADDRESS} (or `python run_all.py --download`); merge_split.votes may be its path"
        )
    has_rows = table["source"].isin((FER2013, EMOTION_DETECTION))  # nobody voted on pictures of other sources
    table = table.assign(label=table["ferplus_label"].where(has_rows, table["label"]))
    without = table.index[(table["label"] == "") & (table["split"] != "")]
    emptied = set(table["split"]) & {*SPLITS} - set(table.loc[table["label"] != "", "split"])
    if emptied:
        raise DatasetError(
            f"labels is 'ferplus', but FER+'s votes give no picture of {' and '.join(sorted(emptied))} a class: set "
            "merge_split.labels to fer2013"
        )
    table.loc[without, "split"] = ""
    table.loc[table["label"] == "", "label"] = table["fer2013_label"]
    moved = table["label"] != table["fer2013_label"]
    table.loc[moved, "file"] = table["fer2013_label"] + "_" + table["file"]
    audit.add_flag(table, without, NO_LABEL)
    return audit.mark_conflicts(table)


def outcomes(table: pd.DataFrame) -> pd.Series:
    """What FER+ says of each picture: one of ferplus.OUTCOMES, or why it has no votes, one of WITHOUT_VOTES: str."""
    found = pd.Series(ferplus.outcome(ferplus.from_text(table["votes"])), index=table.index)
    flags = table["flags"].str.split()
    reason = flags.map(lambda names: next((name for name in WITHOUT_VOTES if name in names), WITHOUT_VOTES[-1]))
    return found.where(table["votes"] != "", reason)


def count_outcomes(table: pd.DataFrame) -> pd.DataFrame:
    """How many pictures of each source and usage (columns) FER+ says what of (rows), with totals."""
    columns = table["source"] + " " + table["usage"].where(table["usage"] != "", table["part"])
    counts = pd.crosstab(outcomes(table), columns, margins=True, margins_name="total").rename_axis(None, axis=1)
    return counts.loc[[name for name in (*ferplus.OUTCOMES, *WITHOUT_VOTES, "total") if name in counts.index]]


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """For each label of FER2013 (rows) the number of rows of fer2013.csv that FER+ says what of (columns, OUTCOMES)."""
    rows = table[table["row"] != ""].drop_duplicates("row")
    counts = pd.crosstab(rows["fer2013_label"], outcomes(rows))
    return counts.reindex(index=CLASSES, columns=ferplus.OUTCOMES, fill_value=0)


def given_by_nobody(table: pd.DataFrame) -> pd.DataFrame:
    """Pictures whose FER2013 label nobody voted for while CLEAR_VOTES or more of ten gave another class; each row once."""
    rows = table[(table["row"] != "") & (table["ferplus_label"] != "")].drop_duplicates("row")
    counts = ferplus.from_text(rows["votes"])
    for_label = counts[np.arange(len(rows)), rows["fer2013_label"].map(ferplus.ANSWERS.index).to_numpy(int)]
    return rows[(for_label == 0) & (counts.max(axis=1) >= CLEAR_VOTES)]


def without_face(table: pd.DataFrame) -> pd.DataFrame:
    """Pictures of which most votes say that they show no face; each row once."""
    rows = table[table["row"] != ""].drop_duplicates("row")
    return rows[has_flag(rows, ferplus.NO_FACE)]


def titles(rows: pd.DataFrame) -> list[str]:
    """For each picture FER2013's label and the most frequent answer of the votes, for a figure."""
    counts = ferplus.from_text(rows["votes"])
    answers = np.array(ferplus.ANSWERS)[counts.argmax(axis=1)]
    shown = zip(rows["fer2013_label"], answers, counts.max(axis=1), strict=True)
    return [f"label: {label}\nvotes: {answer} {n}" for label, answer, n in shown]


def share_agreeing(counts: pd.DataFrame) -> float:
    """The share of FER2013's labels among the rows that FER+ gives one of the seven classes. counts: from `agreement`."""
    classes = counts[list(CLASSES)].to_numpy()
    return float(np.trace(classes) / classes.sum())
