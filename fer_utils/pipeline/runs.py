"""Reads the runs in an outputs folder: parameters, records, scores, state."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_utils import files, places, progress
from fer_utils.pipeline import keys, lock, parameters, paths, records, terminal


@dataclass(frozen=True)
class Run:
    """The content of a run's folder: of the stages that count, see keys.current.

    `metrics` is None unless `evaluate` scored the model that the run has now.
    """

    name: str
    folders: paths.RunFolders
    profile: str
    parameters: dict[str, dict[str, Any]]
    records: dict[str, dict]
    metrics: dict | None

    @property
    def state(self) -> str:
        """`done`, `running`, or the stage before which it stopped."""
        if lock.is_held(self.folders):
            return "running"
        missing = [stage for stage in parameters.STAGES if stage not in self.records]
        return f"stopped before {missing[0]}" if missing else "done"

    @property
    def finished(self) -> str:
        """The end of its last stage, ISO 8601 in UTC; empty if no stage has ended."""
        return max((record["finished"] for record in self.records.values()), default="")

    @property
    def seconds(self) -> float:
        """The total seconds of its stages."""
        return sum(record["seconds"] for record in self.records.values())


def read(folder: Path) -> Run:
    """Read a run's folder. Raises TornFile, naming the file, if one is damaged."""
    description = files.read_json(folder / "run.json")
    try:
        profile, values = description["profile"], description["parameters"]
        data_dir = [values[stage]["data_dir"] for stage in parameters.STAGES][-1]
        if not isinstance(profile, str):
            raise TypeError("the name of a profile")
        folders = paths.run_folders(folder.name, str(folder.parent.absolute()), data_dir)
    except (KeyError, TypeError) as error:
        raise files.TornFile(
            f"{folder / 'run.json'} lacks {error}: start this run again, or delete its folder"
        ) from error
    except parameters.ParameterError as error:
        raise files.TornFile(f"{error}: rename this folder in {folder.parent}") from error
    found = keys.current(records.read(folders))
    metrics = _read_metrics(folders.metrics) if "evaluate" in found else None
    return Run(folder.name, folders, profile, values, found, metrics)


def _read_metrics(path: Path) -> dict:
    metrics = files.read_json(path)
    is_whole = isinstance(metrics, dict) and {"leakage", "run"} <= set(metrics)
    if not is_whole or not all(set(metrics.get(split) or ()) >= _SCORED for split in ("val", "test")):
        raise files.TornFile(f"{path} holds no metrics of a run: run its stage again with --only evaluate")
    return metrics


def find(outputs: Path, names: Sequence[str]) -> list[Run]:
    """The runs with these names. Raises NotFoundHere, listing the known names, for an unknown one."""
    known = [file.parent.name for file in sorted(outputs.glob("*/run.json"))]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise places.NotFoundHere(
            f"{outputs} has no run {', '.join(map(printable, unknown))}; runs there: "
            f"{', '.join(map(printable, known)) or 'none'}"
        )
    return [read(outputs / name) for name in names]


def printable(name: str) -> str:
    """The name of a folder as a terminal may show it: quoted and escaped if it has line breaks or control characters."""
    return name if name.isprintable() else ascii(name)


COLUMNS = ("run", "state", "profile", "leakage", "finished (UTC)", "TEST accuracy", "TEST macro F1", "time")
SCORES = ("", "images", "accuracy", "macro F1", "ECE")
INTERVALS = {"accuracy": "accuracy", "macro_f1": "macro F1"}  # scores of metrics.json that have a 95 % interval
_SCORED = {"n", "calibration_error", *INTERVALS, *(f"{name}_interval" for name in INTERVALS)}  # of a split


def list_rows(outputs: Path) -> tuple[list[tuple[str, ...]], list[str]]:
    """A row of COLUMNS for each run, by name; and the faults of runs with a damaged file."""
    rows, faults = [], []
    for file in sorted(outputs.glob("*/run.json")):
        try:
            run = read(file.parent)
        except (files.TornFile, OSError) as error:
            rows.append((printable(file.parent.name), "damaged", *[""] * (len(COLUMNS) - 2)))
            faults.append(f"{printable(file.parent.name)}: {error}")
            continue
        scores = ("", "")
        if run.metrics:
            test = run.metrics["test"]
            scores = tuple(with_interval(test, name) for name in INTERVALS)
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
                    intervals = [with_interval(scores, name) for name in INTERVALS]
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
            lines.append(terminal.folded("  ".join(row[:apart]).rstrip(), width))
            lines += [f"  {cells}"] if cells else []
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
