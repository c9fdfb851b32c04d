"""Parameters are read from the cells, checked before anything starts, and every fault is told at once."""

import ast
import re
from pathlib import Path

from fer_utils.pipeline import parameters, runner
from fer_utils.pipeline.parameters import ParameterError, load_profile, parse_override, read_cell, resolve

import jupytext
import pytest

ROOT = Path(__file__).resolve().parents[3]
NOTEBOOKS = [ROOT / "notebooks" / file for file in parameters.STAGES.values()]
PROFILES = sorted((ROOT / "params").glob("*.yaml"))
DECLARED = parameters.declared()

CELL = """# %% [markdown]
# # Title

# %% tags=["parameters"]
epochs: int = 10  # >= 1; specification
rate: float = 5e-4  # > 0, < 1; specification
optimizer: str = "adamw"  # adamw | adam; specification
fast: bool = False  # skips the check
run: str = "auto"  # name of the run's folder

# %%
other = 3
"""
KNOWN = read_cell(CELL, "a.py")
STAGES = {
    "one": KNOWN,
    "two": {"epochs": KNOWN["epochs"], "size": read_cell(CELL.replace("epochs", "size"), "b.py")["size"]},
}


def _faults(*layers) -> list[str]:
    with pytest.raises(ParameterError) as caught:
        resolve(STAGES, layers)
    return str(caught.value).split("\n")


def test_a_cell_declares_name_type_default_rule_and_reason():
    assert list(KNOWN) == ["epochs", "rate", "optimizer", "fast", "run"]
    rate = KNOWN["rate"]
    assert (rate.type, rate.default, rate.allowed) == (float, 5e-4, "> 0, < 1")
    assert KNOWN["optimizer"].allowed == "adamw | adam" and KNOWN["epochs"].default == 10
    assert KNOWN["fast"].default is False and KNOWN["run"].allowed == ""


@pytest.mark.parametrize(
    "line",
    [
        "epochs = 10  # >= 1; no type",
        "epochs: int = 10",
        "epochs: list = []  # no such type",
        "import os",
        "epochs: int = default  # >= 1; a name",
        "epochs: int = 1 + 1  # >= 1; an expression",
        "epochs: int = 0  # >= 1; out of its own bounds",
        "epochs: int = 1.5  # >= 1; of another type",
        'optimizer: str = "sgd"  # adamw | adam; not a choice',
    ],
)
def test_a_line_that_declares_nothing_is_an_error_that_names_the_notebook(line):
    with pytest.raises(ParameterError, match=r"^a\.py: "):
        read_cell(f'# %%\n\n# %% tags=["parameters"]\n{line}\n', "a.py")


@pytest.mark.parametrize("source", ["# %%\nepochs = 1\n", CELL + CELL])
def test_a_notebook_has_exactly_one_parameters_cell(source):
    with pytest.raises(ParameterError, match="expected one"):
        read_cell("# %%\n\n" + source, "a.py")


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("rate", "1e-3", 1e-3),  # what YAML makes of 1e-3
        ("rate", 0.5, 0.5),
        ("epochs", 10.0, 10),
        ("epochs", "12", 12),
        ("epochs", "1e2", 100),
        ("epochs", 2**60 + 1, 2**60 + 1),
        ("epochs", str(2**60 + 1), 2**60 + 1),
        ("fast", True, True),
        ("fast", "false", False),
        ("fast", "True", True),
        ("optimizer", "adam", "adam"),
        ("run", "", ""),
    ],
)
def test_a_value_becomes_the_declared_type(name, given, value):
    found = KNOWN[name].coerce(given)
    assert found == value and type(found) is KNOWN[name].type


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("epochs", True, "a whole number"),
        ("epochs", 2.5, "a whole number"),
        ("epochs", "many", "a whole number"),
        ("epochs", None, "a whole number"),
        ("epochs", [3], "a whole number"),
        ("epochs", 0, ">= 1"),
        ("epochs", float("nan"), "a whole number"),
        ("rate", "nan", "a number"),
        ("rate", float("inf"), "a number"),
        ("rate", 10**400, "a number"),
        ("rate", False, "a number"),
        ("rate", 0, "> 0"),
        ("rate", 1, "< 1"),
        ("optimizer", "sgd", "adamw | adam"),
        ("optimizer", 3, "text"),
        ("fast", 1, "true or false"),
        ("fast", "yes", "true or false"),
        ("fast", [True], "true or false"),
        ("run", 5, "text"),
        ("run", None, "text"),
    ],
)
def test_a_value_of_another_kind_or_out_of_range_says_what_was_expected(name, given, expected):
    with pytest.raises(ValueError, match=f"expected .*{re.escape(expected)}"):
        KNOWN[name].coerce(given)


