"""Sweeps: which parameters vary, an Optuna study that any number of processes share, and the points ranked by VAL.

A trial is a point of the sweep, run with one or several seeds. The study lies in a file beside the runs, or in a database.
Processes take trials one after another and hold a file lock on the one that they run. The lock ends with its process: a
trial in the state RUNNING that no process locks has failed, and its point is run again. What trials have in common is
computed once.

Optuna's GridSampler is not used for lists of values: it may draw a point again whose trial failed.
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
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_utils import files
from fer_utils.pipeline import keys, parameters, runner, terminal
from fer_utils.pipeline.parameters import STAGES, Parameter, ParameterError
from fer_utils.pipeline.runs import LONGEST_NAME

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    from filelock import FileLock

Point = dict[str, dict[str, str]]  # section → name → value, as text
SEEDED = ("train_head", "fine_tune")  # the stages whose seed varies: data and splits of a point stay the same
OBJECTIVES = ("macro_f1", "accuracy")
POLL = 2.0  # seconds between two looks at the trials of other processes
MOST_POINTS = 10_000  # combinations of a sweep's values
MOST_SEEDS = 1_000  # of a point
REPEATS = 50  # points drawn in a row that are there already, after which a search ends
_RANGE = re.compile(r"([^.:\s]*\.?[^.:\s]+)\.\.([^:\s]+?)(:log)?")


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

    def of(self, point: Point) -> str:
        """The parameter's value at a point."""
        return point[self.stage][self.name]

    def draw(self, trial: "optuna.Trial") -> str | float:
        """The parameter's value in a trial: the queued one, or one that Optuna chooses."""
        if self.values:
            return trial.suggest_categorical(self.key, self.values)
        if self.is_int:
            return trial.suggest_int(self.key, int(self.low), int(self.high), log=self.is_log)
        return trial.suggest_float(self.key, self.low, self.high, log=self.is_log)


def axes(texts: Sequence[str], declared: Mapping[str, Mapping[str, Parameter]]) -> list[Axis]:
    """The axes of `STAGE.NAME=V1,V2,…` and `STAGE.NAME=LOW..HIGH[:log]`. Raises ParameterError."""
    found: list[Axis] = []
    for text in texts:
        axis, fault = _axis(text, declared)
        if axis.key in [other.key for other in found]:
            fault = f"{axis.key} is swept twice; give its values in one list"
        if fault:
            raise ParameterError(f"--sweep {text}: {fault}")
        found.append(axis)
    return found


def _axis(text: str, declared: Mapping[str, Mapping[str, Parameter]]) -> tuple[Axis, str]:
    """The axis of a text, and what is wrong with it."""
    stage, name, given = parameters.parse_override(text, "--sweep")
    match = _RANGE.fullmatch(given) if ".." in given and "," not in given else None  # long lists would take it minutes
    if not match:
        values = tuple(value.strip() for value in given.split(","))
        is_list = "" not in values and len(set(values)) == len(values)
        fault = "expected values set apart by commas, none twice, or a range such as 1e-5..1e-3:log"
        return Axis(stage, name, values), "" if is_list else fault
    cells = declared.values() if stage == parameters.COMMON else [declared.get(stage, {})]
    kinds = {cell[name].type for cell in cells if name in cell}
    try:
        low, high = float(match[1]), float(match[2])
    except ValueError:
        low = high = math.nan
    axis, fault = Axis(stage, name, (), low, high, bool(match[3]), kinds == {int}), ""
    if not kinds <= {int, float}:
        fault = f"{axis.key} is no number, so it has no range; give a list of values"
    elif not -math.inf < low < high < math.inf or (axis.is_log and low <= 0):
        fault = "expected LOW..HIGH with LOW below HIGH, for :log both above 0, such as 1e-5..1e-3:log"
    elif axis.is_int and not (low.is_integer() and high.is_integer()):
        fault = f"{axis.key} is a whole number, and so are the ends of its range"
    return axis, fault


