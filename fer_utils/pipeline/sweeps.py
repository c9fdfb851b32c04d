"""Runs each combination of parameter values and ranks the runs by VAL; TEST is never used for the ranking.

Stages with the same key are computed once.
"""

import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fer_utils import files, places
from fer_utils.pipeline import parameters, runner, runs, terminal
from fer_utils.pipeline.lock import RunIsBusy
from fer_utils.pipeline.parameters import ParameterError


def points(texts: Sequence[str]) -> list[dict[str, dict[str, str]]]:
    """Every combination of `STAGE.NAME=V1,V2,…` as section → name → value. Raises ParameterError."""
    axes = []
    for text in texts:
        stage, name, given = parameters.parse_override(text, "--sweep")
        values = [value.strip() for value in given.split(",")]
        if "" in values or len(set(values)) < len(values):
            raise ParameterError(f"--sweep {text}: expected values set apart by commas, none twice")
        if (stage, name) in [axis[0][:2] for axis in axes]:
            raise ParameterError(f"--sweep {text}: {stage}.{name} is swept twice; give its values in one list")
        axes.append([(stage, name, value) for value in values])
    found = []
    for combination in itertools.product(*axes):
        point: dict[str, dict[str, str]] = {}
        for stage, name, value in combination:
            point.setdefault(stage, {})[name] = value
        found.append(point)
    return found


def name_of(base: str, point: Mapping[str, Mapping[str, str]]) -> str:
    """The name of the run of a point: `demo__train_head.epochs=3__fine_tune.unfreeze_top=30`."""
    parts = [f"{stage}.{name}={value}" for stage, values in point.items() for name, value in values.items()]
    return re.sub(r"[^\w.=+-]+", "-", "__".join([base, *parts]))


def run(
    profile: str, chosen: Sequence[str], sweep: Mapping[str, Mapping[str, Mapping]], verbose: bool = False
) -> list[str]:
    """Run every point of a sweep (run's name → stage → parameters); return the names of those that failed.

    If an earlier run has finished a stage with the same key, its outputs are taken over. A failed run is reported at once
    and does not stop the others.
    """
    failed, done = [], []
    for number, (name, values) in enumerate(sweep.items(), 1):
        print(f"\n[{number} of {len(sweep)}]", end=" ", flush=True)
        folders = runner.folders_of(values)
        try:
            runner.run(profile, chosen, values, verbose=verbose, donors=done)
        except (
            runner.StageFailed,
            ParameterError,
            places.NotFoundHere,
            files.OutputError,
            files.TornFile,
            RunIsBusy,
        ) as error:
            terminal.say(f"\n{name}: {error}", sys.stderr)
            failed.append(name)
        done.append(folders)
    return failed


RANKED = ("rank", "run", "VAL macro F1", "VAL accuracy", "VAL loss", "seconds")


def ranking(found: Sequence[runs.Run]) -> list[tuple[str, ...]]:
    """A row of RANKED for each run, by VAL macro F1, then VAL accuracy, highest first; unfinished runs last."""

    def order(run: runs.Run) -> tuple[float, float]:
        return (run.metrics["val"]["macro_f1"], run.metrics["val"]["accuracy"])

    scored = sorted((run for run in found if run.metrics), key=order, reverse=True)
    rows = []
    for rank, run in enumerate(scored, 1):
        val = run.metrics["val"]
        scores = [runs.with_interval(val, "macro_f1"), runs.with_interval(val, "accuracy"), f"{val['loss']:.4f}"]
        rows.append((str(rank), run.name, *scores, f"{run.seconds:,.0f}"))
    return rows + [("–", run.name, run.state, "", "", f"{run.seconds:,.0f}") for run in found if not run.metrics]


def write_ranking(rows: Sequence[tuple[str, ...]], path: Path) -> None:
    """Write the ranking as CSV."""
    import pandas as pd  # slow to import

    files.write_csv(path, pd.DataFrame(rows, columns=RANKED))