@pytest.mark.parametrize("value", ["a\0b", "a\nb", "\x1b[31m", "\udcff", "\ud800", "\x9b"])
def test_no_text_holds_what_ends_a_path_or_a_line_or_changes_a_terminal(value):
    with pytest.raises(ValueError, match="expected text on one line"):
        KNOWN["run"].coerce(value)


@pytest.mark.parametrize("value", ["", "a b", "新しい\u3000フォルダ", "a\u00a0b", "🙂", "$^$"])
def test_text_of_any_script_is_text(value):
    assert KNOWN["run"].coerce(value) == value


def test_defaults_hold_where_nothing_is_said():
    assert resolve(STAGES, [])["one"] == {name: one.default for name, one in KNOWN.items()}


def test_later_layers_win_and_a_stage_wins_over_common_within_one():
    profile = ("p.yaml", {"one": {"epochs": 3}, "common": {"epochs": 5}})
    assert [resolve(STAGES, [profile])[stage]["epochs"] for stage in STAGES] == [3, 5]
    override = ("-p", {"common": {"epochs": "7"}})
    assert [resolve(STAGES, [profile, override])[stage]["epochs"] for stage in STAGES] == [7, 7]


def test_an_unknown_name_gets_the_nearest_known_one():
    (fault,) = _faults(("p.yaml", {"one": {"epoch": 3}}))
    assert fault == "p.yaml: unknown parameter one.epoch; did you mean 'epochs'?"
    (fault,) = _faults(("p.yaml", {"common": {"optimiser": "adam"}}))
    assert "common.optimiser; did you mean 'optimizer'?" in fault
    (fault,) = _faults(("p.yaml", {"two": {"zzz": 1}}))
    assert fault.endswith("known: epochs, size")


def test_a_parameter_of_another_stage_says_where_it_belongs():
    (fault,) = _faults(("-p", {"two": {"rate": 0.1}}))
    assert fault == "-p: unknown parameter two.rate; it belongs to one"


def test_an_unknown_section_gets_the_nearest_known_one():
    (fault,) = _faults(("p.yaml", {"comon": {"epochs": 3}}))
    assert fault == "p.yaml: unknown section 'comon'; did you mean 'common'?"


def test_an_unknown_section_is_a_fault_even_if_empty():
    (fault,) = _faults(("p.yaml", {"three": {}}))
    assert "unknown section 'three'" in fault


def test_all_faults_are_told_at_once_with_their_places():
    faults = _faults(
        ("p.yaml", {"one": {"epochs": 0, "bogus": 1}, "common": {"size": "big"}}),
        ("-p", {"two": {"epochs": "x"}}),
    )
    assert len(faults) == 4
    assert sum(fault.startswith("p.yaml: ") for fault in faults) == 3
    for key in ("one.epochs is 0", "one.bogus", "common.size is 'big'", "two.epochs is 'x'"):
        assert any(key in fault for fault in faults)


def test_an_override_is_stage_name_value():
    assert parse_override("fine_tune.epochs=8") == ("fine_tune", "epochs", "8")
    assert parse_override("evaluate.run=a=b.c") == ("evaluate", "run", "a=b.c")


@pytest.mark.parametrize("text", ["epochs=8", "fine_tune.epochs", "fine_tune epochs 8", "=8", "a.b.c=1", ""])
def test_an_override_of_another_form_is_refused(text):
    with pytest.raises(ParameterError, match=r"expected STAGE\.NAME=VALUE"):
        parse_override(text)


def _profile(folder: Path, text: str) -> Path:
    (folder / "mine.yaml").write_text(text)
    return folder / "mine.yaml"


def test_a_profile_holds_sections(tmp_path):
    path = _profile(tmp_path, "# nothing\ncommon:\n  image_size: 96\ntrain_head: {learning_rate: 1e-3}\n")
    assert load_profile(path) == {"common": {"image_size": 96}, "train_head": {"learning_rate": "1e-3"}}
    assert load_profile(_profile(tmp_path, "# all defaults\n")) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("one:\n  epochs: 1\n  epochs: 2\n", "'epochs' stands twice"),
        ("one: {epochs: 1}\none: {rate: 2}\n", "'one' stands twice"),
        ("one: [", "not readable as YAML"),
        ("- one\n", "expected sections"),
        ("epochs: 3\n", "section 'epochs' should hold"),
        ("one: !!python/object/apply:os.system [ls]\n", "not readable as YAML"),
    ],
)
def test_a_profile_that_is_none_is_an_error_that_names_it(tmp_path, text, said):
    path = _profile(tmp_path, text)
    with pytest.raises(ParameterError) as caught:
        load_profile(path)
    assert str(path) in str(caught.value) and said in str(caught.value)