def grid(swept: Sequence[Axis]) -> list[Point]:
    """Every combination of the axes' values; of a range these are its two ends."""
    lists = [[(axis, value) for value in axis.values or (axis.low, axis.high)] for axis in swept]
    if math.prod(map(len, lists)) > MOST_POINTS:
        most = f"more than {MOST_POINTS:,} combinations"
        raise ParameterError(f"--sweep: {most}; give fewer values, or ranges and --trials")
    return [point_of(dict(combination)) for combination in itertools.product(*lists)]


def point_of(values: Mapping[Axis, str | float]) -> Point:
    """The point with these values; searched numbers are rounded to four significant digits."""
    point: Point = {}
    for axis, value in values.items():
        text = value if isinstance(value, str) else str(int(value)) if axis.is_int else f"{value:.4g}"
        point.setdefault(axis.stage, {})[axis.name] = text
    return point


def name_of(base: str, point: Point) -> str:
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
    verbose: bool = False

    @property
    def is_search(self) -> bool:
        return not all(axis.values for axis in self.axes)

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
        """The runs of a point, one for each seed of both phases of training: name and parameters."""
        points = [point]
        if len(self.seeds) > 1:
            points = [
                point | {stage: {**point.get(stage, {}), "seed": str(seed)} for stage in SEEDED} for seed in self.seeds
            ]
        return [(name_of(self.base, seeded), self.resolve(seeded)) for seeded in points]


def plan(swept: Sequence[str], profile: str, layers: Sequence[tuple[str, Mapping]], n_seeds: int, **how) -> Plan:
    """The checked plan of a command line. how: further fields of a plan. Raises ParameterError."""
    base = next(iter(runner.resolve(profile, layers).values()))

    def resolve(point: Point) -> dict[str, dict[str, Any]]:
        name = name_of(base["run"], point)
        folders_of_run = {"run": name} | ({"data_dir": f"{base['data_dir']}/{name}"} if base["data_dir"] else {})
        more = [("--sweep", point), ("--sweep", {parameters.COMMON: folders_of_run})]
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
    """Run a sweep, then write and print its ranking; return the exit status."""
    outputs = runner.run_of(plan.resolve({})).folder.parent
    study = open_study(plan, outputs, storage)
    failed = work(plan, study, outputs)
    print_ranking(plan, study, outputs)
    return 1 if failed else 0


