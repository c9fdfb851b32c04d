"""Notebooks as JupyterLab runs them: cell by cell in a kernel that stands in `notebooks/`, edited, run again, left.

02_balance stands for all, on a few pictures; what happens to its record is the same in the others.
"""

import json
import re
import shutil
from pathlib import Path

from fer_utils.classes import CLASSES
from fer_utils.data import splits
from fer_utils.pipeline import runner, runs, terminal

import jupytext
import numpy as np
import pandas as pd
import pytest
from jupyter_client.manager import start_new_kernel
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PROFILE = """
balance: {target: 6, target_disgust: 5, max_per_class: 8}
fine_tune: {weights: none}
train_head: {weights: none}
"""
# Most of the time went into figures: here a number stands for what each shows.
SMALL_FIGURES = """
from fer_utils import plots
import numpy as np
from matplotlib.figure import Figure
def _small(shown, *_):
    figure = Figure(figsize=(1, 1))
    figure.text(0, 0, str(np.sum(np.asarray(shown))))
    return figure
plots.faces = plots.class_counts = _small
"""


class Project:
    """A project of its own with a run `demo` that 01 has done, and a kernel for its notebook 02."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("notebooks", "params"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.ipynb", ".*"))
        (folder / "params/demo.yaml").write_text(PROFILE)
        self.file = folder / "notebooks/02_balance.py"
        self.text = self.file.read_text()
        self.folders = runs.run_named("demo", str(folder / "outputs"), "")
        rng = np.random.default_rng(1)
        rows = [("TRAIN", label, f"TRAIN/{label}/{i}.png") for label in CLASSES for i in range(4)]
        for *_, path in rows:
            (self.folders.data / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (48, 48), dtype=np.uint8)).save(self.folders.data / path)
        manifest = pd.DataFrame(rows, columns=["split", "label", "path"]).reindex(columns=splits.MANIFEST_COLUMNS)
        manifest.to_csv(self.folders.path("manifest.csv"), index=False)
        (self.folders.folder / "stages").mkdir()  # by it a folder is known as a run's
        self.manager, self.client = start_new_kernel(kernel_name="python3", cwd=str(folder / "notebooks"))
        self.run(SMALL_FIGURES)

    def cells(self, *edits: tuple[str, str]) -> list[str]:
        """The notebook's code cells as they stand in its file, with these replacements in them."""
        found = [cell.source for cell in jupytext.reads(self.text, fmt="py:percent").cells if cell.cell_type == "code"]
        for old, new in edits:
            assert sum(old in cell for cell in found) == 1, old
            found = [cell.replace(old, new) for cell in found]
        return found

    def save(self, *edits: tuple[str, str]) -> None:
        text = self.text
        for old, new in edits:
            text = text.replace(old, new)
        self.file.write_text(text)

    def run(self, *cells: str) -> str:
        """Run cells; return what they print, a single space for several. An error in a cell fails the test."""
        printed: list[str] = []
        for cell in cells:
            reply = self.client.execute_interactive(
                cell, timeout=120, output_hook=lambda message: printed.append(message["content"].get("text", ""))
            )
            content = reply["content"]
            assert content["status"] == "ok", "\n".join(content.get("traceback", []))
        return re.sub(" +", " ", "".join(printed))

    def record(self) -> dict:
        return json.loads(self.folders.stage_record("balance").read_text())

    def due(self) -> list[str]:
        """Why run_all.py would run 02."""
        values = runner.resolve(*runner.layers("demo"))
        return runner.reasons_to_run("balance", values["balance"], self.folders)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("project"))
    yield project
    project.client.stop_channels()
    project.manager.shutdown_kernel(now=True)


@pytest.fixture
def project(shared, monkeypatch) -> Project:
    """The project, its notebook as shipped, and this process standing in its folder."""
    monkeypatch.chdir(shared.folder)
    shared.save()
    return shared


PROFILE_HAS, TYPED = "max_per_class: int = 9000", "max_per_class: int = 7"


def test_nothing_edited_follows_the_profile_and_leaves_a_run(project):
    printed = project.run(*project.cells())
    assert "max_per_class = 8 from params/demo.yaml" in printed
    assert project.record()["by_hand"] == [] and project.due() == []
    (row,), faults = terminal.list_rows(project.folders.folder.parent)
    assert not faults
    listed = dict(zip(terminal.COLUMNS, row, strict=True))
    assert (listed["run"], listed["profile"], listed["state"]) == ("demo", "demo", "next: merge_split")
    description = json.loads(project.folders.path("run.json").read_text())
    assert description["parameters"]["balance"] == project.record()["parameters"]
    assert description["parameters"]["fine_tune"]["weights"] == "none"


def test_a_value_typed_and_not_saved_wins_and_run_all_says_what_differs(project):
    printed = project.run(*project.cells((PROFILE_HAS, TYPED)))
    assert "max_per_class = 7 from the cells above\n" in printed
    assert "target = 6 from params/demo.yaml\n" in printed
    assert project.record()["parameters"]["max_per_class"] == 7 and project.record()["by_hand"] == []
    assert json.loads(project.folders.path("run.json").read_text())["parameters"]["balance"]["max_per_class"] == 7
    assert project.due() == ["max_per_class was 7, is 8"]


