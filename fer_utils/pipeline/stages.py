"""The interface between a notebook and its run: begin a stage, read, save and show results, finish the stage."""

import contextlib
import io
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fer_utils import digests, files, places
from fer_utils.data import loading
from fer_utils.pipeline import cells, keys, parameters, runner, runs

import matplotlib.pyplot as plt
from IPython.display import Image, display
from matplotlib.figure import Figure

BLOCK = 4096  # bytes; smallest space of a file on the disk
_ABOVE = "the cells above"


@dataclass
class Stage:
    """A stage that a notebook computes: its name, its resolved parameters, its run, its key and its locks.

    `given` has the parameters as they were before the profile, `namespace` the notebook's variables, `history` the cells that
    ran since the start, `source` the text of the notebook's file.
    """

    name: str
    parameters: dict[str, Any]
    run: runs.Run
    key: dict[str, Any]
    locks: list
    given: dict[str, Any]
    namespace: Mapping[str, Any]
    history: Callable[[], list[str]]
    source: str
    began: float = field(default_factory=time.monotonic)
    _written: list[Path] = field(default_factory=list)
    _has_ended: bool = False

    @property
    def images(self) -> Path:
        """The folder with the image folders TRAIN, VAL, TEST and TRAIN_BALANCED."""
        return self.run.data

    @property
    def cache_folder(self) -> Path:
        """The folder of cached activations that runs share: beside the runs, or on Kaggle where nothing is kept as output."""
        return places.place("/kaggle/temp/.cache") if places.on_kaggle() else self.run.folder.parent / ".cache"

    @property
    def tensorboard_folder(self) -> Path | None:
        """The folder for TensorBoard's event files of this stage; None: none are written."""
        folder = self.run.folder.parent / ".tensorboard" / self.run.name / self.name
        return folder if self.namespace["tensorboard"] else None

    @property
    def checkpoint(self) -> tuple[Path, str]:
        """Arguments of TrainingCheckpoint: the file for the state after each epoch, and the key that must match to resume.

        Variables that were changed after the setup, and cells that ran but are not in the file, are part of the key.
        """
        self._require_under_way()
        key, foreign = self._against_file(cells.changes)
        by_hand = [self._changed(), foreign]
        return self.run.checkpoint(self.name), keys.digest({**key, "by_hand": by_hand} if any(by_hand) else key)

    def path(self, name: str) -> Path:
        """The path of a result, such as `model.keras`, or of an image folder, such as `images/VAL`."""
        return self.run.path(name)

    def has(self, name: str) -> bool:
        """Whether the run has an input that only some runs have (see keys.inputs_of)."""
        return name in keys.inputs_of(self.name, self.run.all_records())

    def read(self, name: str) -> Any:
        """Read an earlier result: a table from `.csv`, the content of `.json`. Raises TornFile if it is damaged."""
        if name.endswith(".json"):
            return files.read_json(self.path(name))
        return loading.read_table(self.path(name), loading.COLUMNS.get(name, ()))

    def save(self, content: Any, name: str) -> None:
        """Write a result atomically: a table, a text, a function that writes to a path, or any content as JSON."""
        path, before = self.path(name), self._note_replacing
        if callable(content):
            with files.replacing(path, before) as temporary:
                content(temporary)
        elif isinstance(content, str):
            files.write_text(path, content, before)
        elif hasattr(content, "to_csv"):
            files.write_csv(path, content, before)
        else:
            files.write_json(path, content, before)

    def show(self, figure: Figure, name: str) -> None:
        """Show a figure as PNG with 120 dpi and, unless the stage has ended, save it for the report."""
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=120, bbox_inches="tight")
        plt.close(figure)  # an open figure would be drawn again at the end of the cell
        if not self._has_ended:
            with files.replacing(self.run.figure(name), self._note_replacing) as temporary:
                temporary.write_bytes(png.getvalue())
        display(Image(png.getvalue()))

    def executed_notebooks(self) -> list[str]:
        """File names of the run's executed notebooks, in the folder `notebooks` of its folder."""
        return [path.name for path in self.path("notebooks").glob("*.ipynb")]

    def require_space(self, n_images: int) -> None:
        """Raise OutputError unless the disk has room for `n_images` images, each BLOCK bytes."""
        files.require_space(self.images, BLOCK * n_images)

    def discard(self, name: str) -> None:
        """Remove a result before the results that it describes are replaced; it is written again last."""
        self._note_replacing(self.path(name))
        self.path(name).unlink(missing_ok=True)

    def about_run(self) -> dict[str, Any]:
        """The parameters of the run's stages, the current package versions, and each stage's seconds."""
        current = {"parameters": self.parameters | self._changed(), "seconds": self._seconds()}
        stages = {**self.run.all_records(), self.name: current}
        return {
            "params": {name: record["parameters"] for name, record in stages.items()},
            "versions": runs.versions(),
            "seed": self.parameters["seed"],
            "seconds_per_stage": {name: record["seconds"] for name, record in stages.items()},
        }

    def _against_file(self, compare: Callable[..., Iterable[str]]) -> tuple[dict[str, Any], list[str]]:
        """The key of the compared notebook, and what `compare` finds between its cells and those that ran.

        The notebook is the file as it was when the stage began. If other code ran, it is the file as it is now, since
        JupyterLab saves automatically.
        """
        ran, now = self.history(), parameters.source_of(self.name)
        found = list(compare(cells.code_cells(self.source), ran)) if ran else []
        if not found or now == self.source:
            return self.key, found
        return {**self.key, "notebook": keys.code_of(self.name)[0]}, list(compare(cells.code_cells(now), ran))

    def _changed(self) -> dict[str, Any]:
        """The parameters whose variables were changed after the setup, with their current values."""
        now = {name: self.namespace.get(name) for name in self.parameters}
        plain = {name: value if isinstance(value, (int, float, str)) else repr(value) for name, value in now.items()}
        return {name: value for name, value in plain.items() if value != self.parameters[name]}

    def _note_replacing(self, path: Path) -> None:
        """Record that a file or folder is about to be replaced at `path`.

        When the first recorded output is replaced, the stage's record is deleted: if the process dies later, the outputs
        may come from two trainings and must not count as complete. Figures may be drawn again without this.
        """
        self._require_under_way()
        recorded = self.run.all_records().get(self.name, {}).get("outputs", {})
        if self.run.name_of(path) in recorded and path.parent != self.path("figures"):
            self.run.stage_record(self.name).unlink(missing_ok=True)
        self._written.append(path)

    def _require_under_way(self) -> None:
        """Raise RuntimeError after the end: another process may hold the run, and its record is of what was computed."""
        if self._has_ended:
            raise RuntimeError(f"{self.name} has ended: to compute it again, run the notebook from its setup cell on")

    def _seconds(self) -> float:
        return round(time.monotonic() - self.began, 1)

    def finish(self, outputs: Sequence[str], figures: dict[str, Any]) -> None:
        """Check that the stage's outputs, named as for `path`, exist; write the stage's record.

        The record has key, parameters, seconds, key figures and everything that the stage saved. The parameters are the
        current values of the notebook's variables; `by_hand` lists differences from the file and the setup.
        """
        self._require_under_way()
        expected = [self.path(name) for name in outputs]
        missing = [str(path) for path in expected if not path.exists()]
        if missing:
            raise places.NotFoundHere(f"{self.name} ended without writing {', '.join(missing)}")
        written = {path for path in (*expected, *self._written) if path.exists()}
        key, differences = self._against_file(cells.differences)
        changed, seconds = self._changed(), self._seconds()
        by_hand = [f"{name} became {value!r} after the setup" for name, value in changed.items()] + differences
        ran_with = self.parameters | changed
        record = {
            "stage": self.name,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": seconds,
            "figures": figures,
            "parameters": ran_with,
            "by_hand": by_hand,
            "versions": runs.versions(),
            "key": key,
            "outputs": {self.run.name_of(path): digests.describe(path) for path in sorted(written)},
        }
        files.write_json(self.run.stage_record(self.name), record)
        self._has_ended = True
        self.run.checkpoint(self.name).unlink(missing_ok=True)
        described = files.read_json(self.path("run.json"))
        self.run.describe(described["profile"], described["parameters"] | {self.name: ran_with})
        for held in self.locks:
            held.release(force=True)  # even if this process began the stage several times
        print(f"{self.name} done in {seconds} s: {runs.one_line(figures)}")
        if by_hand:
            print("\n- ".join(["Recorded; run_all.py will run this stage again because:", *by_hand]))


