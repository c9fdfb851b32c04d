"""Reads what is known of a test set's pictures besides the expression, such as gender and age, to score by group."""

from collections.abc import Sequence
from pathlib import Path

from fer_utils.data.archives import DatasetError, tails

import pandas as pd

COLUMN = "attribute_"  # begins the names of columns with attributes
MOST_GROUPS = 20  # of an attribute: one with more values, such as an age in years or a name, tells no groups apart


def read(given: Path, pictures: Sequence[str]) -> pd.DataFrame:
    """The attributes of these pictures: a row for each, a column COLUMN + name for each that one of them has, "" where it is
    not known.

    given: a CSV with file names in its first column and an attribute in each other. Raises DatasetError, naming the file, for
    one that is not whole, or whose names fit several pictures.
    """
    try:
        table = pd.read_csv(given, dtype=str, keep_default_na=False)
        if not isinstance(table.index, pd.RangeIndex):  # pandas uses columns beyond the header as row names
            raise ValueError("its rows are longer than its header")
    except (OSError, ValueError) as error:  # ValueError: also what pandas and Unicode raise
        raise DatasetError(f"{given} cannot be read as CSV ({error})") from error
    table = table.drop_duplicates()
    files = table.iloc[:, 0].str.replace("\\", "/").str.strip().str.removeprefix("./")
    if table.shape[1] < 2 or files.duplicated().any():
        twice = f"two rows for {files[files.duplicated()].iloc[0]}" if files.duplicated().any() else "one column"
        raise DatasetError(
            f"{given} has {twice}: expected a row for each picture, its file name first, then attributes"
        )
    known = table.iloc[:, 1:].set_axis(files).add_prefix(COLUMN)
    names = pd.Series([next(filter(known.index.__contains__, tails(picture)), "") for picture in pictures], dtype=str)
    for name, same in names[names != ""].groupby(names):
        if len(same) > 1:
            first, second = (pictures[row] for row in same.index[:2])
            raise DatasetError(f"{given}: {name} names {first} and {second}: give the paths inside the set")
    print(f"{given.name} has attributes of {(names != '').sum():,} of {len(names):,} pictures")
    found = known.reindex(names, fill_value="").reset_index(drop=True)
    for column in found.columns[found.nunique() > MOST_GROUPS]:
        print(f"{column.removeprefix(COLUMN)} is left out: it has {found.pop(column).nunique():,} different values")
    return found.loc[:, (found != "").any()]
