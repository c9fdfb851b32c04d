"""What the runs in an outputs folder hold: parameters, records, scores, state.

Knows how a finished or unfinished run is read; computes no score and writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_utils import files, parameters, paths, run_lock, stages


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it. `metrics` is None where `evaluate` has not come to its end."""

    name: str
    folders: paths.RunFolders
    profile: str
    parameters: dict[str, dict[str, Any]]
    records: dict[str, dict]
    metrics: dict | None

    @property
    def state(self) -> str:
        """`done`, `running`, or how far it came."""
        if run_lock.is_held(self.folders):
            return "running"
        missing = [stage for stage in parameters.STAGES if stage not in self.records]
        return f"stopped before {missing[0]}" if missing else "done"

    @property
    def finished(self) -> str:
        """When its last stage ended, ISO 8601, UTC; empty where none has."""
        return max((record["finished"] for record in self.records.values()), default="")

    @property
    def seconds(self) -> float:
        """Seconds that its stages took."""
        return sum(record["seconds"] for record in self.records.values())


def read(folder: Path) -> Run:
    """Read a run's folder. Raises TornFile, naming the file, where one is not whole."""
    description = files.read_json(folder / "run.json")
    try:
        profile, values = description["profile"], description["parameters"]
        data_dir = values["evaluate"]["data_dir"]
    except (KeyError, TypeError) as error:
        raise files.TornFile(f"{folder / 'run.json'} lacks {error}: run the run again, or remove its folder") from error
    folders = paths.run_folders(folder.name, str(folder.parent.absolute()), data_dir)
    records = stages.records(folders)
    metrics = _read_metrics(folders.metrics) if "evaluate" in records else None
    return Run(folder.name, folders, profile, values, records, metrics)


def _read_metrics(path: Path) -> dict:
    metrics = files.read_json(path)
    if not isinstance(metrics, dict) or not {"val", "test", "leakage", "run"} <= set(metrics):
        raise files.TornFile(f"{path} holds no metrics of a run: run its stage again with --only evaluate")
    return metrics


def find(outputs: Path, names: Sequence[str]) -> list[Run]:
    """The runs of these names. Raises NotFoundHere, with the names known, for one that is not there."""
    known = [file.parent.name for file in sorted(outputs.glob("*/run.json"))]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise paths.NotFoundHere(f"{outputs} has no run {', '.join(unknown)}; runs there: {', '.join(known) or 'none'}")
    return [read(outputs / name) for name in names]


COLUMNS = ("run", "finished (UTC)", "profile", "leakage", "TEST accuracy", "TEST macro F1", "seconds", "state")


def list_rows(outputs: Path) -> list[tuple[str, ...]]:
    """A row of COLUMNS for each run, by name; of a run with a torn file, its state says which."""
    rows = []
    for file in sorted(outputs.glob("*/run.json")):
        try:
            run = read(file.parent)
        except files.TornFile as error:
            rows.append((file.parent.name, *[""] * (len(COLUMNS) - 2), str(error)))
            continue
        scores = ("", "")
        if run.metrics:
            test = run.metrics["test"]
            scores = tuple(with_interval(test, name) for name in ("accuracy", "macro_f1"))
        policy = run.parameters["merge_split"]["leakage"]
        finished = run.finished[:16].replace("T", " ")
        rows.append((run.name, finished, run.profile, policy, *scores, f"{run.seconds:,.0f}", run.state))
    return rows


def with_interval(scores: dict, name: str) -> str:
    """A score with its 95 % interval: `0.712 [0.701–0.723]`."""
    low, high = scores[f"{name}_interval"]
    return f"{scores[name]:.3f} [{low:.3f}–{high:.3f}]"


def as_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text as lines with aligned columns."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))] if rows else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
