"""Names that nobody expects, of runs, of a sweep's runs, and of what else lies in the outputs folder."""

import json
from pathlib import Path

from fer_utils import files
from fer_utils.pipeline import parameters, runner, runs, sweeps, terminal

import pytest
from fake_runs import FakeRun
from surroundings import unchanged

LONGEST = runs.LONGEST_NAME
REFUSED = (
    *("x" * 300, "x" * (LONGEST + 1), "ł" * (LONGEST // 2 + 1), "🙂" * 40),
    *(".", "..", "../x", "a/b", "/abs", "a\\b", "base/", ".hidden"),
    *("a\nb", "a\rb", "\x1b[31mred", "a\0b", "\udcff"),
)
TAKEN = (
    *("x" * LONGEST, "ł" * (LONGEST // 2), "$^$", "a_$x$", "_x", "__", "-"),
    *(
        "a [1]",
        "a*",
        "?",
        "~",
        " ",
        "a b ",
        "🙂",
        "<b>&amp;",
        "%s",
        "{0}",
        "CON",
        "x.keras",
        "it's",
        '"',
        "#",
        "é",
        "é",
    ),
)

COMPARED = ("$^$", "<b>&amp;")  # drawing takes seconds


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
@pytest.mark.parametrize("profile", [["--params", "demo"], []])
def test_a_run_that_no_folder_can_be_named_after_is_refused(answer, tmp_path, name, profile):
    with unchanged(tmp_path):
        status, _, errors = answer("--outputs-dir", str(tmp_path), *profile, "--run", name, "--dry-run")
    assert status == 2 and "run is '" in errors and "expected" in errors and len(errors) < 300


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> Path:
    """An outputs folder with a run of each of these names; those of COMPARED have scores."""
    outputs = tmp_path_factory.mktemp("named") / "outputs"
    for name in TAKEN:
        FakeRun(outputs, name).do(*(() if name in COMPARED else ["merge_split"]), content=name[:9])
    return outputs


def test_runs_of_any_name_are_listed_and_compared(named, answer):
    with unchanged(*(named / name for name in TAKEN)):
        status, said, _ = answer("--outputs-dir", str(named), "--list")
        assert status == 0 and all(name in said for name in TAKEN)
        status, said, errors = answer("--outputs-dir", str(named), "--compare", *COMPARED)
    assert status == 0, errors
    page, sheet = (Path(line) for line in said.splitlines())
    assert page.parent == sheet.parent == named and "&lt;b&gt;&amp;amp;" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TAKEN, ids=ascii)
def test_a_run_of_any_name_goes_on(named, answer, name):
    with unchanged(named):
        status, said, _ = answer("--outputs-dir", str(named), f"--run={name}", "--dry-run")
    assert status == 0 and said.count(": skip: ") == (5 if name in COMPARED else 1) and "was made with it" in said


@pytest.mark.parametrize(
    "base", [name for name in TAKEN if len(name) > 100 or name in ("a [1]", "🙂", "%s")], ids=ascii
)
def test_the_runs_of_a_sweep_have_names_of_their_own(answer, tmp_path, base):
    swept = ["--sweep", f"merge_split.extra={'x' * 300},{'x' * 299}y", "--sweep", "balance.seed=1,2", "--seeds", "2"]
    status, said, errors = answer(
        "--params", "demo", "--outputs-dir", str(tmp_path), f"--run={base}", *swept, "--dry-run"
    )
    assert status == 0, errors
    names = [line for line in said.splitlines() if line.startswith(base[:100])]
    assert len(set(names)) == 8 and all(len(name.encode()) <= LONGEST for name in names)


def test_a_sweep_whose_names_were_too_long_runs_and_is_found_again(tmp_path, monkeypatch):
    pytest.importorskip("optuna", reason="sweeps need the extra `sweep`")
    outputs = tmp_path / "outputs"

    def resolve(point):
        return FakeRun(outputs, sweeps.name_of("demo", point), **sweeps.sections(point)).values

    def execute(stage, values, folders, verbose=False):
        FakeRun(outputs, values["run"], **files.read_json(folders.path("run.json"))["parameters"]).do(stage)

    monkeypatch.setattr(runner, "execute", execute)
    axes = sweeps.axes([f"evaluate.also_classes={'a' * 300},{'b' * 300}"], parameters.declared())
    plan = sweeps.Plan(axes=axes, base="demo", profile="demo", resolve=resolve)
    plan.check()
    for _ in range(2):
        assert sweeps.work(plan, sweeps.open_study(plan, outputs), outputs) == []
    assert [state for name, state, *_ in terminal.list_rows(outputs)[0] if name != "demo"] == ["done", "done"]


# What may lie in the outputs folder under the name of a run: its run.json, and what the list says.
LYING = {
    ".hidden": (b"whole", "expected a plain folder name"),
    "a\\b": (b"whole", "expected a plain folder name"),
    "y" * 200: (b"whole", "of 200 bytes"),
    "empty": (b"", "is not whole JSON"),
    "list": (b"[]", "lacks"),
    "number": (b"5", "lacks"),
    "none": (b'{"profile": null, "parameters": {}}', "lacks"),
    "parameters": (b'{"profile": "demo", "parameters": 5}', "lacks"),
    "stages": (b'{"profile": "demo", "parameters": {"evaluate": {"data_dir": ""}}}', "lacks"),
    "latin": (b'{"profile": "\xe9"}', "is not whole JSON"),
    "nested": (b"[" * 100_000, "is not whole JSON"),
    "folder": (None, "Is a directory"),
}


@pytest.mark.parametrize("name", LYING, ids=lambda name: name[:20])
def test_what_lies_in_the_outputs_folder_hides_no_run(answer, fake_run, name):
    run = fake_run("whole").do()
    outputs, (content, said) = run.folders.folder.parent, LYING[name]
    described = outputs / name / "run.json"
    described.parent.mkdir()
    if content is None:
        described.mkdir()
    else:
        described.write_bytes(run.folders.path("run.json").read_bytes() if content == b"whole" else content)
    with unchanged(outputs):
        status, listed, _ = answer("--outputs-dir", str(outputs), "--list")
        assert status == 0 and "whole" in listed and "damaged" in listed and said in listed
        for command in (["--compare", "whole", name], ["--to-mlflow", name]):
            status, _, errors = answer("--outputs-dir", str(outputs), *command)
            assert status == 2 and errors.startswith("run_all.py: ")
        status, _, errors = answer("--outputs-dir", str(outputs), "--run", name, "--dry-run")
        assert status == 0 or (status == 2 and errors.startswith("run_all.py: "))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("metrics.json", {"test": {}}),
        ("metrics.json", {"val": None}),
        ("metrics.json", {"test": {"accuracy": 1.0}}),
        ("stages/fine_tune.json", {"outputs": []}),
        ("stages/fine_tune.json", {"key": {}}),
        ("stages/fine_tune.json", {"seconds": "long"}),
        ("stages/fine_tune.json", {"finished": 5}),
    ],
)
def test_a_result_of_another_form_is_named_and_hides_no_run(answer, fake_run, file, change):
    run = fake_run("one").do()
    fake_run("whole").do()
    path = run.folders.folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    status, listed, _ = answer("--outputs-dir", str(run.folders.folder.parent), "--list")
    assert status == 0 and "whole" in listed and f"{path.name} " in listed and "damaged" in listed
    status, _, errors = answer("--outputs-dir", str(run.folders.folder.parent), "--compare", "one", "whole")
    assert status == 2 and path.name in errors
