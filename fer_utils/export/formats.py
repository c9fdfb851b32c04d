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
from dataclasses import asdict, dataclass
from pathlib import Path

from fer_utils import entry, files
from fer_utils.data import loading
from fer_utils.data.loading import Faces
from fer_utils.export import model_card
from fer_utils.pipeline import runs
from fer_utils.pipeline.runs import RunFolders
from fer_utils.places import NotFoundHere
from fer_utils.training import model_files
from fer_utils.training.model_files import Predict

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import ops

PACKAGES = {
    "ai_edge_litert": "ai-edge-litert",
    "tf2onnx": "tf2onnx",
    "onnxruntime": "onnxruntime",
}  # to import, to install
PARITY = 1e-3  # largest difference of a probability from Keras for a float32 format
PARITY_FLOAT16 = 5e-3  # weights rounded to 11 bits: 0.0016 was measured on a fine-tuned ResNet50
COMPARED, TIMED = 500, 50  # images of VAL, single images timed
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as in `images.decode`; the sum is 1
OPSET = 17


class ExportError(entry.Failed):
    """A model cannot be exported, or an export's probabilities differ from the model's."""


@dataclass(frozen=True)
class Measured:
    """One exported file: its size, its time, and its difference from Keras on the compared images of VAL."""

    format: str
    file: str
    megabytes: float
    milliseconds: float
    largest_difference: float
    same_class: float
    accuracy: float
    allowed: (
        float | None
    )  # largest difference allowed; None: only the class counts, on model_files.SAME_CLASS of the images


def export(folders: RunFolders, folder: Path) -> list[Measured]:
    """Write the run's model to `folder` in every format, and a model card; return the measurements.

    The folder is written atomically. Raises ExportError for missing packages, for a folder that is no earlier export, and
    if a float format differs from Keras by more than is allowed; NotFoundHere if the run is not finished.
    """
    _require_packages()
    _require_run(folders)
    if fault := files.foreign(folder):
        raise ExportError(f"{fault}, so that {folder} is no earlier export: choose another folder")
    compared = _images(folders)
    model = for_any_colour(keras.saving.load_model(folders.path("model.keras"), compile=False, safe_mode=True))
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        _write_formats(model, temporary)
        if origin := model_files.read_origin(folders.path("model.keras")):
            for name in ("model.keras", "model_float16.tflite", "model_int8.tflite", "model.onnx"):
                model_files.write_origin(temporary / name, origin)
        measured = _agreeing(temporary, measure(temporary, compared))
        card = model_card.text(
            files.read_json(folders.path("metrics.json")), folders.run.name, table(measured), len(compared)
        )
        (temporary / model_card.FILE).write_text(card, encoding="utf-8")
        shutil.copy2(folders.path("metrics.json"), temporary / folders.path("metrics.json").name)
        _write_record(folders, temporary, measured)
    return measured


def _require_packages() -> None:
    missing = [package for name, package in PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"--export-model needs {' and '.join(missing)}: `pip install {' '.join(missing)}`")


def _require_run(folders: RunFolders) -> None:
    for path in (
        folders.path("model.keras"),
        folders.path("metrics.json"),
        folders.path("manifest.csv"),
        folders.path("balanced.csv"),
    ):
        if not path.is_file():
            raise NotFoundHere(
                f"{path} is not there: finish the run first (`python run_all.py --run {folders.run.name}` with its --params and -p)"
            )
    runs.require_scored(folders)


def _images(folders: RunFolders) -> Faces:
    """Images of VAL for the comparison. TEST is not used."""
    manifest = loading.read_table(folders.path("manifest.csv"), ("split", "label", "path"))
    table = manifest[manifest["split"] == "VAL"]
    return loading.load_faces(table.sample(min(COMPARED, len(table)), random_state=0), folders.data)


def for_any_colour(model: keras.Model) -> keras.Model:
    """The model with input pixels 0–255 of shape (n, height, width, 1) or (n, height, width, 3), grey or RGB.

    Grey is the sum of the channels weighted by LUMA. The weights sum to 1, so a single channel is unchanged.
    """
    pixels = keras.Input((None, None, None), name="pixels")
    grey = ops.sum(pixels * np.array(LUMA, np.float32), axis=-1, keepdims=True)
    return keras.Model(pixels, model(grey), name=model.name)