def test_a_value_typed_and_saved_wins_and_run_all_takes_it_too(project, capsys):
    project.save((PROFILE_HAS, TYPED))
    project.run(*project.cells((PROFILE_HAS, TYPED)))
    assert project.record()["parameters"]["max_per_class"] == 7
    assert project.due() == []
    assert "max_per_class = 7 typed in notebooks/02_balance.py\n" in capsys.readouterr().out


def test_what_is_advised_for_a_default_against_the_profile_works(project):
    parameters, setup, *_ = project.cells()
    printed = project.run(parameters, setup)
    advice = "change that file, or set profile to the name of a copy and run = 'demo'"
    assert "unless it is the default" in printed and advice in printed
    (project.folder / "params/mine.yaml").write_text(PROFILE.replace(", max_per_class: 8", ""))
    printed = project.run(parameters, "profile, run = 'mine', 'demo'", setup)
    assert "max_per_class = 9000\n" in printed and "target = 6 from params/mine.yaml\n" in printed
    assert f"results in {project.folders.folder}\n" in printed


def test_setup_alone_again_still_knows_what_was_typed(project):
    parameters, setup, *_ = project.cells((PROFILE_HAS, TYPED))
    first = project.run(parameters, setup)
    assert project.run(setup) == first
    (project.folder / "params/other.yaml").write_text("balance: {target: 9}")
    printed = project.run("profile = 'other'; run = 'demo'", setup)
    assert "target = 9 from params/other.yaml" in printed
    assert "target_disgust = 1200\n" in printed and "max_per_class = 7 from the cells above" in printed


def test_setup_without_the_parameters_cell_says_so(project):
    with pytest.raises(AssertionError, match="seed not set: run the parameters cell first"):
        project.run("del seed", project.cells()[1])


def test_a_variable_changed_after_the_setup_is_on_record_and_a_reason(project):
    cells = project.cells()
    printed = project.run(*cells[:2], "max_per_class = 3", *cells[2:])
    said = "max_per_class became 3 after the setup"
    assert said in printed
    assert project.record()["parameters"]["max_per_class"] == 3
    assert said in project.record()["by_hand"] and said in project.due()


def test_a_variable_changed_and_changed_back_is_a_reason(project):
    cells = project.cells()
    project.run(*cells[:4], "max_per_class = 3", cells[4], "max_per_class = 8", *cells[5:])
    assert project.record()["parameters"]["max_per_class"] == 8
    assert project.due()[0] == "a cell that is not in the file, `max_per_class = 3`, changes max_per_class"


def test_a_cell_edited_and_not_saved_is_on_record_and_a_reason(project):
    edit = (
        "plan_balance(train, targets, max_per_class, seed)",
        "plan_balance(train, targets, max_per_class, seed + 1)",
    )
    printed = project.run(*project.cells(edit))
    said = "the cell `targets = dict.fromkeys(CLASSES, target) | {'disgust': ta...` did not run as in the file"
    assert said in printed and "run_all.py will run this stage again because:" in printed
    assert said in project.due()


def test_a_cell_edited_saved_and_run_is_what_the_file_says(project):
    edit = (
        "plan_balance(train, targets, max_per_class, seed)",
        "plan_balance(train, targets, max_per_class, seed + 1)",
    )
    cells = project.cells(edit)
    project.run(*cells[:3])
    project.save(edit)  # JupyterLab does every two minutes
    project.run(*cells[3:])
    assert project.record()["by_hand"] == [] and project.due() == []
    project.save()
    assert project.due() == ["the notebook's code changed"]


def test_looking_around_and_running_cells_twice_changes_nothing(project):
    cells = project.cells()
    looks = [
        "train.head()",
        "import numpy as np\nnp.__version__",
        "!echo hello",
        "%matplotlib inline",
        "%time len(train)",
    ]
    project.run(*cells[:3], *looks, cells[3], cells[3], *cells[4:])
    assert project.record()["by_hand"] == [] and project.due() == []


def test_the_first_cells_of_a_finished_stage_leave_its_record_and_its_outputs_do_not(project):
    cells = project.cells()
    project.run(*cells)
    before = project.folders.stage_record("balance").read_bytes()
    parameters, setup, load, look, *_ = project.cells((PROFILE_HAS, TYPED), ("range(1, 12)", "range(12, 23)"))
    project.run(parameters, setup, load, look)  # the figure of the look is another one
    assert project.folders.stage_record("balance").read_bytes() == before and project.due() == []
    project.run(cells[4])  # writes the folder; `balanced.csv` is not there yet
    assert project.due() == ["it has not run yet"]


def test_a_weights_file_and_a_picture_are_looked_for_from_the_project(project):
    (project.folder / "some.h5").write_bytes(b"")
    printed = project.run("from fer_utils import places\nprint(places.place('some.h5'), places.place('a.png'))")
    assert printed == f"{project.folder}/some.h5 {project.folder}/a.png\n"
