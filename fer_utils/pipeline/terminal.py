"""What run_all.py prints: tables of runs and scores; while a stage runs a status line, or a line every LOG_EVERY seconds in a log."""

import contextlib
import json
import os
import re
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from fer_utils import files, progress
from fer_utils.pipeline import runs

REFRESH = 0.5  # seconds between two readings of the kernel's reports
LOG_EVERY = 30  # seconds between two lines of a log; a new epoch gives a line earlier
LOG_EPOCH = 5  # least seconds between two lines of a log
NARROWEST = 40  # columns; a narrower terminal counts as this wide
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_CLEAR = "\r\x1b[K"


def columns(stream: TextIO | None = None) -> int | None:
    """Columns of a stream's terminal (default: standard output); None for a file or a pipe."""
    stream = stream or sys.stdout
    try:
        return max(NARROWEST, os.get_terminal_size(stream.fileno()).columns) if stream.isatty() else None
    except (OSError, ValueError):
        return None


def say(text: str, stream: TextIO | None = None) -> None:
    """Print to a stream (default: standard output), wrapped to the width of a terminal; a log is not wrapped."""
    stream = stream or sys.stdout
    print("\n".join(folded(line, columns(stream)) for line in text.split("\n")), file=stream, flush=True)


def folded(line: str, width: int | None) -> str:
    """Wrap a line to `width` columns (None: unchanged). Longer words, such as paths, are not split."""
    if not width:
        return line
    return textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


@dataclass
class Shown:
    """What the stages of one run share on the terminal."""

    all_output: bool = False  # the notebooks' whole output is shown
    began: float = field(default_factory=time.monotonic)
    said: set[str] = field(default_factory=set)  # lines that kernels had shown


