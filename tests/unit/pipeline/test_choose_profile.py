"""Drawn faces stand in only where nobody brought data: what lies in data/ is used or named, never passed over."""

import re

import run_all
from fer_utils import places
from fer_utils.pipeline import parameters, stages

import pytest


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The folder data/ of a project on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FER_KAGGLE_ROOT", str(tmp_path / "kaggle"))
    monkeypatch.setattr(places, "shows_gpu", lambda: False)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_an_empty_folder_or_none_means_the_demo(data):
    (data / ".gitkeep").touch()
    assert parameters.choose_profile() == ("demo", "data/ is empty: drawn faces stand in for the two datasets")
    (data / ".gitkeep").unlink()
    data.rmdir()
    assert parameters.choose_profile()[0] == "demo"


def test_both_datasets_mean_real_data_whatever_lies_beside_them(data):
    (data / "fer2013").mkdir()
    (data / "emotion-detection-fer.zip").touch()
    (data / "notes.txt").touch()
    assert parameters.choose_profile() == ("cpu", "both datasets are in data/ and no GPU is here")


@pytest.mark.parametrize(
    ("names", "found", "missing"),
    [
        (["fer2013/"], "fer2013/", "emotion-detection-fer"),
        (["emotion-detection-fer.zip"], "emotion-detection-fer.zip", "fer2013"),
        (["FER2013/"], "FER2013/", "fer2013"),
        (["archive.zip", "train/"], "archive.zip, train/", "fer2013"),
    ],
)
def test_anything_else_is_an_error_that_says_what_is_there_and_what_should_be(data, names, found, missing):
    for name in names:
        (data / name).mkdir() if name.endswith("/") else (data / name).touch()
    with pytest.raises(places.NotFoundHere) as caught:
        parameters.choose_profile()
    said = str(caught.value)
    assert f"looked for {data / missing} and {data / missing}.zip; data/ holds {found}\n" in said
    assert re.search(rf"https://www\.kaggle\.com/datasets/.+ at data/{missing} or data/{missing}\.zip", said)
    assert "--download" in said and "--params params/demo.yaml" in said


@pytest.mark.parametrize(
    ("files", "shows"),
    [
        ([], False),
        (["dev/nvidiactl"], False),
        (["dev/nvidia0"], True),
        (["dev/dxg"], False),  # WSL2 with a GPU of another maker
        (["dev/dxg", "usr/lib/wsl/lib/libcuda.so.1"], True),
    ],
)
def test_a_gpu_is_known_by_what_its_driver_shows(tmp_path, files, shows):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert places.shows_gpu(tmp_path) == shows


def test_a_run_and_a_notebook_stop_with_it(data, monkeypatch, capsys):
    (data / "FER2013").mkdir()
    values = {"profile": "auto"} | {name: own.default for name, own in parameters.declared()["balance"].items()}
    with pytest.raises(places.NotFoundHere, match="data/ holds FER2013/"):
        stages.begin("balance", values)
    monkeypatch.setattr(run_all.os, "chdir", lambda folder: None)  # this folder stands for the project's
    assert run_all.main(["--dry-run"]) == 2
    assert "data/ holds FER2013/" in capsys.readouterr().err
