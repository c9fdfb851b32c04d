"""Models and their records from strangers: `predict` answers, or says in a sentence which file is wrong and how.

Each entry of a table writes one hostile file and names what must be said of it. Nothing outside may change.
"""

import json
import os
import zipfile
from pathlib import Path

from fer_utils import files
from fer_utils.predict import command_line, page, reader
from fer_utils.training import model_files
from fer_utils.training.network import save

import keras
import numpy as np
import pytest
from keras import layers
from limits import limited
from PIL import Image
from surroundings import unchanged

PHOTOGRAPHS = {"faces": model_files.PHOTOGRAPHS, "labels": "fer2013", "leakage": "keep"}


def network(size=None, channels=1, n=7, activation="softmax", dtype="float32", weight=0.0) -> keras.Model:
    """A network of one layer that takes and gives what the arguments say; every weight is `weight`."""
    raw = keras.Input((size, size, channels), dtype=dtype)
    model = keras.Model(raw, layers.Dense(n, activation=activation)(layers.GlobalAveragePooling2D()(raw)))
    model.set_weights([np.full(weights.shape, weight, np.float32) for weights in model.get_weights()])
    return model


def two_inputs() -> keras.Model:
    raw = [keras.Input((None, None, 1)) for _ in range(2)]
    pooled = [layers.GlobalAveragePooling2D()(one) for one in raw]
    return keras.Model(raw, layers.Dense(7, activation="softmax")(layers.Add()(pooled)))


def named_input() -> keras.Model:
    raw = {"pixels": keras.Input((None, None, 1), name="pixels")}
    pooled = layers.GlobalAveragePooling2D()(raw["pixels"])
    return keras.Model(raw, layers.Dense(7, activation="softmax")(pooled))


def one_picture_a_call() -> keras.Model:
    raw = keras.Input(batch_shape=(1, None, None, 1))
    return keras.Model(raw, layers.Dense(7, activation="softmax")(layers.GlobalAveragePooling2D()(raw)))


# Name → the network, and what is said of its file.
NETWORKS = {
    "weights that are NaN": (lambda: network(weight=np.nan), "gives no probabilities, for example nan"),
    "weights that are infinite": (lambda: network(weight=np.inf), "gives no probabilities, for example nan"),
    "logits": (lambda: network(activation=None, weight=0.4), "gives no probabilities, for example 0.4"),
    "negative scores that sum to one": (lambda: network(n=7, activation=None, weight=-1), "gives no probabilities"),
    "seven answers yes": (lambda: network(activation="sigmoid"), "gives no probabilities, for example 0.5"),
    "a fixed size": (lambda: network(size=96), "takes (None, 96, 96, 1)"),
    "colours": (lambda: network(channels=3), "takes (None, None, None, 3)"),
    "eight classes": (lambda: network(n=8), "gives (None, 8)"),
    "two inputs": (two_inputs, "expected grey pictures"),
    "one picture a call": (one_picture_a_call, "takes (1, None, None, 1)"),
    "never built": (lambda: keras.Sequential([layers.Dense(7)]), "model.keras: not a whole"),
}


def bomb(path: Path) -> None:
    """A zip whose directory declares 600 MB."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", b"{}")
        archive.infolist()[0].file_size = 600_000_000


def sparse(path: Path) -> None:
    """A link to a file of 600 MB that takes no space; it lies where nobody reads it to see whether it has changed."""
    path.symlink_to(path.parents[1] / "large")
    with path.open("wb") as file:
        file.truncate(600_000_000)


def half(path: Path) -> None:
    network().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def onnx_model(path: Path, batch="n", name="pixels", data: str = "") -> None:
    """Seven equal probabilities a picture; or weights that lie in another file."""
    import onnx
    from onnx import TensorProto, helper

    taken = helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, "h", "w", 1])
    given = helper.make_tensor_value_info("p", TensorProto.FLOAT, [batch, 7])
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [1, 7], [0.0] * 7)
    if data:
        weights.ClearField("float_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=data)
    nodes = [
        helper.make_node("ReduceMean", [name], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["p"]),
    ]
    graph = helper.make_graph(nodes, "g", [taken], [given], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


# Name → the file's name, what writes it, and what is said of it.
FILES = {
    "a zip bomb": ("model.keras", bomb, "it holds 600 MB, at most 500 are read"),
    "600 MB of ONNX": ("model.onnx", sparse, "it holds 600 MB"),
    "600 MB of Keras": ("model.keras", sparse, "it holds 600 MB"),
    "half a model": ("model.keras", half, "not a whole Keras model"),
    "an empty file": ("model.keras", Path.touch, "not a whole Keras model"),
    "an empty h5": ("model.h5", Path.touch, "not a whole Keras model"),
    "text": ("model.pkl", lambda path: path.write_text("x"), "not a whole Keras model"),
    "an empty zip": ("model.keras", lambda path: zipfile.ZipFile(path, "w").close(), "not a whole Keras model"),
    "ONNX of one picture a call": ("model.onnx", lambda path: onnx_model(path, 1), "not a whole model"),
    "ONNX of another input": ("model.onnx", lambda path: onnx_model(path, name="x"), "not a whole model"),
    "ONNX that reads another file": (
        "model.onnx",
        lambda path: onnx_model(path, data="../secret"),
        "not a whole model",
    ),
    "a pipe": ("model.keras", os.mkfifo, "no file and no run with a model is called"),
    "a folder": ("model.keras", Path.mkdir, "no file and no run with a model is called"),
    "a link to nowhere": ("model.keras", lambda path: path.symlink_to("gone"), "no file and no run with a model"),
    "a link to itself": ("model.keras", lambda path: path.symlink_to(path.name), "no file and no run with a model"),
}


@pytest.fixture
def ask(tmp_path, capsys):
    """Asks a model about a picture: exit status, output, errors. Nothing but the model's folder may be written to."""
    folder, other = tmp_path / "model", tmp_path / "other"
    folder.mkdir(), other.mkdir()
    (other / "secret").write_bytes(bytes(28))
    (tmp_path / "secret").write_bytes(bytes(28))
    Image.new("L", (60, 50), 200).save(other / "picture.png")

    def ask(model: Path, *more: str) -> tuple[int, str, str]:
        given = [str(other / "picture.png"), "--no-detect", "--json", "--model", str(model), *more]
        with unchanged(other, folder), limited():
            status = command_line.main(given)
        return status, *capsys.readouterr()

    return ask


