"""Exports a run's model as Keras, weights, TFLite and ONNX, compares each with Keras, and adds a model card.

The packages that TFLite and ONNX need are the extra `export` of this project.
"""

import importlib.util
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from fer_utils import entry, files
from fer_utils.data import loading
from fer_utils.data.loading import Faces
from fer_utils.export import model_card
from fer_utils.pipeline import runs
from fer_utils.pipeline.runs import Run
from fer_utils.training import model_files
from fer_utils.training.model_files import Predict

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import ops

PACKAGES = {"ai_edge_litert": "ai-edge-litert", "tf2onnx": "tf2onnx", "onnxruntime": "onnxruntime"}  # import → install
PARITY = 1e-3  # largest difference of a probability from Keras for a float32 format
PARITY_FLOAT16 = 5e-3  # weights rounded to 11 bits: 0.0016 was measured on a fine-tuned ResNet50
SAME_CLASS = 0.97  # share of images to which int8 weights must give the same class as Keras
FORMATS = {  # format: its file, and the largest difference that is allowed; None: only the class counts
    "Keras": ("model.keras", PARITY),
    "TFLite, float16": ("model_float16.tflite", PARITY_FLOAT16),
    "TFLite, int8 weights": ("model_int8.tflite", None),
    "ONNX": ("model.onnx", PARITY),
}
_SHOWN = {"MB": ".1f", "ms an image": ".1f", "largest difference": ".1e", "same class": ".1%", "accuracy": ".3f"}
COMPARED = 500  # images of VAL, not of TEST
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as in `images.decode`; the sum is 1
OPSET = 17


class ExportError(entry.Failed):
    """A model cannot be exported, or an export's probabilities differ from the model's."""


def export(run: Run, folder: Path) -> pd.DataFrame:
    """Write the run's model to `folder` in every format, and a model card; return the result of `measure`.

    The folder is written atomically. Raises ExportError for missing packages, for a folder that is no earlier export, and
    if a float format differs from Keras by more than is allowed; NotFoundHere if the run is not finished.
    """
    missing = [package for name, package in PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"--export-model needs {' and '.join(missing)}: `pip install {' '.join(missing)}`")
    model_file, metrics_file = run.path("model.keras"), run.path("metrics.json")
    runs.require_scored(run)
    if fault := files.foreign(folder):
        raise ExportError(f"{fault}, so that {folder} is no earlier export: choose another folder")
    compared = pictures(run, ("VAL",), COMPARED)
    model = for_any_colour(keras.saving.load_model(model_file, compile=False, safe_mode=True))
    origin = model_files.read_origin(model_file)
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        write_formats(model, temporary)
        for path in list(temporary.iterdir()):
            if origin and path.suffix != ".h5":
                model_files.write_origin(path, origin)
        measured = agreeing(temporary, measure(temporary, compared))
        card = model_card.text(files.read_json(metrics_file), run.name, table(measured), len(compared))
        (temporary / model_card.FILE).write_text(card, encoding="utf-8")
        shutil.copy2(metrics_file, temporary / metrics_file.name)
    return measured


def pictures(run: Run, splits: Sequence[str], n: int) -> Faces:
    """At most n images of these splits of a run, drawn at random."""
    manifest = loading.read_table(run.path("manifest.csv"), ("split", "label", "path"))
    table = manifest[manifest["split"].isin(splits)]
    return loading.load_faces(table.sample(min(n, len(table)), random_state=0), run.data)


def for_any_colour(model: keras.Model) -> keras.Model:
    """The model with input pixels 0–255 of shape (n, height, width, 1) or (n, height, width, 3), grey or RGB.

    Grey is the sum of the channels weighted by LUMA. The weights sum to 1, so a single channel is unchanged.
    """
    pixels = keras.Input((None, None, None), name="pixels")
    grey = ops.sum(pixels * np.array(LUMA, np.float32), axis=-1, keepdims=True)
    return keras.Model(pixels, model(grey), name=model.name)


