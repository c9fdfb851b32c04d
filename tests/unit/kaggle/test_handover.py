"""A run packed by one notebook is the same run in the next."""

import zipfile

from fer_utils import files
from fer_utils.kaggle import handover
from fer_utils.pipeline import runs
from fer_utils.places import NotFoundHere

import pytest


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_KAGGLE_ROOT", str(tmp_path))
    (tmp_path / "working").mkdir()
    return tmp_path


def folders() -> runs.RunFolders:
    return runs.run_folders("r", "/kaggle/working", "/kaggle/content/images")


def a_run() -> dict[str, bytes]:
    """Write a run after 01 and 02; return its files by name."""
    of = folders()
    content = {
        of.path("manifest.csv"): b"path\nTRAIN/happy/a.png\n",
        of.stage_record("merge_split"): b"{}",
        of.stage_record("balance"): b"{}",
        of.figure("faces"): bytes(range(256)),
        of.path("images/TRAIN") / "happy/a.png": b"a",
        of.path("images/VAL") / "happy/b.png": b"b",
    }
    for path, data in content.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return {str(path): data for path, data in content.items()}


def attach(kaggle, place: str) -> None:
    """Mount what was left, in a session of its own."""
    (kaggle / "input" / place).parent.mkdir(parents=True, exist_ok=True)
    (kaggle / "working").rename(kaggle / "input" / place)
    files.remove(kaggle / "content")
    (kaggle / "working").mkdir()


@pytest.mark.parametrize("place", ["notebooks/jane/fer", "fer"])
@pytest.mark.parametrize("unpacked", [False, True])
def test_what_was_packed_is_restored_from_either_layout(kaggle, place, unpacked):
    content = a_run()
    archive = handover.pack(folders(), ("TRAIN", "VAL"))
    assert [path.name for path in (kaggle / "working").iterdir()] == ["r.zip"]
    if unpacked:  # a dataset made of a notebook's output
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(kaggle / "working/r")
        archive.unlink()
    attach(kaggle, place)
    handover.restore("train_head", folders())
    found = {path for name in ("working", "content") for path in (kaggle / name).rglob("*") if path.is_file()}
    lists = {
        place / files.WRITTEN for place in (folders().run, folders().path("images/TRAIN"), folders().path("images/VAL"))
    }
    assert lists <= found and {str(path): path.read_bytes() for path in found - lists} == content


def test_image_folders_that_nobody_needs_and_locks_stay_behind(kaggle):
    a_run()
    (folders().run / ".stage.lock").touch()
    with zipfile.ZipFile(handover.pack(folders(), ("VAL",))) as packed:
        names = packed.namelist()
    assert "VAL/happy/b.png" in names and not [name for name in names if name.startswith(("TRAIN", "run/."))]


def test_a_run_that_is_here_is_left_alone(kaggle):
    content = a_run()
    handover.restore("train_head", folders())
    assert folders().path("manifest.csv").read_bytes() == content[str(folders().path("manifest.csv"))]


def test_nothing_attached_names_the_notebook_to_attach_and_what_is_mounted(kaggle):
    a_run()
    handover.pack(folders(), ("VAL",))
    attach(kaggle, "notebooks/jane/fer")
    (kaggle / "input/notebooks/jane/fer/torn.zip").write_bytes(b"PK")
    with pytest.raises(NotFoundHere) as caught:
        handover.restore("fine_tune", folders())
    assert "attach the output of the notebook 03_train_head" in str(caught.value)
    assert "input/notebooks/jane/fer: r.zip, torn.zip" in str(caught.value)


def test_two_outputs_of_one_stage_are_never_chosen_between(kaggle):
    for place in ("one", "two"):
        a_run()
        handover.pack(folders(), ("VAL",))
        attach(kaggle, place)
    with pytest.raises(NotFoundHere, match=r"several outputs of balance are mounted: .*detach all but one"):
        handover.restore("train_head", folders())


def test_results_lie_beside_one_zip_of_the_rest(kaggle):
    a_run()
    of = folders()
    matrices = (f"confusion_matrix_{split}.png" for split in ("val", "test"))
    results = [of.path(name) for name in ("metrics.json", "report.html", "model.keras", *matrices)]
    for path in results:
        path.write_text(path.name)
    handover.deliver(of)
    left = {path.name for path in (kaggle / "working").iterdir()}
    assert left == {path.name for path in results} | {"r.zip"}
    assert (kaggle / "working/metrics.json").read_text() == "metrics.json"
    with zipfile.ZipFile(kaggle / "working/r.zip") as packed:
        assert "run/manifest.csv" in packed.namelist() and "run/metrics.json" not in packed.namelist()


def test_with_other_test_sets_train_is_handed_on_to_where_copies_of_it_are_looked_for():
    for stage in ("balance", "train_head", "fine_tune"):
        assert "TRAIN" not in handover.images_left(stage, "") and "TRAIN" in handover.images_left(stage, "my_faces")
    assert handover.images_left("merge_split", "my_faces").count("TRAIN") == 1
    assert handover.images_left("evaluate", "my_faces") == ()
