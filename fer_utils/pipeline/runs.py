"""A run: its folders and how its files are named, its records, its state and scores, and its locks.

Only one process works on a run. A lock is released when its process ends. Each folder has two: `runner` is held by run_all.py
from start to end, `stage` by the process that computes a stage, in Jupyter or started by run_all.py. A kernel survives a
killed run_all.py by about a second; meanwhile its lock keeps the next run from writing to the same folder. On Kaggle a session
is alone with its folders, so no lock is taken and `filelock`, which may be missing there, is not imported.

An image folder outside the run's folder has a file that names the run. Another run does not write to it.
"""

import contextlib
import os
import platform
import reprlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_utils import files, places
from fer_utils.data import finding
from fer_utils.pipeline import keys
from fer_utils.pipeline.parameters import STAGES, ParameterError

if TYPE_CHECKING:
    from filelock import FileLock

LONGEST_NAME = 128  # bytes of a run's name: file systems hold 255 (eCryptfs 143), and files are named after runs
RUNNER, STAGE = "runner", "stage"
INTERVALS = {"accuracy": "accuracy", "macro_f1": "macro F1"}  # scores of metrics.json that have a 95 % interval
RECORDED_PACKAGES = ("tensorflow", "jax", "keras", "numpy", "albumentations", "opencv-python-headless", "pandas")
RECORDED_PACKAGES += ("scikit-learn",)
# What a record has at least.
_PARTS = {"finished": str, "seconds": (int, float), "figures": dict, "parameters": dict, "key": dict, "outputs": dict}
_SCORED = {"n", "calibration_error", *INTERVALS, *(f"{name}_interval" for name in INTERVALS)}  # of a split
_PATIENCE = 15  # seconds; an orphaned kernel checks for its parent once a second
_LOOK = 0.5  # seconds; longer than another process looks at a lock, see is_held
_OWNER = ".images_of_run.json"  # in an image folder outside the run's folder: the run whose images these are


class RunIsBusy(RuntimeError):
    """Another process works on the run."""


# --- folders and names of files ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunFolders:
    """The folders of one run: `run` has the results, `data` the image folders."""

    run: Path
    data: Path

    def path(self, name: str) -> Path:
        """A file or folder by its name in records: `model.keras` is in the run's folder, `images/VAL` in that of images.

        `run.json` describes the run: its profile and parameters. A folder with this file is a run.
        """
        return self.data / name.removeprefix("images/") if name.startswith("images/") else self.run / name

    def name_of(self, path: Path) -> str:
        """The name by which `path` gives the same path again."""
        if path.is_relative_to(self.data):
            return f"images/{path.relative_to(self.data).as_posix()}"
        return path.relative_to(self.run).as_posix()

    def figure(self, name: str) -> Path:
        """The file of a figure: confusion matrices are in the run's folder, other figures in its folder `figures`."""
        return self.path(f"{name}.png" if name.startswith("confusion_matrix_") else f"figures/{name}.png")

    def stage_record(self, stage: str) -> Path:
        """The record of a stage's last successful end."""
        return self.path(f"stages/{stage}.json")

    def checkpoint(self, stage: str) -> Path:
        """The state of an unfinished training after its last finished epoch."""
        return self.path(f"checkpoint_{stage}.npz")


def run_folders(run: str, outputs_dir: str, data_dir: str) -> RunFolders:
    """The folders of the run called `run`; relative paths start at the project's root.

    An empty `data_dir` means `<run folder>/images`. Raises ParameterError for a run name that is no plain folder name, or
    longer than LONGEST_NAME.
    """
    if not run or run != Path(run).name or run.startswith(".") or "\\" in run or not run.isprintable():
        raise ParameterError(f"run is {run!r}, expected a plain folder name such as 'demo' or 'lr_1e-3'")
    if len(os.fsencode(run)) > LONGEST_NAME:
        raise ParameterError(
            f"run is {reprlib.repr(run)} of {len(os.fsencode(run))} bytes, expected at most {LONGEST_NAME}"
        )
    folder = places.place(outputs_dir) / run
    return RunFolders(folder, _data_folder(data_dir) if data_dir else folder / "images")


