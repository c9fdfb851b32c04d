"""What a stage's result follows from, and whether its outputs are still there as they were written.

A key names the notebook's code, the definitions of `fer_utils` that it reaches, its parameters, its inputs and the
versions of the packages that compute. Comments, docstrings, prose and layout are no part of it, nor is code that only
says where things lie. Knows nothing of how a stage is run.
"""

import ast
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from fer_utils import parameters, paths

# What each stage reads: the output's name → the stage that writes it.
INPUTS = {
    "merge_split": {},
    "balance": {"manifest.csv": "merge_split", "images/TRAIN": "merge_split"},
    "train_head": {
        "manifest.csv": "merge_split",
        "images/VAL": "merge_split",
        "balanced.csv": "balance",
        "images/TRAIN_BALANCED": "balance",
    },
    "fine_tune": {
        "manifest.csv": "merge_split",
        "images/VAL": "merge_split",
        "balanced.csv": "balance",
        "images/TRAIN_BALANCED": "balance",
        "head.weights.h5": "train_head",
        "history_head.csv": "train_head",
        "trained_head.csv": "train_head",
    },
    "evaluate": {
        "manifest.csv": "merge_split",
        "leakage.json": "merge_split",
        "images/VAL": "merge_split",
        "images/TEST": "merge_split",
        "model.keras": "fine_tune",
        "trained.csv": "fine_tune",
    },
}

# Parameters that say where or how fast, not what. What the sources hold is an input.
_NOT_COUNTED = {"profile", "run", "outputs_dir", "data_dir", "workers", "cache", "cache_dir", *paths.DATASETS}

# Modules that find, check, put in place and record, and compute nothing that a stage writes.
_PLUMBING = {"checkpoint", "files", "parameters", "paths", "progress", "run_lock", "stage_keys", "stages"}

# Packages whose version can change a result: import name → distribution.
_PACKAGES = {
    "PIL": "pillow",
    "albumentations": "albumentations",
    "cv2": "opencv-python-headless",
    "keras": "keras",
    "numpy": "numpy",
    "pandas": "pandas",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "tensorflow": "tensorflow",
}

_PACKAGE = Path(__file__).resolve().parent
_HASHED_AT_ONCE = 1 << 20


def key_of(stage: str, values: Mapping[str, Any], folders: paths.RunFolders, records: Mapping[str, dict]) -> dict:
    """The key of a stage as it would run now: notebook, code, parameters, inputs, versions, each name → digest or value.

    values: the stage's resolved parameters. records: what the run's finished stages recorded, by stage.
    """
    notebook, code, packages = _code_of(paths.source_root() / "notebooks" / parameters.STAGES[stage])
    return {
        "notebook": notebook,
        "code": code,
        "parameters": {name: value for name, value in values.items() if name not in _NOT_COUNTED},
        "inputs": _inputs(stage, values, folders, records),
        "versions": {package: _version(package) for package in packages},
    }


def digest(key: Mapping[str, Any]) -> str:
    """A short name of a key, equal for equal keys."""
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two keys, in words; empty where nothing does."""
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


def output_name(path: Path, folders: paths.RunFolders) -> str:
    """How a record names an output: `images/...` below the image folder, else relative to the run's folder."""
    if path.is_relative_to(folders.data):
        return f"images/{path.relative_to(folders.data).as_posix()}"
    return path.relative_to(folders.run).as_posix()


def output_path(name: str, folders: paths.RunFolders) -> Path:
    """The place of an output that a record names."""
    return folders.data / name.removeprefix("images/") if name.startswith("images/") else folders.run / name


def describe(path: Path) -> dict[str, Any]:
    """What an output holds: files, bytes and the digest of all content; of a folder also the digest of names and sizes."""
    if path.is_dir():
        found = list(_listed(path))
        content = hashlib.blake2b(digest_size=16)
        for name, _ in found:
            content.update(name.encode() + b"\0" + (path / name).read_bytes())
        return {**_outline(found), "digest": content.hexdigest()}
    return {"files": 1, "bytes": path.stat().st_size, "digest": file_digest(path)}


def damage(path: Path, recorded: Mapping[str, Any]) -> str | None:
    """What is wrong with an output on record, in words, or None.

    A file is read whole; of a folder names and sizes are compared, so that a hundred thousand pictures take a second.
    """
    if not path.exists():
        return f"{path.name} is gone"
    if path.is_dir():
        now = _outline(list(_listed(path)))
        if now != {name: recorded.get(name) for name in now}:
            return f"{path.name} holds {now['files']} files of {now['bytes']:,} bytes, not what was written to it"
        return None
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


