"""The model card: training data, scores, limits and prohibited uses of a run's model."""

from fer_utils.classes import CLASSES
from fer_utils.evaluation import report

import pandas as pd
from jinja2 import Environment

FILE = "MODEL_CARD.md"

_CARD = """---
license: mit  # of the weights; the Hugging Face Hub, which reads this, has no field for that of the data
library_name: keras
pipeline_tag: image-classification
tags: [facial-expression-recognition, fer2013]
---

# Facial expression recognition, run “{{ run }}”

{{ "A small residual network" if backbone == "small" else "A ResNet50" }} that sorts a picture of one face into
{{ classes|join(", ") }}. {{ takes }} Output: seven probabilities, in that order.

## Scores

{% if drawn %}{{ drawn }}

{% endif %}{{ report.honesty_line(metrics) }}

{{ report.score_table(metrics).rename_axis("images")|table }}

Intervals: 95 %, bootstrap over pictures, copies of one together. Of each class on TEST:

{{ frame(metrics.per_class.test).set_index("class")|table }}
{% if metrics.label_sets %}
Against both label sets: FER2013's label, and the majority of the votes that ten people gave in FER+ (Barsoum et al. 2016):

{{ report.label_set_table(metrics)|table }}

A second output, where there is one, learned the votes; it is not in these files.
{% endif %}{% if metrics.corruptions %}
Accuracy on TEST under corruptions, means of five strengths; without any it is {{ "%.3f"|format(metrics.test.accuracy) }}:

{{ frame(metrics.corruptions.by_kind).T[["accuracy", "macro_f1"]].astype(float).rename_axis("corruption")|table }}
{% endif %}
The temperature that minimises the loss on VAL is {{ "%.2f"|format(scaled.temperature) }}. With it the expected calibration error on
TEST, the mean distance of confidence and accuracy, is {{ "%.3f"|format(scaled.test.calibration_error) }}, without it {{ "%.3f"|format(metrics.test.calibration_error) }}.
{%- if is_scaled %} This file has it in its last layer. The table above is without it; classes are the same.{% endif %}

## Data

{% if drawn %}Faces drawn from parameters by `fer_utils/data/demo.py`, in the layouts of FER2013 and Emotion Detection FER.
{%- else %}FER2013 (Goodfellow et al. 2013, arXiv:1307.0414) merged with Emotion Detection FER, which holds the same pictures
re-encoded. The pictures were collected by web searches. No licence by their authors was found, copies of the dataset name
different ones, and none of the pictures is distributed with this model. FER+'s votes are under the MIT licence.{% endif %}
{{ report.labels_line(metrics) }}
Leakage policy of this run: `{{ metrics.leakage.policy }}` ({{ meaning[metrics.leakage.policy] }}).
Backbone: `{{ backbone }}`, which began with {{ weights[trained.weights] or "weights from a file" }}.

## Meant for, and its limits

For teaching and research on expression recognition.

{% if not drawn %}- The pictures come from web searches for emotion words: posed, acted and emphatic faces, of unknown people, unevenly spread
  over ages, skins and cultures. How the model does on groups of people was not measured.
- Labels are noisy: human annotators agree with them in about 65 % of cases (Goodfellow et al. 2013).
{% endif %}- An expression is not an emotion. What a face shows does not tell reliably what a person feels (Barrett et al. 2019,
  “Emotional Expressions Reconsidered”).
- It must not decide or help to decide about people: not in hiring, at work, in education, in policing, at borders, in
  insurance or credit, in diagnosis, nor as a detector of lies. In the European Union emotion recognition at work and in
  education is prohibited (Regulation (EU) 2024/1689, Article 5(1)(f)).

## Files

{{ formats.astype("str")|table }}

Differences and accuracy are on {{ compared }} pictures, against Keras, one a call; times are medians on the machine that
wrote the files.

{{ use }}"""
USE = """```python
import keras, numpy as np                     # model.keras, needs Keras 3
model = keras.saving.load_model("model.keras", compile=False)
probabilities = model.predict(pixels)         # float32 (n, height, width, 1 or 3)

import onnxruntime                            # model.onnx
session = onnxruntime.InferenceSession("model.onnx")
probabilities = session.run(None, {"pixels": pixels})[0]

from ai_edge_litert.interpreter import Interpreter  # the .tflite files
run = Interpreter("model_float16.tflite").get_signature_runner()
probabilities = run(pixels=pixels)["output_0"]
```
"""
TAKES = """Input: pixels 0–255, grey `(n, height, width, 1)` or RGB `(n, height, width, 3)`, a face cropped as FER2013 does, of
any size (the model resizes to SIZE px itself)."""
_WEIGHTS = {"imagenet": "weights from ImageNet", "none": "random weights"}
_MEANING = {
    "keep": "TRAIN as specified, with copies of VAL and TEST in it",
    "drop": "TRAIN lost every copy of a VAL or TEST picture",
    "fail": "the run stops where copies are found",
}


def text(metrics: dict, run: str, formats: pd.DataFrame, n_compared: int, takes=TAKES, use=USE, is_scaled=False) -> str:
    """The card of a finished run with these metrics, in Markdown, its head as the Hugging Face Hub reads it.

    formats: one row per file, compared on `n_compared` pictures. takes: what the model takes as input. use: how the files
    are read. is_scaled: whether they hold the temperature.
    """
    trained = metrics["run"]["params"]["fine_tune"]
    environment = Environment(autoescape=False, keep_trailing_newline=True)
    environment.filters["table"] = _markdown
    return environment.from_string(_CARD).render(
        run=run,
        metrics=metrics,
        report=report,
        frame=pd.DataFrame,
        scaled=metrics["temperature_scaling"],
        trained=trained,
        backbone=trained.get("backbone", "resnet50"),  # runs of early versions have no other
        weights=_WEIGHTS,
        meaning=_MEANING,
        takes=takes.replace("SIZE", str(trained["image_size"])),
        classes=CLASSES,
        drawn=report.drawn_line(metrics),
        is_scaled=is_scaled,
        formats=formats,
        compared=n_compared,
        use=use,
    )


def _markdown(table: pd.DataFrame) -> str:
    rows = [[table.index.name or "", *table.columns], ["---"] * (len(table.columns) + 1)]
    rows += [[name, *values] for name, *values in table.round(3).itertuples()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