class Status:
    """Follows a stage's kernel while it runs: `with Status("fine_tune", reports) as status: …`.

    reports: the file that the kernel writes its reports to and that is removed at the end. It lies in the run's folder under
    one name: what a killed process leaves is overwritten by the next.

    On a terminal the status line is on standard error and is rewritten; elsewhere lines go to standard output, without
    carriage returns. `output` and `errors` are files for the notebook's output, which is printed in whole lines.

    shown: what the stages of one run share. What a kernel says is shown once a run.
    """

    def __init__(
        self, stage: str, reports: Path, shown: Shown | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self.stage, self.shown, self.clock = stage, shown or Shown(began=clock()), clock
        self._reports = reports.absolute()  # the kernel may stand elsewhere
        self.output, self.errors = _Lines(self, sys.stdout), _Lines(self, sys.stderr)
        self._heading = "starting"
        self._task: dict = {}
        self._since: tuple[float, float] | None = None  # time and progress at the first report with progress
        self._width = columns(sys.stderr)
        self._began = self._logged = clock()
        self._logged_task = ""
        self._lock = threading.RLock()

    def __enter__(self) -> "Status":
        self._reports.write_bytes(b"")
        os.environ[progress.REPORTS] = str(self._reports)
        self._file = self._reports.open(encoding="utf-8")
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
        self.print(sys.stderr, "")
        self._file.close()
        del os.environ[progress.REPORTS]
        self._reports.unlink(missing_ok=True)

    def seconds(self) -> float:
        """Seconds since the stage's kernel was requested."""
        return self.clock() - self._began

    def cell_begins(self, notebook: str) -> None:
        """Store the heading above the running cell, from the notebook's JSON as papermill writes it."""
        heading = self._heading
        for cell in json.loads(notebook)["cells"]:
            if cell["cell_type"] == "markdown" and (found := _HEADING.search("".join(cell["source"]))):
                heading = found[1]
            if cell["metadata"].get("papermill", {}).get("status") == "running":
                self._heading = heading

    def take(self, report: dict) -> None:
        """Process one report of the kernel."""
        if "say" in report:
            if report["say"] not in self.shown.said and not self.shown.all_output:
                self.print(sys.stdout, report["say"] + "\n")
            if report["seconds"]:
                whole = progress.in_words(self.clock() - self.shown.began + report["seconds"])
                self.print(
                    sys.stdout, f"the run takes about {whole} to the end of {self.stage}, validation not counted\n"
                )
            self.shown.said.add(report["say"])
            return
        if not self._task:
            self._since = None
        self._task = report | {"at": self.clock()} if report["task"] else {}
        if self._task and self._since is None and report["done"]:
            self._since = self._task["at"], report["done"]

    def line(self) -> str:
        """The status line: stage, elapsed time, current task, its progress, and the estimated time left."""
        now, task = self.clock(), self._task
        gone = progress.in_words(now - self._began)
        parts = [task["task"] if task else self._heading]
        if task and task["total"]:
            parts.append(f"{task['done']:,} of {task['total']:,} {task['unit']}")
            if self._since and task["done"] > self._since[1]:
                seen, first = self._since
                left = (task["at"] - seen) / (task["done"] - first) * (task["total"] - task["done"])
                parts.append(f"about {progress.in_words(max(0, left - (now - task['at'])))} left")
        if task and task["scores"]:
            parts.append(f"after {task['scores']}")
        return f"{self.stage}, {gone}: {', '.join(parts)}"

    def print(self, stream: TextIO, lines: str) -> None:
        """Write whole lines; on a terminal the status line is cleared first."""
        with self._lock:
            if self._width:
                sys.stderr.write(_CLEAR)
                sys.stderr.flush()
            stream.write(lines)
            stream.flush()

    def _follow(self) -> None:
        while not self._over.wait(REFRESH):
            self._look()
            self._draw()

    def _look(self) -> None:
        with self._lock:
            while True:
                place = self._file.tell()
                line = self._file.readline()
                if not line.endswith("\n"):
                    self._file.seek(place)
                    return
                with contextlib.suppress(json.JSONDecodeError):  # a report cut off by a full disk
                    self.take(json.loads(line))

    def _draw(self) -> None:
        with self._lock:
            if self._width:
                self._width = columns(sys.stderr) or self._width
                sys.stderr.write(f"{_CLEAR}{self.line()[: self._width - 1]}")
                sys.stderr.flush()
                return
            now, task = self.clock(), self._task.get("task", "")
            is_next_epoch = task.startswith("epoch ") and task != self._logged_task
            if now - self._logged >= (LOG_EPOCH if is_next_epoch else LOG_EVERY):
                self._logged, self._logged_task = now, task
                self.print(sys.stdout, self.line() + "\n")


class _Lines:
    """A file that passes on whole lines; of a line rewritten with carriage returns, as bars do, only the last version."""

    def __init__(self, status: Status, stream: TextIO):
        self.status, self.stream, self._unfinished = status, stream, ""

    def write(self, text: str) -> None:
        *lines, self._unfinished = (self._unfinished + text).split("\n")
        for line in lines:
            self.status.print(self.stream, line.rpartition("\r")[2] + "\n")

    def flush(self) -> None:
        """Nothing to do: whole lines are already written."""

    def end(self) -> None:
        """Finish the last line."""
        if self._unfinished.strip():
            self.write("\n")


# --- tables of runs and scores -----------------------------------------------------------------------------------------

COLUMNS = ("run", "state", "profile", "leakage", "finished (UTC)", "TEST accuracy", "TEST macro F1", "time")
SCORES = ("", "images", "accuracy", "macro F1", "ECE")


def list_rows(outputs: Path) -> tuple[list[tuple[str, ...]], list[str]]:
    """A row of COLUMNS for each run, by name; and the faults of runs with a damaged file."""
    rows, faults = [], []
    for file in sorted(outputs.glob("*/run.json")):
        try:
            run = runs.read(file.parent)
        except (files.TornFile, OSError) as error:
            rows.append((runs.printable(file.parent.name), "damaged", *[""] * (len(COLUMNS) - 2)))
            faults.append(f"{runs.printable(file.parent.name)}: {error}")
            continue
        scores = ("", "")
        if run.metrics:
            test = run.metrics["test"]
            scores = tuple(with_interval(test, name) for name in runs.INTERVALS)
        policy = str(run.parameters["merge_split"].get("leakage", ""))
        finished = run.finished[:16].replace("T", " ")
        rows.append((run.name, run.state, run.profile, policy, finished, *scores, progress.in_words(run.seconds)))
    return rows, faults


def score_rows(metrics: dict) -> list[tuple[str, ...]]:
    """A row of SCORES for VAL, TEST and each of their parts, and again for test-time augmentation.

    ECE is the expected calibration error.
    """
    rows = []
    augmented = metrics.get("test_time_augmentation", {})
    for found, views in ((metrics, ""), (augmented, f", {augmented.get('kind')}")):
        for split in ("val", "test"):
            whole = found.get(split, {})
            parts = {"": whole} | {f", {part}": whole.get(part) for part in ("public", "private", "unseen")}
            for part, scores in parts.items():
                if scores:
                    intervals = [with_interval(scores, name) for name in runs.INTERVALS]
                    error = f"{scores['calibration_error']:.3f}"
                    rows.append((f"{split.upper()}{part}{views}", f"{scores['n']:,}", *intervals, error))
    return rows


def with_interval(scores: dict, name: str) -> str:
    """A score with its 95 % interval: `0.712 [0.701–0.723]`."""
    low, high = scores[f"{name}_interval"]
    return f"{scores[name]:.3f} [{low:.3f}–{high:.3f}]"


def as_lines(rows: Sequence[Sequence[str]], width: int | None = None, apart: int = 2) -> list[str]:
    """Rows of text as lines with aligned columns; if wider than `width`, the first `apart` cells get a separate line."""
    lines = _aligned(rows)
    if width and max(map(len, lines), default=0) > width:
        rest = _aligned([row[apart:] for row in rows])
        lines = []
        for row, cells in zip(rows, rest, strict=True):
            lines.append(folded("  ".join(row[:apart]).rstrip(), width))
            lines += [f"  {cells}"] if cells else []
    return lines


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


def print_summary(folders: runs.RunFolders, n_ran: int) -> None:
    """Print the scores of the run's model, in one line where no stage ran, and where the report is."""
    metrics = runs.read(folders.run).metrics
    if metrics is None:
        if folders.path("metrics.json").is_file():
            say(
                f"{folders.path('metrics.json')} holds the scores of an earlier model or other data: run the stages after it too"
            )
        return
    if n_ran:
        from fer_utils.evaluation import report  # pandas takes a while to import

        print()
        print_table([SCORES, *score_rows(metrics)])
        print()
        for line in (report.drawn_line(metrics), report.labels_line(metrics), report.honesty_line(metrics)):
            if line:
                say(line)
    scores = [f"TEST {name} {with_interval(metrics['test'], key)}" for key, name in runs.INTERVALS.items()]
    say(f"{', '.join(scores)}; report: {folders.path('report.html')}")
