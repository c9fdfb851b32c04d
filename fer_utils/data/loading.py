"""Loads the tables and images that stages 01 and 02 wrote, as arrays for training and evaluation."""

from dataclasses import dataclass, replace
from pathlib import Path

from fer_utils import files, images, places
from fer_utils.classes import CLASSES
from fer_utils.data import addresses, attributes, ferplus, finding, near_duplicates, sources, splits
from fer_utils.data.sources import DatasetError
from fer_utils.data.splits import MANIFEST_COLUMNS

import numpy as np
import pandas as pd

# The columns that the stages read from each table.
COLUMNS = {
    "manifest.csv": MANIFEST_COLUMNS,
    "balanced.csv": ("path", "label", "train_path", "copy"),
    "trained_head.csv": ("train_path",),
    "trained.csv": ("train_path",),
    "history_head.csv": ("epoch", "phase", "val_loss"),
}
_LEADS_OUT = r"^[/\\]|^\w:|(?:^|[/\\])\.\.(?:[/\\]|$)"  # an absolute path, or one with a step up


@dataclass(frozen=True)
class Faces:
    """Images with labels."""

    images: np.ndarray  # uint8 (n, 48, 48, 1)
    labels: np.ndarray  # int32 (n,), indices into CLASSES
    table: pd.DataFrame  # one row per image
    targets: np.ndarray  # what to train on: the labels; soft labels, float32 (n, 7); or these and the votes, (n, 14)

    def __len__(self) -> int:
        return len(self.labels)

    def grey(self, rows) -> np.ndarray:
        """The images of these rows, uint8 (n, 48, 48)."""
        return self.images[np.asarray(rows, int), ..., 0]


def load_training(
    balanced: pd.DataFrame,
    manifest: pd.DataFrame,
    folder: Path,
    limit_per_class: int,
    seed: int,
    votes_share: float = 0.0,
    votes_output: float = 0.0,
) -> tuple[Faces, Faces]:
    """The training images listed in balanced.csv, and the images of VAL: see load_faces.

    votes_share: of the votes in TRAIN's targets, 0 to 1: see ferplus.soft_targets. votes_output: weight of the votes beside
    them: see ferplus.append_votes. An augmented copy has the target of its original. Raises DatasetError if votes are wanted
    and there are none.
    """
    tables = balanced, manifest[manifest["split"] == "VAL"]
    train, val = (load_faces(table, folder, limit_per_class, seed) for table in tables)
    if votes_share or votes_output:
        votes = train.table["train_path"].map(manifest[manifest["path"] != ""].set_index("path")["votes"])
        if not (votes != "").any():
            wants = "votes_share" if votes_share else "votes_output"
            raise DatasetError(f"{wants} needs votes, and 01 found none: {addresses.GET_VOTES}")
        targets = ferplus.soft_targets(train.labels, votes, votes_share)
        if votes_output:
            targets = ferplus.append_votes(targets, votes, votes_output)
        train = replace(train, targets=targets)
        print(f"{(votes != '').sum():,} of {len(train):,} images to train on have votes, the others only their label")
    print(f"{len(train):,} images to train on, {len(val):,} to validate on")
    return train, val


def load_scored(manifest: pd.DataFrame, folder: Path, limit_per_class: int, seed: int) -> dict[str, Faces]:
    """The images of VAL and of TEST, by the split's name: see load_faces."""
    faces = {
        split: load_faces(manifest[manifest["split"] == split], folder, limit_per_class, seed)
        for split in ("VAL", "TEST")
    }
    print(", ".join(f"{len(images):,} images of {split}" for split, images in faces.items()))
    return faces


def load_other_sets(
    also: str,
    classes: str,
    find_faces: sources.FindFaces | None,
    trained: pd.DataFrame,
    folder: Path,
    columns: str = "",
    attributes_file: str = "",
) -> dict[str, Faces]:
    """The pictures of other test sets, by short names: see sources.open_extra.

    Their tables have path, label, usage, fingerprint, flags, group, attributes (see fer_utils.data.attributes) and
    seen_in_training: whether one of the pictures at `trained["train_path"]`, below `folder`, is a copy, as 01 finds them.
    Unreadable pictures and those without exactly one face (if find_faces is given) are left out; what is left out is printed.
    attributes_file: a CSV, from the project's root. Raises DatasetError for an unknown layout, and for a file that names none
    of the pictures.
    """
    sets = {}
    seen = images.load([folder / path for path in trained["train_path"] if also])
    for name, path in finding.extra_places(also).items():
        with sources.open_extra(path, name, "test", classes, find_faces, columns) as source:
            merged = splits.read_all([source], "exclude")
        about = splits.describe_extra(source, merged.table)
        used = np.flatnonzero(splits.is_usable(merged.table))
        if not len(used):
            raise DatasetError(f"also: none of the pictures of {path} can be scored; {about}")
        table = merged.table
        if attributes_file:
            table = table.join(attributes.read(places.place(attributes_file), table["source_path"].tolist()))
        table = table.iloc[used].reset_index(drop=True)
        pixels = merged.pixels[used]
        pairs = near_duplicates.find_pairs(np.concatenate([seen, pixels]))
        seen_groups, groups = np.split(near_duplicates.group(len(seen) + len(pixels), pairs), [len(seen)])
        is_seen = np.isin(groups, seen_groups)
        table = table.assign(path=name + "/" + table["source_path"], group=groups, seen_in_training=is_seen)
        sets[name] = _faces(pixels, table)
        print(f"{about}; the model was trained on copies of {is_seen.sum():,}")
    if attributes_file and not any(shown.table.filter(like=attributes.COLUMN).size for shown in sets.values()):
        raise DatasetError(
            f"also_groups: {attributes_file} names no picture of {also or 'also, which is empty'}: its first column should hold "
            "file names, or paths inside the set"
        )
    return sets