def begin(stage: str, namespace: MutableMapping[str, Any]) -> Stage:
    """Begin a stage in a notebook: `stage = begin("balance", globals())`.

    If `profile` is `none`, the notebook's variables are used unchanged: run_all.py has injected them. Otherwise the
    profile's values are put into `namespace`; `auto` means the profile for this machine. A value that differs from the
    shipped default was typed and takes precedence. Prints the checked parameters, the origin of each that is not the
    default, and the folders. Raises RunIsBusy if another process works in the run's folder.
    """
    given = _given(stage, namespace)
    profile, all_values, origins = _resolve(stage, given)
    values, run = all_values[stage], runner.run_of(all_values)
    namespace.update(values)
    _print_setup(stage, profile, values, origins, run)
    run.require_own_images(stage)
    with contextlib.ExitStack() as stack:
        locks = run.hold()
        for held in locks:
            stack.callback(held.release)
        run.clear_leftovers()
        if not run.path("run.json").is_file():
            run.describe(profile, all_values)
        records = run.all_records()
        if stage == "fine_tune" and "train_head" in records:
            runner.check_network(parameters.shipped()["train_head"] | records["train_head"]["parameters"], values)
        runner.require_inputs(stage, run)
        key = keys.key_of(stage, values, run, records)
        history, source = cells.history(namespace), parameters.source_of(stage)
        stack.pop_all()  # from here on the stage holds the locks
    return Stage(stage, values, run, key, locks, given, namespace, history, source)


