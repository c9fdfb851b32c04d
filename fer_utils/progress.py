"""The progress bar of notebooks and terminals."""

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm

HEADLESS = "FER_HEADLESS"  # the environment variable that run_all.py sets for its kernels


def bar(rows: Iterable | None = None, description: str = "", total: int | None = None, initial: int = 0) -> tqdm:
    """A bar that goes away when done, over `rows` or, without them, moved by its `update`.

    It is text on standard output: where it goes away, standard error leaves a pink strip in JupyterLab, and tqdm's own
    notebook bar needs ipywidgets. Headless it is on standard error, which run_all.py passes to the terminal.
    """
    stream = sys.stderr if HEADLESS in os.environ else sys.stdout
    return tqdm(rows, description, total, leave=False, file=stream, initial=initial)
