"""Writes finished runs to an MLflow store, one way: MLflow never changes a run of this project.

MLflow's client and what its SQLite store needs are the extra `mlflow` of this project.
"""

import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fer_utils import entry, files
from fer_utils.data import loading
from fer_utils.pipeline import keys, terminal
from fer_utils.pipeline.parameters import STAGES
from fer_utils.pipeline.runs import Run, find, require_scored
from fer_utils.places import NotFoundHere

EXPERIMENT = "fer"
RUN, STATE = "fer.run", "fer.state"  # tags: the folder's name, and a digest of what the run holds
SQLITE = "sqlite:///"
PACKAGES = ("mlflow", "sqlalchemy", "alembic")
ARTIFACTS = (
    "report.html",
    "metrics.json",
    "leakage.json",
    "history_head.csv",
    "history_fine_tune.csv",
    "model.keras",
    "model_votes.keras",
)
_LONGEST = 6000  # characters of a parameter's value; MLflow refuses more
_AT_ONCE = 100  # parameters that MLflow takes in one call; of metrics it takes 1,000
_NO_METRICS = {"run", "per_class", "leakage"}  # parts of metrics.json that are written in another way


class MLflowError(entry.Failed):
    """The store could not be opened or written; the message has its address and what MLflow says."""


@dataclass(frozen=True)
class Exported:
    """A run in the store: its id there; whether it is new; ids of earlier states of the same run that stay beside it."""

    run: str
    run_id: str
    is_new: bool
    earlier: tuple[str, ...]


def default_uri(outputs: Path) -> str:
    """The store that is used unless another is named: `mlflow.db` in the outputs folder."""
    return f"{SQLITE}{outputs.absolute() / 'mlflow.db'}"


def export_named(outputs: Path, names: Sequence[str], uri: str | None) -> None:
    """Write the runs with these names to the store at `uri` (None: the default), and print what became of each."""
    uri = uri or default_uri(outputs)
    for each in export(find(outputs, dict.fromkeys(names)), uri):
        line = f"{each.run}: {'written' if each.is_new else 'there already, unchanged,'} as {each.run_id}"
        terminal.say(line + (f"; earlier states stay: {', '.join(each.earlier)}" if each.earlier else ""))
    print(uri)


def export(runs: Sequence[Run], uri: str) -> list[Exported]:
    """Write these runs to the store at `uri`, in the experiment `fer`.

    Parameters are `<stage>.<name>`, as the stage ran. Metrics are the numbers of metrics.json and leakage.json, their names
    joined by `_`; of a 95 % interval the ends are `…_low` and `…_high`. The history is `history/<column>`, its step the epoch
    over both phases. Artifacts are the figures, the report, the tables that they are drawn from, and the models.

    A run that is there in the same state is not written again. One that has changed since is written as a new run, and the
    earlier stays. What an interrupted export left is removed first. With SQLite the artifacts lie in `mlflow_artifacts` beside
    the file, otherwise where the store puts them.

    Raises NotFoundHere for a run that is not finished, or whose model is not the one that was scored, and where a package is
    missing, all before anything is written; TornFile for a damaged result; OutputError where an SQLite store cannot be written;
    MLflowError where MLflow fails.
    """
    unfinished = [f"{run.name} ({run.state})" for run in runs if run.state != "done"]
    if unfinished:
        raise NotFoundHere(f"MLflow takes finished runs, and these are not: {', '.join(unfinished)}")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise NotFoundHere(
            f"--to-mlflow needs {', '.join(missing)}, the extra `mlflow`: `uv sync --extra mlflow`, or `pip install mlflow-skinny "
            "sqlalchemy alembic`"
        )
    for run in runs:
        require_scored(run.folders)
    with _store(uri) as client:
        experiment = _experiment(client, uri)
        return [_exported(client, experiment, run) for run in runs]


@contextmanager
def _store(uri: str) -> Iterator[Any]:
    """A client of the store; MLflow's own errors become MLflowError."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # the export talks to the store alone
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):  # they report every table that they make
        logging.getLogger(name).setLevel(logging.WARNING)
    if uri.startswith(SQLITE):
        files.require_space(Path(uri.removeprefix(SQLITE)).parent, 0)  # MLflow would try again for minutes
    try:
        yield MlflowClient(uri)
    except (MlflowException, SQLAlchemyError) as error:
        raise MLflowError(f"{uri}: {error}") from error


def _experiment(client, uri: str) -> str:
    """The id of the experiment, which is made if it is not there."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return found.experiment_id
    # MLflow would put them into the current folder.
    beside = Path(uri.removeprefix(SQLITE)).parent / "mlflow_artifacts" if uri.startswith(SQLITE) else None
    return client.create_experiment(EXPERIMENT, artifact_location=beside.absolute().as_uri() if beside else None)


