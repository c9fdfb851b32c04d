"""Sweeps: which parameters vary, and an Optuna study of them that any number of processes share; TEST is never looked at.

A trial is a point of the sweep, run with one or several seeds. The study lies in a file beside the runs, or in a database.
Processes take trials one after another and hold a file lock on the one that they run. The lock ends with its process: a
trial that is said to run, and that no process locks, is queued again. What trials have in common is computed once.

Optuna's GridSampler is not used for lists of values: it may draw a point again whose trial failed or was given up. The points
are queued instead.
"""

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import statistics
import sys
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_utils import files
from fer_utils.pipeline import keys, parameters, runner, runs, terminal
from fer_utils.pipeline.parameters import STAGES, Parameter, ParameterError
from fer_utils.pipeline.runs import LONGEST_NAME

if TYPE_CHECKING:
    import optuna

Point = dict[str, dict[str, str]]  # section → name → value, as text
SEEDED = ("train_head", "fine_tune")  # the stages whose seed varies: data and splits of a point stay the same
OBJECTIVES = ("macro_f1", "accuracy")
PRUNERS = ("none", "median")
POLL = 2.0  # seconds between two looks at other processes, and at a training's finished epochs
MOST_POINTS = 10_000  # combinations of a sweep's values
MOST_SEEDS = 1_000  # of a point
REPEATS = 50  # points drawn in a row that are there already, after which a search ends
SEED_STEP = 10_000  # a pruner compares epochs of the same seed: step = place of the seed × SEED_STEP + epoch
_RANGE = re.compile(r"([^.:\s]*\.?[^.:\s]+)\.\.([^:\s]+?)(:log)?")
_DIGITS = 4  # significant digits of a searched value


@dataclass(frozen=True)
class Axis:
    """One swept parameter: the values of a list, or a range, both ends included."""

    stage: str
    name: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_int: bool = False

    @property
    def key(self) -> str:
        return f"{self.stage}.{self.name}"

    @property
    def is_range(self) -> bool:
        return not self.values


def axes(texts: Sequence[str], declared: Mapping[str, Mapping[str, Parameter]]) -> list[Axis]:
    """The axes of `STAGE.NAME=V1,V2,…` and `STAGE.NAME=LOW..HIGH[:log]`. Raises ParameterError."""
    found: list[Axis] = []
    for text in texts:
        stage, name, given = parameters.parse_override(text, "--sweep")
        if (stage, name) in [(axis.stage, axis.name) for axis in found]:
            raise ParameterError(f"--sweep {text}: {stage}.{name} is swept twice; give its values in one list")
        found.append(_axis(text, stage, name, given, declared))
    return found


def _axis(text: str, stage: str, name: str, given: str, declared: Mapping[str, Mapping[str, Parameter]]) -> Axis:
    match = _RANGE.fullmatch(given) if ".." in given and "," not in given else None  # long lists would take it minutes
    if not match:
        values = tuple(value.strip() for value in given.split(","))
        if "" in values or len(set(values)) < len(values):
            raise ParameterError(
                f"--sweep {text}: expected values set apart by commas, none twice, or a range such as 1e-5..1e-3:log"
            )
        return Axis(stage, name, values)
    cells = declared.values() if stage == parameters.COMMON else [declared.get(stage, {})]
    kinds = {cell[name].type for cell in cells if name in cell}
    if kinds and not kinds <= {int, float}:
        raise ParameterError(f"--sweep {text}: {stage}.{name} is no number, so it has no range; give a list of values")
    try:
        low, high = float(match[1]), float(match[2])
    except ValueError:
        low = high = math.nan
    is_int, is_log = kinds == {int}, bool(match[3])
    if not low < high or math.isinf(low) or math.isinf(high) or (is_log and low <= 0):
        raise ParameterError(
            f"--sweep {text}: expected LOW..HIGH with LOW below HIGH, for :log both above 0, such as 1e-5..1e-3:log"
        )
    if is_int and not (low.is_integer() and high.is_integer()):
        raise ParameterError(f"--sweep {text}: {stage}.{name} is a whole number, and so are the ends of its range")
    return Axis(stage, name, (), low, high, is_log, is_int)


