"""Reads and writes a run's records: its description, and the parameters and outputs of each finished stage."""

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer_utils import files, places
from fer_utils.pipeline import keys, parameters, paths

RECORDED_PACKAGES = (
    "tensorflow",
    "jax",
    "keras",
    "numpy",
    "albumentations",
    "opencv-python-headless",
    "pandas",
    "scikit-learn",
)
# What a record has at least.
_PARTS = {"finished": str, "seconds": (int, float), "figures": dict, "parameters": dict, "key": dict, "outputs": dict}


def one_line(figures: dict[str, Any]) -> str:
    """Key figures in one line, with thousands separators: `epochs 10, ended by last epoch`."""
    return ", ".join(
        f"{name} {value}" if isinstance(value, str) else f"{name} {value:,}" for name, value in figures.items()
    )


def describe_run(folders: paths.RunFolders, profile: str, values: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the run's description for `run_all.py --list`: its profile and the parameters of all stages."""
    files.write_json(folders.description, {"profile": profile, "parameters": values})


def describe_stage(folders: paths.RunFolders, stage: str, values: Mapping[str, Any]) -> None:
    """Update the run's description with the parameters that a stage ran with."""
    described = files.read_json(folders.description)
    if described["parameters"][stage] != values:
        describe_run(folders, described["profile"], described["parameters"] | {stage: values})


def clear_leftovers(folders: paths.RunFolders) -> None:
    """Remove what a killed process left in the run's folder: partial files, and checkpoints of finished stages.

    Only the holder of the run's lock may call this. The executed notebooks are not touched: run_all.py writes one while
    its stage runs. A checkpoint that is not the last one of the stage's record belongs to a later training, which resumes
    from it.
    """
    below = [folder for folder in folders.run.iterdir() if folder.is_dir()] if folders.run.is_dir() else []
    for folder in {folders.run, folders.data, *below} - {folders.notebooks}:
        files.remove_partials(folder)
    for stage in parameters.STAGES:
        record, checkpoint = folders.stage_record(stage), folders.checkpoint(stage)
        is_both = record.is_file() and checkpoint.is_file()
        if is_both and keys.file_digest(checkpoint) == _read_record(record).get("last_checkpoint"):
            checkpoint.unlink()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def read(folders: paths.RunFolders) -> dict[str, dict]:
    """The records of a run's finished stages, in stage order. Raises TornFile for a damaged record."""
    found = {stage: folders.stage_record(stage) for stage in parameters.STAGES}
    return {stage: _read_record(path) for stage, path in found.items() if path.is_file()}


def require_scored(folders: paths.RunFolders) -> None:
    """Raise NotFoundHere unless the run's scores are those of its model's file."""
    evaluated = keys.current(read(folders)).get("evaluate")
    scored = evaluated["key"]["inputs"].get("model.keras") if evaluated else None
    if scored is None or not folders.model.is_file() or keys.file_digest(folders.model) != scored:
        raise places.NotFoundHere(
            f"{folders.metrics} does not hold the scores of {folders.model}: finish the run first (`python run_all.py --run "
            f"{folders.run.name}` with its --params and -p)"
        )


def _read_record(path: Path) -> dict:
    record = files.read_json(path)
    is_whole = isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in _PARTS.items())
    if not is_whole or not isinstance(record["key"].get("inputs"), dict):
        raise files.TornFile(f"{path} is no record of a stage: remove it, and its stage runs again")
    outside = [name for name in record["outputs"] if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise files.TornFile(f"{path} names the output {outside[0]!r}: remove it, and its stage runs again")
    return record
