"""The network `small` as an ONNX file: what it predicts, what it keeps, and the file that comes with the package."""

import subprocess
import sys
from pathlib import Path

from fer_utils import images, places
from fer_utils.export import small_onnx
from fer_utils.predict import reader
from fer_utils.training import model_files, network

import keras
import numpy as np
import pytest

LARGEST = 6_000_000  # bytes


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Noise of many lights and contrasts, and a picture of one grey level."""
    rng = np.random.default_rng(1)
    drawn = rng.uniform(0, 255, (12, 1, 1, 1)) + rng.uniform(1, 60, (12, 1, 1, 1)) * rng.normal(size=(12, 48, 48, 1))
    drawn[0] = 80
    return drawn.clip(0, 255).round().astype(np.float32)


@pytest.fixture(scope="module")
def model(pixels) -> keras.Model:
    """The network with drawn weights, statistics and scales, its last layer set so that the scores of the pictures differ."""
    keras.utils.set_random_seed(0)
    model, rng = network.build(images.SIZE, "none", network.SMALL), np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in layer.weights])
    scores, last = np.log(model.predict(pixels, verbose=0)), model.get_layer(network.HEAD_LAYERS[-1])
    scale = 1 / scores.std(axis=0).max()
    last.set_weights([scale * last.kernel.numpy(), -scale * scores.mean(axis=0)])
    return model


@pytest.fixture(scope="module")
def file(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    small_onnx.write(model, path)
    return path


def test_the_file_becomes_the_model_again(model, file):
    again = network.load(file)
    assert again.input_shape == model.input_shape and again.name == model.name
    for first, second in zip(model.weights, again.weights, strict=True):
        np.testing.assert_allclose(second.numpy(), first.numpy(), atol=1e-7, rtol=2**-11)  # kernels in float16


@pytest.mark.parametrize("run", [model_files.opencv, model_files._onnx], ids=["cv2", "onnxruntime"])
def test_the_file_predicts_what_the_model_predicts_that_it_becomes(file, pixels, run):
    expected = network.load(file).predict(pixels, verbose=0)
    assert expected.shape == (12, 7) and np.ptp(expected, axis=0).max() > 0.05
    np.testing.assert_allclose(run(file)(pixels), expected, atol=1e-4)


def test_a_temperature_divides_the_scores(model, file, pixels, tmp_path):
    small_onnx.write(model, tmp_path / "small.onnx", temperature=2.0)
    roots = np.sqrt(network.load(file).predict(pixels, verbose=0))
    expected = roots / roots.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model_files.opencv(tmp_path / "small.onnx")(pixels), expected, atol=1e-4)


def test_another_onnx_file_is_no_keras_model(tmp_path):
    from onnx import helper, save

    save(helper.make_model(helper.make_graph([], "main_graph", [], [])), tmp_path / "model.onnx")
    with pytest.raises(model_files.NotOurModel, match=r"model.onnx: .*\(its graph is called 'main_graph'"):
        network.load(tmp_path / "model.onnx")


def test_the_shipped_file_is_small_and_says_what_it_was_trained_on():
    assert places.SHIPPED.stat().st_size <= LARGEST
    origin = model_files.read_origin(places.SHIPPED)
    assert (origin["faces"], origin["leakage"]) == ("photographs", "drop") and reader.note(places.SHIPPED) == ""


def test_opencv_predicts_what_keras_predicts_from_the_shipped_file(pixels):
    expected = network.load(places.SHIPPED).predict(pixels, verbose=0)
    np.testing.assert_allclose(model_files.load(places.SHIPPED)(pixels), expected, atol=1e-4)


def test_the_shipped_model_answers_without_keras():
    code = (
        "import sys\nimport numpy as np\nfrom fer_utils.predict.reader import Reader\n"
        "from fer_utils import places\n"
        "found = Reader(places.SHIPPED, None).probabilities(np.full((2, 48, 48), 99, np.uint8))\n"
        "print(found.shape, sorted({'keras', 'tensorflow', 'jax'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "(2, 7) []\n", done.stderr
