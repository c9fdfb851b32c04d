"""Compares runs: differences in parameters and in results, as one HTML page and a CSV."""

import base64
import hashlib
import io
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from fer_utils import files, plots
from fer_utils.data import loading
from fer_utils.evaluation import report, scores
from fer_utils.pipeline import runs
from fer_utils.pipeline.parameters import STAGES
from fer_utils.pipeline.runs import Run

import matplotlib.pyplot as plt
import pandas as pd
from jinja2 import Environment
from matplotlib.figure import Figure

_SPLITS = ("VAL", "TEST")
_SCORES = ("accuracy", "macro_f1", "loss", "calibration_error")
_PLACES = {"run", "profile", "outputs_dir", "data_dir", "tensorboard_dir"}  # parameters that do not affect results
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
                    runs.with_interval(found, name) if has_interval else report.significant(found[name])
                )
            column |= _against_label_sets(run.metrics.get("label_sets", {}).get(split.lower(), {}), split)
            seen = report.seen_in_training(run.metrics, split)
            column[f"{split} images seen in training"] = "–" if seen is None else f"{seen:,}"
        for name, found in (run.metrics or {}).get("also", {}).items():
            column |= {f"{name} {score}": runs.with_interval(found, score) for score in ("accuracy", "macro_f1")}
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
            rows[f"{split} {score}, {shown}"] = runs.with_interval(found[name], score)
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
    table = loading.read_table(run.folders.for_split("predictions", split, ".csv"), needed)
    manifest = loading.read_table(run.folders.manifest, ("path", "fingerprint"))
    fingerprint = manifest[manifest["path"] != ""].set_index("path")[
        "fingerprint"
    ]  # without a path an image is in no split
    return table.assign(path=table["path"] + " " + table["path"].map(fingerprint).fillna(""))


def _history(run: Run) -> pd.DataFrame:
    paths = {"train_head": run.folders.history_head, "fine_tune": run.folders.history_fine_tune}
    found = [path for stage, path in paths.items() if stage in run.records]
    return pd.concat([loading.read_table(path, ("epoch", "phase", "val_loss")) for path in found], ignore_index=True)


def write(compared: Sequence[Run], folder: Path) -> tuple[Path, Path]:
    """Write the comparison below `folder`; return the HTML page and the CSV. Raises TornFile for a damaged result."""
    names = [run.name for run in compared]
    stem = _file_name(names)
    page, sheet = folder / f"{stem}.html", folder / f"{stem}.csv"
    differing, outcome, tests = differing_parameters(compared), results(compared), mcnemar_tests(compared)
    figures = []
    histories = {run.name: _history(run) for run in compared if "train_head" in run.records}
    if histories:
        figures.append(("Learning curves on VAL", embedded(plots.compared_curves(histories))))
    for split in _SPLITS:
        counts = {run.name: scores.confusion(_predictions(run, split)) for run in compared if run.metrics}
        if counts:
            figures.append((f"Confusion matrices of {split}", embedded(plots.compared_confusions(counts))))
    with files.replacing(page) as temporary:
        temporary.write_text(
            Environment(autoescape=True)
            .from_string(_PAGE)
            .render(
                style=report.STYLE,
                names=names,
                honesty=[(run.name, report.honesty_line(run.metrics)) for run in compared if run.metrics],
                differing=report.html_table(differing, index=True) if len(differing) else "Nothing.",
                results=report.html_table(outcome, index=True),
                tests=None if tests is None else report.html_table(tests),
                n_tests=0 if tests is None else len(tests),
                figures=figures,
            ),
            encoding="utf-8",
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


def embedded(figure: Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, dpi=100, bbox_inches="tight")
    plt.close(figure)
    return base64.b64encode(content.getvalue()).decode()
