"""Computes a stage's key, from everything that its result depends on, and checks that outputs are unchanged.

A key covers the notebook's code, the modules of `fer_utils` that it imports directly or indirectly, its parameters, its
inputs, and the versions of packages that affect results. Comments, docstrings, text cells and layout are not part of it,
nor is code that only prints, draws, measures time or determines paths.
"""

import ast
import contextlib
import hashlib
import importlib.metadata
import json
import os
import stat
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_utils import files, places
from fer_utils.data import addresses, finding
from fer_utils.pipeline import parameters
from fer_utils.pipeline.cells import imports

if TYPE_CHECKING:
    from fer_utils.pipeline.runs import RunFolders

# The inputs of each stage: name → the stage that writes it.
_TRAINING = {"manifest.csv": "merge_split", "images/VAL": "merge_split"}
_TRAINING |= {"balanced.csv": "balance", "images/TRAIN_BALANCED": "balance"}
_SCORING = dict.fromkeys(("manifest.csv", "leakage.json", "images/VAL", "images/TEST"), "merge_split")
INPUTS = {
    "merge_split": {},
    "balance": {"manifest.csv": "merge_split", "images/TRAIN": "merge_split"},
    "train_head": _TRAINING,
    "fine_tune": _TRAINING | dict.fromkeys(("head.weights.h5", "history_head.csv", "trained_head.csv"), "train_head"),
    "evaluate": _SCORING | dict.fromkeys(("model.keras", "trained.csv"), "fine_tune"),
}

# Inputs that only some runs have. A stage reads one if the record of the stage that writes it lists it.
OPTIONAL_INPUTS = {"evaluate": {"model_votes.keras": "fine_tune"}}

# Parameters that do not affect results. The content of the sources counts as an input.
_NOT_COUNTED = {
    "profile",
    "run",
    "outputs_dir",
    "data_dir",
    "cache",
    "cache_dir",
    "tensorboard_dir",
    "votes",
}
_NOT_COUNTED |= addresses.DATASETS.keys()

# Subpackages and modules that do not affect results: they find, check, move, record, measure time and show.
NOT_COMPUTING = {
    *("pipeline", "kaggle", "predict", "export"),
    *("files", "places", "plots", "progress"),
    *("data.addresses", "data.finding", "evaluation.report"),
    *("training.checkpoint", "training.time_budget"),
}

# Functions, and modules whose functions, only show something.
_SHOWING = {"print", "display", "pyplot", "plots", "report"}
_SHOWN_AS = {"round", "to_frame"}  # methods that format a table that a cell shows

# Packages whose version can change a result: import name → distribution.
_PACKAGES = {"PIL": "pillow", "cv2": "opencv-python-headless", "sklearn": "scikit-learn"}
_PACKAGES |= {
    name: name for name in ("albumentations", "cleanlab", "jax", "keras", "numpy", "pandas", "scipy", "tensorflow")
}

BACKENDS = ("tensorflow", "jax")  # of Keras
_PACKAGE = Path(__file__).resolve().parents[1]
_HASHED_AT_ONCE = 1 << 20


def inputs_of(stage: str, records: Mapping[str, dict]) -> dict[str, str]:
    """INPUTS of a stage, and those OPTIONAL_INPUTS that the run has. records: stage → record of the run's finished stages."""
    optional = OPTIONAL_INPUTS.get(stage, {})
    return INPUTS[stage] | {
        name: writer for name, writer in optional.items() if name in records.get(writer, {}).get("outputs", {})
    }


def key_of(stage: str, values: Mapping[str, Any], folders: "RunFolders", records: Mapping[str, dict]) -> dict:
    """The key of a stage if it ran now: notebook, code, parameters, inputs, versions, each name → digest or value.

    values: the stage's resolved parameters. records: stage → record of the run's finished stages.
    """
    notebook, code, packages = _code_of(places.source_root() / "notebooks" / parameters.STAGES[stage])
    if "detect" in (values.get("extra_faces"), values.get("also_faces")):
        code |= {"predict.detection": _read_module(_PACKAGE / "predict" / "detection.py")[0]}
        packages = [*packages, "mtcnn"]
    return {
        "notebook": notebook,
        "code": code,
        "parameters": counted(values),
        "inputs": _inputs(stage, values, folders, records),
        "versions": {package: version(package) for package in packages},
    }


