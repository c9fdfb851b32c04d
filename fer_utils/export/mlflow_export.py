"""Writes finished runs to an MLflow store, one way: MLflow never changes a run of this project.

MLflow's client and what its SQLite store needs are the extra `mlflow` of this project.
"""

import importlib.util
import logging
import numbers
import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from fer_utils import entry, files
from fer_utils.data import loading
from fer_utils.pipeline import terminal
from fer_utils.pipeline.runs import Run, find, require_scored
from fer_utils.places import NotFoundHere

import pandas as pd

EXPERIMENT = "fer"
RUN, FOLDER = "fer.run", "fer.folder"  # tags: name of the run, path of its folder
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
    over both phases. With SQLite the artifacts lie in `mlflow_artifacts` beside the file, otherwise where the store puts them.
    A run whose folder is in the store already is written anew, and the earlier entry is then deleted there.

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
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # the export talks to the store alone
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):  # they report every table that they make
        logging.getLogger(name).setLevel(logging.WARNING)
    artifacts = None
    if uri.startswith(SQLITE):
        beside = Path(uri.removeprefix(SQLITE)).absolute().parent
        files.require_space(beside, 0)  # MLflow would try again for minutes
        artifacts = (beside / "mlflow_artifacts").as_uri()  # MLflow would put them into the current folder
    written = {}
    try:
        client = MlflowClient(uri)
        known = client.get_experiment_by_name(EXPERIMENT)
        experiment = known.experiment_id if known else client.create_experiment(EXPERIMENT, artifacts)
        for run in runs:
            stored, folder = client.search_runs([experiment]), str(run.folder.absolute())
            there = [found for found in stored if found.data.tags.get(FOLDER) == folder]
            written[run.name] = _write(client, experiment, run, run.metrics or {})
            for found in there:
                client.delete_run(found.info.run_id)
    except (MlflowException, SQLAlchemyError) as error:
        raise MLflowError(f"{uri}: {error}") from error
    return written


def _write(client, experiment: str, run: Run, scores: dict[str, Any]) -> str:
    """Write a run, and mark it as finished when everything is there; return its id."""
    from mlflow.entities import Metric, Param

    ended = round(1000 * datetime.fromisoformat(run.records["evaluate"]["finished"]).timestamp())  # milliseconds
    tags = {RUN: run.name, FOLDER: str(run.folder.absolute())}
    tags |= {"fer.profile": run.profile, "fer.leakage": scores["leakage"]["policy"]}
    tags |= {f"version.{name}": version for name, version in scores["run"].get("versions", {}).items()}
    by_hand = [f"{stage}: {line}" for stage, record in run.records.items() for line in record.get("by_hand", [])]
    tags |= {"fer.by_hand": "; ".join(by_hand)[:_LONGEST]} if by_hand else {}
    params = [
        Param(f"{stage}.{name}", str(value)[:_LONGEST])
        for stage, record in run.records.items()
        for name, value in record["parameters"].items()
    ]
    metrics = [Metric(name, value, ended, 0) for name, value in _scores(run, scores)]
    for name in ("history_head.csv", "history_fine_tune.csv"):
        history = loading.read_table(run.path(name), ("epoch", "phase")).drop(columns="phase").set_index("epoch")
        points = history.stack().items()
        metrics += [Metric(f"history/{column}", float(value), ended, int(epoch)) for (epoch, column), value in points]
    run_id = client.create_run(experiment, ended - round(1000 * run.seconds), tags, run.name).info.run_id
    client.log_batch(run_id, metrics, params)
    for patterns, folder in ((ARTIFACTS, None), (FIGURES, "figures")):
        for path in sorted(path for pattern in patterns for path in run.folder.glob(pattern)):
            client.log_artifact(run_id, str(path), folder)
    client.set_terminated(run_id, "FINISHED", end_time=ended)
    return run_id


def _scores(run: Run, scores: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a finished run by their names in MLflow, such as `test_accuracy`, `test_accuracy_low`."""
    parts = {name: part for name, part in scores.items() if name not in ("run", "per_class")}
    parts["leakage"] = {**files.read_json(run.folder / "leakage.json"), **scores["leakage"]}
    parts["seconds"] = run.seconds
    for split, rows in scores.get("per_class", {}).items():
        parts |= {f"{split}_{row['class'].replace(' ', '_')}": row for row in rows}
    for key, value in pd.json_normalize(parts, sep="_").iloc[0].items():
        name = re.sub(r"[^\w./ -]", "_", key)  # what MLflow takes
        if name.endswith("_interval"):
            stem = name.removesuffix("_interval")
            yield from zip((f"{stem}_low", f"{stem}_high"), map(float, value), strict=True)
        elif isinstance(value, numbers.Real) and not isinstance(value, bool):
            yield name, float(value)
