"""Runs a model's file, whatever its format: Keras, LiteRT (`.tflite`) or ONNX.

The packages for LiteRT and ONNX are the extra `export` of this project; each is imported with its first file.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

from fer_utils import files
from fer_utils.classes import CLASSES

import numpy as np

# Raw pixels 0–255, float32 (n, height, width, 1), to probabilities, float32 (n, 7), in the order of CLASSES.
Predict = Callable[[np.ndarray], np.ndarray]
RUNTIMES = {".tflite": "ai_edge_litert", ".onnx": "onnxruntime"}  # suffix → package to import
RECORD = "formats.json"  # beside exported files: what each was measured to do
EXPORT = "export"  # the folder in a run's folder where exported files are looked for
SAME_CLASS = 0.97  # share of images to which a file must give the same class as Keras


class NotOurModel(ValueError):
    """The file is not a model of this project, or what runs its format is not installed."""


def load(path: Path, threads: int | None = None) -> Predict:
    """The model in a file as a function, by the file's suffix; a `.keras` or `.h5` file is loaded by Keras, safely.

    threads: how many a LiteRT or ONNX model may use; None leaves it to them. Raises NotOurModel, naming the file.
    """
    suffix = path.suffix.lower()
    try:
        predict = _LOADERS[suffix](path, threads) if suffix in _LOADERS else _keras(path)
        answer = None if suffix not in _LOADERS else predict(np.zeros((1, 48, 48, 1), np.float32))
    except ImportError as error:
        raise NotOurModel(
            f"{path}: what runs {suffix} files is not installed ({error}): install the extra `export` of this project, or take "
            "the model.keras"
        ) from error
    except NotOurModel:
        raise
    except Exception as error:  # the runtimes raise many types for a file that is no model, or another model
        raise NotOurModel(f"{path}: not a whole model of this project in its format ({_reason(error)})") from error
    if answer is not None and answer.shape != (1, len(CLASSES)):
        raise NotOurModel(f"{path}: gives {answer.shape} for one picture, expected (1, {len(CLASSES)})")
    return predict


def fastest(model: Path) -> Path:
    """The fastest file beside a `model.keras`, or in the folder EXPORT beside it, that agrees with it; else the model itself.

    Speed and agreement are those that the export measured. A file counts only if neither it nor the model has changed since,
    and if what runs it is installed.
    """
    for folder in (model.parent, model.parent / EXPORT):
        if not (folder / RECORD).is_file():
            continue
        record = files.read_json(folder / RECORD)
        rows = sorted(record["formats"], key=lambda row: row["milliseconds"])
        known = {record["model_sha256"], *(row["sha256"] for row in rows if row["file"] == "model.keras")}
        if sha256(model) not in known:
            continue
        for row in rows:
            path = folder / row["file"]
            runtime = RUNTIMES.get(path.suffix)
            is_whole = row["same_class"] >= SAME_CLASS and path.is_file() and sha256(path) == row["sha256"]
            if is_whole and (runtime is None or importlib.util.find_spec(runtime)):
                return path if runtime else model
    return model


def sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def load_keras(path: Path):
    """A Keras model of this project, loaded safely: raw grey in, seven probabilities out. Raises NotOurModel."""
    import keras  # TensorFlow takes seconds to import

    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras, zipfile and h5py raise many types for a file that is no model
        raise NotOurModel(f"{path}: not a whole Keras model ({_reason(error)})") from error
    shapes = model.input_shape, model.output_shape
    if shapes[0][-1:] not in ((1,), (None,)) or len(shapes[0]) != 4 or shapes[1] != (None, len(CLASSES)):
        raise NotOurModel(
            f"{path}: takes {shapes[0]} and gives {shapes[1]}; expected grey pictures and {len(CLASSES)} classes, "
            "as outputs/<run>/model.keras"
        )
    return model


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _keras(path: Path) -> Predict:
    from fer_utils.training.network import compiled

    return compiled(load_keras(path))


def _litert(path: Path, threads: int | None) -> Predict:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
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


def _onnx(path: Path, threads: int | None) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: all cores
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels})[0]


_LOADERS = {".tflite": _litert, ".onnx": _onnx}