def open_study(plan: Plan, outputs: Path, storage: str = "") -> "optuna.Study":
    """The study of a plan, made if it does not exist: in `outputs/sweep_<base>.journal`, or in the database `storage`.

    Its name has a digest of axes, other parameters, seeds, objective and code, so that a study never mixes trials that do
    not compare. Raises ParameterError if Optuna is missing or the study cannot be opened.
    """
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    except ImportError:
        install = "`pip install 'optuna>=4.5,<5'`, or the extra `sweep` of this project"
        raise ParameterError(f"--sweep needs Optuna: {install}") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    digest = keys.digest(
        {
            "axes": sorted(str(axis) for axis in plan.axes),
            "parameters": {stage: keys.counted(values) for stage, values in plan.resolve({}).items()},
            "code": [keys.code_of(stage) for stage in STAGES],
            "rest": [list(plan.seeds), plan.objective],
        }
    )
    name, journal = f"{plan.base}_{digest[:8]}", outputs / f"sweep_{plan.base}.journal"
    files.require_space(outputs, 0)  # every trial writes there
    try:
        where = storage or JournalStorage(JournalFileBackend(str(journal), JournalFileOpenLock(str(journal))))
        study = optuna.create_study(storage=where, study_name=name, direction="maximize", load_if_exists=True)
    except Exception as error:  # each storage has its own, and its driver may be missing
        fault = f"cannot be opened ({next(iter(str(error).splitlines()), type(error).__name__)})"
        way_out = "move it away, and the sweep takes over what its runs have finished"
        message = f"--storage {storage}: {fault}" if storage else f"{journal}, the sweep's study: {fault}: {way_out}"
        raise ParameterError(message) from error
    first = min(10, max(4, plan.trials // 3))  # trials drawn at random before the model of good values begins
    # Another study draws other points, and so does a process that joins in.
    seed = zlib.crc32(study.study_name.encode()) + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=first, constant_liar=True, seed=seed % 2**32)
    return study


# --- trials ------------------------------------------------------------------------------------------------------------


def work(plan: Plan, study: "optuna.Study", outputs: Path) -> list[str]:
    """Take and run trials until the study has all of them; return the names of the points that failed here.

    Waits for trials that other processes run, and runs the points of processes that died.
    """
    failed: list[str] = []
    earlier, is_waiting = {trial.number for trial in _in_state(study, "FAIL")}, False
    while True:
        with lock(outputs, study, "study"):
            _fail_abandoned(study, outputs)
            taken = _take(plan, study, earlier)
            held = lock(outputs, study, taken[0].number).acquire() if taken else None
        if taken and held:
            is_waiting = False
            with held:
                failed += _run_trial(plan, study, *taken)
        elif n_running := len(_in_state(study, "RUNNING")):
            if not is_waiting:
                terminal.say(f"every trial is taken; waiting for other processes, which run {n_running} of them")
            is_waiting = True
            time.sleep(POLL)
        else:
            if _is_exhausted(study):
                ends = f"the search ends after {len(_in_state(study, 'COMPLETE'))} points"
                terminal.say(f"the last {REPEATS} points drawn were there already: {ends}")
            return failed


def lock(outputs: Path, study: "optuna.Study", name: str | int) -> "FileLock":
    """What a process locks while it takes a trial (name: `study`), or runs one (name: its number)."""
    from filelock import FileLock  # may be missing on Kaggle

    folder = outputs / ".trials" / keys.digest({"study": study.study_name})
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def _in_state(study: "optuna.Study", *states: str) -> "list[optuna.trial.FrozenTrial]":
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in states]


def _fail_abandoned(study: "optuna.Study", outputs: Path) -> None:
    """Mark trials in the state RUNNING that no process locks as failed."""
    for trial in _in_state(study, "RUNNING"):
        with contextlib.suppress(TimeoutError), lock(outputs, study, trial.number).acquire(timeout=0):
            if trial.number in [one.number for one in _in_state(study, "RUNNING")]:  # it may have ended since
                _mark_failed(study, trial.number)
                terminal.say(f"the process that ran trial {trial.number} has ended: its point is run again")


def _mark_failed(study: "optuna.Study", number: int) -> None:
    from optuna.trial import TrialState

    study.tell(number, state=TrialState.FAIL)


def _take(plan: Plan, study: "optuna.Study", earlier: Collection[int]) -> "tuple[optuna.Trial, Point] | None":
    """A trial for this process, and its point; None if there is none left.

    A grid's points are taken in order. A search first takes points whose trials failed, then draws new ones. earlier: trials
    that failed before this command, whose points are run again. Only one process at a time may call this.
    """
    while True:
        failed = [trial for trial in _in_state(study, "FAIL") if "point" in trial.user_attrs]
        others = [trial for trial in failed if "error" in trial.user_attrs and trial.number not in earlier]
        used = {trial.user_attrs.get("point") for trial in (*_in_state(study, "RUNNING", "COMPLETE"), *others)}
        if plan.is_search:
            known = {trial.user_attrs["point"]: trial.params for trial in failed}
        else:
            known = {_text(point): {axis.key: axis.of(point) for axis in plan.axes} for point in grid(plan.axes)}
        left = [values for text, values in known.items() if text not in used]
        may_draw = plan.is_search and not _is_exhausted(study)
        if (plan.is_search and len(used) >= plan.trials) or not (left or may_draw):
            return None
        if left:
            study.enqueue_trial(left[0])
        trial = study.ask()
        point = point_of({axis: axis.draw(trial) for axis in plan.axes})
        if _text(point) not in used:
            trial.set_user_attr("point", _text(point))
            return trial, point
        trial.set_user_attr("drawn again", _text(point))
        _mark_failed(study, trial.number)