def _resolve(stage: str, given: Mapping[str, Any]) -> tuple[str, dict[str, dict], dict[str, str]]:
    """The profile, the parameters of all stages, and the origin of each of the stage's that is not the default.

    given: the notebook's variables. If `profile` is `none`, run_all.py has resolved them, and they are only checked.
    """
    declared, profile = parameters.declared(), given["profile"]
    layers: list[tuple[str, Mapping]] = [(_ABOVE, {stage: given})]
    if profile == "auto":
        profile, reason = parameters.choose_profile()
        print(f"profile {profile}: {reason}")
    if profile != "none":
        saved = parameters.typed_in_cells({name: cell for name, cell in declared.items() if name != stage})
        layers += [(f"params/{profile}.yaml", parameters.load_profile(parameters.profile_path(profile)))]
        layers += [("notebooks/", saved), (_ABOVE, {stage: parameters.typed(stage, given)})]
    values = parameters.resolve(declared, layers)
    own = values[stage]
    sections = [(origin, by.get(name, {})) for origin, by in layers for name in (parameters.COMMON, stage)]
    origin_of = {name: origin for origin, section in sections for name in section}
    origins = {name: origin_of[name] for name in parameters.typed(stage, own)}
    if own["run"] == "auto":
        own["run"] = "run" if profile == "none" else profile
    for each in values.values():
        each |= {name: own[name] for name in ("run", "outputs_dir", "data_dir")}
    return profile, values, origins


def _given(stage: str, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the notebook's variables; what was given then for one that has the value of an earlier setup."""
    names = parameters.declared()[stage]
    missing = [name for name in names if name not in namespace]
    if missing:
        raise parameters.ParameterError(f"{', '.join(missing)} not set: run the parameters cell first")
    given, earlier = {name: namespace[name] for name in names}, namespace.get("stage")
    if isinstance(earlier, Stage) and earlier.name == stage:
        set_since = set().union(*map(cells.sets, earlier.history()))
        kept = [name for name in names if name not in set_since and given[name] == earlier.parameters[name]]
        given |= {name: earlier.given[name] for name in kept}
    return given


def _print_setup(stage: str, profile: str, values: dict[str, Any], origins: dict[str, str], run: runs.Run) -> None:
    print(f"\n{stage}, with")
    for name, value in values.items():
        origin = f"from {origins[name]}" if name in origins else ""
        print(f"  {name:22} = {value!r:20}  {origin}".rstrip())
    if f"params/{profile}.yaml" in origins.values():
        print(
            f"A value typed in the parameters cell wins over params/{profile}.yaml, unless it is the default.\nTo have "
            f"the default, change that file, or set profile to the name of a copy and run = {values['run']!r}."
        )
    print(f"results in {run.folder}\nimages in  {run.data}")