def refused(answer: tuple[int, str, str], file: str, said: str) -> None:
    status, out, err = answer
    (sentence,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2 and not out and file in sentence and said in sentence


@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_is_not_ours(ask, tmp_path, name):
    build, said = NETWORKS[name]
    build().save(tmp_path / "model" / "model.keras")
    refused(ask(tmp_path / "model" / "model.keras"), "model.keras", said)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_model(ask, tmp_path, name):
    file, write, said = FILES[name]
    write(tmp_path / "model" / file)
    refused(ask(tmp_path / "model" / file), file, said)


ANSWERS = {
    "ONNX": ("model.onnx", onnx_model),
    "a named input": ("model.keras", lambda path: named_input().save(path)),
    "whole numbers": ("model.keras", lambda path: network(dtype="int32").save(path)),
    "the size of a face": ("model.keras", lambda path: network(size=48).save(path)),
}


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
@pytest.mark.parametrize("name", ANSWERS)
def test_an_unusual_model_that_answers(ask, tmp_path, name):
    file, write = ANSWERS[name]
    write(tmp_path / "model" / file)
    model_files.write_origin(tmp_path / "model" / file, PHOTOGRAPHS)
    status, out, _ = ask(tmp_path / "model" / file)
    assert status == 0 and "note" not in json.loads(out)


ORIGINS = {
    "no JSON": b"{",
    "another type": b"[1]",
    "no faces": b"{}",
    "other faces": b'{"faces": "\\u001b[2Jcats"}',
    "faces that are a list": b'{"faces": ["drawn"]}',
    "nested": b"[" * 9_000,
    "too long": b'{"faces": "photographs"' + b" " * 20_000 + b"}",
}


@pytest.mark.parametrize("name", ORIGINS)
def test_an_origin_that_is_none(ask, tmp_path, name):
    model = tmp_path / "model" / "model.keras"
    network().save(model)
    with zipfile.ZipFile(model, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(model_files.ORIGIN, ORIGINS[name])
    refused(ask(model), "model.keras", "its entry trained_on.json is damaged")


NESTED = "[" * 200_000
RECORDS = {
    "torn": '{"run": ',
    "empty": "",
    "a list": "[]",
    "a number": "7",
    "nested": NESTED,
    "a number of 5,000 digits": "1" * 5000,
    "UTF-16": '{"run": {"params": {}}}'.encode("utf-16"),
}
METRICS = RECORDS | {"no run": "{}", "no parameters": '{"run": {"params": [1]}}', "a run that is a list": '{"run": []}'}


def written(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("name", METRICS)
def test_metrics_beside_a_model_of_which_the_page_says_the_scores(tmp_path, name):
    written(tmp_path / "metrics.json", METRICS[name])
    with pytest.raises(files.TornFile, match=r"metrics\.json.*remove it"):
        page.about(tmp_path / "model.keras", "")


def test_metrics_that_are_torn_say_nothing_where_the_model_does(ask, tmp_path):
    save(network(), tmp_path / "model" / "model.keras", {"fer2013": "demo"} | PHOTOGRAPHS)
    written(tmp_path / "model" / "metrics.json", "{")
    status, out, err = ask(tmp_path / "model" / "model.keras")
    assert status == 0 and json.loads(out)["note"] == reader.DRAWN and "Traceback" not in err


def test_an_answer_that_is_nan_for_one_picture_alone(tmp_path, capsys):
    raw = keras.Input((None, None, 1))
    pooled = layers.GlobalAveragePooling2D()(raw)
    model = keras.Model(raw, layers.Softmax()(layers.Concatenate()([pooled * np.float32(3e38)] * 7)))
    save(model, tmp_path / "model.keras", {"fer2013": "auto"} | PHOTOGRAPHS)
    Image.new("L", (48, 48), 0).save(tmp_path / "a.png")
    Image.new("L", (48, 48), 255).save(tmp_path / "b.png")
    given = ["--no-detect", "--json", "--model", str(tmp_path / "model.keras")]
    assert command_line.main([str(tmp_path / "a.png"), *given]) == 0
    capsys.readouterr()
    status = command_line.main([str(tmp_path / "a.png"), str(tmp_path / "b.png"), *given])
    refused((status, *capsys.readouterr()), "model.keras", "gives no probabilities, for example nan")