def counted(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a stage that its result depends on."""
    return {name: value for name, value in values.items() if name not in _NOT_COUNTED}


def code_of(stage: str) -> dict[str, str]:
    """Digests of the code that a stage runs: its notebook, and modules of `fer_utils`."""
    notebook, code, _ = _code_of(places.source_root() / "notebooks" / parameters.STAGES[stage])
    return {"notebook": notebook} | code


def current(records: Mapping[str, dict]) -> dict[str, dict]:
    """The records that count, in stage order: of stages that read what the stages before them wrote last.

    Of the others the results are of another model or other data than the run has now.
    """
    found: dict[str, dict] = {}
    for stage, record in records.items():
        read, writers = record["key"]["inputs"], INPUTS[stage] | OPTIONAL_INPUTS.get(stage, {})
        written = {name: found.get(writer, {}).get("outputs", {}).get(name, {}) for name, writer in writers.items()}
        if all(written[name].get("digest") == read[name] for name in written if name in read):
            found[stage] = record
    return found


def digest(key: Mapping[str, Any]) -> str:
    """A digest of a key, equal for equal keys."""
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Descriptions of the differences between two keys; empty if there are none."""
    found = ["the notebook's code changed"] if old.get("notebook") != new["notebook"] else []
    for part, says in (
        ("parameters", "{name} was {old!r}, is {new!r}"),
        ("inputs", "{name} changed"),
        ("versions", "{name} was {old}, is {new}"),
        ("code", "fer_utils.{name} changed"),
    ):
        before, now = old.get(part, {}), new[part]
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                found.append(says.format(name=name, old=before.get(name), new=now.get(name)))
    return found


# --- outputs -----------------------------------------------------------------------------------------------------------


def describe(path: Path) -> dict[str, Any]:
    """Number of files, bytes and digest of an output; for a folder also the digest of names, sizes and times."""
    if path.is_dir():
        found = list(_listed(path))
        return {**_outline(found), "digest": _content_digest(path, found)}
    return {"files": 1, "bytes": path.stat().st_size, "digest": file_digest(path)}


def damage(path: Path, recorded: Mapping[str, Any]) -> str | None:
    """A description of the damage to a recorded output, or None.

    A file is read completely. Of a folder names, sizes and times are compared, which takes a second for 100,000 pictures.
    Only where a time differs, as in a copied run, its files are read and their content decides.
    """
    if not path.exists():
        return f"{path.name} is gone"
    if path.is_dir():
        found = list(_listed(path))
        now = _outline(found)
        if now["files"] != recorded["files"] or now["bytes"] != recorded["bytes"]:
            return f"{path.name} holds {now['files']} files of {now['bytes']:,} bytes, not what was written to it"
        if now["listing"] == recorded.get("listing") or _content_digest(path, found) == recorded["digest"]:
            return None
        return f"{path.name} holds other files than those written to it"
    size = path.stat().st_size
    if size != recorded["bytes"]:
        return f"{path.name} has {size:,} bytes of {recorded['bytes']:,}"
    return None if file_digest(path) == recorded["digest"] else f"{path.name} is not what was written to it"


def file_digest(path: Path) -> str:
    """The digest of a file's content."""
    content = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_HASHED_AT_ONCE):
            content.update(block)
    return content.hexdigest()


def _listed(folder: Path, below: str = "", above: tuple[str, ...] = ()) -> Iterator[tuple[str, os.stat_result]]:
    """Every regular file below a folder with its stat, sorted by name; without hidden ones and what file managers leave.

    Links are followed, unless they lead nowhere or back to a folder that holds them.
    """
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        is_no_content = entry.name.startswith(".") or entry.name.lower() in files.FILE_MANAGERS
        if is_no_content or (entry.is_symlink() and os.path.realpath(entry.path) in above):
            continue
        try:
            about = entry.stat()
        except OSError:  # a link that leads nowhere
            continue
        if stat.S_ISDIR(about.st_mode):
            yield from _listed(Path(entry.path), f"{below}{entry.name}/", above)
        elif stat.S_ISREG(about.st_mode):
            yield below + entry.name, about


