"""Computes a stage's key, from everything that its result depends on, and checks that outputs are unchanged.

A key covers the notebook's code, the modules of `fer_utils` that it imports directly or indirectly, its parameters, its
inputs, and the versions of packages that affect results. Comments, docstrings, text cells and layout are not part of it,
nor are statements that only print or draw, and modules that only find, move, record or show.
"""

import ast
import contextlib
import hashlib
import importlib.metadata
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_utils import files, places
from fer_utils.data import addresses, finding
from fer_utils.pipeline import parameters
from fer_utils.pipeline.cells import imports

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
    "evaluate": _SCORING | dict.fromkeys(("model.keras", "trained.csv"), "fine_tune"),
}

# Inputs that only some runs have. A stage reads one if the record of the stage that writes it lists it.
OPTIONAL_INPUTS = {"evaluate": {"model_votes.keras": "fine_tune"}}

# Parameters that do not affect results. The content of the sources counts as an input.
_NOT_COUNTED = {"profile", "run", "outputs_dir", "data_dir", "cache", "tensorboard"}
_NOT_COUNTED |= {"votes", *addresses.DATASETS}

# Subpackages and modules that do not affect results: they find, check, move, record, measure time and show.
NOT_COMPUTING = {
    *("pipeline", "kaggle", "predict", "export"),
    *("files", "places", "plots", "progress"),
    *("data.addresses", "data.finding", "evaluation.report"),
    *("training.checkpoint", "training.time_budget"),
}

_SHOWING = {"display", "pyplot", "plots", "report"}  # imported functions, and modules whose functions, that only show
_SHOWN_AS = {"round", "to_frame"}  # methods that format a table that a cell shows

# Packages whose version can change a result: import name → distribution.
_PACKAGES = {"PIL": "pillow", "cv2": "opencv-python-headless", "sklearn": "scikit-learn"}
_PACKAGES |= {name: name for name in ("albumentations", "cleanlab", "jax", "keras")}
_PACKAGES |= {name: name for name in ("numpy", "pandas", "scipy", "tensorflow")}

BACKENDS = ("tensorflow", "jax")  # of Keras
_PACKAGE = Path(__file__).resolve().parents[1]


def inputs_of(stage: str, records: Mapping[str, dict]) -> dict[str, str]:
    """INPUTS of a stage, and those OPTIONAL_INPUTS that the run has. records: stage → record of the run's finished stages."""
    optional = OPTIONAL_INPUTS.get(stage, {}).items()
    return INPUTS[stage] | {name: by for name, by in optional if name in records.get(by, {}).get("outputs", {})}


def key_of(stage: str, values: Mapping[str, Any], run: "Run", records: Mapping[str, dict]) -> dict:
    """The key of a stage if it ran now: notebook, code, parameters, inputs, versions, each name → digest or value.

    values: the stage's resolved parameters. records: stage → record of the run's finished stages.
    """
    notebook, code, packages = _code_of(stage)
    if "detect" in (values.get("extra_faces"), values.get("also_faces")):
        code |= {"predict.detection": _read_module(_PACKAGE / "predict" / "detection.py")[0]}
        packages = [*packages, "mtcnn"]
    return {
        "notebook": notebook,
        "code": code,
        "parameters": counted(values),
        "inputs": _inputs(stage, values, run, records),
        "versions": {package: version(package) for package in packages},
    }


