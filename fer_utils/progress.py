"""Progress of long steps: a bar in a notebook, or under run_all.py reports in a file that `pipeline.terminal` shows."""

import contextlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

REPORTS = "FER_PROGRESS"  # environment variable: the file that run_all.py reads its kernels' reports from
SHORT = 30  # seconds; a shorter step is not announced


def bar(rows: Iterable | None = None, description: str = "", total: int | None = None, unit: str = "images") -> tqdm:
    """A progress bar over `rows`, or without rows one advanced by its `update`. It is removed when done.

    In a notebook it is text on standard output: standard error would leave an empty pink strip in JupyterLab, and tqdm's
    notebook bar needs ipywidgets. Under run_all.py nothing is printed in the notebook; progress is reported instead.
    """
    if REPORTS in os.environ:
        return _Reporter(rows, description, total, unit=unit)
    return tqdm(rows, description, total, leave=False, file=sys.stdout, unit=f" {unit}")


def say(text: str, seconds: float = 0) -> None:
    """Print a line; run_all.py shows it too, once a run. seconds: what is left of the run at least, if that is known."""
    print(text)
    if REPORTS in os.environ:
        _report({"say": text, "seconds": seconds})


def announce(text: str, seconds: float, is_longest: bool = False) -> None:
    """Print how long a step will take; run_all.py shows it too if that is more than SHORT seconds, and with is_longest adds how
    long the whole run will take.
    """
    if seconds <= SHORT:
        print(text)
    else:
        say(text, seconds if is_longest else 0)


def in_words(seconds: float) -> str:
    """A duration in words: `under 1 s`, `45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


class _Reporter(tqdm):
    """A bar that prints nothing and reports its progress, at most twice a second."""

    def __init__(self, rows: Iterable | None, description: str, total: int | None, unit: str):
        super().__init__(rows, description, total, unit=unit, mininterval=0.5, gui=True)  # gui: tqdm prints nothing
        self.display()

    def display(self, *_, **__) -> None:
        task, rate = self.desc.removesuffix(": "), self.format_dict["rate"]
        left = (self.total - self.n) / rate if rate and self.total else None  # seconds
        shown = {"done": self.n, "total": self.total, "unit": self.unit, "left": left, "scores": self.postfix}
        _report({"task": task} | shown)

    def close(self) -> None:
        if not self.disable:
            _report({"task": None})
        super().close()


def _report(content: dict) -> None:
    """Report to run_all.py. A report that cannot be written is dropped: no training ends because of it."""
    with contextlib.suppress(OSError), Path(os.environ[REPORTS]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")
