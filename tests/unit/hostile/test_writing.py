"""Nothing gives way that this project did not write, nothing is written into a source, and looking writes nothing."""

import os
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import run_all
from fer_utils import files, places
from fer_utils.data import addresses, download, finding, splits
from fer_utils.kaggle import export
from fer_utils.pipeline import pages, parameters, runner, runs, stages
from fer_utils.pipeline.parameters import STAGES
from fer_utils.predict import drawing
from fer_utils.predict.photographs import Picture

import numpy as np
import pandas as pd
import pytest
from fake_runs import FakeRun
from surroundings import unchanged

ROOT = Path(run_all.__file__).parent
CLONE = [ROOT / name for name in ("fer_utils", "notebooks", "params", "docs", "tests")]
FOLDERS = ("TRAIN", "VAL", "TEST", "TRAIN_BALANCED", finding.DRAWN)


def _write(path: Path, text: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _written(path: Path, **content: str) -> Path:
    """A folder that this project wrote."""
    with files.replacing(path) as temporary:
        for name, text in (content or {"a": "ours", "below/b": "ours"}).items():
            _write(temporary / name, text)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """An outputs folder with two finished runs. Copy it."""
    outputs = tmp_path_factory.mktemp("finished") / "outputs"
    for name in ("one", "other"):
        FakeRun(outputs, name).do()
    return outputs


@pytest.fixture
def nothing_runs(monkeypatch):
    """Fails a test in which a notebook would run."""
    monkeypatch.setattr(runner, "execute", lambda stage, *_: pytest.fail(f"{stage} ran"))


# --- what is there, when a folder is to be replaced --------------------------------------------------------------------


def _later(path: Path) -> Path:
    """Date a file later than its list says, as an edit would."""
    os.utime(path, (time.time() + 60,) * 2)
    return path


def _link(path: Path) -> None:
    (_written(path) / "a").unlink()
    (path / "a").symlink_to("below")


THERE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a person's folder": (lambda path: _write(path / "angry/me.png"), "holds angry/me.png"),
    "a hidden file": (lambda path: _write(path / ".git/config"), "holds .git/config"),
    "a file": (_write, "is no folder that this project wrote"),
    "a link to a person's folder": (lambda path: path.symlink_to(path.parent / "elsewhere"), "is no folder"),
    "a link to our folder": (lambda path: path.symlink_to(_written(path.parent / "ours")), "is no folder"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "is no folder"),
    "a pipe": (os.mkfifo, "is no folder"),
    "a file more": (lambda path: _write(_written(path) / "below/mine"), "holds below/mine"),
    "a link more": (lambda path: (_written(path) / "below/mine").symlink_to("/"), "holds below/mine"),
    "a longer file": (lambda path: _write(_written(path) / "below/b", "ours and mine"), "b was changed"),
    "a shorter file": (lambda path: _write(_written(path) / "a", ""), "a was changed"),
    "another text of that length": (lambda path: _later(_write(_written(path) / "a", "mine")), "a was changed"),
    "a link in place of a file": (_link, "a was changed"),
    "no list": (lambda path: (_written(path) / files.WRITTEN).unlink(), "holds a"),
    "a torn list": (lambda path: _write(_written(path) / files.WRITTEN, '{"files'), "holds a"),
    "another list": (lambda path: _write(_written(path) / files.WRITTEN, "[]"), "holds a"),
}


@pytest.mark.parametrize("there", THERE)
def test_a_folder_that_is_not_wholly_ours_stays_and_the_first_fault_is_named(there, tmp_path):
    make, says = THERE[there]
    _write(tmp_path / "elsewhere" / "me.png")
    make(tmp_path / "TRAIN")
    with unchanged(tmp_path), pytest.raises(files.OutputError, match=rf"TRAIN.*{says}.*: move it away, or choose"):
        _written(tmp_path / "TRAIN")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        Path.mkdir,
        _written,
        lambda path: _write(_written(path) / "below/.DS_Store"),
        lambda path: (_written(path) / "a").unlink(),
        lambda path: shutil.copytree(_written(path.with_name("ours")), path, copy_function=shutil.copyfile),
        lambda path: files.place_copy(_written(path.with_name("ours")), path),
    ],
    ids=["nothing", "empty", "ours", "looked at", "one less", "a copy with other times", "linked files"],
)
def test_a_folder_that_is_ours_is_replaced_whole(make, tmp_path):
    make(tmp_path / "TRAIN")
    for other in ("other", "another"):
        _written(tmp_path / "TRAIN", **{other: "new"})
        assert {path.name for path in (tmp_path / "TRAIN").iterdir()} == {other, files.WRITTEN}
    if (tmp_path / "ours").exists():
        assert files.foreign(tmp_path / "ours") is None  # what it was copied from is as it was