def counted(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a stage that its result depends on."""
    return {name: value for name, value in values.items() if name not in _NOT_COUNTED}


def code_of(stage: str) -> dict[str, str]:
    """Digests of the code that a stage runs: its notebook, and modules of `fer_utils`."""
    notebook, code, _ = _code_of(stage)
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
    return _hashed(json.dumps(key, sort_keys=True).encode())


def _hashed(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


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
    if path.is_file():
        size = path.stat().st_size
        if size != recorded["bytes"]:
            return f"{path.name} has {size:,} bytes of {recorded['bytes']:,}"
        return None if file_digest(path) == recorded["digest"] else f"{path.name} is not what was written to it"
    found = list(_listed(path))
    now = _outline(found)
    if now["files"] != recorded["files"] or now["bytes"] != recorded["bytes"]:
        return f"{path.name} holds {now['files']} files of {now['bytes']:,} bytes, not what was written to it"
    if now["listing"] == recorded.get("listing") or _content_digest(path, found) == recorded["digest"]:
        return None
    return f"{path.name} holds other files than those written to it"


def file_digest(path: Path) -> str:
    """The digest of a file's content."""
    content = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
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
        is_left = entry.name.startswith(".") or entry.name.lower() in files.FILE_MANAGERS
        if is_left or (entry.is_symlink() and os.path.realpath(entry.path) in above):
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
    """The number of listed files, their bytes, and a digest of names, sizes and times of change."""
    lines = "\n".join(f"{name} {about.st_size} {about.st_mtime_ns}" for name, about in found)
    n_bytes = sum(about.st_size for _, about in found)
    return {"files": len(found), "bytes": n_bytes, "listing": _hashed(os.fsencode(lines))}


def _content_digest(folder: Path, found: list[tuple[str, os.stat_result]]) -> str:
    content = hashlib.blake2b(digest_size=16)
    for name, _ in found:
        content.update(os.fsencode(name) + b"\0" + (folder / name).read_bytes())
    return content.hexdigest()


# --- inputs ------------------------------------------------------------------------------------------------------------


def _inputs(stage: str, values: Mapping, run: "Run", records: Mapping[str, dict]) -> dict[str, str]:
    if stage == "merge_split":
        found = {name: _source_digest(name, given) for name, given in finding.taken(values).items()}
        are_drawn = values["votes"] == "auto" and "demo" in found.values()  # then they follow from other parameters
        votes = "demo" if are_drawn else _if_found(file_digest, finding.find_votes, values["votes"], {})
        return found | {"votes": votes} | _extra_digests(values["extra"])
    found = {}
    for name, writer in inputs_of(stage, records).items():
        path, written = run.path(name), records.get(writer, {}).get("outputs", {})
        found[name] = file_digest(path) if path.is_file() else written.get(name, {}).get("digest", "not on record")
    for name in ("weights", "issues_file", "also_groups"):
        path = places.SHIPPED if values.get(name) == "shipped" else places.project_root() / values.get(name, "")
        if path.is_file():
            found[name] = file_digest(path)
    return found | _extra_digests(values.get("also", ""))


def _source_digest(name: str, given: str) -> str:
    return "demo" if given == "demo" else _if_found(_tree_digest, finding.find_dataset, name, given)


def _if_found(digest_of: Callable[[Path], str], find: Callable[..., Path | None], *given: Any) -> str:
    """The digest of what `find` finds."""
    try:
        path = find(*given)
    except places.NotFoundHere:
        return "not found"
    return digest_of(path) if path else "none"


def _extra_digests(given: str) -> dict[str, str]:
    """Digests of the pictures at the paths of the parameters `extra` and `also`, by their names."""
    paths = finding.extra_places(given)
    return {name: _tree_digest(path) if path.exists() else "not found" for name, path in paths.items()}


def _tree_digest(path: Path) -> str:
    """A digest of names, sizes and times of a source, since reading 70,000 pictures would take too long."""
    return _outline(list(_listed(path)) if path.is_dir() else [("", path.stat())])["listing"]


def backend() -> str:
    """The backend that Keras will choose, by its rules, without importing Keras, which takes seconds.

    Raises ParameterError for one that this project does not compute with.
    """
    file = Path(os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser()) / "keras.json"
    configured = {}
    with contextlib.suppress(OSError, ValueError):
        configured = json.loads(file.read_text(encoding="utf-8"))
    chosen = os.environ.get("KERAS_BACKEND") or configured.get("backend", "tensorflow")
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


def _code_of(stage: str) -> tuple[str, dict[str, str], list[str]]:
    """The digest of a notebook's code, digests of the modules of `fer_utils` that it imports, and imported packages."""
    file = parameters.STAGES[stage]
    source = (places.source_root() / "notebooks" / file).read_text(encoding="utf-8")
    notebook, imported = _parsed(source, frozenset(parameters.read_cell(source, file)))
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
    return notebook, dict(sorted(code.items())), sorted(versioned)


@lru_cache(maxsize=4096)  # for each key several hundred files would be looked for
def _modules_in(home: Path, dotted: str) -> tuple[tuple[str, Path], ...]:
    """The files of the package `home` that an import of a dotted name runs, by their names; none for other packages."""
    package, *parts = dotted.split(".")
    if package != home.name:
        return ()
    paths = [home.joinpath(*parts[:n]) for n in range(len(parts) + 1)]
    modules = [file for path in paths for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()]
    return tuple((".".join(file.relative_to(home).with_suffix("").parts), file) for file in modules)


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
    return _hashed(ast.unparse(_WithoutShowing(tree).visit(tree)).encode()), imported


class _WithoutShowing(ast.NodeTransformer):
    """Reduces the statements that are one expression to what may have an effect: calls, loops and conditions.

    So docstrings, values that a cell shows, and calls that print or draw are removed, but not the calls in their arguments. A
    name that the tree also binds to something else is not treated as showing.
    """

    def __init__(self, tree: ast.Module):
        shows, computes = {"print"}, {""}
        for name, dotted in imports(tree):
            (shows if dotted.split(".")[-1] in _SHOWING else computes).add(name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                computes.add(node.id)
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.arg)):
                computes.add(node.arg if isinstance(node, ast.arg) else node.name)
        self._showing = shows - computes

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        found = list(self._effects(node.value))
        return ast.Expr(ast.Tuple(found, ast.Load())) if found else None

    def _effects(self, node: ast.AST) -> Iterator[ast.expr]:
        if isinstance(node, _MAY_ACT) and not self._only_shows(node):
            yield node
        else:
            for part in ast.iter_child_nodes(node):
                yield from self._effects(part)

    def _only_shows(self, node: ast.expr) -> bool:
        if not isinstance(node, ast.Call) or any(keyword.arg == "file" for keyword in node.keywords):
            return False
        path = ast.unparse(node.func).split(".")
        is_known = path == ["stage", "show"] or path[-1] in _SHOWN_AS
        return is_known or (path[0] in self._showing and all(name.isidentifier() for name in path))


_LOOPS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_MAY_ACT = (ast.Call, ast.NamedExpr, ast.Await, ast.Yield, ast.YieldFrom, ast.BoolOp, ast.IfExp, *_LOOPS)
