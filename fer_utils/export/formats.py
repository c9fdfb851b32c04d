"""Exports a run's model as Keras, weights, TFLite and ONNX, compares each with Keras, and adds a model card.

The packages that ONNX needs are the extra `export` of this project.
"""

import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fer_utils import files
from fer_utils.data import loading
from fer_utils.data.loading import Faces
from fer_utils.export import model_card
from fer_utils.pipeline.paths import RunFolders
from fer_utils.places import NotFoundHere
from fer_utils.training import network

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import ops

PACKAGES = ("tf2onnx", "onnxruntime")
PARITY = 1e-3  # largest difference of a probability from Keras for a float32 format
PARITY_FLOAT16 = 5e-3  # weights rounded to 11 bits: 0.0016 was measured on a fine-tuned ResNet50
COMPARED, REPRESENTATIVE, TIMED = 500, 200, 50  # images of VAL, images of TRAIN_BALANCED, single images timed
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as in `images.decode`; the sum is 1
OPSET = 17

Predict = Callable[[np.ndarray], np.ndarray]


class ExportError(RuntimeError):
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
    allowed: float | None  # largest difference allowed; None: no limit


def export(folders: RunFolders, folder: Path) -> list[Measured]:
    """Write the run's model to `folder` in every format, and a model card; return the measurements.

    The folder is written atomically. Raises ExportError for missing packages, for a folder that is no earlier export, and
    if a float format differs from Keras by more than is allowed; NotFoundHere if the run is not finished.
    """
    _require_packages()
    _require_run(folders)
    if folder.exists() and (
        not folder.is_dir() or (any(folder.iterdir()) and not (folder / model_card.FILE).is_file())
    ):
        raise ExportError(f"{folder} is there and is no earlier export: choose another folder")
    compared, representative = _images(folders)
    model = for_any_colour(keras.saving.load_model(folders.model, compile=False, safe_mode=True))
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        _write_formats(model, temporary, representative)
        measured = measure(temporary, compared)
        _check(measured)
        card = model_card.text(folders, table(measured), len(compared))
        (temporary / model_card.FILE).write_text(card, encoding="utf-8")
    return measured


def _require_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"--export-model needs {' and '.join(missing)}: `pip install {' '.join(missing)}`")


def _require_run(folders: RunFolders) -> None:
    for path in (folders.model, folders.metrics, folders.manifest, folders.balanced):
        if not path.is_file():
            raise NotFoundHere(
                f"{path} is not there: finish the run first (`python run_all.py --run {folders.run.name}`)"
            )


def _images(folders: RunFolders) -> tuple[Faces, Faces]:
    """Images of VAL for the comparison, and of TRAIN_BALANCED to choose int8's ranges. TEST is not used."""
    manifest = loading.read_table(folders.manifest, ("split", "label", "path"))
    balanced = loading.read_table(folders.balanced, ("label", "path"))
    tables = (manifest[manifest["split"] == "VAL"], COMPARED), (balanced, REPRESENTATIVE)
    compared, representative = (
        loading.load_faces(table.sample(min(n, len(table)), random_state=0), folders.data) for table, n in tables
    )
    return compared, representative


def for_any_colour(model: keras.Model) -> keras.Model:
    """The model with input pixels 0–255 of shape (n, height, width, 1) or (n, height, width, 3), grey or RGB.

    Grey is the sum of the channels weighted by LUMA. The weights sum to 1, so a single channel is unchanged.
    """
    pixels = keras.Input((None, None, None), name="pixels")
    grey = ops.sum(pixels * np.array(LUMA, np.float32), axis=-1, keepdims=True)
    return keras.Model(pixels, model(grey), name=model.name)


def _write_formats(model: keras.Model, folder: Path, representative: Faces) -> None:
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    with tempfile.TemporaryDirectory() as name:
        saved = Path(name) / "saved_model"
        pixels = keras.InputSpec(shape=(None, None, None, None), dtype="float32", name="pixels")
        model.export(saved, format="tf_saved_model", verbose=False, input_signature=[pixels])
        (folder / "model_float16.tflite").write_bytes(_tflite(saved, None))
        (folder / "model_int8.tflite").write_bytes(_tflite(saved, representative.images))
        _write_onnx(saved, folder / "model.onnx")


def _tflite(saved: Path, representative: np.ndarray | None) -> bytes:
    """The model for TFLite: float16 weights, or int8 with ranges measured on the representative images."""
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if representative is None:
        converter.target_spec.supported_types = [tf.float16]
    else:
        converter.representative_dataset = lambda: ([image[None].astype(np.float32)] for image in representative)
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
        "Keras": ("model.keras", _keras, PARITY),
        "TFLite, float16": ("model_float16.tflite", _lite, PARITY_FLOAT16),
        "TFLite, int8": ("model_int8.tflite", _lite, None),
        "ONNX": ("model.onnx", _onnx, PARITY),
    }
    ready = {kind: load(folder / file) for kind, (file, load, _) in kinds.items()}
    pixels = compared.images.astype(np.float32)
    answers = {kind: np.concatenate([predict(image[None]) for image in pixels]) for kind, predict in ready.items()}
    seconds = _seconds(ready, pixels[:TIMED])
    rows = []
    for kind, (file, _, allowed) in kinds.items():
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


def _keras(file: Path) -> Predict:
    return network.compiled(keras.saving.load_model(file, compile=False, safe_mode=True))


def _lite(file: Path) -> Predict:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*tf\.lite\.Interpreter is deprecated")
        interpreter = tf.lite.Interpreter(str(file))
    place, answer = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    shape: list[tuple[int, ...]] = []

    def predict(pixels: np.ndarray) -> np.ndarray:
        if shape != [pixels.shape]:
            interpreter.resize_tensor_input(place, pixels.shape)
            interpreter.allocate_tensors()
            shape[:] = [pixels.shape]
        interpreter.set_tensor(place, pixels)
        interpreter.invoke()
        return interpreter.get_tensor(answer)

    return predict


def _onnx(file: Path) -> Predict:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels})[0]


def _check(measured: Sequence[Measured]) -> None:
    for row in measured:
        if row.allowed is not None and not row.largest_difference <= row.allowed:
            raise ExportError(
                f"{row.format}: probabilities differ from Keras by up to {row.largest_difference:.2g}, allowed are {row.allowed}; "
                "nothing was written"
            )


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