def test_a_list_of_70_000_pictures_is_written_and_read_in_a_moment(tmp_path):
    """The list takes names and sizes, no digest, so that writing pictures takes as long as before."""
    for place in range(70):
        (tmp_path / str(place)).mkdir()
        for name in range(10):
            (tmp_path / str(place) / str(name)).write_bytes(b"")
    began = time.perf_counter()
    files.note_written(tmp_path)
    assert files.foreign(tmp_path) is None
    assert (time.perf_counter() - began) * 100 < 30  # a hundredth of the pictures; seconds, on a busy machine


# --- the places that are written ---------------------------------------------------------------------------------------


def _pictures(folder: Path) -> None:
    manifest = pd.DataFrame({"split": ["VAL"], "path": ["VAL/angry/a.png"]})
    splits.write_split_folders(manifest, [b"picture"], folder)


def _balanced(folder: Path) -> None:
    from fer_utils.data import balance

    balance.write_balanced(pd.DataFrame(columns=["label", "path", "copy"]), folder, 1)


def _drawn(folder: Path) -> None:
    finding.find_or_draw({"fer2013": "demo"}, 350, 1, folder)


def _for_kaggle(folder: Path) -> None:
    values = parameters.resolve(
        parameters.declared(),
        [("kaggle", parameters.load_profile(parameters.profile_path("kaggle"))), ("", {"common": {"run": "r"}})],
    )
    export.export(folder, values, "jane", export.WEIGHTS)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (_pictures, "TRAIN"),
        (_pictures, "VAL"),
        (_pictures, "TEST"),
        (_balanced, "TRAIN_BALANCED"),
        (_drawn, finding.DRAWN),
        (_for_kaggle, "fer-resnet50"),
    ],
)
def test_no_writer_replaces_a_persons_folder(write, name, tmp_path):
    mine = _write(tmp_path / name / "angry/me.png")
    with unchanged(mine.parents[1]), pytest.raises(files.OutputError, match=rf"{name} holds angry/me.png"):
        write(tmp_path)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_stage_that_would_replace_a_persons_folder_does_not_begin(name, fake_run, tmp_path):
    person = _write(tmp_path / "person" / name / "me.png").parents[1]
    stage = "balance" if name == "TRAIN_BALANCED" else "merge_split"
    run = fake_run(common={"data_dir": str(person)})
    with unchanged(person), pytest.raises(files.OutputError, match=rf"{name} holds me\.png"):
        stages.begin(stage, dict(run.values[stage]))


