"""Merges the sources into one table, assigns each image to a split, and writes the split folders."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fer_utils import files, images, progress
from fer_utils.classes import CLASSES
from fer_utils.data import addresses, finding, sources
from fer_utils.data.sources import FER2013, DatasetError, Source

import numpy as np
import pandas as pd

SPLITS = ("TRAIN", "VAL", "TEST")
EMOTION_DETECTION = "emotion_detection"
MANIFEST_COLUMNS = (
    "split", "label", "source", "usage", "source_path", "path", "fingerprint", "flags", "group", "relation", "label_conflict",
    "fer2013_label", "row", "votes", "ferplus_label",
)  # fmt: skip
_REPAIRED = {"colour", "resized", "face_cropped", "converted"}  # flags of pictures that differ from the source's file
_UNUSED = {"unreadable", sources.NO_FACE, sources.SEVERAL_FACES}  # flags of pictures that are in no split
_COPY = re.compile(r"_aug\d+$", re.IGNORECASE)  # end of the names of augmented copies, see `balance.balanced_name`
_LONGEST = 200  # bytes of a name; a class before it, a number and the ending of a copy after it must fit into 255
_LARGEST_KEPT = 20_000  # bytes of a file that is kept as it is; the datasets' have up to 2,483
_SHOWN = 10  # unreadable images named in an error


@dataclass(frozen=True)
class Merged:
    """All source images, in row order of the table."""

    table: pd.DataFrame  # one row per image
    pixels: np.ndarray  # uint8 (n, 48, 48)
    data: list[bytes]  # the image files' content
    ignored: list[str]  # files of the sources that are not images


def read_sources(
    paths: Mapping[str, Path],
    unreadable: str,
    extra: str = "",
    extra_classes: str = "",
    find_faces: sources.FindFaces | None = None,
    extra_columns: str = "",
) -> Merged:
    """Open the source datasets, name → folder, archive or table, and read all their images: see read_all.

    extra, extra_classes, find_faces, extra_columns: more pictures for TRAIN, see sources.open_extra; prints what
    is taken of each of these sources and what is left out, and of others if anything is.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(sources.open_source(path, name)) for name, path in paths.items()]
        more = [
            stack.enter_context(sources.open_extra(path, name, "train", extra_classes, find_faces, extra_columns))
            for name, path in finding.extra_places(extra, list(addresses.DATASETS)).items()
        ]
        merged = read_all([*opened, *more], unreadable)
    for source in (*opened, *more):
        if source in more or source.left_out or source.notes:
            print(describe_extra(source, merged.table))
    return merged


def describe_extra(source: Source, table: pd.DataFrame) -> str:
    """One line on a source after read_all: how many pictures are used, why others are not, and what was decided."""
    flags = table.loc[table["source"] == source.name, "flags"].str.split()
    unused = Counter(flag for names in flags for flag in names if flag in _UNUSED)
    reasons = {name.strip("()"): n for name, n in source.left_out.items()}
    reasons |= {name.replace("_", " "): n for name, n in unused.items()} | {"no picture": len(source.ignored)}
    said = ", ".join(f"{name} {n:,}" for name, n in reasons.items() if n)
    return f"{source.name}: {len(flags) - sum(unused.values()):,} pictures; left out: {'; '.join([said or 'none', *source.notes])}"


def read_all(sources: Sequence[Source], unreadable: str) -> Merged:
    """Read and check every image of the sources; nothing is written.

    The table has the sources' columns and file (`<source>_<part>_<name>`, unique in its class), fingerprint and flags
    (separated by spaces). Images that are empty, truncated or of another format raise DatasetError, with the names of the
    first ten, after all were read; with `unreadable="exclude"` they stay in the table, flagged `unreadable`, with pixels 0.
    """
    table = pd.concat([source.table for source in sources], ignore_index=True)
    pixels = np.zeros((len(table), images.SIZE, images.SIZE), np.uint8)
    data, marks, faults = [], [], []
    files_of = ((source, path) for source in sources for path in source.table["source_path"])
    for row, (source, path) in enumerate(progress.bar(files_of, "reading images", len(table))):
        content, flags = b"", ["unreadable"]
        try:
            content = source.read(path)
            pixels[row], found = source.decode(content, f"{source.path}: {path}")
            flags = [*found]
            if len(content) > _LARGEST_KEPT and not _REPAIRED & {*flags}:
                flags.append("converted")
        except images.UnreadableImage as error:
            faults.append(str(error))
        data.append(images.encode_png(pixels[row]) if _REPAIRED & {*flags} else content)
        marks.append(flags)
    if faults and unreadable != "exclude":
        shown = "\n".join(f"  {fault}" for fault in faults[:_SHOWN])
        raise DatasetError(
            f"{len(faults)} of {len(table):,} images cannot be read; the first:\n{shown}\nDownload the dataset again, or "
            "leave them out with merge_split.unreadable=exclude"
        )
    table["file"] = _unique_names(table, marks)
    table["fingerprint"] = [images.fingerprint(image) for image in pixels]
    table["flags"] = [" ".join(flags) for flags in marks]
    return Merged(table, pixels, data, [file for source in sources for file in source.ignored])