def _listed(folder: Path, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Every file below a folder, by name, with its stat."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir():
            yield from _listed(Path(entry.path), f"{below}{entry.name}/")
        else:
            yield below + entry.name, entry.stat()


def _outline(found: list[tuple[str, os.stat_result]]) -> dict[str, Any]:
    lines = "\n".join(f"{name} {stat.st_size}" for name, stat in found)
    return {
        "files": len(found),
        "bytes": sum(stat.st_size for _, stat in found),
        "names_and_sizes": hashlib.blake2b(lines.encode(), digest_size=16).hexdigest(),
    }


# --- inputs ------------------------------------------------------------------------------------------------------------


def _inputs(stage: str, values: Mapping, folders: paths.RunFolders, records: Mapping[str, dict]) -> dict[str, str]:
    if stage == "merge_split":
        return {name: _source_digest(name, values[name]) for name in paths.DATASETS}
    found = {}
    for name, writer in INPUTS[stage].items():
        path = output_path(name, folders)
        if path.is_file():
            found[name] = file_digest(path)
        else:
            found[name] = records.get(writer, {}).get("outputs", {}).get(name, {}).get("digest", "not on record")
    weights = paths.project_root() / values.get("weights", "")
    if weights.is_file():
        found["weights"] = file_digest(weights)
    return found


def _source_digest(name: str, given: str) -> str:
    """Names, sizes and times of a source dataset: reading 70,000 pictures to see whether they changed would take longer."""
    if given == "demo":
        return "demo"
    try:
        path = paths.find_dataset(name, given)
    except paths.NotFoundHere:
        return "not found"
    found = list(_listed(path)) if path.is_dir() else [("", path.stat())]
    lines = "\n".join(f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in found)
    return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()


@lru_cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# --- code --------------------------------------------------------------------------------------------------------------

_ALL = "*"  # stands for every definition of a module
_BODY = ""  # stands for what a module does at import, outside its definitions


@dataclass
class _Module:
    """A module's code: its definitions by name, what stands outside them, and what its imported names mean."""

    name: str
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    body: list[ast.stmt] = field(default_factory=list)
    modules: dict[str, str] = field(default_factory=dict)  # local name → module of fer_utils
    members: dict[str, tuple[str, str]] = field(default_factory=dict)  # local name → (module of fer_utils, its name)
    packages: dict[str, str] = field(default_factory=dict)  # local name → top-level package


def _code_of(notebook: Path) -> tuple[str, dict[str, str], list[str]]:
    """Digest of a notebook's code, digests of the definitions of `fer_utils` that it reaches, packages that they use."""
    if not notebook.is_file():
        return "not at hand", {}, []
    source = notebook.read_text(encoding="utf-8")
    declared = set(parameters.read_cell(source, notebook.name))
    tree = _without_docstrings(ast.parse(source, str(notebook)))
    statements = [node for node in tree.body if not (isinstance(node, ast.AnnAssign) and _defined(node) <= declared)]
    uses, packages = _uses(statements, _module("", statements))
    uses.add(("__init__", _BODY))
    code: dict[str, str] = {}
    while uses:
        home, name = uses.pop()
        if home in _PLUMBING or f"{home}.{name}" in code:
            continue
        module = _read_module(_PACKAGE / f"{home}.py")
        if name in module.members:
            uses.add(module.members[name])
            continue
        found = {_ALL: [], _BODY: module.body}.get(name) or module.definitions.get(name, [])
        code[f"{home}.{name}"] = _digest(found)
        more, used_packages = _uses(found, module)
        packages |= used_packages
        uses |= more | {(home, _BODY)} | ({(home, each) for each in module.definitions} if name == _ALL else set())
    named = {name.rstrip("."): value for name, value in sorted(code.items()) if not name.endswith(_ALL)}
    return _digest(statements), named, sorted({_PACKAGES[name] for name in packages & set(_PACKAGES)})


@lru_cache
def _read_module(path: Path) -> _Module:
    return _module(path.stem, _without_docstrings(ast.parse(path.read_text(encoding="utf-8"), str(path))).body)


def _module(name: str, statements: list[ast.stmt]) -> _Module:
    module = _Module(name)
    for statement in statements:
        for node in ast.walk(statement):  # also imports inside functions
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                _note_import(node, module)
        for defined in _defined(statement):
            module.definitions.setdefault(defined, []).append(statement)
        if not _defined(statement) and not isinstance(statement, (ast.Import, ast.ImportFrom)):
            module.body.append(statement)
    return module


def _note_import(node: ast.Import | ast.ImportFrom, module: _Module) -> None:
    origin = getattr(node, "module", None) or ""
    for alias in node.names:
        local = alias.asname or alias.name.split(".")[0]
        if origin == _PACKAGE.name:
            module.modules[local] = alias.name
        elif origin.startswith(f"{_PACKAGE.name}."):
            module.members[local] = (origin.split(".", 1)[1], alias.name)
        else:
            module.packages[local] = (origin or alias.name).split(".")[0]


def _defined(statement: ast.stmt) -> set[str]:
    """The names that a top-level statement defines."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {statement.name}
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    else:
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else []
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}


def _uses(statements: list[ast.stmt], module: _Module) -> tuple[set[tuple[str, str]], set[str]]:
    """What the statements, standing in `module`, use: (module of fer_utils, name) of definitions, and packages."""
    uses, packages = set(), set()
    waiting: list[ast.AST] = list(statements)
    while waiting:
        node = waiting.pop()
        is_attribute = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if is_attribute and node.value.id in module.modules:
            uses.add((module.modules[node.value.id], node.attr))
            continue
        if isinstance(node, ast.Name):
            if node.id in module.modules:
                uses.add((module.modules[node.id], _ALL))
            if node.id in module.members:
                uses.add(module.members[node.id])
            if node.id in module.packages:
                packages.add(module.packages[node.id])
            if node.id in module.definitions and module.name:
                uses.add((module.name, node.id))
        waiting += ast.iter_child_nodes(node)
    return uses, packages


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree


def _digest(statements: list[ast.stmt]) -> str:
    text = "\n".join(ast.unparse(statement) for statement in statements)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