@pytest.fixture
def person(tmp_path) -> Path:
    """A folder of a person, that has everything whose name the project would give to something of its own."""
    for name in (*FOLDERS, "fer-resnet50/.git", "demo"):
        _write(tmp_path / "person" / name / "mine.txt")
    for name in ("write_test", "model.keras", "metrics.json", "report.html", ".partial-mine"):
        _write(tmp_path / "person" / "mine" / name)
    _write(tmp_path / "person" / "run.csv")
    (tmp_path / "person" / "link").symlink_to("demo")
    return tmp_path / "person"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-p", "common.data_dir={person}"], "demo_sources holds mine.txt|TRAIN holds mine.txt|TEST holds mine.txt"),
        (["-p", "common.data_dir={person}/nowhere/.."], "holds mine.txt"),
        (["-p", "common.data_dir={person}/run.csv"], "cannot be written"),
        (["--outputs-dir", "{person}", "--run", "demo"], "demo is no run: it holds mine.txt"),
        (["--outputs-dir", "{person}", "--run", "mine"], "mine is no run: it holds metrics.json"),
        (["--outputs-dir", "{person}", "--run", "mine", "--force"], "mine is no run"),
        (["--outputs-dir", "{person}", "--run", "link"], "link is no run: it holds mine.txt"),
        (["--outputs-dir", "{person}/run.csv"], "cannot be written|is no folder"),
        (["--export-kaggle", "{person}"], "fer-resnet50 holds .git/mine.txt"),
        (["--export-kaggle", "{person}/demo/.."], "fer-resnet50 holds .git/mine.txt"),
        (["--export-kaggle", "{person}/run.csv"], "cannot be written"),
        (["--export-kaggle", "{person}/run.csv/deeper"], "cannot be written"),
        (["--sweep", "balance.seed=1,2", "--outputs-dir", "{person}/run.csv"], "cannot be written|is no folder"),
        (["-p", "merge_split.fer2013={person}", "-p", "common.data_dir={person}/x"], "a source, which is only read"),
        (["-p", "merge_split.extra={person}", "--outputs-dir", "{person}/out"], "a source, which is only read"),
        (["--outputs-dir", "data/fer2013/mine"], "a source, which is only read"),
    ],
)
def test_a_command_leaves_a_persons_folder_and_the_clone_alone(arguments, says, person, answer, nothing_runs):
    given = [argument.format(person=person) for argument in arguments]
    given += (
        [] if "--outputs-dir" in given or "--export-kaggle" in given else ["--outputs-dir", str(person.parent / "o")]
    )
    with unchanged(person, *CLONE):
        status, _, errors = answer("--params", "demo", *given)
    assert status == 2
    assert any(each in errors for each in says.split("|")), errors
    assert "Traceback" not in errors and "[Errno" not in errors


def test_room_is_looked_for_without_touching_a_file(tmp_path):
    for name in ("write_test", ".partial-mine", ".partial-12-x"):
        _write(tmp_path / name)
    with unchanged(tmp_path):
        files.require_space(tmp_path, 1)
        assert files.remove_partials(tmp_path) == []


# --- runs and their image folders --------------------------------------------------------------------------------------


def test_the_images_of_another_run_stay_and_the_run_is_named(fake_run, tmp_path):
    first = fake_run("first", common={"data_dir": str(tmp_path / "images")}).do("merge_split", "balance")
    second = fake_run("second", common={"data_dir": str(tmp_path / "images")})
    inside = fake_run("inside", common={"data_dir": str(fake_run("other").do("merge_split").folders.data)})
    for run, owner in ((second, first.folders.folder), (inside, tmp_path / "outputs" / "other")):
        with unchanged(run.folders.data), pytest.raises(files.OutputError) as caught:
            stages.begin("merge_split", dict(run.values["merge_split"]))
        assert f"belongs to the run {owner.name} ({owner})" in str(caught.value)
        with unchanged(run.folders.data), pytest.raises(files.OutputError), run.folders.held_by_runner():
            pass
    first.do("merge_split", content="again")  # its own run goes on
    files.remove(first.folders.folder)
    second.do("merge_split")  # and where that is gone, another takes over what the project wrote


def test_pictures_that_a_person_added_to_a_run_stop_it_before_it_runs(fake_run, nothing_runs):
    run = fake_run().do()
    _write(run.folders.path("images/TRAIN") / "angry" / "me.png")
    with pytest.raises(files.OutputError, match=r"TRAIN holds angry/me\.png"):
        runner.run("demo", list(STAGES), run.values)


# --- annotated copies --------------------------------------------------------------------------------------------------


def test_for_a_long_name_the_way_out_is_a_shorter_one(tmp_path):
    with pytest.raises(files.OutputError, match=r"n\.json cannot be written \(.*\): (.*, or )?choose a shorter name"):
        files.write_json(tmp_path / f"{'n' * 300}.json", {})


