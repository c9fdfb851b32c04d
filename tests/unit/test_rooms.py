"""Imports go one way: shared modules, data, training, evaluation, pipeline, and on top kaggle, predict and export."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

from fer_utils.pipeline import cells

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "fer_utils"
# Room → the rooms that it may import from, beside the shared modules at the top.
MAY_IMPORT = {
    "": set(),
    "data": {"data"},
    "training": {"data", "training"},
    "evaluation": {"data", "training", "evaluation"},
    "pipeline": {"data", "evaluation", "pipeline"},
    "kaggle": {"data", "evaluation", "pipeline", "kaggle"},
    "predict": {"data", "training", "evaluation", "predict"},
    "export": {"data", "training", "evaluation", "pipeline", "export"},
}


def _room(path: Path) -> str:
    return path.parent.name if path.parent != PACKAGE else ""


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_no_room_imports_one_above_it(room):
    modules = [path for path in PACKAGE.rglob("*.py") if _room(path) == room]
    assert modules
    for path in modules:
        for _, dotted in cells.imports(ast.parse(path.read_text())):
            parts = dotted.split(".")
            if parts[0] == "fer_utils" and (PACKAGE / parts[1]).is_dir():
                assert parts[1] in MAY_IMPORT[room], f"{path.relative_to(PACKAGE)} imports {dotted}"


def test_every_room_is_named_here():
    assert {_room(path) for path in PACKAGE.rglob("*.py")} == set(MAY_IMPORT)


class _WithoutTypes(ast.NodeTransformer):
    def visit_If(self, node):
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else node


def test_no_module_imports_itself_through_others():
    paths = {path.relative_to(PACKAGE.parent).with_suffix(""): path for path in PACKAGE.rglob("[!_]*.py")}
    modules = {".".join(name.parts): _WithoutTypes().visit(ast.parse(path.read_text())) for name, path in paths.items()}
    imported = {name: {dotted for _, dotted in cells.imports(tree)} for name, tree in modules.items()}
    graph = {  # `from module import name` names the module too
        name: {other for other in modules if any(f"{dotted}.".startswith(f"{other}.") for dotted in found)}
        for name, found in imported.items()
    }
    assert "fer_utils.training.model_files" in graph["fer_utils.training.network"]
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_pipeline_imports_no_tensorflow():
    names = [f"fer_utils.pipeline.{path.stem}" for path in (PACKAGE / "pipeline").glob("[!_]*.py")]
    code = f"import sys, {', '.join(names)}\nprint('tensorflow' in sys.modules, 'keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_one_module_knows_the_backends():
    sources = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "notebooks").glob("*.py")]
    importing = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in sources
        for _, dotted in cells.imports(ast.parse(path.read_text()))
        if dotted.split(".")[0] in ("tensorflow", "jax", "torch")
    }
    assert importing == {"fer_utils/training/devices.py", "fer_utils/export/formats.py"}  # the latter writes TFLite


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_imports_few_names_of_the_project(path):
    names = {name for name, dotted in cells.imports(ast.parse(path.read_text())) if dotted.startswith("fer_utils")}
    assert len(names) <= 9, sorted(names)
