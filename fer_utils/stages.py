"""Begins and ends a stage: checks its parameters, finds and locks its folders, records what it did.

Knows what every notebook does first and last; knows nothing of what a stage computes.
"""

import importlib.metadata
import platform
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fer_utils import files, parameters, paths, run_lock, stage_keys

KERNEL_BEGAN = time.monotonic()  # seconds; every notebook imports this module in its setup

RECORDED_PACKAGES = (
    "tensorflow",
    "keras",
    "numpy",
    "albumentations",
    "opencv-python-headless",
    "pandas",
    "scikit-learn",
)


@dataclass
class Stage:
    """A stage under way: its name, resolved parameters, the run's folders, its key, the locks it holds, when it began."""

    name: str
    parameters: dict[str, Any]
    folders: paths.RunFolders
    key: dict[str, Any]
    locks: list
    began: float = field(default_factory=time.monotonic)
    _first_output: int = field(default_factory=lambda: len(files.placed))

    def require(self, *needed: Path) -> None:
        """Raise NotFoundHere, naming the stage to run first, unless all these files and folders are there.

        Raises TornFile, naming it, for one that is not as the stage that wrote it left it.
        """
        written = {}
        for name, record in records(self.folders).items():
            written |= {output: (name, found) for output, found in record["outputs"].items()}
        for path in needed:
            if not path.exists():
                earlier = list(parameters.STAGES.values())[: list(parameters.STAGES).index(self.name)]
                raise paths.NotFoundHere(
                    f"{self.name}: {path} is missing; run the notebooks before it first ({', '.join(earlier)}), with the "
                    f"same `run` and `data_dir`, or `python run_all.py --run {self.folders.run.name}`"
                )
            writer, found = written.get(stage_keys.output_name(path, self.folders), (None, None))
            damage = stage_keys.damage(path, found) if writer else None
            if damage:
                raise files.TornFile(f"{path}: {damage}; run {writer} again, or run_all.py, which sees that by itself")

    @property
    def key_digest(self) -> str:
        """A short name of what the stage's result follows from."""
        return stage_keys.digest(self.key)

    def _is_own(self, path: Path) -> bool:
        return path.is_relative_to(self.folders.run) or path.is_relative_to(self.folders.data)

    def seconds(self) -> float:
        """Seconds since the stage began."""
        return round(time.monotonic() - self.began, 1)

    def finish(self, outputs: Sequence[Path], figures: dict[str, Any]) -> None:
        """Check that the stage's outputs are there, and record them, its key, parameters, seconds and key figures.

        On record stands all that the stage wrote, figures and tables too, not the outputs alone.
        """
        missing = [str(path) for path in outputs if not path.exists()]
        if missing:
            raise paths.NotFoundHere(f"{self.name} ended without writing {', '.join(missing)}")
        checkpoint = self.folders.checkpoint(self.name)
        own = [path for path in files.placed[self._first_output :] if self._is_own(path)]
        written = {*outputs, *own} - {checkpoint}
        seconds = self.seconds()
        record = {
            "stage": self.name,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": seconds,
            "figures": figures,
            "parameters": self.parameters,
            "versions": versions(),
            "key": self.key,
            "outputs": {
                stage_keys.output_name(path, self.folders): stage_keys.describe(path)
                for path in sorted(written)
                if path.exists()
            },
        }
        files.write_json(self.folders.stage_record(self.name), record)
        checkpoint.unlink(missing_ok=True)
        for lock in self.locks:
            lock.release(force=True)  # however often this process began the stage
        print(f"{self.name} done in {seconds} s: {one_line(figures)}")


def one_line(figures: dict[str, Any]) -> str:
    """Key figures in one line, thousands apart: `epochs 10, ended by last epoch`."""
    return ", ".join(
        f"{name} {value}" if isinstance(value, str) else f"{name} {value:,}" for name, value in figures.items()
    )


