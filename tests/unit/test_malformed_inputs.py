"""Files from strangers and files that broke: each is refused with words that name it, and none does harm.

What stands elsewhere: images in test_images, the sources' layouts and CSVs in test_sources, profiles and overrides in
test_parameters, backbone weights in test_model, checkpoints in test_checkpoint.
"""

import json
import pickle
import stat
import zipfile
from pathlib import Path

from fer_utils import files, images, places
from fer_utils.data import loading
from fer_utils.data.sources import DatasetError, open_source
from fer_utils.pipeline import cells, parameters, runs, stages, terminal
from fer_utils.training import devices, network
from fer_utils.training import weights as weights_files

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
PIXEL = bytes.fromhex("89504e470d0a1a0a")  # a PNG's first bytes: zips are refused by their entries, not by pictures


def _zip(path: Path, *entries: zipfile.ZipInfo | str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train/angry/a.png", PIXEL)
        for entry in entries:
            archive.writestr(entry, PIXEL)
    return path


def _refused(path: Path, said: str) -> None:
    with pytest.raises(DatasetError, match=said), open_source(path, "fer2013"):
        pass


@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "train/../../evil.png",
        "/etc/evil.png",
        "..\\evil.png",
        "C:/evil.png",
        "train/angry/../../../e.png",
    ],
)
def test_a_zip_entry_that_leads_out_of_the_folder(tmp_path, name):
    _refused(_zip(tmp_path / "f.zip", name), r"f\.zip holds the entry .*whose name leads out of the folder")
    assert [path.name for path in tmp_path.iterdir()] == ["f.zip"]


def test_a_zip_entry_that_is_a_link(tmp_path):
    link = zipfile.ZipInfo("train/angry/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    _refused(_zip(tmp_path / "f.zip", link), r"the entry 'train/angry/link\.png', which is a link")


def test_a_zip_entry_that_is_encrypted(tmp_path):
    path = _zip(tmp_path / "f.zip")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(content)
    _refused(path, r"the entry 'train/angry/a\.png', which is encrypted")


def test_a_zip_that_unpacks_to_more_than_any_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr("fer_utils.data.archives.MAX_UNPACKED_BYTES", 10)
    _refused(_zip(tmp_path / "f.zip", "train/angry/b.png"), r"f\.zip unpacks to 16 bytes; no dataset of faces")


def test_a_profile_that_asks_for_a_python_object_is_not_obeyed(tmp_path):
    harm = tmp_path / "harm"
    (tmp_path / "p.yaml").write_text(f"common: !!python/object/apply:pathlib.Path.touch [{harm}]\n")
    with pytest.raises(
        parameters.ParameterError, match=r"p\.yaml: not readable as YAML: could not determine a constructor"
    ):
        parameters.load_profile(tmp_path / "p.yaml")
    assert not harm.exists()


def test_a_profile_of_aliases_upon_aliases_is_answered_at_once_and_in_short(tmp_path):
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x]"] + [
        f"a{depth}: &a{depth} [{', '.join([f'*a{depth - 1}'] * 9)}]" for depth in range(1, 12)
    ]
    (tmp_path / "p.yaml").write_text("\n".join(lines))
    with pytest.raises(parameters.ParameterError, match="section 'a' should hold") as caught:
        parameters.load_profile(tmp_path / "p.yaml")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("run", ["../x", "a/b", ".hidden", "", "a\\b", "/abs"])
def test_a_run_name_that_leads_elsewhere(run):
    with pytest.raises(ValueError, match="expected a plain folder name"):
        runs.run_named(run, "outputs", "")


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "TRAIN/../../x.png", "..\\x.png", "C:/x.png"])
def test_a_table_that_lists_pictures_outside_its_folder(tmp_path, path):
    (tmp_path / "manifest.csv").write_text(f"split,label,path\nTRAIN,angry,{path}\n")
    with pytest.raises(files.TornFile, match=r"manifest\.csv lists .*, outside the image folder"):
        loading.read_table(tmp_path / "manifest.csv", ("path",))


def test_a_table_may_list_names_with_dots_and_no_path_at_all(tmp_path):
    (tmp_path / "manifest.csv").write_text("path\nTRAIN/angry/a..b.png\n\nTRAIN/angry/..png\n")
    assert len(loading.read_table(tmp_path / "manifest.csv", ("path",))) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a whole table"),
        (b"split,label,path\nTRAIN,angry,a.png,more,and more\n", "has rows longer than its header"),
        (b"split,label\nTRAIN,angry\n", r"lacks the column\(s\) path"),
        (b"\xff\xfe\x00", "is not a whole table"),
        (b'split,label,path\nTRAIN,angry,"a.pn', "is not a whole table"),
    ],
)
def test_a_manifest_that_is_no_table(tmp_path, content, said):
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(files.TornFile, match=rf"manifest\.csv ({said})"):
        loading.read_table(tmp_path / "manifest.csv", ("split", "label", "path"))