def load_faces(table: pd.DataFrame, folder: Path, limit_per_class: int = 0, seed: int = 0) -> Faces:
    """Load the images at `table["path"]`, relative to `folder`; with a limit, at most that many of each class, drawn by `seed`.

    Raises TornFile for one whose pixels are not those of its fingerprint, if the table has a column of these.
    """
    table = take_per_class(table, limit_per_class, seed) if limit_per_class else table.reset_index(drop=True)
    missing = [path for path in table["path"] if not (folder / path).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} images of the table are missing, such as {missing[0]}: run the stage that writes them again"
        )
    stack = images.load([folder / path for path in table["path"]])
    if "fingerprint" in table:
        others = table["path"][table["fingerprint"] != [images.fingerprint(image) for image in stack]]
        if len(others):
            raise files.TornFile(
                f"{folder}: {len(others)} images are not those that 01 wrote, such as {others.iloc[0]}: run 01 again (`--from 01`)"
            )
    return _faces(stack, table)


def _faces(pixels: np.ndarray, table: pd.DataFrame) -> Faces:
    labels = table["label"].map(CLASSES.index).to_numpy(np.int32)
    return Faces(pixels[..., None], labels, table, labels)


def leave_out(table: pd.DataFrame, what: str) -> pd.DataFrame:
    """The table without some pictures; prints how many of those in a split are left out.

    `conflicts`: pictures whose copies have another label; `blanks`; `conflicts_and_blanks`; `not_a_face`: pictures of which
    most of FER+'s votes say so; `all` three; `none`. Raises DatasetError for `not_a_face` and `all` if there are no votes.
    """
    if what == "none":
        return table
    if what in (ferplus.NO_FACE, "all") and not (table["votes"] != "").any():
        raise DatasetError(f"leave_out is {what!r}, but 01 found no votes: {addresses.GET_VOTES}")
    masks = {
        "conflicts": table["label_conflict"].astype(bool),
        "blanks": splits.has_flag(table, "blank"),
        ferplus.NO_FACE: splits.has_flag(table, ferplus.NO_FACE),
    }
    parts = masks if what == "all" else what.split("_and_")
    left_out = pd.concat([masks[part] for part in parts], axis=1).any(axis=1)
    print(f"left out ({what}): {(left_out & (table['split'] != '')).sum():,} images")
    return table[~left_out]


def take_per_class(table: pd.DataFrame, limit: int, seed: int) -> pd.DataFrame:
    """At most `limit` rows of each label, drawn by `seed`, in their original order."""
    kept = [
        np.random.default_rng([seed, code]).permutation(np.flatnonzero(table["label"] == label))[:limit]
        for code, label in enumerate(CLASSES)
    ]
    return table.iloc[np.sort(np.concatenate(kept))].reset_index(drop=True)


def originals_of(train: Faces, manifest: pd.DataFrame) -> pd.DataFrame:
    """The images of TRAIN among those that train, without augmented copies: the manifest's rows, and row_in_train, the row in
    `train` of each.
    """
    rows = train.table.assign(row_in_train=np.arange(len(train)))
    rows = rows.loc[rows["copy"] == 0, ["train_path", "row_in_train"]]
    known = manifest[manifest["path"] != ""]
    return rows.merge(known, left_on="train_path", right_on="path", how="left", validate="one_to_one")


def originals(*tables: pd.DataFrame) -> pd.DataFrame:
    """The originals in TRAIN of rows of balanced.csv, which a model trained on has seen: column train_path, each once, sorted."""
    return pd.DataFrame({"train_path": sorted(set().union(*(table["train_path"] for table in tables)))})


def read_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV that a stage wrote, empty cells as empty text; raise TornFile, naming it, if it is damaged."""
    try:
        table = pd.read_csv(path, keep_default_na=False, low_memory=False)  # no type by parts of a column
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise files.TornFile(f"{path} is not a whole table ({error}): run its stage again") from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas uses columns beyond the header as row names
        raise files.TornFile(f"{path} has rows longer than its header: run its stage again")
    missing = [column for column in columns if column not in table]
    if missing:
        raise files.TornFile(f"{path} lacks the column(s) {', '.join(missing)}: run its stage again")
    if "path" in table:
        outside = table["path"].astype(str).str.contains(_LEADS_OUT)
        if outside.any():
            raise files.TornFile(
                f"{path} lists {table['path'][outside].iloc[0]!r}, outside the image folder: run its stage again"
            )
    return table
