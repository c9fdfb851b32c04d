"""Datasets, weights and folders are found where Kaggle mounts them, within bounds, and what is missing is named."""

from fer_utils import places
from fer_utils.data import addresses, finding
from fer_utils.pipeline import runs
from fer_utils.places import NotFoundHere
from fer_utils.training import weights

import pytest


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """An empty Kaggle machine."""
    root = tmp_path / "kaggle"
    for name in ("input", "working"):
        (root / name).mkdir(parents=True)
    monkeypatch.setenv("FER_KAGGLE_ROOT", str(root))
    monkeypatch.chdir(root / "working")
    return root


def lay_out(folder, name="fer2013"):
    for part in ("train", "test"):
        for label in addresses.CLASS_FOLDERS[name]:
            (folder / part / label).mkdir(parents=True)
    return folder


def test_a_given_place_goes_before_all_others(kaggle):
    lay_out(kaggle / "input/fer2013")
    given = lay_out(kaggle / "input/mine")
    assert finding.find_dataset("fer2013", str(given)) == given
    assert finding.find_dataset("fer2013", "/kaggle/input/mine") == given
    with pytest.raises(NotFoundHere, match="fer2013: nothing at"):
        finding.find_dataset("fer2013", "/kaggle/input/other")


def test_the_newer_mount_then_the_older_then_a_search(kaggle):
    elsewhere = lay_out(kaggle / "input/datasets/someone/fer/archive")
    assert finding.find_dataset("fer2013", "auto") == elsewhere
    older = lay_out(kaggle / "input/fer2013")
    assert finding.find_dataset("fer2013", "auto") == older
    newer = lay_out(kaggle / "input/datasets/msambare/fer2013")
    assert finding.find_dataset("fer2013", "auto") == newer


def test_the_search_tells_the_two_datasets_apart(kaggle):
    first, second = lay_out(kaggle / "input/a/x"), lay_out(kaggle / "input/b/y", "emotion_detection")
    assert finding.find_dataset("fer2013", "auto") == first
    assert finding.find_dataset("emotion_detection", "auto") == second


def test_two_that_fit_are_never_chosen_between(kaggle):
    lay_out(kaggle / "input/a")
    lay_out(kaggle / "input/b")
    with pytest.raises(NotFoundHere, match=r"input/a and .*input/b both look like it: set the parameter fer2013"):
        finding.find_dataset("fer2013", "auto")


def test_what_is_missing_is_named_beside_what_is_mounted(kaggle):
    (kaggle / "input/datasets/someone/cats/pictures").mkdir(parents=True)
    (kaggle / "input/datasets/someone/cats/cats.csv").touch()
    with pytest.raises(NotFoundHere) as caught:
        finding.find_dataset("fer2013", "auto")
    assert "input/datasets/someone/cats: pictures/, cats.csv" in str(caught.value)
    assert "Attach https://www.kaggle.com/datasets/msambare/fer2013" in str(caught.value)


def test_the_search_keeps_its_bounds(tmp_path, monkeypatch):
    deep = tmp_path.joinpath(*"abcdefghij")
    lay_out(deep)
    assert places.find_parts(tmp_path, ("train", "test"), addresses.CLASS_FOLDERS["fer2013"]) == []
    assert len(list(places.walk(tmp_path))) == 1 + places.MAX_DEPTH
    monkeypatch.setattr(places, "MAX_ENTRIES", 3)
    wide = tmp_path / "wide"
    for number in range(9):
        (wide / f"{number}").mkdir(parents=True)
    assert len(list(places.walk(wide))) == 1 + 3
    monkeypatch.setattr(places, "MAX_FOLDERS", 2)
    assert len(list(places.walk(wide))) == 2


def test_notop_files_come_first(kaggle):
    for name in ("datasets/a/b/model.weights.h5", "datasets/a/c/x_NoTop.h5", "models/k/resnet/keras/v/1/y.H5"):
        (kaggle / "input" / name).parent.mkdir(parents=True)
        (kaggle / "input" / name).touch()
    assert [path.name for path in weights.mounted_weights()] == ["x_NoTop.h5", "model.weights.h5", "y.H5"]


def test_kaggles_folders_move_with_its_root(kaggle):
    folders = runs.run_named("r", "/kaggle/working", "/kaggle/content/fer2013_by_usage_1")
    assert folders.folder == kaggle / "working/r"
    assert folders.data == kaggle / "content/fer2013_by_usage_1"
    assert not (kaggle / "content").exists()


def test_where_content_cannot_be_made_images_go_to_temp(kaggle):
    (kaggle / "content").write_text("in the way")
    folders = runs.run_named("r", "/kaggle/working", "/kaggle/content/fer2013_by_usage_1")
    assert folders.data == kaggle / "temp/fer2013_by_usage_1"


def test_the_default_root_is_kaggles(monkeypatch):
    monkeypatch.delenv("FER_KAGGLE_ROOT", raising=False)
    assert str(places.kaggle_root()) == "/kaggle"
