"""Reads what is known of a test set's pictures besides the expression, such as gender, race and age, to score by group.

Sources are RAF-DB's `*_manu_attri.txt`, beside the pictures, and any CSV with file names in its first column and an attribute
in each other.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fer_utils.data.archives import DatasetError, tails
from fer_utils.data.sources import Source

import pandas as pd

# Lines 6 to 8 of a file, after five landmarks, are codes from 0 on; their meanings are those of RAF-DB's readme.
RAF_DB = {
    "gender": ("male", "female", "unsure"), "race": ("Caucasian", "African-American", "Asian"),
    "age": ("0–3", "4–19", "20–39", "40–69", "70+"),
}  # fmt: skip
RAF_DB_FILE = "_manu_attri.txt"
COLUMN = "attribute_"  # begins the names of columns with attributes
MOST_GROUPS = 20  # of an attribute: one with more values, such as an age in years or a name, tells no groups apart


def read(source: Source, pictures: Sequence[str], given: Path | None) -> pd.DataFrame:
    """The attributes of these pictures: a row for each, a column COLUMN + name for each attribute, "" where it is not known.

    given: a CSV. Raises DatasetError, naming the file, for one that is not whole, or whose names fit several pictures.
    """
    rows = _of_raf_db(source, pictures)
    if given is not None:
        of_csv = _of_csv(given, pictures)
        rows = [row | more for row, more in zip(rows, of_csv, strict=True)]
        print(f"{source.name}: {given.name} has attributes of {sum(map(bool, of_csv)):,} of {len(rows):,} pictures")
    table = pd.DataFrame(rows, range(len(rows))).fillna("").add_prefix(COLUMN)
    for column in table.columns[table.nunique() > MOST_GROUPS]:
        print(f"{column.removeprefix(COLUMN)} is left out: it has {table.pop(column).nunique():,} different values")
    return table


def _of_raf_db(source: Source, pictures: Sequence[str]) -> list[dict[str, str]]:
    names = {PurePosixPath(file).name: file for file in source.ignored if file.endswith(RAF_DB_FILE)}
    rows = []
    for picture in pictures:
        file = names.get(PurePosixPath(picture).stem.removesuffix("_aligned") + RAF_DB_FILE)
        codes = source.read(file).decode("utf-8", "replace").split()[2 * 5 :] if file else []
        try:
            known = zip(RAF_DB.items(), codes, strict=True) if file else ()
            rows.append({name: dict(zip("01234", meanings, strict=False))[code] for (name, meanings), code in known})
        except (ValueError, KeyError):
            raise DatasetError(
                f"{source.name}: {source.path}: {file} is no annotation of RAF-DB: expected five landmarks, then the codes of "
                f"{', '.join(RAF_DB)}; found {' '.join(codes)[:80]!r} after the landmarks"
            ) from None
    return rows


def _of_csv(path: Path, pictures: Sequence[str]) -> list[dict[str, str]]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False).drop_duplicates()
    except (OSError, ValueError) as error:  # ValueError: also what pandas and Unicode raise
        raise DatasetError(f"{path} cannot be read as CSV ({error})") from error
    files = table.iloc[:, 0].str.replace("\\", "/").str.strip().str.removeprefix("./")
    if table.shape[1] < 2 or files.duplicated().any():
        twice = f"two rows for {files[files.duplicated()].iloc[0]}" if files.duplicated().any() else "one column"
        raise DatasetError(f"{path} has {twice}: expected a row for each picture, its file name first, then attributes")
    known = dict(zip(files, table.iloc[:, 1:].to_dict("records"), strict=True))
    named: dict[str, str] = {}
    rows = []
    for picture in pictures:
        name = next(filter(known.__contains__, tails(picture)), "")
        if name and named.setdefault(name, picture) != picture:
            raise DatasetError(f"{path}: {name} names {named[name]} and {picture}: give the paths inside the set")
        rows.append(dict(known.get(name, {})))
    return rows