def _outline(found: list[tuple[str, os.stat_result]]) -> dict[str, Any]:
    return {"files": len(found), "bytes": sum(about.st_size for _, about in found), "listing": _listing_digest(found)}


def _listing_digest(found: list[tuple[str, os.stat_result]]) -> str:
    """A digest of names, sizes and times of change."""
    lines = "\n".join(f"{name} {about.st_size} {about.st_mtime_ns}" for name, about in found)
    return hashlib.blake2b(os.fsencode(lines), digest_size=16).hexdigest()


def _content_digest(folder: Path, found: list[tuple[str, os.stat_result]]) -> str:
    content = hashlib.blake2b(digest_size=16)
    for name, _ in found:
        content.update(os.fsencode(name) + b"\0" + (folder / name).read_bytes())
    return content.hexdigest()


# --- inputs ------------------------------------------------------------------------------------------------------------


def _inputs(stage: str, values: Mapping, folders: "RunFolders", records: Mapping[str, dict]) -> dict[str, str]:
    if stage == "merge_split":
        found = {name: _source_digest(name, given) for name, given in finding.taken(values).items()}
        return found | {"votes": _votes_digest(values)} | _extra_digests(values["extra"])
    found = {}
    for name, writer in inputs_of(stage, records).items():
        path = folders.path(name)
        if path.is_file():
            found[name] = file_digest(path)
        else:
            found[name] = records.get(writer, {}).get("outputs", {}).get(name, {}).get("digest", "not on record")
    for name in ("weights", "issues_file", "also_groups"):
        path = places.SHIPPED if values.get(name) == "shipped" else places.project_root() / values.get(name, "")
        if path.is_file():
            found[name] = file_digest(path)
    return found | _extra_digests(values.get("also", ""))


def _extra_digests(given: str) -> dict[str, str]:
    """Digests of the pictures at the paths of the parameters `extra` and `also`, by their names."""
    return {
        name: _tree_digest(path) if path.exists() else "not found" for name, path in finding.extra_places(given).items()
    }


def _votes_digest(values: Mapping) -> str:
    """A digest of FER+'s votes; those of drawn faces follow from the other parameters."""
    if values["votes"] == "auto" and "demo" in {values[name] for name in addresses.DATASETS}:
        return "demo"
    try:
        path = finding.find_votes(values["votes"], {})
    except places.NotFoundHere:
        return "not found"
    return file_digest(path) if path else "none"


def _source_digest(name: str, given: str) -> str:
    """A digest of names, sizes and times of a source dataset, since reading 70,000 pictures would take too long."""
    if given == "demo":
        return "demo"
    try:
        path = finding.find_dataset(name, given)
    except places.NotFoundHere:
        return "not found"
    return _tree_digest(path)


def _tree_digest(path: Path) -> str:
    return _listing_digest(list(_listed(path)) if path.is_dir() else [("", path.stat())])


def backend() -> str:
    """The backend that Keras will choose, by its rules, without importing Keras, which takes seconds.

    Raises ParameterError for one that this project does not compute with.
    """
    home = Path(os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser())
    configured = {}
    with contextlib.suppress(OSError, ValueError):
        configured = json.loads((home / "keras.json").read_text(encoding="utf-8"))
    chosen = os.environ.get("KERAS_BACKEND") or configured.get("backend", "tensorflow")
    if chosen not in BACKENDS:
        raise parameters.ParameterError(
            f"KERAS_BACKEND, or {home / 'keras.json'}, says {chosen!r}: this project computes with {' or '.join(BACKENDS)}"
        )
    return chosen


