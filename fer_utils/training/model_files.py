"""Runs a model's file, whatever its format: Keras, LiteRT (`.tflite`) or ONNX.

The packages for LiteRT and ONNX are the extra `export` of this project; each is imported with its first file. OpenCV runs the
shipped model.
"""

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fer_utils import images, places
from fer_utils.classes import CLASSES

import cv2
import numpy as np

# Raw pixels 0–255, float32 (n, height, width, 1), to probabilities, float32 (n, 7), in the order of CLASSES.
Predict = Callable[[np.ndarray], np.ndarray]
ORIGIN = "trained_on.json"  # in a model's file: what the model was trained on
MAX_ORIGIN = 10_000  # bytes
MAX_BYTES = 500_000_000  # of a model; a ResNet50 has 95 MB
DRAWN, PHOTOGRAPHS = "drawn", "photographs"  # the faces of an origin


class NotOurModel(ValueError):
    """The file is not a model of this project, or what runs its format is not installed."""


def load(path: Path) -> Predict:
    """The model in a file as a function, by the file's suffix; a `.keras` or `.h5` file is loaded by Keras, safely.

    Raises NotOurModel, naming the file.
    """
    suffix = path.suffix.lower()
    try:
        if is_shipped(path):
            predict = opencv(path)
        elif suffix in _LOADERS:
            predict = _LOADERS[suffix](_moderate(path))
        else:
            from fer_utils.training.devices import compiled  # TensorFlow takes seconds to import

            predict = compiled(load_keras(path))
        answer = predict(np.zeros((2, images.SIZE, images.SIZE, 1), np.float32))
    except ImportError as error:
        raise NotOurModel(
            f"{path}: what runs {suffix} files is not installed ({error}): install the extra `export` of this project, or take "
            "the model.keras"
        ) from error
    except NotOurModel:
        raise
    except Exception as error:  # the runtimes raise many types for a file that is no model, or another model
        raise NotOurModel(f"{path}: not a whole model of this project in its format ({_reason(error)})") from error
    if answer.shape != (2, len(CLASSES)):
        raise NotOurModel(f"{path}: gives {answer.shape} for two pictures, expected (2, {len(CLASSES)})")
    return predict


def is_shipped(path: Path) -> bool:
    """Whether a file is the model that comes with this package: OpenCV runs it, and network.load reads it."""
    return path.resolve() == places.SHIPPED.resolve()


def faces_of(sources: Mapping[str, Any]) -> str:
    """Whether the faces that a run trained on are DRAWN or PHOTOGRAPHS, by the parameters of 01."""
    return DRAWN if "demo" in (sources.get("fer2013"), sources.get("emotion_detection")) else PHOTOGRAPHS


def write_origin(path: Path, origin: Mapping[str, str]) -> None:
    """Write into a model's file what the model was trained on: into ONNX's metadata, as an entry of Keras' zip, or as a zip
    that is appended to a LiteRT file, as LiteRT's own metadata are."""
    if path.suffix == ".onnx":
        import onnx

        model = onnx.load(path)
        model.metadata_props.add(key=ORIGIN, value=json.dumps(origin))
        onnx.save(model, path)
    else:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(ORIGIN, json.dumps(origin))


def read_origin(path: Path) -> dict[str, str] | None:
    """What a model's file says that the model was trained on; None for a file that says nothing, as an older one.

    Raises NotOurModel for a file whose origin is damaged.
    """
    text = None
    try:
        if path.suffix.lower() == ".onnx":
            import onnx

            text = {entry.key: entry.value for entry in onnx.load(path).metadata_props}.get(ORIGIN)
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                text = archive.open(ORIGIN).read(MAX_ORIGIN) if ORIGIN in archive.namelist() else None
        origin = None if text is None else json.loads(text)
        if origin is not None and origin["faces"] not in (DRAWN, PHOTOGRAPHS):
            raise ValueError(f"faces: {str(origin['faces'])[:40]!r}")
    except Exception as error:  # zipfile and zlib raise many types for a damaged file
        said = f"its entry {ORIGIN} is damaged ({_reason(error)}): train or export it again"
        raise NotOurModel(f"{path}: {said}") from error
    return origin


def load_keras(path: Path, read: Callable | None = None):
    """A Keras model of this project, loaded safely: raw grey in, seven probabilities out. Raises NotOurModel.

    read: makes a Keras model of another format's file.
    """
    import keras  # TensorFlow takes seconds to import

    try:
        whole = _moderate(path)
        model = read(whole) if read else keras.saving.load_model(whole, compile=False, safe_mode=True)
        taken, given = model.input_shape, model.output_shape
    except Exception as error:  # Keras, zipfile and h5py raise many types for a file that is no model
        raise NotOurModel(f"{path}: not a whole Keras model ({_reason(error)})") from error
    sides = {None, images.SIZE}
    is_ours = isinstance(taken, tuple) and len(taken) == 4 and taken[0] is None and taken[3] in (None, 1)
    if not is_ours or not sides.issuperset(taken[1:3]) or given != (None, len(CLASSES)):
        raise NotOurModel(
            f"{path}: takes {taken} and gives {given}; expected grey pictures of any size or of {images.SIZE} pixels a side, "
            f"and {len(CLASSES)} classes, as outputs/<run>/model.keras"
        )
    return model


def _moderate(path: Path) -> Path:
    """The path, if its content is no larger than any model of this project, unpacked too; otherwise ValueError."""
    size = path.stat().st_size
    if size <= MAX_BYTES and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_BYTES:
        raise ValueError(f"it holds {size / 1e6:,.0f} MB, at most {MAX_BYTES / 1e6:,.0f} are read")
    return path


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def opencv(path: Path) -> Predict:
    """A file of small_onnx as a function, run by OpenCV."""
    network = cv2.dnn.readNetFromONNX(np.frombuffer(path.read_bytes(), np.uint8))  # OpenCV crashes at some paths

    def predict(pixels: np.ndarray) -> np.ndarray:
        answers = []
        for face in pixels:
            network.setInput(face[None], "pixels")
            answers.append(network.forward().copy())
        return np.concatenate(answers)

    return predict


def _litert(path: Path) -> Predict:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path)).get_signature_runner()
    return lambda pixels: runner(pixels=pixels)["output_0"]


def _onnx(path: Path) -> Predict:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels})[0]


_LOADERS = {".tflite": _litert, ".onnx": _onnx}
