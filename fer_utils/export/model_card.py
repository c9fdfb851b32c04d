"""The model card: training data, scores, limits and prohibited uses of a run's model."""

import itertools

from fer_utils.classes import CLASSES
from fer_utils.data import ferplus
from fer_utils.evaluation import report

import pandas as pd
import yaml
from jinja2 import Environment

FILE = "MODEL_CARD.md"

_CARD = """---
{{ head }}---

# Facial expression recognition, run “{{ run }}”

{{ network }} that sorts a picture of one face into {{ classes }}. {{ takes }} Output: seven probabilities, in that order.

## Scores

{% if drawn %}{{ drawn }}

{% endif %}{{ honesty }}

{{ scores }}

Intervals: 95 %, bootstrap over pictures, copies of one together. Of each class on TEST:

{{ per_class }}
{% if label_sets %}
Against both label sets: FER2013's label, and the majority of the votes that ten people gave in FER+ (Barsoum et al. 2016):

{{ label_sets }}

A second output, where there is one, learned the votes; it is not in these files.
{% endif %}{% if corruptions %}
Accuracy on TEST under corruptions, means of five strengths; without any it is {{ "%.3f"|format(metrics.test.accuracy) }}:

{{ corruptions }}
{% endif %}
The temperature that minimises the loss on VAL is {{ "%.2f"|format(scaled.temperature) }}. With it the expected calibration error on
TEST, the mean distance of confidence and accuracy, is {{ "%.3f"|format(scaled.test.calibration_error) }}, without it {{ "%.3f"|format(metrics.test.calibration_error) }}.
{%- if is_scaled %} This file has it in its last layer. The table above is without it; classes are the same.{% endif %}

## Data

{% if drawn %}Faces drawn from parameters by `fer_utils/data/demo.py`, in the layouts of FER2013 and Emotion Detection FER.
{%- else %}FER2013 (Goodfellow et al. 2013, arXiv:1307.0414) merged with Emotion Detection FER, which holds the same pictures
re-encoded. The pictures were collected by web searches. No licence by their authors was found, copies of the dataset name
different ones, and none of the pictures is distributed with this model. FER+'s votes are under the MIT licence.{% endif %}
{% if labels %}{{ labels }}{% endif %}
Leakage policy of this run: `{{ metrics.leakage.policy }}` ({{ meaning }}). Backbone: `{{ backbone }}`, which began with {{ weights }}.

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

{{ files }}

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
interpreter = Interpreter("model_float16.tflite")
place = interpreter.get_input_details()[0]["index"]
interpreter.resize_tensor_input(place, pixels[:1].shape)
interpreter.allocate_tensors()
interpreter.set_tensor(place, pixels[:1])
interpreter.invoke()
probabilities = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
```
"""
TAKES = """Input: pixels 0–255, grey `(n, height, width, 1)` or RGB `(n, height, width, 3)`, a face cropped as FER2013 does, of
any size (the model resizes to SIZE px itself)."""
_NETWORKS = {"resnet50": "A ResNet50", "small": "A small residual network"}
_WEIGHTS = {"imagenet": "weights from ImageNet", "none": "random weights"}
_MEANING = {
    "keep": "TRAIN as specified, with copies of VAL and TEST in it",
    "drop": "TRAIN lost every copy of a VAL or TEST picture",
}


def text(metrics: dict, run: str, formats: pd.DataFrame, n_compared: int, takes=TAKES, use=USE, is_scaled=False) -> str:
    """The card of a finished run with these metrics, in Markdown, its head as the Hugging Face Hub reads it.

    formats: one row per file, compared on `n_compared` pictures. takes: what the model takes as input. use: how the files
    are read. is_scaled: whether they hold the temperature.
    """
    trained = metrics["run"]["params"]["fine_tune"]
    backbone = trained.get("backbone", "resnet50")  # runs of early versions have no other
    per_class = pd.DataFrame(metrics["per_class"]["test"]).set_index("class")
    label_sets = corruptions = None
    if "label_sets" in metrics:
        label_sets = _markdown(report.label_set_table(metrics).round(3))
    if "corruptions" in metrics:
        by_kind = pd.DataFrame(metrics["corruptions"]["by_kind"]).T[["accuracy", "macro_f1"]].astype(float)
        corruptions = _markdown(by_kind.round(3).rename_axis("corruption"))
    card = Environment(autoescape=False, keep_trailing_newline=True).from_string(_CARD)
    return card.render(
        head=yaml.safe_dump(_head(metrics, run), sort_keys=False, allow_unicode=True),
        run=run,
        metrics=metrics,
        scaled=metrics["temperature_scaling"],
        network=_NETWORKS[backbone],
        backbone=backbone,
        weights=_WEIGHTS.get(trained["weights"], "weights from a file"),
        takes=takes.replace("SIZE", str(trained["image_size"])),
        classes=", ".join(CLASSES),
        drawn=report.drawn_line(metrics),
        labels=report.labels_line(metrics),
        honesty=report.honesty_line(metrics),
        meaning=_MEANING.get(metrics["leakage"]["policy"], "the run stops where copies are found"),
        scores=_markdown(report.score_table(metrics).round(3).rename_axis("images")),
        per_class=_markdown(per_class.round(3)),
        label_sets=label_sets,
        corruptions=corruptions,
        is_scaled=is_scaled,
        files=_markdown(formats),
        compared=n_compared,
        use=use,
    )


def _head(metrics: dict, run: str) -> dict:
    """The card's metadata: a result for each half of FER2013's test set and each set of labels.

    Format: huggingface/hub-docs, modelcard.md. `license` is that of the weights; the Hub has no field for that of the data.
    """
    by_labels = metrics["label_sets"]["test"] if "label_sets" in metrics else {"fer2013": metrics["test"]}
    results = []
    for labels, part in itertools.product(ferplus.LABEL_SETS, ("public", "private")):
        if found := by_labels.get(labels, {}).get(part):
            name = f"{report.LABEL_SET_NAMES[labels]}, {part} half of TEST"
            values = [("accuracy", "accuracy", found["accuracy"]), ("f1", "macro F1", found["macro_f1"])]
            task = {"type": "image-classification", "name": "Facial expression recognition"}
            dataset = {"type": "fer2013", "name": name, "split": "test"}
            scores = [{"type": kind, "name": shown, "value": round(value, 4)} for kind, shown, value in values]
            results.append({"task": task, "dataset": dataset, "metrics": scores})
    head = {
        "license": "mit",
        "library_name": "keras",
        "pipeline_tag": "image-classification",
        "tags": ["facial-expression-recognition", "fer2013"],
        "metrics": ["accuracy", "f1"],
    }
    return head | ({"model-index": [{"name": run, "results": results}]} if results else {})


def _markdown(table: pd.DataFrame) -> str:
    rows = [[table.index.name or "", *table.columns], ["---"] * (len(table.columns) + 1)]
    rows += [[name, *values] for name, *values in table.itertuples()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