def _unique_names(table: pd.DataFrame, marks: list[list[str]]) -> list[str]:
    """`<source>_<part>_<name>`; a repeated name in a class is numbered, a long one is cut, and both are flagged `renamed`.

    Names are compared without suffix and case, since augmented copies of `a.jpg` and `a.png` would both be `a_aug1.png`.
    An image that already has a name like an augmented copy's is numbered too.
    """
    names, taken = [], set()
    used: Counter[tuple[str, str]] = Counter()
    columns = table[["source", "part", "label", "source_path"]].itertuples(index=False)
    for flags, (source, part, label, path) in zip(marks, columns, strict=True):
        name = Path(path).name
        if (number := name.rpartition("#")[2]).isdecimal():  # a row of a table; the name of a picture ends in a suffix
            name = f"{number}.png"
        stem, suffix = Path(name).stem, ".png" if _REPAIRED & {*flags} else Path(name).suffix
        whole = f"{source}_{part}_{stem}"
        unique = short = whole.encode()[:_LONGEST].decode(errors="ignore")
        while (key := (label, unique.casefold())) in taken or _COPY.search(unique):
            used[label, short] += 1
            unique = f"{short}_{used[label, short] + 1}"
        if unique != whole:
            flags.append("renamed")
        taken.add(key)
        names.append(unique + suffix)
    return names


def has_flag(table: pd.DataFrame, *flags: str) -> pd.Series:
    """Whether each image has one of these flags: bool, on the table's index."""
    return table["flags"].str.split().map(lambda own: not {*flags}.isdisjoint(own)).astype(bool)


def is_usable(table: pd.DataFrame) -> pd.Series:
    """Whether each image can be in a split: it was read, and one face was found where faces were looked for."""
    return ~has_flag(table, *_UNUSED)


def assign_splits(table: pd.DataFrame, val_fraction: float, test_usage: str, seed: int) -> pd.Series:
    """Assign each image to a split.

    VAL is round(n × val_fraction) images of each class of FER2013's train part. TEST is FER2013's test part: all of it, or
    with `test_usage="private"` only the PrivateTest images; the others are then in no split (""). TRAIN is the rest of the
    train part and the pictures of all other sources. Images flagged `unreadable`, `no_face_found` or `several_faces` are in
    no split either.

    table: columns source, part, label, usage, flags. Returns a Series of TRAIN, VAL, TEST or "" on the same index.
    Raises ValueError for an unknown `test_usage`, for a fraction outside (0, 1), and for "private" if the source does not
    distinguish Public and Private.
    """
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction is {val_fraction}, expected a share between 0 and 1")
    readable = is_usable(table)
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
    """Number of images of each class (rows, in CLASSES order, then `total`) in each split (columns)."""
    counts = pd.crosstab(table["label"], table["split"]).reindex(index=CLASSES, columns=SPLITS, fill_value=0)
    counts.loc["total"] = counts.sum()
    counts.columns.name = counts.index.name = None
    return counts


def to_manifest(table: pd.DataFrame) -> pd.DataFrame:
    """The manifest of a table with splits and audit columns; `path` is relative to the image folder, "" without a split."""
    path = table["split"] + "/" + table["label"] + "/" + table["file"]
    return table.assign(path=path.where(table["split"] != "", ""))[list(MANIFEST_COLUMNS)]


def write_split_folders(manifest: pd.DataFrame, data: list[bytes], folder: Path) -> None:
    """Write TRAIN, VAL and TEST below `folder`, each folder atomically; only converted images differ from the source.

    Raises OutputError if the disk is full or read-only; the split's old folder is then unchanged.
    """
    for split in SPLITS:
        with files.replacing(folder / split) as temporary:
            for label in CLASSES:
                (temporary / label).mkdir(parents=True)
            for row in progress.bar(np.flatnonzero(manifest["split"] == split), f"writing images of {split}"):
                (temporary / Path(manifest["path"].iat[row]).relative_to(split)).write_bytes(data[row])