def grid(swept: Sequence[Axis]) -> list[Point]:
    """Every combination of the axes' values; of a range these are its two ends."""
    lists = [[(axis, value) for value in axis.values or _ends(axis)] for axis in swept]
    if math.prod(map(len, lists)) > MOST_POINTS:
        raise ParameterError(
            f"--sweep: more than {MOST_POINTS:,} combinations; give fewer values, or ranges and --trials"
        )
    return [point_of(dict(combination)) for combination in itertools.product(*lists)]


def _ends(axis: Axis) -> tuple[float, float]:
    return (int(axis.low), int(axis.high)) if axis.is_int else (axis.low, axis.high)


def point_of(values: Mapping[Axis, str | float]) -> Point:
    """The point with these values; searched numbers are rounded to four significant digits."""
    point: Point = {}
    for axis, value in values.items():
        text = value if isinstance(value, str) else str(value) if axis.is_int else f"{value:.{_DIGITS}g}"
        point.setdefault(axis.stage, {})[axis.name] = text
    return point


def with_seed(point: Mapping[str, Mapping[str, str]], seed: int) -> Point:
    """The point with another seed of both phases of training."""
    return {**point, **{stage: {**point.get(stage, {}), "seed": str(seed)} for stage in SEEDED}}


def name_of(base: str, point: Mapping[str, Mapping[str, str]]) -> str:
    """The name of the run of a point: `demo__train_head.epochs=3__fine_tune.unfreeze_top=30`.

    A longer one than a run may have is cut, and ends in a digest of the whole.
    """
    parts = [f"{stage}.{name}={value}" for stage, values in point.items() for name, value in values.items()]
    name = "__".join([base, *(re.sub(r"[^\w.=+-]+", "-", part) for part in parts)])
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST_NAME or not parts:
        return name
    whole = hashlib.blake2b(encoded, digest_size=4).hexdigest()
    return encoded[: LONGEST_NAME - len(whole) - 1].decode(errors="ignore") + f"-{whole}"


