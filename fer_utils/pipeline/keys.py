"""Computes a stage's key, from everything that its result depends on.

A key covers the notebook's code, the modules of `fer_utils` that it imports directly or indirectly, its parameters, its
inputs, and the versions of packages that affect results. Comments, docstrings, text cells, layout, statements that only
print or draw, and modules that only find, move, record or show are not part of it.
"""

import ast
import contextlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_utils import digests, places
from fer_utils.data import addresses, finding
from fer_utils.pipeline import parameters
from fer_utils.pipeline.cells import code_cells, imports

if TYPE_CHECKING:
    from fer_utils.pipeline.runs import Run

# The inputs of each stage: name → the stage that writes it.
_TRAINING = {"manifest.csv": "merge_split", "images/VAL": "merge_split"}
_TRAINING |= {"balanced.csv": "balance", "images/TRAIN_BALANCED": "balance"}
_SCORING = dict.fromkeys(("manifest.csv", "leakage.json", "images/VAL", "images/TEST"), "merge_split")
INPUTS = {
    "merge_split": {},
    "balance": {"manifest.csv": "merge_split", "images/TRAIN": "merge_split"},
    "train_head": _TRAINING,
    "fine_tune": _TRAINING | dict.fromkeys(("head.weights.h5", "history_head.csv", "trained_head.csv"), "train_head"),
    "evaluate": _SCORING | dict.fromkeys(("model.keras", "trained.csv", "model_votes.keras"), "fine_tune"),
}

# Parameters that do not affect results. The content of the sources counts as an input.
_NOT_COUNTED = {"profile", "run", "outputs_dir", "data_dir", "cache", "tensorboard"}
_NOT_COUNTED |= {"votes", *addresses.DATASETS}
_FILES = ("weights", "issues_file", "also_groups", "picture")  # parameters that name a file, of any stage
NAMING_INPUTS = {*addresses.DATASETS, "votes", "extra", "also", *_FILES}  # parameters whose files or folders are inputs

# Subpackages and modules that do not affect results: they find, check, move, record, measure time and show.
NOT_COMPUTING = {
    *("pipeline", "kaggle", "predict", "export"),
    *("digests", "files", "places", "plots", "progress"),
    *("data.addresses", "data.finding", "evaluation.report"),
    *("training.checkpoint", "training.time_budget"),
}

_SHOWING = {"display", "pyplot", "plots", "report"}  # functions, and modules whose functions, that only show
_SHOWN_AS = {"show", "round", "to_frame"}  # methods: of a stage, and of a table that a cell shows

# Packages whose version can change a result: import name → distribution.
PACKAGES = {"PIL": "pillow", "cv2": "opencv-python-headless", "sklearn": "scikit-learn"}
PACKAGES |= {name: name for name in ("albumentations", "cleanlab", "jax", "keras")}
PACKAGES |= {name: name for name in ("numpy", "pandas", "scipy", "tensorflow")}

BACKENDS = ("tensorflow", "jax")  # of Keras
_PACKAGE = Path(__file__).resolve().parents[1]


def inputs_of(stage: str, records: Mapping[str, dict]) -> dict[str, str]:
    """The INPUTS of a stage, a second output's model only if the run has one. records: stage → record, of finished stages."""
    has_votes = "model_votes.keras" in records.get("fine_tune", {}).get("outputs", {})
    return {name: by for name, by in INPUTS[stage].items() if name != "model_votes.keras" or has_votes}


def key_of(stage: str, values: Mapping, run: "Run", records: Mapping[str, dict], common: dict | None = None) -> dict:
    """The key of a stage if it ran now: notebook, code, parameters, inputs, versions, each name → digest or value.

    values: the stage's parameters. records: stage → record, of finished stages. common: common_key_of, if it is known.
    """
    common = common or common_key_of(stage, values)
    return common | {"inputs": _written(stage, run, records) | common["inputs"]}