def test_an_annotated_copy_takes_a_free_name(tmp_path):
    taken = [_write(tmp_path / "a_faces.png"), _write(tmp_path / "a_faces_2.png")]
    (tmp_path / "a_faces_3.png").symlink_to("nowhere")
    _write(tmp_path / "v_faces.mp4")
    before = [path.read_bytes() for path in taken]
    picture = np.zeros((48, 64, 3), np.uint8)
    for expected in ("a_faces_4.png", "a_faces_5.png"):  # a second call is no exception
        with drawing.Copies(tmp_path) as copies:
            assert not (tmp_path / expected).exists()
            copies.add(Picture("there/a.jpg", picture), picture)
            assert (tmp_path / expected).is_file()
            copies.add(Picture("v.avi", picture, 0, 0.0), picture)
    assert [path.read_bytes() for path in taken] == before and (tmp_path / "a_faces_3.png").is_symlink()
    assert (tmp_path / "v_faces.mp4").read_text() == "mine"


# --- names -------------------------------------------------------------------------------------------------------------

NAMES = ["a\nb", "a\rb", "\x1b[31mred", "a\tb", "a\0b", "‮evil", "a\x85b", "\udc80", ".", "..", "", "a/b", "a\\b", ".a"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_has_a_name_that_a_terminal_shows_as_it_is(name, tmp_path):
    with unchanged(tmp_path), pytest.raises(ValueError, match="expected a plain folder name") as caught:
        runs.run_named(name, str(tmp_path), "")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("", ".", "..", "a/b", "a\0b", "a\\b")])
def test_a_folder_with_another_name_is_listed_escaped_and_not_compared(name, fake_run, answer, tmp_path):
    fake_run("good")
    outputs = tmp_path / "outputs"
    shutil.copytree(outputs / "good", outputs / name)
    status, said, _ = answer("--list", "--outputs-dir", str(outputs))
    assert status == 0 and "good" in said and "damaged" in said and "rename this folder" in said
    for arguments in (["--compare", "good", name], ["--to-mlflow", name], ["--compare", "good", f"{name}2"]):
        with unchanged(tmp_path):
            status, more, errors = answer(*arguments, "--outputs-dir", str(outputs))
        assert status == 2 and ("rename this folder" in errors or "has no run" in errors)
        if not name.startswith("."):
            assert name not in said + more + errors


def test_two_comparisons_never_write_one_file():
    compared = [
        *(
            ["a", "b_c"],
            ["a_b", "c"],
            ["a", "b", "c"],
            ["a_b_c", "d"],
            ["a_b", "c_d"],
            ["c", "a_b"],
            ["a_", "b"],
            ["a", "_b"],
        ),
        *([f"{'x' * 90}{end}", "y", "z"] for end in "ab"),
        *([f"{'é' * 60}{end}", "y"] for end in "ab"),
    ]
    names = [pages._file_name(each) for each in compared]
    assert len(set(names)) == len(names) and max(len(os.fsencode(name)) for name in names) < 150


# --- looking -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def read_only(finished, tmp_path):
    """An outputs folder with two finished runs in which nothing can be written; skips where mounting is not allowed."""
    mounted = tmp_path / "outputs"
    mounted.mkdir()
    for command in (["--bind", finished, mounted], ["-o", "remount,bind,ro", mounted]):
        if subprocess.run(["mount", *command], capture_output=True, check=False).returncode:
            pytest.skip("mounting is not allowed here")
    yield mounted
    subprocess.run(["umount", mounted], check=True)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--list"], 0, "other  done"),
        (["--params", "demo", "--run", "one", "--dry-run"], 0, "skip: done"),
        (["--compare", "one", "other"], 2, "cannot be written (Read-only file system)"),
        (["--to-mlflow", "one"], 2, "cannot be written (Read-only file system)"),
        (["--to-mlflow", "one", "--tracking-uri", "sqlite:////dev/null/x.db"], 2, "cannot be written"),
        (["--params", "demo", "--run", "one"], 2, "cannot be written (Read-only file system)"),
        (["--params", "demo", "--sweep", "balance.seed=1,2"], 2, "cannot be written (Read-only file system)"),
    ],
)
def test_read_only_outputs_are_looked_at_and_written_with_a_sentence(
    arguments, status, says, read_only, answer, nothing_runs
):
    with unchanged(read_only, *CLONE):
        found, said, errors = answer(*arguments, "--outputs-dir", str(read_only))
    assert (found, says in said + errors) == (status, True), said + errors


