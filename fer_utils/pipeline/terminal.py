"""What run_all.py prints: tables of runs and scores; while a stage runs a status line, or in a log a line every LOG_EVERY s."""

import contextlib
import json
import os
import shutil
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from fer_utils import files, progress
from fer_utils.pipeline import runs

REFRESH = 0.5  # seconds between two readings of the kernel's reports
LOG_EVERY = 30  # seconds between two lines of a log
COLUMNS = ("run", "state", "profile", "leakage", "finished (UTC)", "TEST accuracy", "TEST macro F1", "time")
_CLEAR = "\r\x1b[K"


def columns(stream: TextIO | None = None) -> int | None:
    """Columns of a stream's terminal (default: standard output); None for a file or a pipe."""
    return shutil.get_terminal_size().columns if (stream or sys.stdout).isatty() else None


def say(text: str, stream: TextIO | None = None) -> None:
    """Print to a stream (default: standard output) at once; on a terminal, lines break between words."""
    lines, width = text.split("\n"), columns(stream)
    if width:
        wrap = partial(textwrap.fill, width=width, break_long_words=False, break_on_hyphens=False)
        lines = [wrap(line, subsequent_indent="  ") for line in lines]
    print("\n".join(lines), file=stream, flush=True)


@dataclass
class Shown:
    """What the stages of one run share on the terminal."""

    all_output: bool = False  # the notebooks' whole output is shown
    said: set[str] = field(default_factory=set)  # lines that kernels had shown
    began: float = field(default_factory=time.monotonic)


class _Lines:
    """A file that passes whole lines to `take`."""

    def __init__(self, take: Callable[[str], None]):
        self.take, self._unfinished = take, ""

    def write(self, text: str) -> None:
        *lines, self._unfinished = (self._unfinished + text).split("\n")
        for line in lines:
            self.take(line)

    def flush(self) -> None:
        """Nothing to do: whole lines are already written."""

    def end(self) -> None:
        """Finish the last line."""
        if self._unfinished.strip():
            self.write("\n")


class Status:
    """Follows a stage's kernel while it runs: `with Status("fine_tune", reports) as status: …`.

    reports: the file that the kernel writes its reports to; removed at the end. On a terminal the status line is on standard
    error and is rewritten; elsewhere lines go to standard output. `output` and `errors` are files for the notebook's output,
    which is printed in whole lines; of a line rewritten with carriage returns, as bars do, only the last version.
    """

    def __init__(self, stage: str, reports: Path, shown: Shown | None = None, clock: Callable = time.monotonic):
        self.stage, self.shown, self.clock = stage, shown or Shown(), clock
        self.output = _Lines(lambda line: self._print(sys.stdout, line.rpartition("\r")[2]))
        self.errors = _Lines(lambda line: self._print(sys.stderr, line.rpartition("\r")[2]))
        self._reports = reports.absolute()  # the kernel may have another working folder
        self._task: dict[str, Any] = {}
        self._began = self._logged = clock()
        self._lock = threading.RLock()

    def __enter__(self) -> "Status":
        self._reports.write_bytes(b"")
        os.environ[progress.REPORTS] = str(self._reports)
        self._file, self._lines = self._reports.open(encoding="utf-8"), _Lines(self._take_line)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()
        self._look()
        self.output.end()
        self.errors.end()
        self._clear()
        self._file.close()
        del os.environ[progress.REPORTS]
        self._reports.unlink(missing_ok=True)

    def seconds(self) -> float:
        """Seconds since the stage's kernel was requested."""
        return self.clock() - self._began

    def take(self, report: dict[str, Any]) -> None:
        """Process one report of the kernel."""
        if "say" not in report:
            self._task = report if report["task"] else {}
        elif report["say"] not in self.shown.said:
            self.shown.said.add(report["say"])
            if not self.shown.all_output:
                self._print(sys.stdout, report["say"])
            if report["seconds"]:
                whole = progress.in_words(self.clock() - self.shown.began + report["seconds"])
                end = f"to the end of {self.stage}, validation not counted"
                self._print(sys.stdout, f"the run takes about {whole} {end}")

    def line(self) -> str:
        """The status line: stage, elapsed time, current task, its progress, and the estimated time left."""
        parts, task = [f"{self.stage}, {progress.in_words(self.seconds())}"], self._task
        if task:
            parts.append(task["task"])
            parts += [f"{task['done']:,} of {task['total']:,} {task['unit']}"] if task["total"] else []
            parts += [f"about {progress.in_words(task['left'])} left"] if (task["left"] or 0) >= 1 else []
            parts += [f"after {task['scores']}"] if task["scores"] else []
        return ", ".join(parts)

    def _clear(self, line: str = "") -> None:
        """Replace the status line, if this is a terminal."""
        if sys.stderr.isatty():
            sys.stderr.write(f"{_CLEAR}{line}")
            sys.stderr.flush()

    def _print(self, stream: TextIO, line: str) -> None:
        with self._lock:
            self._clear()
            print(line, file=stream, flush=True)

    def _follow(self) -> None:
        while not self._over.wait(REFRESH):
            self._look()
            self._draw()

    def _look(self) -> None:
        with self._lock:
            self._lines.write(self._file.read())

    def _take_line(self, line: str) -> None:
        with contextlib.suppress(json.JSONDecodeError):  # a report cut off by a full disk
            self.take(json.loads(line))

    def _draw(self) -> None:
        if width := columns(sys.stderr):
            with self._lock:
                self._clear(self.line()[: width - 1])
        elif self.clock() - self._logged >= LOG_EVERY:
            self._logged = self.clock()
            self._print(sys.stdout, self.line())


