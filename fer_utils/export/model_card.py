"""The model card: training data, scores, limits and prohibited uses of a run's model."""

from fer_utils import files
from fer_utils.classes import CLASSES
from fer_utils.evaluation import report
from fer_utils.pipeline.paths import RunFolders

import pandas as pd
from jinja2 import Environment

FILE = "MODEL_CARD.md"

_CARD = """# Facial expression recognition, run “{{ run }}”

{{ network }} that sorts a picture of one face into {{ classes }}. Input: pixels 0–255, grey `(n, height, width, 1)` or RGB
`(n, height, width, 3)`, a face cropped as FER2013 does, of any size (the model resizes to {{ size }} px itself). Output:
seven probabilities, in that order.

## Scores

{% if drawn %}{{ drawn }}

{% endif %}{{ honesty }}

{{ scores }}

Intervals: 95 %, bootstrap over pictures, copies of one together. Of each class on TEST:

{{ per_class }}

## Data

{% if drawn %}Faces drawn from parameters by `fer_utils/data/demo.py`, in the layouts of FER2013 and Emotion Detection FER.{% else %}FER2013 (Goodfellow et al. 2013) merged with Emotion Detection FER, which holds the same pictures re-encoded.{% endif %}
{% if labels %}{{ labels }}{% endif %}
Leakage policy of this run: `{{ policy }}` ({{ meaning }}). Backbone: `{{ backbone }}`, which began with {{ weights }}.

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

Differences and accuracy are on {{ compared }} images of VAL, against `model.keras`, one image a call; times are medians on the
machine that exported.

```python
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
_NETWORKS = {"resnet50": "A ResNet50", "small": "A small residual network"}
_MEANING = {
    "keep": "TRAIN as specified, with copies of VAL and TEST in it",
    "drop": "TRAIN lost every copy of a VAL or TEST picture",
}


def text(folders: RunFolders, formats: pd.DataFrame, n_compared: int) -> str:
    """The card of a finished run, in Markdown. formats: one row per exported file, compared on `n_compared` images of VAL."""
    metrics = files.read_json(folders.metrics)
    trained = metrics["run"]["params"]["fine_tune"]
    backbone = trained.get("backbone", "resnet50")  # runs of earlier versions have no other
    policy = metrics["leakage"]["policy"]
    return (
        Environment(autoescape=False, keep_trailing_newline=True)
        .from_string(_CARD)
        .render(
            run=folders.run.name,
            classes=", ".join(CLASSES),
            size=trained["image_size"],
            network=_NETWORKS[backbone],
            backbone=backbone,
            drawn=report.drawn_line(metrics),
            labels=report.labels_line(metrics),
            honesty=report.honesty_line(metrics),
            scores=_markdown(report.score_table(metrics).round(3).rename_axis("images")),
            per_class=_markdown(pd.DataFrame(metrics["per_class"]["test"]).round(3).set_index("class")),
            policy=policy,
            meaning=_MEANING.get(policy, "the run stops where copies are found"),
            weights={"imagenet": "weights from ImageNet", "none": "random weights"}.get(
                trained["weights"], "weights from a file"
            ),
            files=_markdown(formats),
            compared=n_compared,
        )
    )


def _markdown(table: pd.DataFrame) -> str:
    rows = [[table.index.name or "", *table.columns], ["---"] * (len(table.columns) + 1)]
    rows += [[name, *values] for name, *values in table.itertuples()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
