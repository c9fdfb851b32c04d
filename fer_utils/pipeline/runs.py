"""A run: its folders and the names of its files, its records, its state and scores, and its locks.

Only one process works on a run. Each folder has two locks, which end with their process: `runner` is held by run_all.py from
start to end, `stage` by the process that computes a stage, in Jupyter or started by run_all.py. A kernel survives a killed
run_all.py by about a second; meanwhile its lock keeps the next run from writing to the same folder.
"""

import contextlib
import os
import platform
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_utils import digests, files, places
from fer_utils.data import finding
from fer_utils.pipeline import keys
from fer_utils.pipeline.parameters import STAGES, ParameterError

if TYPE_CHECKING:
    from filelock import BaseFileLock

LONGEST_NAME = 128  # bytes of a run's name: file systems hold 255 (eCryptfs 143), and files are named after runs
INTERVALS = {"accuracy": "accuracy", "macro_f1": "macro F1"}  # scores of metrics.json that have a 95 % interval
# What the files of a run have at least, and of which type.
_DESCRIPTION: dict[str, Any] = {"profile": str, "parameters": dict}
_DESCRIPTION |= {f"parameters.{stage}.data_dir": str for stage in STAGES}
_RECORD: dict[str, Any] = {"finished": str, "seconds": (int, float), "figures": dict, "parameters": dict}
_RECORD |= {"key.inputs": dict, "outputs": dict}
_METRICS: dict[str, Any] = {"leakage": dict, "run": dict}
_NUMBERS = ("n", "calibration_error", *INTERVALS)
_METRICS |= {f"{split}.{name}": (int, float) for split in ("val", "test") for name in _NUMBERS}
_METRICS |= {f"{split}.{name}_interval": list for split in ("val", "test") for name in INTERVALS}
# The two kinds of locks → seconds to wait for one. An orphaned kernel checks for its parent once a second.
_PATIENCE = {"runner": 0.5, "stage": 15.0}
_OWNER = ".images_of_run.json"  # in an image folder outside the run's folder: the run whose images these are


class RunIsBusy(RuntimeError):
    """Another process works on the run."""


