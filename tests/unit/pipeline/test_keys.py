"""What a stage's key holds, what it leaves out, and how damage to outputs is noticed."""

import ast
import importlib.metadata
import os
import re
import shutil
from pathlib import Path

from fer_utils import digests, places
from fer_utils.pipeline import keys, parameters, runs, terminal
from fer_utils.pipeline.parameters import STAGES

import pytest

ROOT = Path(__file__).resolve().parents[3]
PRINTED = """print(f"there VAL's accuracy is {accuracies[0]:.3f}, TRAIN's {accuracies[1]:.3f}")"""  # in 04


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of notebooks and package whose text a test may change, as a function: edit(file, old, new)."""
    for folder in ("notebooks", "fer_utils", "params"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keys, "_PACKAGE", tmp_path / "fer_utils")

    def edit(file: str, old: str, new: str) -> None:
        text = (tmp_path / file).read_text()
        assert old in text
        (tmp_path / file).write_text(text.replace(old, new, 1))
        keys._read_module.cache_clear()

    return edit


def _values() -> dict:
    return parameters.resolve(
        parameters.declared(), [("demo", parameters.load_profile(parameters.profile_path("demo")))]
    )


def _keys(values=None) -> dict:
    values, folders = values or _values(), runs.Run(Path("run"), Path("run/images"))
    return {stage: keys.key_of(stage, values[stage], folders, {}) for stage in STAGES}


def _changed(before: dict, after: dict) -> dict[str, list[str]]:
    found = {stage: keys.differences(before[stage], after[stage]) for stage in STAGES}
    return {stage: words for stage, words in found.items() if words}


def test_keys_name_the_backend_that_computes_and_its_version_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    of_tensorflow = _keys()
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    of_jax = _keys()
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    assert _keys() == of_tensorflow
    assert _changed(of_tensorflow, of_jax).keys() == {"train_head", "fine_tune", "evaluate"}
    for stage in ("train_head", "fine_tune", "evaluate"):
        versions = {name: keys_[stage]["versions"] for name, keys_ in (("tf", of_tensorflow), ("jax", of_jax))}
        assert "tensorflow" in versions["tf"] and "jax" not in versions["tf"]
        assert versions["jax"]["jax"] == importlib.metadata.version("jax") and "tensorflow" not in versions["jax"]


def test_a_backend_that_is_not_supported_is_refused_before_the_first_notebook(monkeypatch, answer, tmp_path):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    status, _, errors = answer("--params", "demo", "--outputs-dir", str(tmp_path))
    assert status == 2 and "says 'torch': this project computes with tensorflow or jax" in errors


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("notebooks/04_fine_tune.py", "# ## Do\n", "# ## Do it\n# Another sentence.\n"),
        ("notebooks/04_fine_tune.py", "callbacks = [optimizers", "# a reason\ncallbacks = [optimizers"),
        (
            "notebooks/04_fine_tune.py",
            "factor=lr_factor, patience=lr_patience)",
            "factor=lr_factor,\n patience=lr_patience,)",
        ),
        ("notebooks/04_fine_tune.py", "epochs: int = 20  # >= 1; specification", "epochs: int = 21  # >= 1; other"),
        ("fer_utils/training/loop.py", '"""The training loop of both phases', '"""How both phases train'),
        ("fer_utils/training/loop.py", '    """Train a compiled model', '    """Teach a compiled model'),
        (
            "fer_utils/training/loop.py",
            "        history = model.fit(",
            "        # a comment\n        history = model.fit(",
        ),
        ("fer_utils/pipeline/runs.py", 'f"checkpoint_{stage}.npz"', 'f"state_{stage}.npz"'),
        ("fer_utils/plots.py", '"#4477aa"', '"#123456"'),
        ("fer_utils/plots.py", "def confusion_matrix(counts", "def confusion_matrix(these"),
        ("fer_utils/evaluation/report.py", "<h2>Scores</h2>", "<h2>All scores</h2>"),
        ("fer_utils/progress.py", "leave=False", "leave=True"),
        ("fer_utils/progress.py", "SHORT = 30", "SHORT = 60"),
        ("fer_utils/predict/command_line.py", "import argparse", "import argparse, this"),
        ("fer_utils/training/frozen_prefix.py", 'print(f"activations of', 'print(f"what comes of'),
        ("notebooks/04_fine_tune.py", 'f"lowest VAL loss', 'f"the best VAL loss'),
        ("notebooks/04_fine_tune.py", 'targets[:12], "What training sees")', 'targets[:9], "A batch")'),
        ("notebooks/04_fine_tune.py", "stage.show(plots.rates(history)", "stage.show(plots.rates(history[1:])"),
        ("notebooks/04_fine_tune.py", '"rates")\n', '"rates_of_phase_2")\n'),
        ("notebooks/01_merge_split.py", ".loc[list(CLASSES)]", ".loc[list(CLASSES)].round(2)"),
        ("notebooks/05_evaluate.py", '["TEST"].round(3)', '["TEST"]'),
        ("fer_utils/evaluation/report.py", '"Learning curves of both phases": ', '"Curves of both phases": '),
    ],
)
def test_prose_layout_places_and_what_only_shows_are_no_reason(project, file, old, new):
    values, before = _values(), _keys()
    project(file, old, new)
    assert _changed(before, _keys(values)) == {}


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        ("notebooks/04_fine_tune.py", 'monitor="val_loss", factor', 'monitor="loss", factor', ["fine_tune"]),
        # What stands in a call that shows counts where it may do something.
        ("notebooks/04_fine_tune.py", PRINTED, "print(best, best.widen())", ["fine_tune"]),
        ("notebooks/04_fine_tune.py", PRINTED, "print(best := None)", ["fine_tune"]),
        ("notebooks/04_fine_tune.py", PRINTED, "print([x for x in train])", ["fine_tune"]),
        ("notebooks/04_fine_tune.py", PRINTED, 'print(best, file=open("manifest.csv", "w"))', ["fine_tune"]),
        ("notebooks/04_fine_tune.py", "plots.rates(history)", "plots.rates(history.pop(1))", ["fine_tune"]),
        ("notebooks/04_fine_tune.py", "plots.rates(history)", "loop.rates(history)", ["fine_tune"]),
        ("notebooks/04_fine_tune.py", "callbacks.append(optimizers", "callbacks.remove(optimizers", ["fine_tune"]),
        ("notebooks/01_merge_split.py", "if merged.ignored:", "if not merged.ignored:", ["merge_split"]),
        (
            "fer_utils/training/loop.py",
            "validation_data=val,",
            "validation_data=train,",
            ["train_head", "fine_tune", "evaluate"],
        ),
        (
            "fer_utils/training/loop.py",
            "PREDICT_BATCH = 256",
            "PREDICT_BATCH = 128",
            ["train_head", "fine_tune", "evaluate"],
        ),
        ("fer_utils/training/network.py", "Dropout(0.4", "Dropout(0.5", ["train_head", "fine_tune", "evaluate"]),
        ("fer_utils/data/augmentation.py", "rotate=(-15, 15)", "rotate=(-20, 20)", ["balance", "fine_tune"]),
        ("fer_utils/images.py", '_pixels(picture, "L")', '_pixels(picture, "1")', list(STAGES)),
        ("fer_utils/data/audit.py", "def _drop(", "def _drop(_, ", ["merge_split", "evaluate"]),
        (
            "fer_utils/training/optimizers.py",
            "AVERAGE_WARM_UP = 10.0",
            "AVERAGE_WARM_UP = 20.0",
            ["train_head", "fine_tune", "evaluate"],
        ),
        ("fer_utils/evaluation/scores.py", "RESAMPLES = 2000", "RESAMPLES = 200", ["evaluate"]),
        ("fer_utils/pipeline/pages.py", "_LONGEST_NAME = 100", "_LONGEST_NAME = 90", []),  # no notebook imports it
        ("fer_utils/__init__.py", '"TF_ENABLE_ONEDNN_OPTS", "1"', '"TF_ENABLE_ONEDNN_OPTS", "0"', list(STAGES)),
    ],
)
def test_code_that_computes_is_a_reason_for_the_stages_that_import_it_and_for_no_other(project, file, old, new, stages):
    values, before = _values(), _keys()
    project(file, old, new)
    assert list(_changed(before, _keys(values))) == stages


def test_reasons_name_what_changed(project):
    values, before = _values(), _keys()
    project("fer_utils/data/augmentation.py", "rotate=(-15, 15)", "rotate=(-20, 20)")
    project("notebooks/02_balance.py", "stage.require_space(len(plan))", "stage.require_space(2 * len(plan))")
    values["balance"]["seed"] = 7
    assert _changed(before, _keys(values)) == {
        "balance": ["the notebook's code changed", "seed was 42, is 7", "fer_utils.data.augmentation changed"],
        "fine_tune": ["fer_utils.data.augmentation changed"],  # whose other half is for the fly
    }


def _computing(code: str) -> str:
    return keys._parsed(code)[0]


def test_a_name_that_no_import_explains_is_no_name_of_what_shows():
    assert _computing("report.train(1)") != _computing("report.train(2)")


def test_what_shows_is_known_by_its_import():
    assert _computing("from a import plots as p\np.faces(1)") == _computing("from a import plots as p\np.rows(2)")


def test_modules_that_compute_nothing_exist_and_imports_can_be_followed():
    files = sorted((ROOT / "fer_utils").rglob("*.py"))
    names = {".".join(path.relative_to(ROOT / "fer_utils").with_suffix("").parts) for path in files}
    assert names | {name.split(".")[0] for name in names} >= keys.NOT_COMPUTING
    for path in files:
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert not any(node.level or "*" in [alias.name for alias in node.names] for node in imports), path


def test_where_and_how_fast_are_no_parameters_of_the_key():
    before, values = _keys(), _values()
    for own in values.values():
        own |= {"run": "other", "outputs_dir": "elsewhere", "profile": "cpu", "data_dir": "images"}
    assert _changed(before, _keys(values)) == {}


def test_a_package_of_another_version_is_a_reason_where_it_computes(monkeypatch):
    before = _keys()
    installed = keys.version
    monkeypatch.setattr(keys, "version", lambda name: "0.0" if name == "keras" else installed(name))
    found = _changed(before, _keys())
    assert list(found) == ["train_head", "fine_tune", "evaluate"]
    assert found["evaluate"] == [f"keras was {installed('keras')}, is 0.0"]


def test_a_source_that_changed_is_a_reason_for_merge_split_alone(tmp_path):
    values = _values()
    (tmp_path / "fer.zip").write_bytes(b"one")
    values["merge_split"]["fer2013"] = str(tmp_path / "fer.zip")
    before = _keys(values)
    (tmp_path / "fer.zip").write_bytes(b"other")
    assert _changed(before, _keys(values)) == {"merge_split": ["fer2013 changed"]}


def test_votes_are_an_input_by_their_content(tmp_path):
    values = _values()
    before = _keys(values)
    file = tmp_path / "fer2013new.csv"
    values["merge_split"]["votes"] = str(file)
    with pytest.raises(places.NotFoundHere, match=f"votes: no file at {file}"):
        _keys(values)
    file.write_text("votes")
    there = _keys(values)
    assert list(_changed(before, there)) == ["merge_split"]
    file.rename(tmp_path / "elsewhere.csv")
    values["merge_split"]["votes"] = str(tmp_path / "elsewhere.csv")
    assert not _changed(there, _keys(values))
    (tmp_path / "elsewhere.csv").write_text("other votes")
    assert _changed(there, _keys(values)) == {"merge_split": ["votes changed"]}


def test_votes_of_drawn_faces_follow_from_the_other_parameters():
    values = _values()
    values["merge_split"] |= {"fer2013": "demo", "emotion_detection": "demo"}
    inputs = _keys(values)["merge_split"]["inputs"]
    assert set(inputs.values()) == {"demo"} and "votes" in inputs


def test_weights_count_by_their_content(tmp_path):
    values = _values()
    (tmp_path / "w.h5").write_bytes(b"one")
    values["train_head"]["weights"] = str(tmp_path / "w.h5")
    before = _keys(values)
    (tmp_path / "w.h5").write_bytes(b"two")
    assert _changed(before, _keys(values)) == {"train_head": ["weights changed"]}


def test_equal_keys_have_one_digest_and_others_another():
    one, two = _keys()["balance"], _keys()["balance"]
    assert keys.digest(one) == keys.digest(two)
    two["parameters"]["seed"] += 1
    assert keys.digest(one) != keys.digest(two)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("manifest.csv", _cut, r"manifest\.csv is not what was written to it"),
        ("manifest.csv", _flip, r"manifest\.csv is not what was written to it"),
        ("manifest.csv", Path.unlink, r"manifest\.csv is gone"),
        ("images/TRAIN/angry/a.png", _cut, "TRAIN is not what was written to it"),
        ("images/TRAIN/angry/a.png", Path.unlink, "TRAIN is not what was written to it"),
        ("images/TRAIN", shutil.rmtree, r"TRAIN is gone"),
        ("images/TEST/angry/a.png", _flip, "TEST is not what was written to it"),
    ],
)
def test_an_output_that_is_not_whole_is_a_reason_that_names_it(fake_run, name, harm, words):
    run = fake_run().do()
    assert run.due() == {}
    harm(run.folders.path(name))
    (reason,) = run.due()["merge_split"]
    assert re.match(words, reason)


def test_two_pictures_that_changed_places_are_noticed(fake_run):
    run = fake_run().do()
    one, other = (run.folders.path("images/TEST") / label / "a.png" for label in ("angry", "happy"))
    one.rename(one.with_name("b.png"))
    other.rename(one)
    one.with_name("b.png").rename(other)
    assert run.due()["merge_split"] == ["TEST is not what was written to it"]


def test_other_times_are_no_reason_where_the_content_is_the_same(fake_run):
    run = fake_run().do()
    for path in run.folders.data.rglob("*.png"):
        os.utime(path, (1, 1))
    assert run.due() == {}


LEFT = (".DS_Store", "Thumbs.db", "desktop.ini", "._a.png", ".ipynb_checkpoints/a.png")


@pytest.mark.parametrize("name", LEFT)
def test_what_a_file_manager_leaves_is_no_reason(fake_run, tmp_path, name):
    pictures = tmp_path / "mine" / "happy"
    pictures.mkdir(parents=True)
    (pictures / "a.png").write_text("a")
    run = fake_run(merge_split={"extra": str(tmp_path / "mine")}).do()
    for folder in (pictures, run.folders.path("images/TRAIN"), run.folders.path("images/TEST") / "angry"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("left")
    assert run.due() == {}
    (pictures / "b.png").write_text("b")
    assert run.due() == {"merge_split": ["mine changed"]}


def test_a_folder_with_links_that_lead_nowhere_and_back_and_a_pipe_has_a_digest(tmp_path):
    (tmp_path / "mine" / "happy").mkdir(parents=True)
    (tmp_path / "mine" / "happy" / "a.png").write_text("a")
    before = digests.of_listing(tmp_path / "mine")
    (tmp_path / "mine" / "nowhere.png").symlink_to("gone.png")
    (tmp_path / "mine" / "itself.png").symlink_to("itself.png")
    (tmp_path / "mine" / "happy" / "back").symlink_to(tmp_path / "mine")
    os.mkfifo(tmp_path / "mine" / "pipe.png")
    assert digests.of_listing(tmp_path / "mine") == before
    (tmp_path / "mine" / "linked.png").symlink_to("happy/a.png")
    assert digests.of_listing(tmp_path / "mine") != before


@pytest.mark.parametrize(
    ("again", "state", "left"),
    [
        (["balance"], "next: train_head", ["merge_split", "balance"]),
        (["train_head"], "next: fine_tune", ["merge_split", "balance", "train_head"]),
        (["fine_tune"], "next: evaluate", list(STAGES)[:4]),
        (["fine_tune", "evaluate"], "done", list(STAGES)),
    ],
)
def test_scores_are_of_the_model_that_the_run_has_now(fake_run, again, state, left, capsys):
    run = fake_run().do()
    run.do(*again, content="x")
    found = runs.read(run.folders.folder)
    assert (found.state, list(found.records), found.metrics is None) == (state, left, state != "done")
    ((row,), _) = terminal.list_rows(run.folders.folder.parent)
    assert row[1] == state and (row[5] == "") == (state != "done")
    capsys.readouterr()
    terminal.print_summary(run.folders, 0)
    said = capsys.readouterr().out
    assert ("holds the scores of an earlier model" in said) == ("TEST accuracy" not in said) == (state != "done")


def test_a_stage_that_came_out_as_before_leaves_the_scores(fake_run):
    run = fake_run().do()
    run.do("balance", "fine_tune")
    assert runs.read(run.folders.folder).state == "done"


def test_a_model_file_of_another_training_has_no_scores(fake_run):
    run = fake_run().do()
    runs.require_scored(run.folders)
    run.folders.path("model.keras").write_text("another")
    with pytest.raises(places.NotFoundHere, match=r"metrics\.json does not hold the scores of .*model\.keras"):
        runs.require_scored(run.folders)


def test_writing_for_tensorboard_does_not_count(fake_run):
    run = fake_run().do()
    run.values["train_head"]["tensorboard"] = run.values["fine_tune"]["tensorboard"] = True
    assert run.due() == {}