def _exported(client, experiment: str, run: Run) -> Exported:
    state, earlier = keys.digest({"records": run.records, "metrics": run.metrics}), []
    for found in client.search_runs([experiment], f"tags.`{RUN}` = '{_quoted(run.name)}'"):
        if found.info.status != "FINISHED":
            client.delete_run(found.info.run_id)
        elif found.data.tags.get(STATE) == state:
            return Exported(run.name, found.info.run_id, False, ())
        else:
            earlier.append(found.info.run_id)
    return Exported(run.name, _write(client, experiment, run, state), True, tuple(earlier))


def _quoted(name: str) -> str:
    if "'" in name:
        raise NotFoundHere(f"{name}: MLflow cannot search for a name with an apostrophe; rename the run's folder")
    return name


def _write(client, experiment: str, run: Run, state: str) -> str:
    """Write a run, and mark it as finished when everything is there; return its id."""
    from mlflow.entities import Metric, Param, RunTag

    ended = {stage: _milliseconds(record["finished"]) for stage, record in run.records.items()}
    tags = {RUN: run.name, STATE: state, "fer.profile": run.profile, "fer.leakage": run.metrics["leakage"]["policy"]}
    tags |= {f"version.{name}": version for name, version in run.metrics["run"].get("versions", {}).items()}
    by_hand = [f"{stage}: {line}" for stage, record in run.records.items() for line in record.get("by_hand", [])]
    tags |= {"fer.by_hand": "; ".join(by_hand)[:_LONGEST]} if by_hand else {}
    began = ended["merge_split"] - round(1000 * run.records["merge_split"]["seconds"])
    run_id = client.create_run(experiment, start_time=began, run_name=run.name).info.run_id
    params = [
        Param(f"{stage}.{name}", str(value)[:_LONGEST])
        for stage in STAGES
        for name, value in run.records[stage]["parameters"].items()
    ]
    metrics = [Metric(name, value, ended["evaluate"], 0) for name, value in scores_of(run).items()]
    metrics += [Metric(name, value, ended[stage], step) for name, value, stage, step in _history(run)]
    client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])
    for start in range(0, len(params), _AT_ONCE):
        client.log_batch(run_id, params=params[start : start + _AT_ONCE])
    for start in range(0, len(metrics), 10 * _AT_ONCE):
        client.log_batch(run_id, metrics=metrics[start : start + 10 * _AT_ONCE])
    folder = run.folders.run
    for path in (folder / name for name in ARTIFACTS):
        if path.is_file():
            client.log_artifact(run_id, str(path))
    for path in [*sorted((folder / "figures").glob("*.png")), *sorted(folder.glob("confusion_matrix_*.png"))]:
        client.log_artifact(run_id, str(path), "figures")
    client.set_terminated(run_id, "FINISHED", end_time=ended["evaluate"])
    return run_id


def scores_of(run: Run) -> dict[str, float]:
    """The numbers of a finished run by their names in MLflow, such as `test_accuracy`, `test_accuracy_low`."""
    leakage = {**files.read_json(run.folders.run / "leakage.json"), **run.metrics["leakage"]}
    parts = {name: part for name, part in run.metrics.items() if name not in _NO_METRICS}
    found = dict(_numbers({**parts, "leakage": leakage, "seconds": run.seconds}))
    for split, rows in run.metrics.get("per_class", {}).items():
        for row in rows:
            own = {name: value for name, value in row.items() if name != "class"}
            found |= {f"{split}_{row['class'].replace(' ', '_')}_{name}": value for name, value in _numbers(own)}
    return found


def _numbers(part: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in part.items():
        name = prefix + _plain(key)
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{name}_")
        elif name.endswith("_interval"):
            stem = name.removesuffix("_interval")
            yield from zip((f"{stem}_low", f"{stem}_high"), map(float, value), strict=True)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, float(value)


def _plain(name: str) -> str:
    """A name that MLflow takes: letters, digits, and `_-. /`."""
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name)


def _history(run: Run) -> Iterator[tuple[str, float, str, int]]:
    """Name, value, stage and epoch of every number of both histories."""
    for stage, path in (
        ("train_head", run.folders.path("history_head.csv")),
        ("fine_tune", run.folders.path("history_fine_tune.csv")),
    ):
        table = loading.read_table(path, ("epoch", "phase"))
        for row in table.drop(columns="phase").to_dict("records"):
            epoch = int(row.pop("epoch"))
            yield from ((f"history/{name}", float(value), stage, epoch) for name, value in row.items())


def _milliseconds(moment: str) -> int:
    return round(1000 * datetime.fromisoformat(moment).timestamp())