@dataclass(frozen=True)
class Run:
    """A run: `folder` has its results, `data` its image folders. `read` also gives its profile and the stages' parameters."""

    folder: Path
    data: Path
    profile: str = field(default="none", compare=False)
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return self.folder.name

    def path(self, name: str) -> Path:
        """A file or folder by its name in records: `model.keras` is in the run's folder, `images/VAL` in that of images."""
        return self.data / name.removeprefix("images/") if name.startswith("images/") else self.folder / name

    def name_of(self, path: Path) -> str:
        """The name for which `path` returns this path."""
        if path.is_relative_to(self.data):
            return f"images/{path.relative_to(self.data).as_posix()}"
        return path.relative_to(self.folder).as_posix()

    def figure(self, name: str) -> Path:
        """The file of a figure: confusion matrices are in the run's folder, other figures in its folder `figures`."""
        return self.path(f"{name}.png" if name.startswith("confusion_matrix_") else f"figures/{name}.png")

    def stage_record(self, stage: str) -> Path:
        """The record of a stage's last successful end."""
        return self.path(f"stages/{stage}.json")

    def checkpoint(self, stage: str) -> Path:
        """The state of an unfinished training after its last finished epoch."""
        return self.path(f"checkpoint_{stage}.npz")

    def describe(self, profile: str, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Write `run.json`, by which a folder is known as a run: its profile and the parameters of all stages."""
        files.write_json(self.path("run.json"), {"profile": profile, "parameters": values})

    def all_records(self) -> dict[str, dict]:
        """The records of the finished stages as they are now, in stage order. Raises TornFile for a damaged record."""
        found, way_out = {}, "remove it, and its stage runs again"
        for stage, path in ((stage, self.stage_record(stage)) for stage in STAGES):
            if path.is_file():
                found[stage] = _read(path, _RECORD, way_out)
                for name in found[stage]["outputs"]:
                    if Path(name).is_absolute() or ".." in Path(name).parts:
                        raise files.TornFile(f"{path} names the output {name!r}: {way_out}")
        return found

    @cached_property
    def records(self) -> dict[str, dict]:
        """The records that count: see keys.current."""
        return keys.current(self.all_records())

    @cached_property
    def metrics(self) -> dict[str, Any] | None:
        """The scores; None unless `evaluate` scored the model that the run has now."""
        if "evaluate" not in self.records:
            return None
        return _read(self.path("metrics.json"), _METRICS, "run its stage again with --only evaluate")

    @property
    def seconds(self) -> float:
        """What the stages took together."""
        return sum(record["seconds"] for record in self.records.values())

    @property
    def state(self) -> str:
        """`done`, or the stage that comes next, such as `next: balance`."""
        return next((f"next: {stage}" for stage in STAGES if stage not in self.records), "done")

    def clear_leftovers(self) -> None:
        """Remove the partial files that a killed process left, for the holder of the run's lock.

        Executed notebooks are not touched: run_all.py writes one while its stage runs.
        """
        below = [folder for folder in self.folder.iterdir() if folder.is_dir()] if self.folder.is_dir() else []
        for folder in {self.folder, self.data, *below} - {self.path("notebooks")}:
            files.remove_partials(folder)

    @contextlib.contextmanager
    def held_by_runner(self) -> Iterator[None]:
        """Hold the run for the block, when no notebook computes in it any more. Raises as hold does."""
        with contextlib.ExitStack() as stack:
            for lock in self.hold("runner"):
                stack.callback(lock.release)
            for lock in self.hold():
                lock.release()
            yield

    def hold(self, kind: str = "stage") -> "list[BaseFileLock]":
        """Lock the run, and its image folder if that is elsewhere, until the returned locks are released or the process ends.

        The same process may take the locks again, as a notebook that runs twice does. Raises RunIsBusy if another process
        keeps them; OutputError for a folder that is no run's, or another run's.
        """
        self._require_own()
        is_elsewhere, locks = not self.data.is_relative_to(self.folder), []
        for folder in [self.folder, self.data] if is_elsewhere else [self.folder]:
            file = folder / f".{kind}.lock"
            try:
                locks.append(files.acquired(file, _PATIENCE[kind]))
            except TimeoutError:
                raise RunIsBusy(
                    f"{folder}: another process works on this run ({file} is held). Wait for it, end it (a notebook: "
                    "shut its kernel down), or give this run another name with --run"
                ) from None
        if is_elsewhere:
            files.write_json(self.data / _OWNER, {"run": str(self.folder.resolve())})
        return [lock for lock in locks if lock]

    def _require_own(self) -> None:
        """Raise OutputError if the run's folder holds something and no run, or if the image folder is another run's."""
        held = {path.name for path in self.folder.glob("[!.]*")}
        if held and not {"run.json", "stages"} & held:
            found = f"{self.folder} is no run: it holds {min(held)}"
            raise files.OutputError(f"{found}. Choose another --run or --outputs-dir")
        data = self.data.resolve()
        marked = [Path(files.read_json(data / _OWNER)["run"])] if (data / _OWNER).is_file() else []
        owner = next((run for run in (data, *data.parents[:2], *marked) if (run / "run.json").is_file()), None)
        if owner and owner != self.folder.resolve():
            found = f"{self.data} belongs to the run {owner.name} ({owner})"
            raise files.OutputError(f"{found}: choose another data_dir, or leave it empty")

    def require_own_images(self, stage: str) -> None:
        """Raise OutputError if an image folder that the stage replaces holds what this project did not write."""
        self._require_own()
        names = {name for inputs in keys.INPUTS.values() for name, writer in inputs.items() if writer == stage}
        names |= {f"images/{finding.DRAWN}"} if stage == "merge_split" else set()
        for name in sorted(name for name in names if name.startswith("images/")):
            files.require_own(self.path(name))


def run_named(name: str, outputs_dir: str, data_dir: str) -> Run:
    """The run of this name; relative paths start at the project's root.

    An empty `data_dir` means `<run folder>/images`. For a folder in Kaggle's `content` that cannot be made, the images are in
    Kaggle's `temp`. Raises ParameterError for a name that is no plain folder name, or longer than LONGEST_NAME.
    """
    if not name or name != Path(name).name or name.startswith(".") or "\\" in name or not name.isprintable():
        raise ParameterError(f"run is {name!r}, expected a plain folder name such as 'demo' or 'lr_1e-3'")
    if (size := len(os.fsencode(name))) > LONGEST_NAME:
        raise ParameterError(f"run is {reprlib.repr(name)} of {size} bytes, expected at most {LONGEST_NAME}")
    folder, kaggle = places.place(outputs_dir) / name, places.kaggle_root()
    data = places.place(data_dir) if data_dir else folder / "images"
    if kaggle / "content" in data.parents:
        nearest = next(path for path in (data, *data.parents) if path.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            data = kaggle / "temp" / data.name
    return Run(folder, data)


def description(folder: Path, needed: Mapping[str, Any]) -> dict[str, Any]:
    """A run's description: its profile, and the parameters of all stages. Raises TornFile if it lacks what is needed."""
    return _read(folder / "run.json", needed, "start this run again, or delete its folder")


def read(folder: Path) -> Run:
    """Read a run's folder. Raises TornFile, naming the file, if one is damaged."""
    described = description(folder, _DESCRIPTION)
    try:
        run = run_named(folder.name, str(folder.parent.absolute()), described["parameters"]["evaluate"]["data_dir"])
    except ParameterError as error:
        raise files.TornFile(f"{error}: rename this folder in {folder.parent}") from error
    run = replace(run, profile=described["profile"], parameters=described["parameters"])
    _ = run.metrics  # read now, so that a fault is raised here
    return run


def find(outputs: Path, names: Sequence[str]) -> list[Run]:
    """The runs with these names. Raises NotFoundHere, listing the known names, for an unknown one."""
    known = [file.parent.name for file in sorted(outputs.glob("*/run.json"))]
    unknown = [name for name in names if name not in known]
    if unknown:
        there = ", ".join(map(repr, known)) or "none"
        raise places.NotFoundHere(f"{outputs} has no run {', '.join(map(repr, unknown))}; runs there: {there}")
    return [read(outputs / name) for name in names]


def require_scored(run: Run) -> None:
    """Raise NotFoundHere unless the run's scores are those of its model's file."""
    evaluated, model = keys.current(run.all_records()).get("evaluate"), run.path("model.keras")
    if not evaluated or not model.is_file() or evaluated["key"]["inputs"].get("model.keras") != digests.of_file(model):
        finish = f"finish the run first (`python run_all.py --run {run.name}` with its --params and -p)"
        raise places.NotFoundHere(f"{run.path('metrics.json')} does not hold the scores of {model}: {finish}")


def _read(path: Path, needed: Mapping[str, Any], way_out: str) -> dict[str, Any]:
    """The content of a JSON file. Raises TornFile unless it has values of these types; `key.inputs` is `inputs` in `key`."""
    content = files.read_json(path)
    for name, kind in needed.items():
        value = content
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, kind):
            raise files.TornFile(f"{path} lacks {name!r}: {way_out}")
    return content


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    installed = {package: keys.version(package) for package in keys.PACKAGES.values()}
    return {"python": platform.python_version()} | installed


def one_line(figures: Mapping[str, Any]) -> str:
    """Key figures in one line, with thousands separators: `epochs 10, ended by last epoch`."""
    return ", ".join(f"{name} {value if isinstance(value, str) else f'{value:,}'}" for name, value in figures.items())