# --- the study ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What to run: the axes, and for a search the number of trials.

    resolve: a point → the checked parameters of all stages of its run. base: the name that runs begin with.
    """

    axes: Sequence[Axis]
    base: str
    profile: str
    resolve: Callable[[Point], dict[str, dict[str, Any]]]
    trials: int = 0
    seeds: Sequence[int] = (42,)
    objective: str = "macro_f1"
    pruner: str = "none"
    verbose: bool = False

    @property
    def is_search(self) -> bool:
        return any(axis.is_range for axis in self.axes)

    def check(self) -> None:
        """Raise ParameterError for a plan that cannot be run, before anything runs."""
        if self.is_search and self.trials < 1:
            raise ParameterError("--sweep searches a range: say with --trials how many points, such as --trials 20")
        if self.trials and not self.is_search:
            raise ParameterError("--trials is for ranges; lists of values are run in every combination")
        if not self.seeds or self.seeds[MOST_SEEDS:]:
            said = f"more than {MOST_SEEDS:,}" if self.seeds else "0 or less"
            raise ParameterError(f"--seeds is {said}, expected 1 to {MOST_SEEDS:,}")
        names = [name for point in grid(self.axes) for name, _ in self.runs(point)]
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise ParameterError(f"--sweep gives two runs the name {twice[0]}: leave one of the two values out")

    def runs(self, point: Point) -> list[tuple[str, dict[str, dict[str, Any]]]]:
        """The runs of a point, one for each seed: name and parameters."""
        points = [point] if len(self.seeds) == 1 else [with_seed(point, seed) for seed in self.seeds]
        return [(name_of(self.base, seeded), self.resolve(seeded)) for seeded in points]


def plan(swept: Sequence[str], profile: str, layers: Sequence[tuple[str, Mapping]], n_seeds: int, **how) -> Plan:
    """The checked plan of a command line. how: further fields of a plan. Raises ParameterError."""
    base = next(iter(runner.resolve(profile, layers).values()))

    def resolve(point: Point) -> dict[str, dict[str, Any]]:
        name = name_of(base["run"], point)
        places_of_run = {"run": name} | ({"data_dir": f"{base['data_dir']}/{name}"} if base["data_dir"] else {})
        more = [("--sweep", point), ("--sweep", {parameters.COMMON: places_of_run})]
        return runner.resolve(profile, [*layers, *more])

    found, seeds = axes(swept, parameters.declared()), range(base["seed"], base["seed"] + n_seeds)
    made = Plan(axes=found, base=base["run"], profile=profile, resolve=resolve, seeds=seeds, **how)
    made.check()
    return made


def print_plan(plan: Plan) -> int:
    """Print what each run of a sweep would do; return the exit status."""
    for name, values in (run for point in grid(plan.axes) for run in plan.runs(point)):
        print(f"\n{name}")
        runner.print_plan(list(STAGES), values)
    return 0


def sweep(plan: Plan, storage: str) -> int:
    """Run a sweep, write its table and its page, and print its points; return the exit status."""
    outputs = runner.folders_of(plan.resolve({})).run.parent
    shared = open_study(plan, outputs, storage)
    failed = work(plan, shared, outputs)
    from fer_utils.pipeline import pages  # pandas and matplotlib take a while to import

    sheet, page = pages.write_sweep(plan, shared, outputs)
    found = pages.ranking(plan, shared)
    print()
    terminal.print_table(pages.ranking_lines(found, plan.objective))
    terminal.say(f"{found['score'].notna().sum()} of {len(found)} points finished; ranked by VAL: {page}, {sheet}")
    return 1 if failed else 0


def open_study(plan: Plan, outputs: Path, storage: str = "") -> "optuna.Study":
    """The study of a plan, made if it does not exist: in `outputs/sweep_<base>.journal`, or in the database `storage`.

    Its name holds a digest of axes, other parameters, seeds, objective, pruner and code, so that a study never mixes trials
    that do not compare. Raises ParameterError if Optuna is missing or the study cannot be opened.
    """
    optuna = _optuna()
    journal = outputs / f"sweep_{plan.base}.journal"
    files.require_space(outputs, 0)  # every trial writes there
    try:
        study = optuna.create_study(
            storage=storage or _journal(journal),
            study_name=f"{plan.base}_{_digest(plan)}",
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner() if plan.pruner == "median" else optuna.pruners.NopPruner(),
        )
    except ImportError as error:
        raise ParameterError(f"--storage {storage}: its driver is missing ({error})") from error
    except Exception as error:  # each storage has its own
        where = f"--storage {storage}" if storage else f"{journal}, the sweep's study"
        way_out = "" if storage else ": move it away, and the sweep takes over what its runs have finished"
        raise ParameterError(f"{where}: cannot be opened ({_first_line(error)}){way_out}") from error
    first = min(10, max(4, plan.trials // 3))  # trials drawn at random before the model of good values begins
    # Another study draws other points, and so does a process that joins in.
    seed = zlib.crc32(study.study_name.encode()) + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=first, constant_liar=True, seed=seed % 2**32)
    return study


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _optuna():
    try:
        import optuna
    except ImportError:
        raise ParameterError(
            "--sweep needs Optuna: `pip install 'optuna>=4.5,<5'`, or the extra `sweep` of this project"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _journal(file: Path):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    return JournalStorage(JournalFileBackend(str(file), JournalFileOpenLock(str(file))))


def _digest(plan: Plan) -> str:
    """Eight hex digits of everything that makes two sweeps incomparable."""
    values = plan.resolve({})
    digested = {
        "axes": sorted(str(axis) for axis in plan.axes),
        "parameters": {stage: keys.counted(stage_values) for stage, stage_values in values.items()},
        "code": [keys.code_of(stage) for stage in STAGES],
        "rest": [list(plan.seeds), plan.objective, plan.pruner],
    }
    return hashlib.blake2b(json.dumps(digested, sort_keys=True).encode(), digest_size=4).hexdigest()


# --- taking trials -----------------------------------------------------------------------------------------------------


def work(plan: Plan, study: "optuna.Study", outputs: Path) -> list[str]:
    """Take and run trials until the study has all of them; return the names of the points that failed here.

    Waits for trials that other processes run, and takes up those of processes that died.
    """
    from filelock import FileLock

    failed: list[str] = []
    is_begun = is_waiting = False
    while True:
        with files.one_at_a_time(lock_file(outputs, study, "study"), lambda: None):
            for trial in _in_state(study, "RUNNING"):
                with contextlib.suppress(TimeoutError), FileLock(lock_file(outputs, study, trial.number), timeout=0):
                    if any(
                        one.number == trial.number for one in _in_state(study, "RUNNING")
                    ):  # it may have ended since
                        _queue_again(study, trial)
            if not is_begun and not plan.is_search:
                _queue(plan, study)
            is_begun, taken = True, _take(plan, study, len(failed))
            held = FileLock(lock_file(outputs, study, taken[0].number)).acquire() if taken else None
        if taken:
            with held:
                failed += _run_trial(plan, study, *taken)
            is_waiting = False
        elif _in_state(study, "RUNNING"):
            if not is_waiting:
                terminal.say("every trial is taken; waiting for the processes that run the last ones")
            is_waiting = True
            time.sleep(POLL)
        else:
            if _is_exhausted(study):
                terminal.say(
                    f"the last {REPEATS} points drawn were there already: the search ends after {len(useful(study))} points"
                )
            return failed


def lock_file(outputs: Path, study: "optuna.Study", name: str | int) -> Path:
    """The file that a process locks while it takes a trial (name: `study`), or runs one (name: its number)."""
    return outputs / ".trials" / keys.digest({"study": study.study_name}) / f"{name}.lock"


def _in_state(study: "optuna.Study", *states: str) -> list:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in states]


def useful(study: "optuna.Study") -> list:
    """The trials that count: waiting, running, complete or pruned."""
    return _in_state(study, "WAITING", "RUNNING", "COMPLETE", "PRUNED")


def _queue(plan: Plan, study: "optuna.Study") -> None:
    """Queue the points of a grid that no trial has, or that only failed."""
    present = {trial.user_attrs.get("point") for trial in useful(study)}
    for point in grid(plan.axes):
        if _text(point) not in present:
            values = {axis.key: point[axis.stage][axis.name] for axis in plan.axes}
            study.enqueue_trial(values, user_attrs={"point": _text(point)})


def _queue_again(study: "optuna.Study", trial) -> None:
    """Queue the point of a trial whose process has died."""
    _fail(study, trial.number)
    terminal.say(f"the process that ran trial {trial.number} has ended: its point is run again")
    fixed = trial.params or trial.system_attrs.get("fixed_params", {})  # it may have ended before it drew its values
    point = {"point": trial.user_attrs["point"]} if "point" in trial.user_attrs else {}
    study.enqueue_trial(fixed, user_attrs=point)


def _text(point: Point) -> str:
    return json.dumps(point, sort_keys=True)


def _is_exhausted(study: "optuna.Study") -> bool:
    """Whether a search draws nothing but points that it had."""
    last = study.get_trials(deepcopy=False)[-REPEATS:]
    return len(last) == REPEATS and all("given up" in trial.user_attrs for trial in last)


def _take(plan: Plan, study: "optuna.Study", n_failed: int) -> "tuple[optuna.Trial, Point] | None":
    """A trial for this process and its point, or None if there is none left to take: one that is queued, or a new one of a search.

    Only one process at a time may call this.
    """
    while True:
        found = useful(study)
        may_draw = plan.is_search and len(found) + n_failed < plan.trials and not _is_exhausted(study)
        if not may_draw and not _in_state(study, "WAITING"):
            return None
        trial = study.ask()
        point = point_of({axis: _drawn(trial, axis) for axis in plan.axes})
        trial.set_user_attr("point", _text(point))
        if _text(point) not in {other.user_attrs.get("point") for other in found if other.number != trial.number}:
            return trial, point
        trial.set_user_attr("given up", "another trial has this point")
        _fail(study, trial)


def _fail(study: "optuna.Study", trial) -> None:
    from optuna.trial import TrialState

    study.tell(trial, state=TrialState.FAIL)


def _drawn(trial: "optuna.Trial", axis: Axis) -> str | float:
    if not axis.is_range:
        return trial.suggest_categorical(axis.key, axis.values)
    if axis.is_int:
        return trial.suggest_int(axis.key, int(axis.low), int(axis.high), log=axis.is_log)
    return trial.suggest_float(axis.key, axis.low, axis.high, log=axis.is_log)


# --- running a trial ---------------------------------------------------------------------------------------------------


@dataclass
class _Attempt:
    """A running trial: what its runs and the thread that watches them for the pruner share."""

    trial: "optuna.Trial"
    step: int = 0  # of the current seed
    folders: runs.RunFolders | None = None
    is_pruned: bool = False
    reported: int = 0  # epochs of the current seed
    ended: threading.Event = field(default_factory=threading.Event)


def _run_trial(plan: Plan, study: "optuna.Study", trial: "optuna.Trial", point: Point) -> list[str]:
    """Run a trial's runs and tell the study; return the point's name if it failed."""
    from optuna.trial import TrialState

    name = name_of(plan.base, point)
    terminal.say(f"\n[trial {trial.number}] {name}")
    attempt = _Attempt(trial)
    values: list[float] = []
    try:
        named = plan.runs(point)
        with _watched(plan, attempt):
            for place, (_, parameters_of_run) in enumerate(named):
                attempt.step, attempt.reported = place * SEED_STEP, 0
                score = _score(plan, attempt, parameters_of_run)
                if attempt.is_pruned:
                    break
                values.append(score)
                trial.set_user_attr("runs", [one for one, _ in named[: place + 1]])
                trial.set_user_attr("values", values)
    except Exception as error:  # whatever it is, the other trials can run
        terminal.say(f"\n{name}: {error or type(error).__name__}", sys.stderr)
        trial.set_user_attr("error", str(error)[:500])
        _fail(study, trial)
        return [name]
    if attempt.is_pruned:
        terminal.say(f"{name}: pruned after an epoch below the median of the other trials")
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, values=statistics.fmean(values))
    return []


def _score(plan: Plan, attempt: _Attempt, values: dict[str, dict[str, Any]]) -> float:
    """Run one run of a trial and return its score on VAL; if it is pruned, 0 and nothing of its phase 2 stays."""
    attempt.folders = folders = runner.folders_of(values)
    stop_file(folders).unlink(missing_ok=True)
    runner.run(
        plan.profile, list(STAGES), values, verbose=plan.verbose, is_shared=True,
        goes_on=lambda stage: not attempt.is_pruned,
    )  # fmt: skip
    if attempt.is_pruned:
        for file in (folders.stage_record("fine_tune"), folders.checkpoint("fine_tune"), stop_file(folders)):
            file.unlink(missing_ok=True)
        return 0.0
    return float(files.read_json(folders.path("metrics.json"))["val"][plan.objective])


def stop_file(folders: runs.RunFolders) -> Path:
    """The file that asks a training of phase 2 to end after its epoch: see fer_utils.training.checkpoint."""
    return folders.checkpoint("fine_tune").with_suffix(".stop")


@contextlib.contextmanager
def _watched(plan: Plan, attempt: _Attempt) -> Iterator[None]:
    """While a trial runs, report finished epochs to the pruner."""

    def watch() -> None:
        said = ""
        while not attempt.ended.wait(POLL):
            try:
                if attempt.folders and not attempt.is_pruned:
                    _report(plan, attempt)
            except Exception as error:  # a database may be away for a moment
                if _first_line(error) != said:
                    said = _first_line(error)
                    terminal.say(f"trial {attempt.trial.number}: the study cannot be reached ({said})", sys.stderr)

    thread = threading.Thread(target=watch, daemon=True)
    if plan.pruner != "none":
        thread.start()
    try:
        yield
    finally:
        attempt.ended.set()
        if thread.is_alive():
            thread.join()


def _report(plan: Plan, attempt: _Attempt) -> None:
    """Report the epochs of phase 2 that are finished since the last look; ask the training to end if it is pruned."""
    rows = _finished_epochs(attempt.folders.checkpoint("fine_tune"))
    for epoch, row in enumerate(rows[attempt.reported :], attempt.reported + 1):
        attempt.trial.report(row[f"val_{plan.objective}"], attempt.step + epoch)
    attempt.reported = max(attempt.reported, len(rows))
    if rows and attempt.trial.should_prune():
        attempt.is_pruned = True
        stop_file(attempt.folders).touch()


def _finished_epochs(checkpoint: Path) -> list[Mapping[str, float]]:
    import numpy as np  # slow to import

    try:
        with np.load(checkpoint, allow_pickle=False) as file:
            return json.loads(str(file["state"]))["rows"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # none yet, or being replaced
        return []
