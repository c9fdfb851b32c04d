"""Pages and tables of several runs: what differs between them, and what a sweep found, ranked by VAL."""

import base64
import hashlib
import io
import itertools
import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_utils import files, plots
from fer_utils.data import loading
from fer_utils.evaluation import report, scores
from fer_utils.pipeline import runs, sweeps, terminal
from fer_utils.pipeline.parameters import STAGES, ParameterError
from fer_utils.pipeline.runs import Run
from fer_utils.pipeline.sweeps import Plan

import matplotlib.pyplot as plt
import pandas as pd
from jinja2 import Environment
from matplotlib.figure import Figure

if TYPE_CHECKING:
    import optuna

_SPLITS = ("VAL", "TEST")
_SCORES = ("accuracy", "macro_f1", "loss", "calibration_error")
_PLACES = {"run", "profile", "outputs_dir", "data_dir", "tensorboard_dir"}  # parameters that do not affect results
_LONGEST_NAME = 100  # bytes of the runs' names in the name of a comparison

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>{{ style }}</style></head><body>
"""
_COMPARISON = """<h1>{{ names|length }} runs compared</h1>
{% for name, line in honesty %}<p class="{{ 'warning' if line.startswith('WARNING') else 'honesty' }}"><b>{{ name }}</b>: {{ line }}</p>{% endfor %}
<h2>What differs in parameters and versions</h2>{{ differing }}
<h2>What differs in results</h2>{{ results }}
<p>In brackets 95 % bootstrap intervals. Choose a run by its VAL scores, and report TEST of the chosen run only.</p>
<h2>The same images, run against run</h2>
{% if tests is none %}<p>No two runs have predictions of the same images.</p>{% else %}{{ tests }}
<p>McNemar's exact test, two-sided, on the images that both runs predicted: p is the probability of counts at least as
uneven if both runs were equally good. Each p is for its pair only: with {{ n_tests }} tests, a difference is significant
below 0.05 ÷ {{ n_tests }} = {{ "%.2g"|format(0.05 / n_tests) }}.</p>{% endif %}
{% for title, data in figures %}<h2>{{ title }}</h2><figure><img alt="{{ title }}" src="data:image/png;base64,{{ data }}">
</figure>{% endfor %}
"""


def differing_parameters(compared: Sequence[Run]) -> pd.DataFrame:
    """Parameters, package versions and the profile that differ between the runs: one row each, one column per run."""
    rows: dict[str, list[str]] = {"profile": [run.profile for run in compared]}
    for stage in STAGES:
        used = [_ran_with(run, stage) for run in compared]
        for name in dict.fromkeys(name for values in used for name in values if name not in _PLACES):
            rows[f"{stage}.{name}"] = [str(values.get(name, "–")) for values in used]
        versions = [run.records.get(stage, {}).get("versions", {}) for run in compared]
        for package in dict.fromkeys(package for installed in versions for package in installed):
            rows[f"{stage}: {package}"] = [installed.get(package, "–") for installed in versions]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=[run.name for run in compared])
    return table[table.nunique(axis=1) > 1]


def _ran_with(run: Run, stage: str) -> dict:
    """The parameters that a stage ran with, or would run with if it has not run."""
    return run.records[stage]["parameters"] if stage in run.records else run.parameters[stage]


def results(compared: Sequence[Run]) -> pd.DataFrame:
    """Scores with intervals, leakage, epochs, the reason for the end of training, and seconds.

    One row each, one column per run; "–" if a run has no value.
    """
    columns = {}
    for run in compared:
        column = {"state": run.state}
        for split in _SPLITS if run.metrics else ():
            found = run.metrics[split.lower()]
            column[f"{split} images"] = f"{found['n']:,}"
            for name in _SCORES:
                has_interval = f"{name}_interval" in found
                column[f"{split} {name}"] = (
                    terminal.with_interval(found, name) if has_interval else report.significant(found[name])
                )
            column |= _against_label_sets(run.metrics.get("label_sets", {}).get(split.lower(), {}), split)
            seen = report.seen_in_training(run.metrics, split)
            column[f"{split} images seen in training"] = "–" if seen is None else f"{seen:,}"
        for name, found in (run.metrics or {}).get("also", {}).items():
            column |= {f"{name} {score}": terminal.with_interval(found, score) for score in ("accuracy", "macro_f1")}
            column[f"{name} images seen in training"] = f"{found['seen_in_training']:,} of {found['n']:,}"
        harder = (run.metrics or {}).get("corruptions", {})
        column |= {
            f"TEST {name.replace('_', ' ', 1)} over corruptions": report.significant(harder[name])
            for name in ("mean_accuracy", "mean_macro_f1")
            if harder
        }
        for stage, record in run.records.items():
            figures = record["figures"]
            column |= {f"{stage}: {name}": str(figures[name]) for name in ("epochs", "ended by") if name in figures}
        column |= {
            f"{stage}: by hand": "; ".join(record["by_hand"])
            for stage, record in run.records.items()
            if record.get("by_hand")
        }
        column |= {f"{stage}: seconds": f"{record['seconds']:,.0f}" for stage, record in run.records.items()}
        columns[run.name] = column
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    return pd.DataFrame({name: [column.get(row, "–") for row in rows] for name, column in columns.items()}, list(rows))


def _against_label_sets(found: dict, split: str) -> dict[str, str]:
    """Accuracy and macro F1 against FER2013's label and FER+'s, and the divergence from the votes; empty without votes."""
    rows = {}
    for name, shown in report.label_set_names(found).items():
        rows[f"{split} images, {shown}"] = f"{found[name]['n']:,}"
        for score in ("accuracy", "macro_f1"):
            rows[f"{split} {score}, {shown}"] = terminal.with_interval(found[name], score)
    if found:
        rows[f"{split} divergence from the votes"] = report.significant(found["divergence"]["mean"])
    return rows


def mcnemar_tests(compared: Sequence[Run]) -> pd.DataFrame | None:
    """McNemar's test of each pair of runs on VAL and on TEST, on the images that both predicted; None without such images.

    Two images are the same if path and fingerprint of the pixels are equal.
    """
    rows = []
    for split in _SPLITS:
        tables = {run.name: _predictions(run, split) for run in compared if run.metrics}
        for first, second in itertools.combinations(tables, 2):
            if not set(tables[first]["path"]) & set(tables[second]["path"]):
                continue
            test = scores.mcnemar(tables[first], tables[second])
            rows.append(
                {
                    "images of": split,
                    "run 1": first,
                    "run 2": second,
                    "in both": test["n"],
                    "only run 1 right": test["only_first"],
                    "only run 2 right": test["only_second"],
                    "p": test["p_value"],
                }
            )
    return pd.DataFrame(rows) if rows else None


def _predictions(run: Run, split: str) -> pd.DataFrame:
    needed = ("path", "label", "predicted")
    table = loading.read_table(run.folders.path(f"predictions_{split.lower()}.csv"), needed)
    manifest = loading.read_table(run.folders.path("manifest.csv"), ("path", "fingerprint"))
    fingerprint = manifest[manifest["path"] != ""].set_index("path")[
        "fingerprint"
    ]  # without a path an image is in no split
    return table.assign(path=table["path"] + " " + table["path"].map(fingerprint).fillna(""))


def _history(run: Run) -> pd.DataFrame:
    paths = {"train_head": run.folders.path("history_head.csv"), "fine_tune": run.folders.path("history_fine_tune.csv")}
    found = [path for stage, path in paths.items() if stage in run.records]
    return pd.concat([loading.read_table(path, ("epoch", "phase", "val_loss")) for path in found], ignore_index=True)


def compare(outputs: Path, names: Sequence[str]) -> None:
    """Compare the runs with these names, and print the files that say how."""
    if len(set(names)) < 2:
        raise ParameterError(f"--compare {' '.join(names)}: expected the names of two or more runs")
    for path in write_comparison(runs.find(outputs, names), outputs):
        print(path)


def write_comparison(compared: Sequence[Run], folder: Path) -> tuple[Path, Path]:
    """Write the comparison below `folder`; return the HTML page and the CSV. Raises TornFile for a damaged result."""
    names = [run.name for run in compared]
    stem = _file_name(names)
    page, sheet = folder / f"{stem}.html", folder / f"{stem}.csv"
    differing, outcome, tests = differing_parameters(compared), results(compared), mcnemar_tests(compared)
    figures = []
    histories = {run.name: _history(run) for run in compared if "train_head" in run.records}
    if histories:
        figures.append(("Learning curves on VAL", _embedded(plots.compared_curves(histories))))
    for split in _SPLITS:
        counts = {run.name: scores.confusion(_predictions(run, split)) for run in compared if run.metrics}
        if counts:
            figures.append((f"Confusion matrices of {split}", _embedded(plots.compared_confusions(counts))))
    _write_page(
        page,
        f"FER runs: {', '.join(names)}",
        _COMPARISON,
        names=names,
        honesty=[(run.name, report.honesty_line(run.metrics)) for run in compared if run.metrics],
        differing=report.html_table(differing, index=True) if len(differing) else "Nothing.",
        results=report.html_table(outcome, index=True),
        tests=None if tests is None else report.html_table(tests),
        n_tests=0 if tests is None else len(tests),
        figures=figures,
    )
    parts = {"parameter": differing, "result": outcome}
    files.write_csv(
        sheet, pd.concat([table.rename_axis("name").reset_index().assign(kind=kind) for kind, table in parts.items()])
    )
    return page, sheet


def _file_name(names: Sequence[str]) -> str:
    """A name for the files of a comparison, another one for other runs: a digest tells `a_b` and `c` from `a` and `b_c`."""
    joined, digest = "_".join(names), hashlib.blake2b(json.dumps(names).encode(), digest_size=3).hexdigest()
    if len(os.fsencode(joined)) > _LONGEST_NAME:
        return f"compare_{names[0][: _LONGEST_NAME // 4]}_{digest}_and_{len(names) - 1}_more"
    return f"compare_{joined}" if joined.count("_") == len(names) - 1 else f"compare_{joined}_{digest}"


def _embedded(figure: Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, dpi=100, bbox_inches="tight")
    plt.close(figure)
    return base64.b64encode(content.getvalue()).decode()


def _write_page(path: Path, title: str, body: str, **shown: Any) -> None:
    """Write a page that stands alone. body: a template of what `shown` has."""
    page = Environment(autoescape=True).from_string(f"{_HEAD}{body}</body></html>\n")
    files.write_text(path, page.render(title=title, style=report.STYLE, **shown))


# --- sweeps ------------------------------------------------------------------------------------------------------------

STATES = {"COMPLETE": "done", "PRUNED": "pruned", "RUNNING": "running", "WAITING": "waiting", "FAIL": "failed"}
FEWEST = 4  # points from which importances are told
_SWEEP = """<h1>Sweep “{{ base }}”, ranked by VAL</h1>
<p>Study <code>{{ name }}</code>. Score: {{ objective }} on VAL{% if n_seeds > 1 %}, mean over {{ n_seeds }} seeds{% endif %}. The intervals are 95 %, Student's t over the seeds of a point. The best of many
points is the best partly by chance: its score on VAL leans high, and TEST was not looked at.</p>
<h2>Points</h2>{{ points }}
{% if importances %}<h2>Which parameter matters</h2>{{ importances }}
<p>Shares of the score's variance over these points that a parameter explains (fANOVA, Hutter et al. 2014).</p>{% endif %}
{% if history %}<h2>History</h2><figure><img alt="history" src="data:image/png;base64,{{ history }}"></figure>{% endif %}
<p>The runs themselves: <code>python run_all.py --compare RUN RUN</code>.</p>
"""


def ranking(plan: Plan, study: "optuna.Study") -> pd.DataFrame:
    """A row for each trial that counts, best first, failed points last.

    Columns: rank, point, score (mean over seeds on VAL), low and high (95 %, Student's t over seeds; empty for one seed),
    seeds, state, trial, a column for each swept parameter, runs.
    """
    rows = []
    for trial in _shown(study):
        point = trial.user_attrs.get("point")
        values = trial.user_attrs.get("values", []) if trial.state.name == "COMPLETE" else []
        low, high = interval(values)
        rows.append(
            {
                "point": _name(plan, point),
                "score": statistics.fmean(values) if values else math.nan,
                "low": low,
                "high": high,
                "seeds": len(values),
                "state": STATES[trial.state.name],
                "trial": trial.number,
                **_swept(plan, point),
                "runs": " ".join(trial.user_attrs.get("runs", [])),
            }
        )
    swept = [axis.key for axis in plan.axes]
    columns = ["point", "score", "low", "high", "seeds", "state", "trial", *swept, "runs"]
    found = pd.DataFrame(rows, columns=columns).sort_values(["score", "trial"], ascending=[False, True], kind="stable")
    found.insert(0, "rank", [str(place) if done else "–" for place, done in enumerate(found["score"].notna(), 1)])
    return found.reset_index(drop=True)


def _shown(study: "optuna.Study") -> list:
    """The trials that count, and of points that only failed the last."""
    trials, useful = study.get_trials(deepcopy=False), sweeps.useful(study)
    present = {trial.user_attrs.get("point") for trial in useful}
    failed = {
        trial.user_attrs["point"]: trial
        for trial in trials
        if trial.state.name == "FAIL" and "error" in trial.user_attrs and trial.user_attrs.get("point") not in present
    }
    return [*useful, *failed.values()]


def _swept(plan: Plan, point: str | None) -> dict[str, str]:
    known = json.loads(point) if point else {}
    return {axis.key: known.get(axis.stage, {}).get(axis.name, "") for axis in plan.axes}


def _name(plan: Plan, point: str | None) -> str:
    return ", ".join(f"{name}={value}" for name, value in _swept(plan, point).items())


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of scores, Student's t, cut to 0–1; two NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    from scipy.stats import t  # slow to import

    mean, half = statistics.fmean(values), t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return max(0.0, mean - half), min(1.0, mean + half)


def ranking_lines(found: pd.DataFrame, objective: str) -> list[tuple[str, ...]]:
    """The table for a terminal: rank, point, score, state."""
    rows = [("rank", "point", f"VAL {objective.replace('_f1', ' F1')}", "state")]
    for row in found.itertuples():
        span = "" if math.isnan(row.low) else f" ({row.low:.4f}–{row.high:.4f}, {row.seeds} seeds)"
        rows.append((row.rank, row.point, "" if math.isnan(row.score) else f"{row.score:.4f}{span}", row.state))
    return rows


def importances(study: "optuna.Study") -> dict[str, float]:
    """The share of the score's variance that each parameter explains; empty for fewer than FEWEST or equal scores."""
    import optuna

    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if len(done) < FEWEST or len({trial.value for trial in done}) < 2:
        return {}
    return optuna.importance.get_param_importances(study)


def write_sweep(plan: Plan, study: "optuna.Study", outputs: Path) -> tuple[Path, Path]:
    """Write `sweep_<base>.csv` and `sweep_<base>.html` to `outputs`; return both."""
    found = ranking(plan, study)
    sheet, page = (outputs / f"sweep_{plan.base}.{suffix}" for suffix in ("csv", "html"))
    files.write_csv(sheet, found)
    weights = pd.DataFrame(importances(study).items(), columns=["parameter", "importance"])
    done = found[found["score"].notna()].sort_values("trial")
    history = plots.sweep_history(list(done["trial"]), list(done["score"]), plan.objective) if len(done) > 1 else None
    shown = found.drop(columns=["runs", "point"]).astype({"score": float}).dropna(axis=1, how="all")
    _write_page(
        page,
        f"FER sweep {plan.base}",
        _SWEEP,
        base=plan.base,
        name=study.study_name,
        objective=plan.objective.replace("_f1", " F1"),
        n_seeds=len(plan.seeds),
        points=report.html_table(shown),
        importances=report.html_table(weights) if len(weights) else None,
        history=history and _embedded(history),
    )
    return sheet, page