def write_formats(model: keras.Model, folder: Path) -> None:
    """Write the model as Keras, weights, TFLite with float16 and with int8 weights, and ONNX.

    With int8 weights, which have a scale for each output channel, activations get their range with each picture
    (dynamic-range quantization). With ranges fixed beforehand on 200 training images, 79 % of the classes were those of Keras.
    """
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    pixels = keras.InputSpec(shape=(None, None, None, None), dtype="float32", name="pixels")
    common = {"verbose": False, "input_signature": [pixels]}
    for name, types in (("float16", [tf.float16]), ("int8", [])):
        smaller = {"optimizations": [tf.lite.Optimize.DEFAULT], "target_spec": {"supported_types": types}}
        model.export(folder / f"model_{name}.tflite", format="litert", **common, **smaller)
    with tempfile.TemporaryDirectory() as saved:  # Keras' own export to ONNX makes an input of a constant in ResNet50
        model.export(saved, format="tf_saved_model", **common)
        # In a separate process: for a SavedModel, tf2onnx documents its command line.
        command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", saved, "--opset", str(OPSET)]
        done = subprocess.run([*command, "--output", str(folder / "model.onnx")], capture_output=True, text=True)
    if done.returncode:
        raise ExportError(f"tf2onnx failed: {done.stderr[-2000:]}")


def measure(folder: Path, compared: Faces) -> pd.DataFrame:
    """Compare every exported file in `folder` with its model.keras, on images one a call; one row for each of FORMATS.

    Columns: `file`, `MB`, `ms an image`, the `largest difference` of a probability, and as shares of the images `same class`
    and `accuracy`.
    """
    answers = {kind: timed(model_files.load(folder / file), compared.images) for kind, (file, _) in FORMATS.items()}
    expected, rows = answers["Keras"][0], {}
    for kind, (given, milliseconds) in answers.items():
        path = folder / FORMATS[kind][0]
        right = (given.argmax(axis=1) == compared.labels).mean()
        rows[kind] = (path.name, path.stat().st_size / 1e6, milliseconds, *agreement(given, expected), right)
    return pd.DataFrame.from_dict(rows, "index", columns=["file", *_SHOWN]).rename_axis("format")


def timed(predict: Predict, images: np.ndarray) -> tuple[np.ndarray, float]:
    """The probabilities of images, one a call, and the median time of a call in milliseconds."""
    answers, seconds = [], []
    for pixels in images.astype(np.float32):
        began = time.perf_counter()
        answers.append(predict(pixels[None]))
        seconds.append(time.perf_counter() - began)
    return np.concatenate(answers), 1000 * statistics.median(seconds)


def agreement(given: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The largest difference of two arrays of probabilities, and the share of rows with the same likeliest class."""
    same = given.argmax(axis=1) == expected.argmax(axis=1)
    return float(np.abs(given - expected).max()), float(same.mean())


def agreeing(folder: Path, measured: pd.DataFrame) -> pd.DataFrame:
    """The formats that agree with Keras; int8 weights that do not are removed. A float format that does not: ExportError."""
    for kind, file, difference, same in measured[["file", "largest difference", "same class"]].itertuples():
        allowed = FORMATS[kind][1]
        if allowed is not None and not difference <= allowed:
            differ = f"differ from Keras by up to {difference:.2g}, allowed are {allowed}"
            raise ExportError(f"{kind}: probabilities {differ}; nothing was written")
        if allowed is None and same < SAME_CLASS:
            said = f"gives the class of Keras to {same:.1%} of the images only"
            print(f"{kind}: left out, since it {said}; expected are {SAME_CLASS:.0%}")
            (folder / file).unlink()
            measured = measured.drop(kind)
    return measured


def table(measured: pd.DataFrame) -> pd.DataFrame:
    """The measurements as text, rounded."""
    return measured.assign(**{name: measured[name].map(f"{{:{how}}}".format) for name, how in _SHOWN.items()})