def _write_formats(model: keras.Model, folder: Path) -> None:
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    with tempfile.TemporaryDirectory() as name:
        saved = Path(name) / "saved_model"
        pixels = keras.InputSpec(shape=(None, None, None, None), dtype="float32", name="pixels")
        model.export(saved, format="tf_saved_model", verbose=False, input_signature=[pixels])
        (folder / "model_float16.tflite").write_bytes(_tflite(saved, tf.float16))
        (folder / "model_int8.tflite").write_bytes(_tflite(saved, None))
        _write_onnx(saved, folder / "model.onnx")


def _tflite(saved: Path, weights: tf.DType | None) -> bytes:
    """The model for TFLite, its weights as float16, or without a type as int8 with a scale for each output channel.

    Activations get their range with each picture (dynamic-range quantization). With ranges fixed beforehand on 200 training
    images, 79 % of the classes were those of Keras.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [weights] if weights else []
    return converter.convert()


def _write_onnx(saved: Path, file: Path) -> None:
    # In a separate process: for a SavedModel, tf2onnx documents its command line.
    command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", str(saved), "--output", str(file)]
    done = subprocess.run([*command, "--opset", str(OPSET)], capture_output=True, text=True)
    if done.returncode or not file.is_file():
        raise ExportError(f"tf2onnx failed: {done.stderr[-2000:]}")


def measure(folder: Path, compared: Faces) -> list[Measured]:
    """Compare every exported file in `folder` with its model.keras: probabilities on the images, size, time per image."""
    kinds = {
        "Keras": ("model.keras", PARITY),
        "TFLite, float16": ("model_float16.tflite", PARITY_FLOAT16),
        "TFLite, int8 weights": ("model_int8.tflite", None),
        "ONNX": ("model.onnx", PARITY),
    }
    ready = {kind: model_files.load(folder / file) for kind, (file, _) in kinds.items()}
    pixels = compared.images.astype(np.float32)
    answers = {kind: np.concatenate([predict(image[None]) for image in pixels]) for kind, predict in ready.items()}
    seconds = _seconds(ready, pixels[:TIMED])
    rows = []
    for kind, (file, allowed) in kinds.items():
        found, expected = answers[kind], answers["Keras"]
        difference = float(np.abs(found - expected).max())
        same = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
        right = float((found.argmax(axis=1) == compared.labels).mean())
        size = (folder / file).stat().st_size / 1e6
        rows.append(Measured(kind, file, size, 1000 * seconds[kind], difference, same, right, allowed))
    return rows


def _seconds(ready: dict[str, Predict], pixels: np.ndarray) -> dict[str, float]:
    """The median time for one image in seconds, for each format; the formats take turns."""
    found: dict[str, list[float]] = {kind: [] for kind in ready}
    for image in pixels:
        for kind, predict in ready.items():
            began = time.perf_counter()
            predict(image[None])
            found[kind].append(time.perf_counter() - began)
    return {kind: statistics.median(seconds) for kind, seconds in found.items()}


def _agreeing(folder: Path, measured: Sequence[Measured]) -> list[Measured]:
    """The formats that agree with Keras. int8 weights that do not are removed, which is printed; a float format that does
    not is an ExportError."""
    kept = []
    for row in measured:
        if row.allowed is not None and not row.largest_difference <= row.allowed:
            raise ExportError(
                f"{row.format}: probabilities differ from Keras by up to {row.largest_difference:.2g}, allowed are {row.allowed}; "
                "nothing was written"
            )
        if row.allowed is None and not row.same_class >= model_files.SAME_CLASS:
            print(
                f"{row.format}: left out, since it gives the class of Keras to {row.same_class:.1%} of the images only; "
                f"expected are {model_files.SAME_CLASS:.0%}"
            )
            (folder / row.file).unlink()
            continue
        kept.append(row)
    return kept


def _write_record(folders: RunFolders, folder: Path, measured: Sequence[Measured]) -> None:
    """What fer_utils.predict needs to choose the fastest file that agrees with the model."""
    rows = [asdict(row) | {"sha256": model_files.sha256(folder / row.file)} for row in measured]
    record = {"run": folders.run.name, "model_sha256": model_files.sha256(folders.path("model.keras")), "formats": rows}
    files.write_json(folder / model_files.RECORD, record)


def table(measured: Sequence[Measured]) -> pd.DataFrame:
    """The measurements, one row per format."""
    rows = {
        row.format: {
            "file": row.file,
            "MB": round(row.megabytes, 1),
            "ms an image": round(row.milliseconds, 1),
            "largest difference": f"{row.largest_difference:.1e}",
            "same class": f"{row.same_class:.1%}",
            "accuracy": f"{row.accuracy:.3f}",
        }
        for row in measured
    }
    return pd.DataFrame(rows).T.rename_axis("format")