def list_rows(outputs: Path) -> tuple[list[tuple[str, ...]], list[str]]:
    """A row of COLUMNS for each run, by name; and the faults of runs with a damaged file."""
    rows, faults = [], []
    for file in sorted(outputs.glob("*/run.json")):
        name = repr(file.parent.name)[1:-1]  # escapes line breaks and control characters
        try:
            run = runs.read(file.parent)
        except (files.TornFile, OSError) as error:
            rows.append((name, "damaged", *[""] * (len(COLUMNS) - 2)))
            faults.append(f"{name}: {error}")
            continue
        scores = [with_interval(run.metrics["test"], score) if run.metrics else "" for score in runs.INTERVALS]
        policy = run.parameters["merge_split"].get("leakage", "")
        finished = max((record["finished"] for record in run.records.values()), default="")[:16].replace("T", " ")
        rows.append((name, run.state, run.profile, policy, finished, *scores, progress.in_words(run.seconds)))
    return rows, faults


def with_interval(scores: dict, name: str) -> str:
    """A score with its 95 % interval: `0.712 [0.701–0.723]`."""
    low, high = scores[f"{name}_interval"]
    return f"{scores[name]:.3f} [{low:.3f}–{high:.3f}]"


def as_lines(rows: Sequence[Sequence[str]], width: int | None = None, apart: int = 2) -> list[str]:
    """Rows of text as lines with aligned columns; if wider than `width`, the first `apart` cells get a separate line."""
    lines = _aligned(rows)
    if not width or max(map(len, lines)) <= width:
        return lines
    rest = _aligned([("", *row[apart:]) for row in rows])
    pairs = zip(("  ".join(row[:apart]).rstrip() for row in rows), rest, strict=True)
    return [line for pair in pairs for line in pair if line]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def print_table(rows: Sequence[Sequence[str]], apart: int = 2) -> None:
    """Print rows of text as `as_lines` lays them out for this terminal."""
    print("\n".join(as_lines(rows, columns(), apart)))


def print_list(outputs: Path) -> None:
    """Print a table of the runs in an outputs folder, and the faults of those with a damaged file."""
    rows, faults = list_rows(outputs)
    if rows:
        print_table([COLUMNS, *rows], apart=4)
    else:
        print(f"no runs in {outputs}")
    for fault in faults:
        say(fault)


def print_summary(run: runs.Run, n_ran: int) -> None:
    """Print the scores of the run's model, in one line where no stage ran, and where the report is."""
    metrics, file = runs.read(run.folder).metrics, run.path("metrics.json")
    if metrics is None:
        if file.is_file():
            say(f"{file} holds the scores of an earlier model or other data: run the stages after it too")
        return
    if n_ran:
        from fer_utils.evaluation import report  # pandas takes a while to import

        table = report.score_table(metrics)[["n", "accuracy", "accuracy 95 %", "macro_f1", "macro_f1 95 %"]]
        shown = table.to_string(header=["images", "accuracy", "95 %", "macro F1", "95 %"], float_format="{:.3f}".format)
        print(f"\n{shown}\n")
        notes = (report.drawn_line(metrics), report.labels_line(metrics), report.honesty_line(metrics))
        say("\n".join(filter(None, notes)))
    scores = [f"TEST {name} {with_interval(metrics['test'], key)}" for key, name in runs.INTERVALS.items()]
    say(f"{', '.join(scores)}; report: {run.path('report.html')}")
