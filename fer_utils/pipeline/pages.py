"""Compares runs: a page and a table of what differs between them in parameters, versions and results."""

import base64
import io
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

from fer_utils import files, plots
from fer_utils.data import loading
from fer_utils.evaluation import report, scores
from fer_utils.pipeline import keys, runs, terminal
from fer_utils.pipeline.parameters import STAGES, ParameterError
from fer_utils.pipeline.runs import Run

import matplotlib.pyplot as plt
import pandas as pd
from jinja2 import Environment
from matplotlib.figure import Figure

_SPLITS = ("VAL", "TEST")
_WHERE = {"run", "profile", "outputs_dir", "data_dir", "tensorboard"}  # parameters that do not affect results
_LONGEST_NAME = 100  # bytes of the runs' names in the name of a comparison

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>FER runs: {{ names|join(", ") }}</title><style>{{ style }}</style></head><body>
<h1>{{ names|length }} runs compared</h1>
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
</body></html>
"""


def differing_parameters(compared: Sequence[Run]) -> pd.DataFrame:
    """Parameters, package versions and the profile that differ between the runs: one row each, one column per run."""
    columns = []
    for run in compared:
        column = {"profile": run.profile}
        for stage in STAGES:
            record = run.records.get(stage, {})  # of a stage that has not run: the parameters that it would run with
            values = record.get("parameters", run.parameters[stage])
            column |= {f"{stage}.{name}": str(value) for name, value in values.items() if name not in _WHERE}
            column |= {f"{stage}: {package}": installed for package, installed in record.get("versions", {}).items()}
        columns.append(column)
    table = _side_by_side(compared, columns)
    return table[table.nunique(axis=1) > 1]


def results(compared: Sequence[Run]) -> pd.DataFrame:
    """Scores with intervals, leakage, epochs and seconds: one row each, one column per run; "–" if a run has no value."""
    return _side_by_side(compared, [_results_of(run) for run in compared])


def _side_by_side(compared: Sequence[Run], columns: Sequence[dict[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=[run.name for run in compared]).T.fillna("–")


def _results_of(run: Run) -> dict[str, str]:
    metrics, rows = run.metrics or {}, {"state": run.state}
    for split in _SPLITS if metrics else ():
        found, sets = metrics[split.lower()], metrics.get("label_sets", {}).get(split.lower(), {})
        rows |= _scores(found, split)
        rows |= {f"{split} {score}": report.significant(found[score]) for score in ("loss", "calibration_error")}
        for name, shown in report.label_set_names(sets).items():
            rows |= _scores(sets[name], split, f", {shown}")
        if sets:
            rows[f"{split} divergence from the votes"] = report.significant(sets["divergence"]["mean"])
        seen = report.seen_in_training(metrics, split)
        rows[f"{split} images seen in training"] = "–" if seen is None else f"{seen:,}"
    for name, found in metrics.get("also", {}).items():
        rows |= _scores(found, name) | {f"{name} images seen in training": f"{found['seen_in_training']:,}"}
    harder = metrics.get("corruptions", {})
    for score in runs.INTERVALS if harder else ():
        rows[f"TEST mean {score} over corruptions"] = report.significant(harder[f"mean_{score}"])
    for stage, record in run.records.items():
        figures = record["figures"] | {"seconds": f"{record['seconds']:,.0f}"}
        figures |= {"by hand": "; ".join(record["by_hand"])} if record.get("by_hand") else {}
        kept = ("epochs", "ended by", "by hand", "seconds")
        rows |= {f"{stage}: {name}": str(figures[name]) for name in kept if name in figures}
    return rows


def _scores(found: dict, name: str, ending: str = "") -> dict[str, str]:
    """The number of images, and accuracy and macro F1 with their intervals."""
    rows = {f"{name} {score}{ending}": terminal.with_interval(found, score) for score in runs.INTERVALS}
    return {f"{name} images{ending}": f"{found['n']:,}"} | rows


def mcnemar_tests(compared: Sequence[Run]) -> pd.DataFrame | None:
    """McNemar's test of each pair of runs on VAL and on TEST, on the images that both predicted; None without such images."""
    rows = []
    for split in _SPLITS:
        tables = {run.name: _predictions(run, split) for run in compared if run.metrics}
        for first, second in itertools.combinations(tables, 2):
            if set(tables[first]["path"]) & set(tables[second]["path"]):
                test = scores.mcnemar(tables[first], tables[second])
                rows.append({"images of": split, "run 1": first, "run 2": second} | test)
    shown = {"n": "in both", "only_first": "only run 1 right", "only_second": "only run 2 right", "p_value": "p"}
    return pd.DataFrame(rows).rename(columns=shown) if rows else None


