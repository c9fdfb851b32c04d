"""An exported model answers as Keras does, for grey and for RGB, and its card tells what the run measured."""

import shutil
import sys

from fer_utils import digests, files, images, places
from fer_utils.classes import CLASSES
from fer_utils.evaluation import scores
from fer_utils.export import formats, model_card, shipping
from fer_utils.pipeline import runs
from fer_utils.training import model_files, network

import keras
import numpy as np
import pandas as pd
import pytest
import yaml


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> runs.Run:
    """A finished run of the small network on 28 images of VAL and as many of TRAIN_BALANCED."""
    folders = runs.run_named("small", str(tmp_path_factory.mktemp("outputs")), "")
    rng, rows = np.random.default_rng(0), {}
    for split in ("VAL", "TRAIN_BALANCED"):
        rows[split] = [(split, label, f"{split}/{label}/{i}.png") for label in CLASSES for i in range(4)]
        for _, label, path in rows[split]:
            (folders.data / path).parent.mkdir(parents=True, exist_ok=True)
            face = rng.normal(20 + 30 * CLASSES.index(label), 20, (48, 48)).clip(0, 255).astype(np.uint8)
            (folders.data / path).write_bytes(images.encode_png(face))
    files.write_csv(folders.path("manifest.csv"), pd.DataFrame(rows["VAL"], columns=["split", "label", "path"]))
    files.write_csv(
        folders.path("balanced.csv"), pd.DataFrame(rows["TRAIN_BALANCED"], columns=["split", "label", "path"])
    )
    keras.utils.set_random_seed(0)
    model = network.build(images.SIZE, "none", network.SMALL)
    for layer in network.backbone_of(model).layers:
        if hasattr(layer, "gamma"):
            layer.gamma.assign(np.ones(layer.gamma.shape))  # else residual branches would add nothing
    sources = {"fer2013": "demo", "labels": "fer2013", "leakage": "drop"}
    network.save(model, folders.path("model.keras"), sources)
    files.write_json(folders.path("metrics.json"), _metrics())
    scored = {"model.keras": digests.of_file(folders.path("model.keras"))}
    record = {"finished": "", "seconds": 1.0, "figures": {}, "parameters": {}, "key": {"inputs": {}}, "outputs": {}}
    written = {"model.keras": {"digest": scored["model.keras"]}}
    files.write_json(folders.stage_record("fine_tune"), record | {"outputs": written})
    files.write_json(folders.stage_record("evaluate"), record | {"key": {"inputs": scored}})
    return folders


def _metrics() -> dict:
    labels = list(CLASSES) * 4
    table = pd.DataFrame(
        {
            "path": [f"{i}.png" for i in range(28)],
            "label": labels,
            "usage": ["PublicTest", "PrivateTest"] * 14,
            "seen_in_training": False,
        }
    )
    predictions = scores.prediction_table(table, np.random.default_rng(1).dirichlet(np.ones(7), 28))
    overall = scores.scores_with_parts(predictions)
    return {
        "val": overall,
        "test": overall,
        "leakage": {"policy": "drop", "val_images_seen_in_training": 0, "test_images_seen_in_training": 0},
        "per_class": {"test": scores.class_report(predictions).to_dict("records")},
        "temperature_scaling": {"temperature": 1.5, "test": scores.scores_at(predictions, 1.5)},
        "run": {
            "params": {
                "fine_tune": {"image_size": 48, "weights": "none", "backbone": "small", "outputs_dir": "/data/outputs"}
            }
        },
    }


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "small"
    return folder, formats.export(run, folder)


def test_every_format_is_there_and_float_ones_answer_as_keras(exported):
    folder, measured = exported
    assert {path.name for path in folder.iterdir()} == {
        "MODEL_CARD.md",
        "metrics.json",
        "model.keras",
        "model.onnx",
        "model.weights.h5",
        "model_float16.tflite",
        "model_int8.tflite",
        files.WRITTEN,
    }
    differences, int8 = measured["largest difference"], "TFLite, int8 weights"
    assert (differences.drop(int8) <= formats.PARITY).all()
    assert differences["Keras"] == 0 < differences[int8] < 0.1
    assert measured["same class"][int8] >= 0.97
    assert measured["MB"][int8] < measured["MB"]["ONNX"]


@pytest.mark.parametrize("file", ["model.keras", "model_float16.tflite", "model.onnx"])
def test_grey_of_any_size_rgb_and_the_runs_own_model_agree(run, exported, file):
    grey = np.random.default_rng(2).integers(0, 255, (3, 60, 52, 1)).astype(np.float32)
    expected = keras.saving.load_model(run.path("model.keras"), compile=False).predict(grey, verbose=0)
    predict = model_files.load(exported[0] / file)
    assert predict(grey) == pytest.approx(expected, abs=1e-3)
    assert predict(np.repeat(grey, 3, axis=-1)) == pytest.approx(expected, abs=1e-3)
    red = grey * np.array([1, 0, 0], np.float32)
    darker = keras.saving.load_model(run.path("model.keras"), compile=False).predict(grey * 0.299, verbose=0)
    assert predict(red) == pytest.approx(darker, abs=1e-3)