def test_a_look_leaves_no_lock(fake_run, answer, tmp_path):
    fake_run().do()
    with unchanged(tmp_path):
        answer("--list", "--outputs-dir", str(tmp_path / "outputs"))


# --- --download --------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """What kagglehub raises: an exception of its own, without a common base."""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A kagglehub that answers as told: hub.answers = function of a slug; the project's data/ is empty."""
    hub = types.ModuleType("kagglehub")
    hub.asked = []

    def fetch(slug: str) -> str:
        hub.asked.append(slug)
        return hub.answers(slug)

    hub.dataset_download = fetch
    monkeypatch.setitem(sys.modules, "kagglehub", hub)
    monkeypatch.setattr(download, "download_votes", lambda: None)
    monkeypatch.chdir(tmp_path)
    return hub


@pytest.mark.parametrize(
    "error",
    [
        Refused("403 Client Error.\n\nYou don't have permission"),
        ConnectionError("no network"),
        OSError(28, "full"),
        ValueError(),
    ],
    ids=str,
)
def test_a_dataset_that_cannot_be_fetched_is_told_with_the_way_out(error, hub, tmp_path):
    def refuse(slug):
        raise error

    hub.answers = refuse
    _write(tmp_path / "data" / "mine.txt")
    with unchanged(tmp_path), pytest.raises(places.NotFoundHere) as caught:
        download.download()
    for slug, local in addresses.DATASETS.values():
        assert f"https://www.kaggle.com/datasets/{slug} → data/{local} or data/{local}.zip" in str(caught.value)
    assert "msambare/fer2013 could not be fetched (" in str(caught.value) and "permission" not in str(caught.value)


@pytest.mark.parametrize("there", ["fer2013.zip", "fer2013", "fer2013.csv"])
def test_what_is_there_is_not_fetched_again(there, hub, tmp_path, capsys):
    _write(tmp_path / "data" / there if "." in there else tmp_path / "data" / there / "mine.txt")
    _write(tmp_path / "cache" / "train" / "a.png")
    hub.answers = lambda slug: str(tmp_path / "cache")
    with unchanged(tmp_path / "cache"):
        download.download()
    assert (
        hub.asked == ["ananthu017/emotion-detection-fer"]
        and f"data/{there} is there already" in capsys.readouterr().out
    )
    fetched = tmp_path / "data" / "emotion-detection-fer"
    assert [path.relative_to(fetched).as_posix() for path in fetched.rglob("*")] == ["train", "train/a.png"]
    download.download()
    assert len(hub.asked) == 1


# --- the README's commands ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--list"],
        ["--compare", "one", "other"],
        [
            "--params",
            "clean",
            "--dry-run",
            "-p",
            "merge_split.fer2013=demo",
            "-p",
            "merge_split.emotion_detection=demo",
        ],
        ["--params", "demo", "--run", "one"],
        ["--params", "demo", "--run", "one", "--dry-run", "--from", "04"],
    ],
    ids=" ".join,
)
def test_a_command_of_the_readme_changes_the_outputs_folder_alone(arguments, finished, answer, nothing_runs, tmp_path):
    shutil.copytree(finished, tmp_path / "outputs")
    _write(tmp_path / "mine" / "notes.txt")
    finished = [tmp_path / "outputs" / name / "stages" for name in ("one", "other")]
    data = [ROOT / "data"] if (ROOT / "data").is_dir() else []
    with unchanged(tmp_path / "mine", *CLONE, *data, *finished):
        assert answer(*arguments, "--outputs-dir", str(tmp_path / "outputs"))[0] == 0


def test_the_export_for_kaggle_changes_its_folder_alone(answer, tmp_path):
    _write(tmp_path / "fer2013" / "mine.txt")
    with unchanged(tmp_path / "fer2013", *CLONE):
        for _ in range(2):
            assert answer("--export-kaggle", str(tmp_path))[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"fer2013", "fer-resnet50"}