def common_key_of(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's key without what earlier stages write. Raises NotFoundHere for a source or other file that is missing."""
    notebook, code, packages = code_of(stage)
    if "detect" in (values.get("extra_faces"), values.get("also_faces")):
        code |= {"predict.detection": _read_module(_PACKAGE / "predict" / "detection.py")[0]}
        packages = [*packages, "mtcnn"]
    return {
        "notebook": notebook,
        "code": code,
        "parameters": {name: value for name, value in values.items() if name not in _NOT_COUNTED},
        "inputs": _given(stage, values),
        "versions": {package: version(package) for package in packages},
    }


def current(records: Mapping[str, dict]) -> dict[str, dict]:
    """The records that count, in stage order: of stages that read what the stages before them wrote last.

    Of the others the results are of another model or other data than the run has now.
    """
    found: dict[str, dict] = {}
    for stage, record in records.items():
        read = record["key"]["inputs"]
        outputs = {name: found.get(by, {}).get("outputs", {}) for name, by in INPUTS[stage].items() if name in read}
        if all(outputs[name].get(name, {}).get("digest") == read[name] for name in outputs):
            found[stage] = record
    return found


def digest(key: Mapping[str, Any]) -> str:
    """A digest of a key, equal for equal keys."""
    return digests.of_bytes(json.dumps(key, sort_keys=True).encode())


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Descriptions of the differences between two keys; empty if there are none."""
    found = ["the notebook's code changed"] if old.get("notebook") != new["notebook"] else []
    for part, text in (
        ("parameters", "{name} was {old!r}, is {new!r}"),
        ("inputs", "{name} changed"),
        ("versions", "{name} was {old}, is {new}"),
        ("code", "fer_utils.{name} changed"),
    ):
        before, now = old.get(part, {}), new[part]
        changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        found += [text.format(name=name, old=before.get(name), new=now.get(name)) for name in changed]
    return found


# --- inputs ------------------------------------------------------------------------------------------------------------


def _written(stage: str, run: "Run", records: Mapping[str, dict]) -> dict[str, str]:
    """Digests of what a stage reads of the stages before it."""
    found = {}
    for name, writer in inputs_of(stage, records).items():
        path, recorded = run.path(name), records.get(writer, {}).get("outputs", {}).get(name, {})
        found[name] = digests.of_file(path) if path.is_file() else recorded.get("digest", "not on record")
    return found


def _given(stage: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the sources and other files that a stage's parameters name. Raises NotFoundHere for one that is not there."""
    found = {}
    if stage == "merge_split":
        for name, given in finding.taken(values).items():
            found[name] = "demo" if given == "demo" else digests.of_listing(finding.find_dataset(name, given))
        if values["votes"] == "auto" and "demo" in found.values():
            found["votes"] = "demo"  # votes that are drawn depend on other parameters alone
        else:
            votes = finding.find_votes(values["votes"], {})
            found["votes"] = digests.of_file(votes) if votes else "none"
    for name in _FILES:
        given = values.get(name, "")
        if given in ("", "none", "imagenet"):
            continue
        path = places.SHIPPED if given == "shipped" else places.place(given)
        if not path.is_file():
            raise places.NotFoundHere(f"{stage}.{name} is {given!r}: no file at {path}")
        found[name] = digests.of_file(path)
    more = finding.extra_places(f"{values.get('extra', '')};{values.get('also', '')}").items()
    return found | {name: digests.of_listing(path) if path.exists() else "not found" for name, path in more}


def backend() -> str:
    """The backend that Keras will choose, by its rules, without importing Keras, which takes seconds.

    Raises ParameterError for one that this project does not compute with.
    """
    file = Path(os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser()) / "keras.json"
    chosen = "tensorflow"
    with contextlib.suppress(OSError, ValueError, LookupError):
        chosen = json.loads(file.read_text(encoding="utf-8"))["backend"]
    chosen = os.environ.get("KERAS_BACKEND") or chosen
    if chosen not in BACKENDS:
        computing = f"this project computes with {' or '.join(BACKENDS)}"
        raise parameters.ParameterError(f"KERAS_BACKEND, or {file}, says {chosen!r}: {computing}")
    return chosen


@lru_cache
def version(package: str) -> str:
    """The installed version of a package, or `not installed`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# --- code --------------------------------------------------------------------------------------------------------------


def code_of(stage: str) -> tuple[str, dict[str, str], list[str]]:
    """The digest of a notebook's code, digests of the modules of `fer_utils` that it imports, and packages that count."""
    notebook, imported = _parsed("\n".join(code_cells(parameters.source_of(stage))))
    code, packages, waiting = {}, set(), list(imported)
    while waiting:
        dotted = waiting.pop()
        packages.add(dotted.split(".")[0])
        for name, path in _modules_in(_PACKAGE, dotted).items():
            if not {name, name.split(".")[0]} & NOT_COMPUTING and name not in code:
                code[name], more = _read_module(path)
                waiting += more
    packages -= {*BACKENDS} - {backend()}  # the module of devices imports the one that computes
    versioned = {PACKAGES[name] for name in packages & set(PACKAGES)}
    return notebook, dict(sorted(code.items())), sorted(versioned)


@lru_cache(maxsize=4096)  # for each key several hundred files would be looked for
def _modules_in(home: Path, dotted: str) -> dict[str, Path]:
    """The files of the package `home` that an import of a dotted name runs, by their names; none for other packages."""
    package, *parts = dotted.split(".")
    paths = [home.joinpath(*parts[:n]) for n in range(len(parts) + 1)] if package == home.name else []
    modules = [file for path in paths for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()]
    return {".".join(file.relative_to(home).with_suffix("").parts): file for file in modules}


@lru_cache  # a kernel keeps using the code that it imported, even if the file changes
def _read_module(path: Path) -> tuple[str, tuple[str, ...]]:
    """The digest of a module's code, and the dotted names that it imports."""
    return _parsed(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=512)  # several versions of each module
def _parsed(source: str) -> tuple[str, tuple[str, ...]]:
    """The digest of code, and the dotted names that it imports."""
    tree = ast.parse(source)
    imported = tuple(imports(tree))
    shows = {"print"} | {name for name, dotted in imported if dotted.split(".")[-1] in _SHOWING}
    computing = ast.unparse(_WithoutShowing(shows).visit(tree))
    return digests.of_bytes(computing.encode()), tuple(dotted for _, dotted in imported)


class _WithoutShowing(ast.NodeTransformer):
    """Reduces the statements that are one expression to the calls, loops and conditions in it that may have an effect.

    So docstrings, values that a cell shows, and calls that print or draw are removed.
    """

    def __init__(self, shows: set[str]):
        self._shows = shows  # names of functions, and of modules whose functions, that only show

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        parts = [part for part in ast.walk(node.value) if isinstance(part, _MAY_ACT)]
        acting: list[ast.expr] = [part for part in parts if not self._only_shows(part)]
        return ast.Expr(ast.Tuple(acting, ast.Load())) if acting else None

    def _only_shows(self, node: ast.expr) -> bool:
        if not isinstance(node, ast.Call) or any(keyword.arg == "file" for keyword in node.keywords):
            return False
        path = ast.unparse(node.func).split(".")
        return path[-1] in _SHOWN_AS or (path[0] in self._shows and all(name.isidentifier() for name in path))


_LOOPS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_MAY_ACT = (ast.Call, ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom, ast.BoolOp, ast.IfExp, *_LOOPS)