@pytest.mark.parametrize("file", ["model.keras", "model_float16.tflite", "model_int8.tflite", "model.onnx"])
def test_a_copy_of_each_file_says_what_the_model_was_trained_on(exported, tmp_path, file):
    shutil.copy2(exported[0] / file, tmp_path / file)
    assert model_files.read_origin(tmp_path / file) == {"faces": "drawn", "labels": "fer2013", "leakage": "drop"}


def test_the_card_tells_scores_limits_and_files(exported):
    card = (exported[0] / model_card.FILE).read_text(encoding="utf-8")
    accuracy = f"{_metrics()['test']['accuracy']:.3f}"
    assert "A small residual network that sorts" in card and "`small`, which began with random weights" in card
    assert "never saw" in card and "`drop`" in card and "must not decide" in card
    assert "| TEST | 28 | " in card and f"| {accuracy} |" in card and "| surprise |" in card
    assert all(f"| {file} |" in card for file in exported[1]["file"])
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"


def test_the_run_is_shipped_with_its_temperature_scores_and_card(run, tmp_path):
    file = tmp_path / "small.onnx"
    found = shipping.ship(run, file)
    assert found["same class"].iloc[0] == 1 and float(found["largest difference"].iloc[0]) < 1e-3
    pixels = np.random.default_rng(3).integers(0, 255, (4, 48, 48, 1)).astype(np.float32)
    expected = keras.saving.load_model(run.path("model.keras"), compile=False).predict(pixels, verbose=0) ** (1 / 1.5)
    expected /= expected.sum(axis=1, keepdims=True)
    assert model_files.load(file)(pixels) == pytest.approx(expected, abs=1e-3)
    assert model_files.read_origin(file) == model_files.read_origin(run.path("model.keras"))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| small.onnx |" in card and "1.50" in card and "cv2.dnn.readNetFromONNX" in card
    expected = files.read_json(run.path("metrics.json"))
    assert (
        expected["run"]["params"]["fine_tune"].pop("outputs_dir") == "/data/outputs"
    )  # a path of the machine stays there
    assert files.read_json(tmp_path / "metrics.json") == expected


def test_an_earlier_export_gives_way_and_another_folder_does_not(run, exported, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(formats.ExportError, match="no earlier export: choose another folder"):
        formats.export(run, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_second_export_keeps_what_a_person_put_beside_the_first(run, exported, tmp_path):
    folder = shutil.copytree(exported[0], tmp_path / "small")
    for file, says in (("notes.md", r"holds notes\.md"), (model_card.FILE, f"{model_card.FILE} was changed")):
        (folder / file).write_text("my words")
        with pytest.raises(formats.ExportError, match=rf"{says}.*no earlier export: choose another folder"):
            formats.export(run, folder)
        assert (folder / file).read_text() == "my words"
        (folder / file).unlink()
    assert files.foreign(folder) is None


def test_a_float_format_that_differs_is_refused(exported, tmp_path):
    for difference in (2 * formats.PARITY_FLOAT16, float("nan")):
        measured = exported[1].loc[["ONNX"]].assign(**{"largest difference": difference})
        with pytest.raises(formats.ExportError, match=r"ONNX: probabilities differ .* nothing was written"):
            formats.agreeing(tmp_path, measured)


def test_int8_weights_stay_only_where_they_give_keras_classes(exported, tmp_path, capsys):
    row = exported[1].loc[["TFLite, int8 weights"]]
    file = tmp_path / row["file"].item()
    for share, stays in ((0.97, True), (0.969, False)):
        file.write_bytes(b"")
        kept = formats.agreeing(tmp_path, row.assign(**{"same class": share}))
        assert (len(kept) == 1, file.exists()) == (stays, stays)
    assert "left out, since it gives the class of Keras to 96.9% of the images only" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model.tflite", "model.onnx", "model.keras"])
def test_what_is_no_model_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(model_files.NotOurModel, match=rf"{name}: not a whole"):
        model_files.load(tmp_path / name)


def test_a_missing_runtime_is_named_with_the_way_out(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(model_files.NotOurModel, match=r"model.onnx: what runs \.onnx files is not installed.*export"):
        model_files.load(exported[0] / "model.onnx")


def test_a_model_that_was_not_scored_gets_no_card_with_the_scores_of_another(run, tmp_path):
    other = runs.run_named("other", str(tmp_path), "")
    shutil.copytree(run.folder, other.folder)
    other.path("model.keras").write_bytes(b"trained again")
    with pytest.raises(places.NotFoundHere, match=r"metrics\.json does not hold the scores of .*model\.keras: finish"):
        formats.export(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_packages_and_an_unfinished_run_are_said_first(run, tmp_path, monkeypatch):
    with pytest.raises(places.NotFoundHere, match="finish the run first"):
        formats.export(runs.run_named("other", str(tmp_path), ""), tmp_path / "out")
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(formats.ExportError, match="pip install ai-edge-litert tf2onnx onnxruntime"):
        formats.export(run, tmp_path / "out")