@lru_cache
def version(package: str) -> str:
    """The installed version of a package, or `not installed`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# --- code --------------------------------------------------------------------------------------------------------------


def notebook_digest(source: str, name: str) -> str:
    """The digest of a notebook's code without its parameters cell and without code that only shows something.

    source: the notebook in percent format. name: its name in error messages.
    """
    return _parsed(source, frozenset(parameters.read_cell(source, name)))[0]


def _code_of(notebook: Path) -> tuple[str, dict[str, str], list[str]]:
    """The digest of a notebook's code, digests of the modules of `fer_utils` that it imports, and imported packages."""
    if not notebook.is_file():
        return "not at hand", {}, []
    source = notebook.read_text(encoding="utf-8")
    found, imported = _parsed(source, frozenset(parameters.read_cell(source, notebook.name)))
    code, packages, waiting = {}, set(), list(imported)
    while waiting:
        dotted = waiting.pop()
        packages.add(dotted.split(".")[0])
        for name, path in _modules_in(_PACKAGE, dotted):
            if not {name, name.split(".")[0]} & NOT_COMPUTING and name not in code:
                code[name], more = _read_module(path)
                waiting += more
    packages -= {*BACKENDS} - {backend()}  # the module of devices imports the one that computes
    versioned = {_PACKAGES[name] for name in packages & set(_PACKAGES)}
    return found, dict(sorted(code.items())), sorted(versioned)


@lru_cache(maxsize=4096)  # for each key several hundred files would be looked for
def _modules_in(home: Path, dotted: str) -> tuple[tuple[str, Path], ...]:
    """The files of the package `home` that an import of a dotted name runs, by their names; none for other packages."""
    package, *parts = dotted.split(".")
    if package != home.name:
        return ()
    candidates = [home.joinpath(*parts[:n]) for n in range(len(parts) + 1)]
    files = [file for place in candidates for file in (place / "__init__.py", place.with_suffix(".py"))]
    return tuple((".".join(file.relative_to(home).with_suffix("").parts), file) for file in files if file.is_file())


@lru_cache  # a kernel keeps using the code that it imported, even if the file changes
def _read_module(path: Path) -> tuple[str, tuple[str, ...]]:
    """The digest of a module's code, and the dotted names that it imports."""
    return _parsed(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=512)  # several versions of each module
def _parsed(source: str, declared: frozenset[str] = frozenset()) -> tuple[str, tuple[str, ...]]:
    """The digest of code without the parameters that it declares, and the dotted names that it imports."""
    tree = ast.parse(source)
    imported = tuple(dotted for _, dotted in imports(tree))
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.AnnAssign) and ast.unparse(node.target) in declared)
    ]
    return _digest(tree), imported


def _digest(tree: ast.Module) -> str:
    """The digest of code without what only shows something. Changes the tree."""
    text = ast.unparse(_WithoutShowing(tree).visit(tree))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class _WithoutShowing(ast.NodeTransformer):
    """Removes from a tree what only shows something: calls that print or draw, values that a cell shows, docstrings.

    What may have an effect is kept: calls in the arguments of a removed call, and names that its value is assigned to. A
    name that the tree also binds to something else is not treated as showing.
    """

    def __init__(self, tree: ast.Module):
        imported = list(imports(tree))
        shows = {name for name, dotted in imported if dotted.split(".")[-1] in _SHOWING}
        computes = {name for name, dotted in imported if dotted.split(".")[-1] not in _SHOWING}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                computes.add(node.id)
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.arg)):
                computes.add(node.arg if isinstance(node, ast.arg) else node.name)
        self._showing = ({"print"} | shows) - computes

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        function = node.func
        while isinstance(function, ast.Attribute):
            function = function.value
        shows = isinstance(function, ast.Name) and function.id in self._showing
        shows |= isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "stage.show"
        if not shows or any(keyword.arg == "file" for keyword in node.keywords):
            return node
        return _effects(*node.args, *(keyword.value for keyword in node.keywords))

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        self.generic_visit(node)
        value = node.value
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in _SHOWN_AS:
            node.value = _effects(value.func.value, *value.args)
        else:
            node.value = _effects(value)
        return node if node.value.elts else None


def _effects(*nodes: ast.AST) -> ast.Tuple:
    """The parts of these expressions that may have an effect, as a tuple: outermost calls, loops and conditions."""
    found, waiting = [], list(nodes)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, _MAY_ACT):
            found.append(node)
        else:
            waiting[:0] = ast.iter_child_nodes(node)
    return ast.Tuple(found, ast.Load())


_LOOPS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_MAY_ACT = (ast.Call, ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom, ast.BoolOp, ast.IfExp, *_LOOPS)