def begin(stage: str, namespace: MutableMapping[str, Any]) -> Stage:
    """Begin a stage in a notebook: `stage = begin("balance", globals())`.

    Where `profile` is `none` the notebook's variables are taken as they are: run_all.py has injected them. Else the
    profile's values are put into `namespace` first, as run_all.py would, and every change is printed; `auto` stands for
    the profile that suits this machine. Every value is checked against the parameters cell in the notebook's source.
    Prints the resolved parameters and folders. From here to its end the stage has no record, and no other process may
    work in the run's folder: raises RunIsBusy where one does.
    """
    profile = namespace["profile"]
    source = paths.source_root() / "notebooks" / parameters.STAGES[stage]
    own = parameters.read_cell(source.read_text(encoding="utf-8"), source.name)
    given = {name: namespace[name] for name in own}
    layers = [("this notebook", {stage: given})]
    if profile != "none":
        layers.append(_profile_layer(stage, profile, own))
    values = parameters.resolve({stage: own}, layers)[stage]
    for name, value in values.items():
        if value != given[name]:
            print(f"{name} = {value!r} from {layers[-1][0]} (the cell above says {given[name]!r})")
    if values["run"] == "auto":
        values["run"] = Path(layers[-1][0]).stem if profile != "none" else "run"
    namespace.update(values)
    folders = paths.run_folders(values["run"], values["outputs_dir"], values["data_dir"])
    _print_setup(stage, values, folders)
    locks = run_lock.hold_for_stage(folders)
    clear_leftovers(folders)
    key = stage_keys.key_of(stage, values, folders, records(folders))
    folders.stage_record(stage).unlink(missing_ok=True)
    return Stage(stage, values, folders, key, locks)


def clear_leftovers(folders: paths.RunFolders) -> None:
    """Remove what a killed process left in the run's folder: half-written files, and checkpoints of finished stages.

    For the holder of the run's lock alone. The executed notebooks are left out: run_all.py writes one while its stage runs.
    """
    below = [folder for folder in folders.run.iterdir() if folder.is_dir()] if folders.run.is_dir() else []
    for folder in {folders.run, folders.data, *below} - {folders.notebooks}:
        files.remove_partials(folder)
    for stage in parameters.STAGES:
        if folders.stage_record(stage).is_file():
            folders.checkpoint(stage).unlink(missing_ok=True)


def _profile_layer(stage: str, profile: str, own: dict) -> tuple[str, dict]:
    if profile == "auto":
        profile, reason = parameters.choose_profile()
        print(f"profile {profile}: {reason}.\nTo keep the cell above as it stands, set profile = 'none'.")
    path = parameters.profile_path(profile)
    content = parameters.load_profile(path)
    common = {name: value for name, value in content.get(parameters.COMMON, {}).items() if name in own}
    return f"params/{path.name}", {stage: {**common, **content.get(stage, {})}}


def _print_setup(stage: str, values: dict, folders: paths.RunFolders) -> None:
    width = max(map(len, values))
    print(f"\n{stage}, with")
    for name, value in values.items():
        print(f"  {name:{width}} = {value!r}")
    print(f"results in {folders.run}\nimages in  {folders.data}")
    if values["data_dir"] and folders.data != paths.place(values["data_dir"]):
        print(f"since {paths.place(values['data_dir'])} cannot be made here")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def records(folders: paths.RunFolders) -> dict[str, dict]:
    """What the finished stages of a run recorded, in stage order. Raises TornFile for one that is not whole."""
    found = {stage: folders.stage_record(stage) for stage in parameters.STAGES}
    return {stage: _read_record(path) for stage, path in found.items() if path.is_file()}


def _read_record(path: Path) -> dict:
    record = files.read_json(path)
    needed = {"finished", "seconds", "figures", "parameters", "key", "outputs"}
    if not isinstance(record, dict) or not needed <= set(record):
        raise files.TornFile(f"{path} is no record of a stage: remove it, and its stage runs again")
    outside = [name for name in record["outputs"] if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise files.TornFile(f"{path} names the output {outside[0]!r}: remove it, and its stage runs again")
    return record