def test_a_table_that_is_a_pickle_is_not_unpickled(tmp_path):
    (tmp_path / "balanced.csv").write_bytes(pickle.dumps({"path": ["a"]}))
    with pytest.raises(files.TornFile, match=r"balanced\.csv"):
        loading.read_table(tmp_path / "balanced.csv", ("label", "path"))


@pytest.mark.parametrize("content", ["", "{", '{"val": ', "\x00\x00"])
def test_json_that_ends_early(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(files.TornFile, match=r"metrics\.json is not whole JSON .*run its stage again"):
        files.read_json(tmp_path / "metrics.json")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("run.json", "{", r"run\.json is not whole JSON"),
        ("run.json", "[]", r"run\.json lacks"),
        ("run.json", '{"profile": "demo"}', r"run\.json lacks 'parameters'"),
        ("metrics.json", "{", r"metrics\.json is not whole JSON"),
        ("metrics.json", '{"val": {}}', r"metrics\.json lacks"),
        ("stages/balance.json", "{", r"balance\.json is not whole JSON"),
        ("stages/balance.json", "[1]", r"balance\.json lacks"),
        ("stages/balance.json", '{"stage": "balance"}', r"balance\.json lacks"),
    ],
)
def test_a_run_with_a_file_that_is_not_whole_is_listed_with_its_fault(fake_run, file, content, said):
    run = fake_run().do()
    (run.folders.folder / file).write_text(content)
    with pytest.raises(files.TornFile, match=said):
        runs.read(run.folders.folder)
    (row,), (fault,) = terminal.list_rows(run.folders.folder.parent)
    assert row[:2] == ("demo", "damaged") and fault.startswith("demo: ") and file.split("/")[-1] in fault


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("balance", "manifest.csv"),
        ("train_head", "balanced.csv"),
        ("train_head", "images/TRAIN_BALANCED/angry/a.png"),
        ("fine_tune", "head.weights.h5"),
        ("fine_tune", "history_head.csv"),
        ("evaluate", "model.keras"),
        ("evaluate", "leakage.json"),
        ("evaluate", "images/TEST/fear/a.png"),
    ],
)
def test_a_stage_opened_by_hand_refuses_an_input_that_was_cut_off(fake_run, stage, name):
    run = fake_run().do()
    place = run.folders.data / name.removeprefix("images/") if name.startswith("images/") else run.folders.folder / name
    place.write_bytes(place.read_bytes()[:-2])
    whole = place.parent.parent if name.startswith("images/") else place
    with pytest.raises(files.TornFile, match=rf"{whole.name}.*; run \w+ again, or run_all\.py"):
        stages.begin(stage, dict(run.values[stage]))
    assert not FileLock(run.folders.path(".stage.lock"), is_singleton=True).is_locked


def test_a_record_cannot_make_a_run_read_or_remove_outside_its_folder(fake_run, tmp_path):
    run = fake_run().do()
    path = run.folders.stage_record("balance")
    record = json.loads(path.read_text())
    record["outputs"]["../../../outside.txt"] = {"files": 1, "bytes": 3, "digest": "x"}
    path.write_text(json.dumps(record))
    with pytest.raises(files.TornFile, match=r"balance\.json names the output '\.\./\.\./\.\./outside\.txt'"):
        run.folders.all_records()


def test_the_setup_of_05_refuses_a_picture_that_cannot_be_read(fake_run, tmp_path):
    run = fake_run().do()
    variables = run.values["evaluate"] | {"picture": str(tmp_path / "me.png")}
    setup = cells.code_cells((ROOT / "notebooks/05_evaluate.py").read_text())[0]
    with pytest.raises(places.NotFoundHere, match=rf"evaluate\.picture is '.*': no file at {tmp_path}/me\.png"):
        exec(setup, variables)
    (tmp_path / "me.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(images.UnreadableImage, match=rf"{tmp_path}/me\.png: .*not a whole image file"):
        exec(setup, variables)
    for held in variables["stage"].locks:
        held.release(force=True)


@pytest.mark.parametrize("notebook", ["03_train_head.py", "04_fine_tune.py"])
def test_relative_weights_start_at_the_project_in_a_notebook_too(notebook, monkeypatch):
    class Built(Exception):
        pass

    def load_file(backbone, path):
        raise Built(path)

    monkeypatch.setattr(weights_files, "load_file", load_file)
    monkeypatch.chdir(ROOT / "notebooks")  # where JupyterLab's kernels stand
    (cell,) = [
        code for code in cells.code_cells((ROOT / "notebooks" / notebook).read_text()) if "network.build(" in code
    ]
    variables = {"devices": devices, "network": network}
    variables |= {"image_size": 32, "backbone": "resnet50", "weights": "data/some.h5", "cache": "none", "batch_size": 8}
    with pytest.raises(Built) as caught:
        exec(cell, variables)
    assert str(caught.value) == str(ROOT / "data/some.h5")
