"""The HTML report of a run: one file, figures inside, readable without Jupyter.

Knows a run's results and how to lay them out; computes no score.
"""

import base64
from pathlib import Path

from fer_utils import files
from fer_utils.paths import RunFolders

import pandas as pd
from jinja2 import Environment

STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } figure { margin: 1.5rem 0; } figcaption { color: #555; font-size: .9rem; }
.honesty { border-left: .4rem solid #cc6677; background: #fbf1f3; padding: .7rem 1rem; }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>FER run {{ run }}</title>
<style>{{ style }}</style></head><body>
<h1>Facial expression recognition: run “{{ run }}”</h1>
<p><b>TEST accuracy {{ "%.3f"|format(metrics.test.accuracy) }}, macro F1 {{ "%.3f"|format(metrics.test.macro_f1) }}</b>
on {{ "{:,}".format(metrics.test.n) }} images (VAL: {{ "%.3f"|format(metrics.val.accuracy) }} and
{{ "%.3f"|format(metrics.val.macro_f1) }} on {{ "{:,}".format(metrics.val.n) }}); a guess is right one time in seven.</p>
{% if drawn %}<p class="honesty">{{ drawn }}</p>{% endif %}
<p class="honesty">{{ honesty }}</p>
<h2>Scores</h2>{{ scores }}
<h2>Confidence</h2>{{ calibration }}
<h2>Figures</h2>
{% for title, data in figures %}<figure><img alt="{{ title }}" src="data:image/png;base64,{{ data }}">
<figcaption>{{ title }}</figcaption></figure>{% endfor %}
<h2>TEST, class by class</h2>{{ per_class }}
<h2>Stages</h2>{{ seconds }}
<h2>Parameters</h2>{% for stage, table in parameters %}<h3>{{ stage }}</h3>{{ table }}{% endfor %}
<h2>Versions</h2>{{ versions }}
{% if notebooks %}<h2>Executed notebooks</h2><ul>
{% for name in notebooks %}<li><a href="notebooks/{{ name }}">{{ name }}</a></li>{% endfor %}</ul>{% endif %}
</body></html>
"""


def score_table(metrics: dict) -> pd.DataFrame:
    """The scores of metrics.json as a table: a row for VAL, TEST and each part of them that is told apart.

    The same rows again for test-time augmentation, where there was any.
    """
    rows = {}
    augmented = metrics.get("test_time_augmentation", {})
    for found, views in ((metrics, ""), (augmented, f", {augmented.get('kind')}")):
        for split in ("VAL", "TEST"):
            of = found.get(split.lower(), {})
            parts = {f"{split}, {part}": of[part] for part in ("public", "private", "unseen") if part in of}
            rows |= {f"{name}{views}": row for name, row in ({split: of} | parts).items() if row}
    columns = ["n", "loss", "accuracy", "macro_precision", "macro_recall", "macro_f1", "calibration_error"]
    table = pd.DataFrame({name: {column: row[column] for column in columns} for name, row in rows.items()}).T
    for name, place in (("accuracy", 3), ("macro_f1", 7)):
        ends = [row[f"{name}_interval"] for row in rows.values()]
        table.insert(place, f"{name} 95 %", [f"{low:.3f}–{high:.3f}" for low, high in ends])
    return table.astype({"n": int})


def calibration_table(metrics: dict) -> pd.DataFrame:
    """Loss and calibration error of VAL and TEST as they are, and at the temperature fitted on VAL."""
    scaled = metrics["temperature_scaling"]
    rows = {
        f"{split}{name}": {column: of[split.lower()][column] for column in ("loss", "calibration_error")}
        for split in ("VAL", "TEST")
        for name, of in (("", metrics), (f" at temperature {scaled['temperature']:.2f}", scaled))
    }
    return pd.DataFrame(rows).T


def seen_in_training(metrics: dict, split: str) -> int | None:
    """How many scored images of VAL or TEST have a copy among the images that the model was trained on.

    None for a run that was scored by an earlier version of this project: it counted the copies in TRAIN, of which a part
    trains. Where it counted none, there is none.
    """
    leakage = metrics["leakage"]
    counted = leakage.get(f"{split.lower()}_images_seen_in_training")
    return 0 if counted is None and leakage.get(f"{split.lower()}_images_in_train") == 0 else counted


def drawn_line(metrics: dict) -> str:
    """Of a run on the demo's faces, a sentence that says so; else nothing."""
    sources = metrics["run"]["params"].get("merge_split", {})
    if "demo" not in (sources.get("fer2013"), sources.get("emotion_detection")):
        return ""
    return "The faces are drawn, not photographed: these scores show that the pipeline works, and nothing about people."


def honesty_line(metrics: dict) -> str:
    """One sentence that says how much of VAL and TEST the model has seen in training."""
    val, test = (seen_in_training(metrics, split) for split in ("VAL", "TEST"))
    if val is None or test is None:
        return (
            "WARNING: copies of VAL and TEST images are in TRAIN. How many of them the model was trained on is not on "
            "record, since an earlier version of this project scored it: these scores measure memory as well as skill."
        )
    if not val and not test:
        return "The model was trained on no copy of a VAL or TEST picture: these scores are of pictures it never saw."
    return (
        f"WARNING: the model was trained on copies of {val:,} of {metrics['val']['n']:,} VAL images and {test:,} of "
        f"{metrics['test']['n']:,} TEST images. These scores measure memory as well as skill; run params/clean.yaml for "
        "scores of unseen pictures."
    )


def leak_note(metrics: dict, split: str) -> str:
    """A few words on how much of a split the model has seen in training, for a figure's title."""
    seen, n = seen_in_training(metrics, split), metrics[split.lower()]["n"]
    if not seen:
        return "the model was trained on no copy of these pictures"
    return f"WARNING: the model was trained on copies of {seen:,} of {n:,} pictures (params/clean.yaml avoids it)"


def write_report(folders: RunFolders, metrics: dict, figures: list[tuple[str, Path]]) -> None:
    """Write the run's report.html. figures: (caption, PNG file), in order; one that is missing is left out and named."""
    embedded = [
        (title, base64.b64encode(path.read_bytes()).decode())
        if path.is_file()
        else (f"{title} (missing: {path.name})", "")
        for title, path in figures
    ]
    page = Environment(autoescape=True).from_string(_PAGE)
    with files.replacing(folders.report) as temporary:
        temporary.write_text(
            page.render(
                style=STYLE,
                run=folders.run.name,
                metrics=metrics,
                drawn=drawn_line(metrics),
                honesty=honesty_line(metrics),
                scores=html_table(score_table(metrics), index=True),
                calibration=html_table(calibration_table(metrics), index=True),
                figures=embedded,
                per_class=html_table(pd.DataFrame(metrics["per_class"]["test"])),
                seconds=html_table(
                    pd.DataFrame(metrics["run"]["seconds_per_stage"].items(), columns=["stage", "seconds"])
                ),
                parameters=[
                    (stage, html_table(pd.DataFrame(values.items(), columns=["name", "value"], dtype=str)))
                    for stage, values in metrics["run"]["params"].items()
                ],
                versions=html_table(pd.DataFrame(metrics["run"]["versions"].items(), columns=["package", "version"])),
                notebooks=sorted(path.name for path in folders.notebooks.glob("*.ipynb")),
            ),
            encoding="utf-8",
        )


class _Safe(str):
    def __html__(self) -> str:
        return str(self)


def html_table(table: pd.DataFrame, index: bool = False) -> _Safe:
    """A table as HTML, its text escaped and its numbers `significant`, for a page of Jinja's."""
    return _Safe(table.to_html(index=index, border=0, float_format=significant, escape=True))


def significant(value: float) -> str:
    """A number with four significant digits, one over 1,000 as a whole number: 0, 0.4670, 312.5, 12,346, 2.100e-38."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")