def _data_folder(given: str) -> Path:
    """The folder at `given`; if it is in Kaggle's `content` and cannot be written, the folder of its name in Kaggle's `temp`."""
    folder = places.place(given)
    if places.kaggle_root() / "content" in folder.parents and not _can_be_made(folder):
        return places.kaggle_root() / "temp" / folder.name
    return folder


def _can_be_made(folder: Path) -> bool:
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def cache_folder(cache_dir: str, outputs_dir: str) -> Path:
    """The folder of cached activations that runs share: `cache_dir`, or if empty `.cache` in `outputs_dir`."""
    return places.place(cache_dir) if cache_dir else places.place(outputs_dir) / ".cache"


# --- records -----------------------------------------------------------------------------------------------------------


def one_line(figures: dict[str, Any]) -> str:
    """Key figures in one line, with thousands separators: `epochs 10, ended by last epoch`."""
    return ", ".join(
        f"{name} {value}" if isinstance(value, str) else f"{name} {value:,}" for name, value in figures.items()
    )


def describe_run(folders: RunFolders, profile: str, values: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the run's description for `run_all.py --list`: its profile and the parameters of all stages."""
    files.write_json(folders.path("run.json"), {"profile": profile, "parameters": values})


def describe_stage(folders: RunFolders, stage: str, values: Mapping[str, Any]) -> None:
    """Update the run's description with the parameters that a stage ran with."""
    described = files.read_json(folders.path("run.json"))
    if described["parameters"][stage] != values:
        describe_run(folders, described["profile"], described["parameters"] | {stage: values})


def clear_leftovers(folders: RunFolders) -> None:
    """Remove what a killed process left in the run's folder: partial files, and checkpoints of finished stages.

    Only the holder of the run's lock may call this. The executed notebooks are not touched: run_all.py writes one while
    its stage runs. A checkpoint that is not the last one of the stage's record belongs to a later training, which resumes
    from it.
    """
    below = [folder for folder in folders.run.iterdir() if folder.is_dir()] if folders.run.is_dir() else []
    for folder in {folders.run, folders.data, *below} - {folders.path("notebooks")}:
        files.remove_partials(folder)
    for stage in STAGES:
        record, checkpoint = folders.stage_record(stage), folders.checkpoint(stage)
        is_both = record.is_file() and checkpoint.is_file()
        if is_both and keys.file_digest(checkpoint) == _read_record(record).get("last_checkpoint"):
            checkpoint.unlink()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {package: keys.version(package) for package in RECORDED_PACKAGES}


def records_of(folders: RunFolders) -> dict[str, dict]:
    """The records of a run's finished stages, in stage order. Raises TornFile for a damaged record."""
    found = {stage: folders.stage_record(stage) for stage in STAGES}
    return {stage: _read_record(path) for stage, path in found.items() if path.is_file()}


def faulty_inputs(
    stage: str, folders: RunFolders, records: Mapping[str, dict], but_of: Sequence[str] = ()
) -> Iterator[tuple[Path, str, str]]:
    """Inputs of a stage that are missing, or that have changed since they were written: path, stage that writes it, fault.

    but_of: stages whose outputs do not count.
    """
    for name, writer in keys.inputs_of(stage, records).items():
        if writer in but_of:
            continue
        path, recorded = folders.path(name), records.get(writer, {}).get("outputs", {}).get(name)
        fault = keys.damage(path, recorded) if recorded else None if path.exists() else f"{path.name} is missing"
        if fault:
            yield path, writer, fault


def require_scored(folders: RunFolders) -> None:
    """Raise NotFoundHere unless the run's scores are those of its model's file."""
    evaluated = keys.current(records_of(folders)).get("evaluate")
    scored = evaluated["key"]["inputs"].get("model.keras") if evaluated else None
    model = folders.path("model.keras")
    if scored is None or not model.is_file() or keys.file_digest(model) != scored:
        raise places.NotFoundHere(
            f"{folders.path('metrics.json')} does not hold the scores of {model}: finish the run first (`python run_all.py "
            f"--run {folders.run.name}` with its --params and -p)"
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


# --- state and scores --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """The content of a run's folder: of the stages that count, see keys.current.

    `metrics` is None unless `evaluate` scored the model that the run has now.
    """

    name: str
    folders: RunFolders
    profile: str
    parameters: dict[str, dict[str, Any]]
    records: dict[str, dict]
    metrics: dict | None

    @property
    def state(self) -> str:
        """`done`, `running`, or the stage before which it stopped."""
        if is_held(self.folders):
            return "running"
        missing = [stage for stage in STAGES if stage not in self.records]
        return f"stopped before {missing[0]}" if missing else "done"

    @property
    def finished(self) -> str:
        """The end of its last stage, ISO 8601 in UTC; empty if no stage has ended."""
        return max((record["finished"] for record in self.records.values()), default="")

    @property
    def seconds(self) -> float:
        """The total seconds of its stages."""
        return sum(record["seconds"] for record in self.records.values())


def read(folder: Path) -> Run:
    """Read a run's folder. Raises TornFile, naming the file, if one is damaged."""
    description = files.read_json(folder / "run.json")
    try:
        profile, values = description["profile"], description["parameters"]
        data_dir = [values[stage]["data_dir"] for stage in STAGES][-1]
        if not isinstance(profile, str):
            raise TypeError("the name of a profile")
        folders = run_folders(folder.name, str(folder.parent.absolute()), data_dir)
    except (KeyError, TypeError) as error:
        raise files.TornFile(
            f"{folder / 'run.json'} lacks {error}: start this run again, or delete its folder"
        ) from error
    except ParameterError as error:
        raise files.TornFile(f"{error}: rename this folder in {folder.parent}") from error
    found = keys.current(records_of(folders))
    metrics = _read_metrics(folders.path("metrics.json")) if "evaluate" in found else None
    return Run(folder.name, folders, profile, values, found, metrics)


def _read_metrics(path: Path) -> dict:
    metrics = files.read_json(path)
    is_whole = isinstance(metrics, dict) and {"leakage", "run"} <= set(metrics)
    if not is_whole or not all(set(metrics.get(split) or ()) >= _SCORED for split in ("val", "test")):
        raise files.TornFile(f"{path} holds no metrics of a run: run its stage again with --only evaluate")
    return metrics


def find(outputs: Path, names: Sequence[str]) -> list[Run]:
    """The runs with these names. Raises NotFoundHere, listing the known names, for an unknown one."""
    known = [file.parent.name for file in sorted(outputs.glob("*/run.json"))]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise places.NotFoundHere(
            f"{outputs} has no run {', '.join(map(printable, unknown))}; runs there: "
            f"{', '.join(map(printable, known)) or 'none'}"
        )
    return [read(outputs / name) for name in names]


def printable(name: str) -> str:
    """The name of a folder as a terminal may show it: quoted and escaped if it has line breaks or control characters."""
    return name if name.isprintable() else ascii(name)


# --- locks -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def held_by_runner(folders: RunFolders) -> Iterator[None]:
    """Lock the run, and its image folder if that is elsewhere, for the block.

    Raises RunIsBusy if another run_all.py holds it, or if a notebook computes in it and does not end soon; OutputError for
    a folder that is no run's, or another run's.
    """
    require_own(folders)
    with contextlib.ExitStack() as stack:
        for lock in _locks(folders, RUNNER):
            stack.callback(_acquired(lock, _LOOK).release)
        for lock in _locks(folders, STAGE):
            _acquired(lock, _PATIENCE).release()
        _mark(folders)
        yield


def hold_for_stage(folders: RunFolders) -> "list[FileLock]":
    """Lock the run for a stage that this process computes, until the returned locks are released or the process ends.

    The same process may take the locks again, as a notebook that runs twice does. Raises as held_by_runner does.
    """
    require_own(folders)
    locks = [_acquired(lock, _PATIENCE) for lock in _locks(folders, STAGE)]
    _mark(folders)
    return locks


def require_own(folders: RunFolders) -> None:
    """Raise OutputError if the run's folder holds something and no run, or if the image folder is another run's."""
    held = {path.name for path in folders.run.glob("[!.]*")}
    if held and not {"run.json", "stages"} & held:
        raise files.OutputError(f"{folders.run} is no run: it holds {min(held)}. Choose another --run or --outputs-dir")
    owner = _owner(folders.data.resolve())
    if owner and owner != folders.run.resolve():
        raise files.OutputError(
            f"{folders.data} belongs to the run {owner.name} ({owner}): choose another data_dir, or leave it empty"
        )


def require_own_images(folders: RunFolders, stage: str) -> None:
    """Raise OutputError if an image folder that the stage replaces holds what this project did not write.

    Earlier versions left no lists in these folders. In the run's own folder, one without a list is taken for theirs.
    """
    require_own(folders)
    written = {name for inputs in keys.INPUTS.values() for name, writer in inputs.items() if writer == stage}
    names = [name for name in sorted(written) if name.startswith("images/")]
    for name in [*names, *([f"images/{finding.DRAWN}"] if stage == "merge_split" else [])]:
        path = folders.path(name)
        is_inside = path.is_dir() and path.resolve().is_relative_to(folders.run.resolve())
        if is_inside and not path.is_symlink() and not (path / files.WRITTEN).exists():
            files.note_written(path)
        files.require_own(path)


def _owner(data: Path) -> Path | None:
    """The run that an image folder lies in, or that its mark names, if that is still there."""
    marked = [Path(files.read_json(data / _OWNER)["run"])] if (data / _OWNER).is_file() else []
    return next((run for run in (data, *data.parents[:2], *marked) if (run / "run.json").is_file()), None)


def _mark(folders: RunFolders) -> None:
    if not folders.data.is_relative_to(folders.run):
        files.write_json(folders.data / _OWNER, {"run": str(folders.run.resolve())})


def _locks(folders: RunFolders, kind: str) -> "list[FileLock]":
    if places.on_kaggle():
        return []
    from filelock import FileLock

    locked = [folders.run] if folders.data.is_relative_to(folders.run) else [folders.run, folders.data]
    return [FileLock(place / f".{kind}.lock", is_singleton=True) for place in locked]


def _acquired(lock: "FileLock", seconds: float) -> "FileLock":
    from filelock import Timeout

    place = Path(lock.lock_file).parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=seconds)
    except Timeout:
        raise RunIsBusy(
            f"{place}: another process works on this run ({lock.lock_file} is held). Wait for it, end it (a notebook: "
            "shut its kernel down), or give this run another name with --run"
        ) from None
    except OSError as error:
        raise files.explained(error, place) from error
    return lock


def is_held(folders: RunFolders) -> bool:
    """Whether a process works on the run now. Nothing is written, so that runs can be looked at in a read-only folder."""
    return any(_is_held(lock) for kind in (RUNNER, STAGE) for lock in _locks(folders, kind))


def _is_held(lock: "FileLock") -> bool:
    """Whether a lock cannot be shared. It is shared for a moment; who wants it then waits, at most _LOOK seconds."""
    from filelock import Timeout

    file = Path(lock.lock_file)
    try:
        if sys.platform == "win32":  # it knows no shared locks
            if file.exists():
                with lock.acquire(timeout=0):
                    pass
        else:
            import fcntl

            with file.open("rb") as opened:
                fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (Timeout, BlockingIOError):
        return True
    except OSError:  # there is none, or it cannot be opened here
        return False
    return False
