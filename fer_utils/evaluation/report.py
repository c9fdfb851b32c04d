"""The HTML report of a run: one file with embedded figures, readable without Jupyter."""

import base64
from collections.abc import Callable, Sequence
from pathlib import Path

from fer_utils.data.ferplus import RULE
from fer_utils.training import model_files

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup

STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; } td, tbody th { white-space: nowrap; }
.wide, figure { overflow-x: auto; }
img { max-width: 100%; } figure { margin: 1.5rem 0; } figcaption { color: #555; font-size: .9rem; }
.honesty, .warning { border-left: .4rem solid #228833; background: #f0f7f1; padding: .7rem 1rem; }
.warning { border-color: #cc3311; background: #fdf0ed; }
.parameters { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(21rem, 100%), 1fr)); column-gap: 2rem; }
.parameters td { white-space: normal; overflow-wrap: anywhere; } .parameters td:first-child { white-space: nowrap; }
@media (max-width: 40rem) { body { margin-top: 1rem; } h1 { font-size: 1.3rem; } table { font-size: .8rem; }
  th, td { padding: .25rem .3rem; }
  figcaption { position: sticky; left: 0; } img { max-width: 44rem; } }
@media print { @page { size: A4; margin: 14mm; } body { font-size: 10pt; margin: 0; padding: 0; max-width: none; }
  h2, h3, tr, figure, .honesty, .warning { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .wide, figure { overflow: visible; } table { font-size: 8pt; } th, td { padding: .15rem .35rem; }
  img { max-height: 230mm; } .parameters { grid-template-columns: 1fr 1fr; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

LABEL_SET_NAMES = {
    "fer2013": "FER2013's label",
    "ferplus": "FER+ majority",
    "votes_output": "FER+ majority, second output",
}

# Sections of the report after its opening: caption → name under which a notebook saved the figure. Which of the figures a
# run has depends on its data and parameters; the report names the others.
_SECTIONS = {
    "VAL": {"Confusion matrix of VAL": "confusion_matrix_val"},
    "Mistakes": {
        "Classes most often confused on TEST, the most confident predictions first": "confused_pairs",
        "Grad-CAM on TEST: for each class the most confident right and the most confident wrong prediction": "grad_cam",
        "The most confident mistakes on TEST": "worst_mistakes",
    },
    "Harder pictures": {
        "TEST accuracy under eight corruptions, each in five strengths": "corruptions",
        "The corruptions on one picture, weakest first": "corruption_examples",
    },
    "Confidence": {
        "Reliability: accuracy against confidence": "reliability",
        "TEST before and after temperature scaling": "temperature",
    },
    "Training": {
        "Learning curves of both phases": "learning_curves",
        "Learning rate and weight decay of phase 2": "rates",
    },
    "Data": {
        "Some faces of each class": "faces",
        "Images of each class in each split": "split_counts",
        "Images of each class before and after balancing": "balance",
        "One face and its augmentations": "augmentations",
        "The same picture on both sides of the split, as the sources come": "pairs_across_splits",
        "One picture, several labels": "label_conflicts",
        "FER2013's labels and the votes of FER+": "label_agreement",
        "Labels that none of ten people gave": "labels_by_nobody",
        "Pictures without a face": "not_a_face",
        "Labels of TRAIN that are probably wrong": "label_issues",
        "Labels of TEST that are probably wrong": "label_issues_test",
        "Distances of copies, and of pictures that are none": "pair_distances",
    },
}

_PAGE = """{% macro show(captions) %}{% for caption in captions if caption in figures %}<figure>
<img alt="{{ caption }}" src="data:image/png;base64,{{ figures[caption] }}">
<figcaption>{{ caption }}</figcaption></figure>{% endfor %}{% endmacro %}<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>FER run {{ run }}</title>
<style>{{ style }}</style></head><body>
<h1>Facial expression recognition: run “{{ run }}”</h1>
<p><b>TEST accuracy {{ "%.3f"|format(metrics.test.accuracy) }}, macro F1 {{ "%.3f"|format(metrics.test.macro_f1) }}</b>
on {{ "{:,}".format(metrics.test.n) }} images (VAL: {{ "%.3f"|format(metrics.val.accuracy) }} and
{{ "%.3f"|format(metrics.val.macro_f1) }} on {{ "{:,}".format(metrics.val.n) }}); a guess is right one time in seven.</p>
{% for line in lines if line %}<p class="{{ 'warning' if line.startswith('WARNING') else 'honesty' }}">{{ line }}</p>
{% endfor %}{{ show(opening) }}
<h2>Scores</h2>{{ score_table(metrics)|table }}
{% if metrics.label_sets %}<h2>Against both label sets</h2><p>{{ disagreement_line(metrics, "TEST") }}</p>
{{ label_set_table(metrics)|table }}<p>{{ rule }}.</p>{{ label_set_classes(metrics, "TEST")|table }}
{% endif %}{% if metrics.also %}<h2>Other test sets</h2>{{ other_sets_table(metrics)|table }}
{{ show(others) }}
{% endif %}<h2>TEST, class by class</h2>{{ frame(metrics.per_class.test)|table }}
{% for title, captions in sections.items() %}{% if title == "Confidence" or show(captions) %}<h2>{{ title }}</h2>
{% if title == "Confidence" %}{{ calibration_table(metrics)|table }}{% endif %}{{ show(captions) }}
{% endif %}{% endfor %}
{% if missing %}<p>Figures that this run has not saved, some of them of optional steps: {{ missing|join("; ") }}.</p>{% endif %}
<h2>Stages</h2>{{ frame(metrics.run.seconds_per_stage.items(), columns=["stage", "seconds"])|table }}
<h2>Parameters</h2><div class="parameters">
{% for stage, values in metrics.run.params.items() %}<div><h3>{{ stage }}</h3>
{{ frame(values.items(), columns=["name", "value"], dtype="str")|table }}</div>{% endfor %}</div>
<h2>Versions</h2>{{ frame(metrics.run.versions.items(), columns=["package", "version"])|table }}
{% if notebooks %}<h2>Executed notebooks</h2><ul>
{% for name in notebooks %}<li><a href="notebooks/{{ name }}">{{ name }}</a></li>{% endfor %}</ul>{% endif %}
</body></html>
"""


def score_table(metrics: dict) -> pd.DataFrame:
    """A row for VAL, TEST and each of their parts; with test-time augmentation, the same rows again for its scores."""
    rows: dict[str, dict] = {}
    augmented = metrics.get("test_time_augmentation")
    for found, ending in [(metrics, ""), *([(augmented, f", {augmented['kind']}")] if augmented else [])]:
        for split in ("VAL", "TEST"):
            rows |= _with_parts(split, found[split.lower()], ending)
    columns = ["n", "accuracy", "macro_f1", "macro_precision", "macro_recall", "loss", "calibration_error"]
    return _with_intervals(rows, columns)


def _with_parts(split: str, scores: dict, ending: str) -> dict[str, dict]:
    """The scores of a split and of its parts, by the names of their rows."""
    parts = {f", {part}": scores[part] for part in ("public", "private", "unseen") if part in scores}
    return {f"{split}{part}{ending}": row for part, row in ({"": scores} | parts).items()}


def _with_intervals(rows: dict[str, dict], columns: Sequence[str]) -> pd.DataFrame:
    """These columns of the scores, and the interval of accuracy and of macro F1 after each."""
    table = pd.DataFrame(list(rows.values()), list(rows)).reindex(columns=columns)
    for score in ("accuracy", "macro_f1"):
        ends = [row.get(f"{score}_interval") for row in rows.values()]
        texts = ["{:.3f}–{:.3f}".format(*end) if end else "too few" for end in ends]
        table.insert(list(table).index(score) + 1, f"{score} 95 %", texts)
    return table


def other_sets_table(metrics: dict) -> pd.DataFrame:
    """A row for each other test set, for its unseen pictures, and for each group; a group with too few pictures has no scores."""
    rows = {}
    for name, whole in metrics["also"].items():
        rows[name] = whole
        if "unseen" in whole:
            rows[f"{name}, unseen"] = whole["unseen"] | {"classes": whole["classes"], "seen_in_training": 0}
        for attribute, groups in whole.get("groups", {}).items():
            rows |= {f"{name}, {attribute}: {group}": found for group, found in groups.items()}
    return _with_intervals(rows, ["n", "classes", "seen_in_training", "accuracy", "macro_f1"])


def other_title(metrics: dict, name: str) -> str:
    """The title of another test set's confusion matrix."""
    found = metrics["also"][name]
    seen = f"the model was trained on copies of {found['seen_in_training']:,} of {found['n']:,} pictures"
    return f"{name}: accuracy {found['accuracy']:.3f}, macro F1 {found['macro_f1']:.3f}\n{seen}"


def label_set_names(found: dict) -> dict[str, str]:
    """What a split was scored against, of LABEL_SET_NAMES: a run has a second output only with `votes_output` of 04."""
    return {name: shown for name, shown in LABEL_SET_NAMES.items() if name in found}


def label_set_table(metrics: dict) -> pd.DataFrame:
    """The scores against FER2013's label and against FER+'s majority, per split and part."""
    rows: dict[str, dict] = {}
    for split in ("VAL", "TEST"):
        found = metrics["label_sets"][split.lower()]
        for name, shown in label_set_names(found).items():
            rows |= _with_parts(split, found[name], f": {shown}")
    return _with_intervals(rows, ["n", "accuracy", "macro_f1"])


def label_set_classes(metrics: dict, split: str) -> pd.DataFrame:
    """F1 of each class against both label sets."""
    found = metrics["label_sets"][split.lower()]
    table = pd.DataFrame({f"F1, {shown}": found[name]["per_class"] for name, shown in label_set_names(found).items()})
    return table.rename_axis("class").reset_index()


def disagreement_line(metrics: dict, split: str) -> str:
    """One sentence on the mistakes where the two label sets differ, and one on the divergence from the votes."""
    found = metrics["label_sets"][split.lower()]
    both, far = found["disagreement"], found["divergence"]
    share = both["errors_where_they_differ"] / max(both["errors"], 1)
    return (
        f"{split}: the two label sets differ on {both['differ']:,} of {both['n']:,} pictures that FER+ gives a class, and "
        f"{both['errors_where_they_differ']:,} of {both['errors']:,} mistakes against FER2013's label are there ({share:.0%}); "
        f"in {both['of_them_ferplus_label']:,} of these the model says what FER+ says. Mean divergence from the votes: "
        f"{far['mean']:.3f} nats on {far['n']:,} pictures."
    )


def calibration_table(metrics: dict) -> pd.DataFrame:
    """Loss and calibration error of VAL and TEST without scaling, and at the temperature fitted on VAL."""
    scaled = metrics["temperature_scaling"]
    rows = {
        f"{split}{name}": {column: found[split.lower()][column] for column in ("loss", "calibration_error")}
        for split in ("VAL", "TEST")
        for name, found in (("", metrics), (f" at temperature {scaled['temperature']:.2f}", scaled))
    }
    return pd.DataFrame(rows).T


def seen_in_training(metrics: dict, split: str) -> int | None:
    """How many images of VAL or TEST have a copy among those trained on; None for a run of an early version, which did not count."""
    return metrics["leakage"].get(f"{split.lower()}_images_seen_in_training")


def drawn_line(metrics: dict) -> str:
    """A sentence that says that the faces are drawn, for a run on the demo's faces; otherwise empty."""
    if model_files.faces_of(metrics["run"]["params"].get("merge_split", {})) != model_files.DRAWN:
        return ""
    return "The faces are drawn, not photographed: these scores show that the pipeline works, and nothing about people."


def labels_line(metrics: dict) -> str:
    """A sentence that says that the scores are against FER+'s labels, for a run on them; otherwise empty."""
    if metrics["run"]["params"].get("merge_split", {}).get("labels") != "ferplus":
        return ""
    return f"The labels are FER+'s, not FER2013's. {RULE}. Compare these scores with scores against FER+ only."


def _began_with(metrics: dict) -> str:
    """The weights that the run began with, if they are of an earlier training, whose pictures `seen_in_training` leaves out."""
    weights = metrics.get("run", {}).get("params", {}).get("fine_tune", {}).get("weights", "none")
    return "" if weights in ("imagenet", "none") else weights


def honesty_line(metrics: dict) -> str:
    """How much of VAL and TEST the model has seen in training, in one or two sentences."""
    val, test = (seen_in_training(metrics, split) for split in ("VAL", "TEST"))
    if val is None or test is None:
        return "WARNING: how many copies of VAL and TEST images the model was trained on is not on record."
    if not val and not test:
        if weights := _began_with(metrics):
            more = f"What the weights that it began with ({weights}) were trained on is not counted."
            return f"In this run the model was trained on no copy of a VAL or TEST picture. {more}"
        return "The model was trained on no copy of a VAL or TEST picture: these scores are of pictures it never saw."
    return (
        f"WARNING: the model was trained on copies of {val:,} of {metrics['val']['n']:,} VAL images and {test:,} of "
        f"{metrics['test']['n']:,} TEST images. These scores measure memory as well as skill; run params/clean.yaml for "
        "scores of unseen pictures."
    )


def confusion_title(metrics: dict, split: str) -> str:
    """The title of a split's confusion matrix: its scores, and how much of it the model has seen in training."""
    found, seen = metrics[split.lower()], seen_in_training(metrics, split)
    note = f"{'in this run ' if _began_with(metrics) else ''}the model was trained on no copy of these pictures"
    if seen:
        note = f"WARNING: the model was trained on copies of {seen:,} of {found['n']:,} pictures (params/clean.yaml avoids it)"
    return f"{split}: accuracy {found['accuracy']:.3f}, macro F1 {found['macro_f1']:.3f}\n{note}"


def page(metrics: dict, run: str, figure: Callable[[str], Path], notebooks: Sequence[str] = ()) -> str:
    """The report of the run called `run`, as HTML. A figure that does not exist is named in a sentence.

    figure: returns the PNG file for a figure's name. notebooks: file names of the executed notebooks, which the report
    links to in the folder `notebooks` beside it.
    """
    opening = {"Confusion matrix of TEST": "confusion_matrix_test"}
    others = {f"Confusion matrix of {name}": f"confusion_matrix_also_{name}" for name in metrics.get("also", {})}
    names = {caption: name for part in (opening, others, *_SECTIONS.values()) for caption, name in part.items()}
    there = {caption: figure(name) for caption, name in names.items() if figure(name).is_file()}
    environment = Environment(autoescape=True)
    environment.filters["table"] = lambda table: html_table(table.rename(columns=lambda name: name.replace("_", " ")))
    tables = (calibration_table, disagreement_line, label_set_classes, label_set_table, other_sets_table, score_table)
    return environment.from_string(_PAGE, globals={function.__name__: function for function in tables}).render(
        frame=pd.DataFrame,
        style=STYLE,
        run=run,
        metrics=metrics,
        lines=(drawn_line(metrics), labels_line(metrics), honesty_line(metrics)),
        rule=RULE,
        opening=opening,
        others=others,
        sections=_SECTIONS,
        figures={caption: base64.b64encode(path.read_bytes()).decode() for caption, path in there.items()},
        missing=[caption for caption in names if caption not in there],
        notebooks=sorted(notebooks),
    )


def html_table(table: pd.DataFrame) -> Markup:
    """A table as HTML, with its index where that holds names, and numbers formatted by `significant`; a wide table scrolls."""
    has_names = not isinstance(table.index, pd.RangeIndex)
    whole = dict.fromkeys(table.select_dtypes("integer").columns, "{:,}".format)
    html = table.to_html(index=has_names, border=0, float_format=significant, formatters=whole, escape=True)
    return Markup(f'<div class="wide">{html}</div>')


def significant(value: float) -> str:
    """A number with four significant digits, from 1,000 on as a whole number: 0, 0.4670, 312.5, 12,346, 2.100e-38."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")