def _predictions(run: Run, split: str) -> pd.DataFrame:
    """The table of predictions; two images are the same if their path, here with the fingerprint of the pixels, is equal."""
    table = loading.read_table(run.path(f"predictions_{split.lower()}.csv"), ("path", "label", "predicted"))
    manifest = loading.read_table(run.path("manifest.csv"), ("path", "fingerprint"))
    in_a_split = manifest[manifest["path"] != ""].set_index("path")
    return table.assign(path=table["path"] + " " + table["path"].map(in_a_split["fingerprint"]).fillna(""))


def _history(run: Run) -> pd.DataFrame:
    names = {"train_head": "history_head.csv", "fine_tune": "history_fine_tune.csv"}
    found = [run.path(name) for stage, name in names.items() if stage in run.records]
    return pd.concat([loading.read_table(path, ("epoch", "phase", "val_loss")) for path in found], ignore_index=True)


def compare(outputs: Path, names: Sequence[str]) -> None:
    """Compare the runs with these names, and print the files that say how."""
    if len(set(names)) < 2:
        raise ParameterError(f"--compare {' '.join(names)}: expected the names of two or more runs")
    for path in write_comparison(runs.find(outputs, names), outputs):
        print(path)


def write_comparison(compared: Sequence[Run], folder: Path) -> tuple[Path, Path]:
    """Write the comparison below `folder`; return the HTML page and the CSV. Raises TornFile for a damaged result."""
    names, scored = [run.name for run in compared], [run for run in compared if run.metrics]
    stem = _file_name(names)
    page, sheet = folder / f"{stem}.html", folder / f"{stem}.csv"
    differing, outcome, tests = differing_parameters(compared), results(compared), mcnemar_tests(compared)
    figures = []
    if histories := {run.name: _history(run) for run in compared if "train_head" in run.records}:
        figures.append(("Learning curves on VAL", _embedded(plots.compared_curves(histories))))
    for split in _SPLITS if scored else ():
        counts = {run.name: scores.confusion(_predictions(run, split)) for run in scored}
        figures.append((f"Confusion matrices of {split}", _embedded(plots.compared_confusions(counts))))
    content = {
        "honesty": [(run.name, report.honesty_line(run.metrics)) for run in scored if run.metrics],
        "differing": report.html_table(differing) if len(differing) else "Nothing.",
        "results": report.html_table(outcome),
        "tests": None if tests is None else report.html_table(tests),
        "n_tests": 0 if tests is None else len(tests),
    }
    template = Environment(autoescape=True).from_string(_PAGE)
    files.write_text(page, template.render(content, names=names, style=report.STYLE, figures=figures))
    parts = pd.concat({"parameter": differing, "result": outcome}, names=["kind", "name"])
    files.write_csv(sheet, parts.reset_index())
    return page, sheet


def _file_name(names: Sequence[str]) -> str:
    """A name for the files of a comparison. A digest distinguishes the runs `a_b`, `c` from `a`, `b_c`."""
    shown = os.fsencode("_".join(names))[:_LONGEST_NAME].decode(errors="ignore")
    return f"compare_{shown}_{keys.digest({'names': names})[:6]}"


def _embedded(figure: Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, dpi=100, bbox_inches="tight")
    plt.close(figure)
    return base64.b64encode(content.getvalue()).decode()
