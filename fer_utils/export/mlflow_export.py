"""Writes finished runs to an MLflow store, one way: MLflow never changes a run of this project.

MLflow's client and what its SQLite store needs are the extra `mlflow` of this project.
"""

import importlib.util
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from fer_utils import entry, files
from fer_utils.data import loading
from fer_utils.pipeline import terminal
from fer_utils.pipeline.runs import Run, find, require_scored
from fer_utils.places import NotFoundHere

EXPERIMENT = "fer"
RUN = "fer.run"  # tag: the folder's name
SQLITE = "sqlite:///"
PACKAGES = ("mlflow", "sqlalchemy", "alembic")
ARTIFACTS = ("report.html", "metrics.json", "leakage.json", "history_*.csv", "model*.keras")
FIGURES = ("figures/*.png", "confusion_matrix_*.png")
_LONGEST = 6000  # characters of a parameter's value; MLflow refuses more


class MLflowError(entry.Failed):
    """The store could not be opened or written; the message has its address and what MLflow says."""


def export_named(outputs: Path, names: Sequence[str], uri: str | None) -> None:
    """Write the runs with these names to the store at `uri` (None: `mlflow.db` in the outputs folder), and print their ids."""
    uri = uri or f"{SQLITE}{outputs.absolute() / 'mlflow.db'}"
    for name, run_id in export(find(outputs, list(dict.fromkeys(names))), uri).items():
        terminal.say(f"{name}: written as {run_id}")
    print(uri)


def export(runs: Sequence[Run], uri: str) -> dict[str, str]:
    """Write these runs to the store at `uri`, in the experiment `fer`; return the id there of each by its name.

    Parameters are `<stage>.<name>`, as the stage ran. Metrics are the numbers of metrics.json and leakage.json, their names
    joined by `_`; of a 95 % interval the ends are `…_low` and `…_high`. The history is `history/<column>`, its step the epoch
    over both phases. Artifacts are the figures, the report, the tables that they are drawn from, and the models.

    A run that is in the store already is written anew, and the earlier one is then deleted there, as is what an interrupted
    export left. MLflow keeps what is deleted until `mlflow gc`. With SQLite the artifacts lie in `mlflow_artifacts` beside
    the file, otherwise where the store puts them.

    Raises NotFoundHere for a run that is not finished, or whose model is not the one that was scored, and where a package is
    missing, all before anything is written; TornFile for a damaged result; OutputError where an SQLite store cannot be written;
    MLflowError where MLflow fails.
    """
    unfinished = [f"{run.name} ({run.state})" for run in runs if run.state != "done"]
    if unfinished:
        raise NotFoundHere(f"MLflow takes finished runs, and these are not: {', '.join(unfinished)}")
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        install = "`uv sync --extra mlflow`, or `pip install mlflow-skinny sqlalchemy alembic`"
        raise NotFoundHere(f"--to-mlflow needs {', '.join(missing)}, the extra `mlflow`: {install}")
    for run in runs:
        require_scored(run)
    written = {}
    with _store(uri) as client:
        experiment = _experiment(client, uri)
        for run in runs:
            there = [found for found in client.search_runs([experiment]) if found.data.tags.get(RUN) == run.name]
            written[run.name] = _write(client, experiment, run, run.metrics or {})
            for found in there:
                client.delete_run(found.info.run_id)
    return written


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
    if found := client.get_experiment_by_name(EXPERIMENT):
        return found.experiment_id
    # MLflow would put artifacts into the current folder.
    beside = Path(uri.removeprefix(SQLITE)).parent / "mlflow_artifacts" if uri.startswith(SQLITE) else None
    return client.create_experiment(EXPERIMENT, artifact_location=beside.absolute().as_uri() if beside else None)


def _write(client, experiment: str, run: Run, scores: dict[str, Any]) -> str:
    """Write a run, and mark it as finished when everything is there; return its id."""
    from mlflow.entities import Metric, Param, RunTag

    ended = {stage: _milliseconds(record["finished"]) for stage, record in run.records.items()}
    by_hand = [f"{stage}: {line}" for stage, record in run.records.items() for line in record.get("by_hand", [])]
    tags = {RUN: run.name, "fer.profile": run.profile, "fer.leakage": scores["leakage"]["policy"]}
    tags |= {f"version.{name}": version for name, version in scores["run"].get("versions", {}).items()}
    tags |= {"fer.by_hand": "; ".join(by_hand)[:_LONGEST]} if by_hand else {}
    params = [
        Param(f"{stage}.{name}", str(value)[:_LONGEST])
        for stage, record in run.records.items()
        for name, value in record["parameters"].items()
    ]
    metrics = [Metric(name, value, ended["evaluate"], 0) for name, value in _scores(run, scores)]
    for stage, name in (("train_head", "history_head.csv"), ("fine_tune", "history_fine_tune.csv")):
        history = loading.read_table(run.path(name), ("epoch", "phase")).drop(columns="phase").set_index("epoch")
        metrics += [
            Metric(f"history/{column}", float(value), ended[stage], int(epoch))
            for column, values in history.items()
            for epoch, value in values.items()
        ]
    began = ended["merge_split"] - round(1000 * run.records["merge_split"]["seconds"])
    run_id = client.create_run(experiment, start_time=began, run_name=run.name).info.run_id
    client.log_batch(run_id, metrics, params, [RunTag(*tag) for tag in tags.items()])
    for patterns, folder in ((ARTIFACTS, None), (FIGURES, "figures")):
        for path in sorted(path for pattern in patterns for path in run.folder.glob(pattern)):
            client.log_artifact(run_id, str(path), folder)
    client.set_terminated(run_id, "FINISHED", end_time=ended["evaluate"])
    return run_id


def _scores(run: Run, scores: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a finished run by their names in MLflow, such as `test_accuracy`, `test_accuracy_low`."""
    parts = {name: part for name, part in scores.items() if name not in ("run", "per_class")}
    parts["leakage"] = {**files.read_json(run.folder / "leakage.json"), **scores["leakage"]}
    yield from _numbers(parts | {"seconds": sum(record["seconds"] for record in run.records.values())})
    for split, rows in scores.get("per_class", {}).items():
        for row in rows:
            yield from _numbers(row, f"{split}_{row['class'].replace(' ', '_')}_")


def _numbers(part: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in part.items():
        name = prefix + re.sub(r"[^\w./ -]", "_", key)  # what MLflow takes
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{name}_")
        elif name.endswith("_interval"):
            stem = name.removesuffix("_interval")
            yield from zip((f"{stem}_low", f"{stem}_high"), map(float, value), strict=True)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, float(value)


def _milliseconds(moment: str) -> int:
    return round(1000 * datetime.fromisoformat(moment).timestamp())