def test_a_profile_in_no_utf_8_is_an_error_that_names_it(tmp_path):
    (tmp_path / "mine.yaml").write_bytes(b"one: {run: '\xff'}\n")
    with pytest.raises(ParameterError, match=r"mine\.yaml"):
        load_profile(tmp_path / "mine.yaml")


def test_a_missing_profile_lists_those_there(tmp_path):
    _profile(tmp_path, "")
    with pytest.raises(ParameterError, match=r"absent\.yaml: no such profile; profiles there: mine\.yaml"):
        load_profile(tmp_path / "absent.yaml")


def test_every_numeric_parameter_has_bounds():
    numeric = [(stage, one) for stage, own in DECLARED.items() for one in own.values() if one.type in (int, float)]
    assert len(numeric) > 20
    assert [f"{stage}.{one.name}" for stage, one in numeric if not one.allowed] == []


def test_a_parameter_of_several_stages_is_declared_alike():
    for name in {name for own in DECLARED.values() for name in own} - {"epochs", "learning_rate"}:
        declarations = {(one.type, one.default, one.allowed) for own in DECLARED.values() if (one := own.get(name))}
        assert len(declarations) == 1, name


def test_the_defaults_on_record_are_those_of_the_cells():
    """A change of a default is made in both: defaults.yaml tells what was typed from what was shipped."""
    cells = {stage: {name: one.default for name, one in own.items()} for stage, own in DECLARED.items()}
    assert cells == parameters.shipped()
    assert not any(parameters.typed_in_cells(DECLARED).values())


def test_the_defaults_are_the_specification():
    values = resolve(DECLARED, [])
    assert (values["merge_split"]["val_fraction"], values["merge_split"]["leakage"]) == (0.25, "keep")
    balanced = values["balance"]
    assert (balanced["target"], balanced["target_disgust"], balanced["max_per_class"]) == (7000, 1200, 9000)
    head, tune = values["train_head"], values["fine_tune"]
    assert (head["epochs"], head["learning_rate"], head["batch_size"]) == (10, 5e-4, 64)
    assert (tune["epochs"], tune["learning_rate"], tune["batch_size"], tune["unfreeze_top"]) == (20, 8e-5, 64, 50)
    assert (tune["optimizer"], tune["stop_patience"], tune["lr_factor"], tune["batch_norm"]) == (
        "adamw",
        6,
        0.5,
        "frozen",
    )


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_every_key_of_every_profile_exists_and_it_names_one_network(path):
    profile = load_profile(path)
    values = resolve(DECLARED, [(path.name, profile)])
    runner.check_network(values["train_head"], values["fine_tune"])
    for section, own in profile.items():
        for name in own:
            stages = [stage for stage in DECLARED if name in DECLARED[stage]] if section == "common" else [section]
            assert stages and all(name in values[stage] for stage in stages)


def test_the_specified_profiles_are_there():
    assert {"demo", "cpu", "gpu", "kaggle", "clean"} <= {path.stem for path in PROFILES}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_names_its_kernel_and_has_one_parameters_cell_of_declarations_alone(path):
    notebook = jupytext.read(path)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    statements = ast.parse(tagged[0].source).body
    assert len(statements) == len(
        [line for line in tagged[0].source.splitlines() if line.strip() and not line.startswith("# ")]
    )
    assert all(isinstance(one, ast.AnnAssign) and isinstance(one.value, ast.Constant) for one in statements)
    names = [one.target.id for one in statements]
    assert len(set(names)) == len(names)
    assert names == list(DECLARED[next(stage for stage, file in parameters.STAGES.items() if file == path.name)])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_round_trips_through_jupytext(path, tmp_path):
    text = path.read_text(encoding="utf-8")
    written = jupytext.writes(jupytext.read(path), fmt="py:percent")
    # Jupytext adds its own versions to the header, which would make every update of it a change of every notebook.
    assert re.sub(r"#       (format|jupytext)_version: .*\n", "", written) == text
    jupytext.write(jupytext.read(path), tmp_path / "a.ipynb")  # and by way of the .ipynb that JupyterLab opens
    back = jupytext.read(tmp_path / "a.ipynb")
    original = [(cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in jupytext.read(path).cells]
    assert [(cell.cell_type, cell.source, cell.metadata.get("tags")) for cell in back.cells] == original