def _text(point: Point) -> str:
    return json.dumps(point, sort_keys=True)


def _is_exhausted(study: "optuna.Study") -> bool:
    """Whether a search draws nothing but points that it had."""
    last = study.get_trials(deepcopy=False)[-REPEATS:]
    return len(last) == REPEATS and all("drawn again" in trial.user_attrs for trial in last)


def _run_trial(plan: Plan, study: "optuna.Study", trial: "optuna.Trial", point: Point) -> list[str]:
    """Run a trial's runs and report to the study; return the point's name if it failed."""
    name = name_of(plan.base, point)
    terminal.say(f"\n[trial {trial.number}] {name}")
    values: dict[str, float] = {}
    try:
        for run, parameters_of_run in plan.runs(point):
            runner.run(plan.profile, list(STAGES), parameters_of_run, verbose=plan.verbose, is_shared=True)
            metrics = files.read_json(runner.run_of(parameters_of_run).path("metrics.json"))
            values[run] = float(metrics["val"][plan.objective])
            trial.set_user_attr("values", values)
    except Exception as error:  # whatever it is, the other trials can run
        terminal.say(f"\n{name}: {error or type(error).__name__}", sys.stderr)
        trial.set_user_attr("error", str(error)[:500])
        _mark_failed(study, trial.number)
        return [name]
    study.tell(trial, values=statistics.fmean(values.values()))
    return []


# --- ranking -----------------------------------------------------------------------------------------------------------


def print_ranking(plan: Plan, study: "optuna.Study", outputs: Path) -> None:
    """Print the ranked points, and write them to `outputs/sweep_<base>.csv`."""
    found, sheet = ranking(plan, study), outputs / f"sweep_{plan.base}.csv"
    files.write_csv(sheet, found)
    rows = [("rank", "point", f"VAL {plan.objective.replace('_f1', ' F1')}", "state")]
    for row in found.itertuples():
        score = "" if math.isnan(row.score) else f"{row.score:.4f}"
        score += "" if math.isnan(row.low) else f" ({row.low:.4f}–{row.high:.4f}, {row.seeds} seeds)"
        rows.append((row.rank, row.point, score, row.state))
    print()
    terminal.print_table(rows)
    terminal.say(f"{found['score'].notna().sum()} of {len(found)} points finished; ranked by VAL: {sheet}")


def ranking(plan: Plan, study: "optuna.Study") -> "pd.DataFrame":
    """A row for each finished point, best first, and for each that only failed.

    Columns: rank, point, score (mean over seeds on VAL), low and high (95 %, Student's t over seeds; empty for one seed),
    seeds, state, trial, a column for each swept parameter, runs.
    """
    import pandas as pd  # slow to import

    trials = [*_in_state(study, "FAIL"), *_in_state(study, "COMPLETE")]
    rows = []
    for text, trial in {one.user_attrs["point"]: one for one in trials if "point" in one.user_attrs}.items():
        is_done, swept = trial.state.name == "COMPLETE", {axis.key: axis.of(json.loads(text)) for axis in plan.axes}
        values = trial.user_attrs["values"] if is_done else {}
        low, high = interval(list(values.values()))
        row: dict[str, Any] = {"point": ", ".join(f"{key}={value}" for key, value in swept.items())}
        row |= {"score": trial.value if is_done else math.nan, "low": low, "high": high, "seeds": len(values)}
        row |= {"state": "done" if is_done else "failed", "trial": trial.number, **swept, "runs": " ".join(values)}
        rows.append(row)
    found = pd.DataFrame(rows).sort_values(["score", "trial"], ascending=[False, True], ignore_index=True)
    found.insert(0, "rank", [str(rank) if done else "–" for rank, done in enumerate(found["score"].notna(), 1)])
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of scores, Student's t, cut to 0–1; two NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan, math.nan
    from scipy.stats import t  # slow to import

    mean, half = statistics.fmean(values), t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return max(0.0, mean - half), min(1.0, mean + half)
