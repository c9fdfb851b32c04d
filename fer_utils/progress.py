"""The progress bar of notebooks and terminals."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def bar(rows: Iterable | None = None, description: str = "", total: int | None = None) -> tqdm:
    """A bar that goes away when done, over `rows` or, without them, moved by its `update`.

    It is text on standard output: where it goes away, standard error leaves a pink strip in JupyterLab, and tqdm's own
    notebook bar needs ipywidgets.
    """
    return tqdm(rows, description, total, leave=False, file=sys.stdout)
