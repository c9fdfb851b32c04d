"""Sweeps: which parameters vary, an Optuna study that any number of processes share, and the points ranked by VAL.

A trial is a point of the sweep, run with one or several seeds. The study lies in a file beside the runs, or in a database.
Its queue holds the points of a grid, and those to run again. Processes take trials one after another and hold a file lock on
the one that they run. The lock ends with its process: a trial in the state RUNNING that no process locks has failed, and its
point returns to the queue. What trials have in common is computed once.
"""

import contextlib
import itertools
import math
import os
import re
import statistics
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    Axis = CategoricalDistribution | FloatDistribution | IntDistribution  # the values of a list, or a range

Point = dict[str, str]  # `<stage>.<name>` → value, as text
SEEDED = ("train_head", "fine_tune")  # the stages whose seed varies: data and splits of a point stay the same
OBJECTIVES = ("macro_f1", "accuracy")
MOST = 10_000  # combinations of a sweep's values, and seeds of a point
POLL = 2.0  # seconds between two looks at the trials of other processes


def axes(texts: Sequence[str], declared: Mapping[str, Mapping[str, Parameter]]) -> "dict[str, Axis]":
    """The swept parameters, `<stage>.<name>` → values, of `STAGE.NAME=V1,V2,…` and `STAGE.NAME=LOW..HIGH[:log]`.

    Both ends of a range are included. Raises ParameterError for another form, and if Optuna is missing.
    """
    try:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    except ImportError:
        install = '`uv sync --extra sweep`, or `pip install "optuna>=4.5,<5"`'
        raise ParameterError(f"--sweep needs Optuna: {install}") from None
    found: dict[str, Axis] = {}
    for text in texts:
        stage, name, given = parameters.parse_override(text, "--sweep")
        cells = declared.values() if stage == parameters.COMMON else [declared.get(stage, {})]
        is_whole = {cell[name].type for cell in cells if name in cell} == {int}
        low, dots, high = given.removesuffix(":log").partition("..")
        values, is_log = [value.strip() for value in given.split(",")], given.endswith(":log")
        try:
            if f"{stage}.{name}" in found or "" in values or len(set(values)) < len(values):
                raise ValueError("a parameter or a value is given twice, or a value is empty")
            if not dots or "," in given or "/" in given:  # a path may have two dots
                found[f"{stage}.{name}"] = CategoricalDistribution(values)
            elif is_whole:
                found[f"{stage}.{name}"] = IntDistribution(int(low), int(high), log=is_log)
            else:
                found[f"{stage}.{name}"] = FloatDistribution(float(low), float(high), log=is_log)
        except ValueError as error:
            expected = "expected values set apart by commas, or a range LOW..HIGH, such as 1e-5..1e-3:log"
            raise ParameterError(f"--sweep {text}: {expected} ({error})") from None
    return found


def grid(swept: "Mapping[str, Axis]") -> list[Point]:
    """Every combination of the swept values; of a range these are its two ends."""
    lists = [list(axis.choices) if hasattr(axis, "choices") else [axis.low, axis.high] for axis in swept.values()]
    if math.prod(map(len, lists)) > MOST:
        raise ParameterError(f"--sweep: more than {MOST:,} combinations; give fewer values, or ranges and --trials")
    return [point_of(dict(zip(swept, values, strict=True))) for values in itertools.product(*lists)]


def point_of(values: Mapping[str, str | int | float]) -> Point:
    """The point with these values; searched numbers are rounded to four significant digits."""
    return {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in values.items()}


def sections(point: Point) -> dict[str, dict[str, str]]:
    """A point's values: section → name → value."""
    found: dict[str, dict[str, str]] = {}
    for key, value in point.items():
        stage, name = key.split(".")
        found.setdefault(stage, {})[name] = value
    return found


def name_of(base: str, point: Point) -> str:
    """The name of the run of a point: `demo__train_head.epochs=3__fine_tune.unfreeze_top=30`.

    A longer one than a run may have is cut, and ends in a digest of the whole.
    """
    name = "__".join([base, *(re.sub(r"[^\w.=+-]+", "-", f"{key}={value}") for key, value in point.items())])
    if len(os.fsencode(name)) <= LONGEST_NAME or not point:
        return name
    return f"{os.fsencode(name)[: LONGEST_NAME - 9].decode(errors='ignore')}-{keys.digest({'name': name})[:8]}"


# --- the study ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What to run: the axes, and for a search the number of trials.

    resolve: a point → the checked parameters of all stages of its run. base: the name that runs begin with.
    """

    axes: "Mapping[str, Axis]"
    base: str
    profile: str
    resolve: Callable[[Point], dict[str, dict[str, Any]]]
    trials: int = 0
    seeds: Sequence[int] = (42,)
    objective: str = "macro_f1"
    verbose: bool = False

    def check(self) -> None:
        """Raise ParameterError for a plan that cannot be run, before anything runs."""
        is_search = not all(hasattr(axis, "choices") for axis in self.axes.values())
        if is_search and self.trials < 1:
            raise ParameterError("--sweep searches a range: say with --trials how many points, such as --trials 20")
        if self.trials and not is_search:
            raise ParameterError("--trials is for ranges; lists of values are run in every combination")
        names = [name for point in grid(self.axes) for name, _ in self.runs(point)]
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise ParameterError(f"--sweep gives two runs the name {twice[0]}: leave one of the two values out")

    def runs(self, point: Point) -> list[tuple[str, dict[str, dict[str, Any]]]]:
        """The runs of a point, one for each seed of both phases of training: name and parameters."""
        seeded = [point | {f"{stage}.seed": str(seed) for stage in SEEDED} for seed in self.seeds]
        return [(name_of(self.base, each), self.resolve(each)) for each in (seeded if seeded[1:] else [point])]


def plan(swept: Sequence[str], profile: str, layers: Sequence[tuple[str, Mapping]], n_seeds: int, **how) -> Plan:
    """The checked plan of a command line. how: further fields of a plan. Raises ParameterError."""
    if not 1 <= n_seeds <= MOST:
        raise ParameterError(f"--seeds is {n_seeds}, expected 1 to {MOST:,}")
    base = next(iter(runner.resolve(profile, layers).values()))

    def resolve(point: Point) -> dict[str, dict[str, Any]]:
        name = name_of(base["run"], point)
        folders_of_run = {"run": name} | ({"data_dir": f"{base['data_dir']}/{name}"} if base["data_dir"] else {})
        more = [("--sweep", sections(point)), ("--sweep", {parameters.COMMON: folders_of_run})]
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

    Its name has a digest of axes, other parameters, sources, seeds, objective, code and versions, so that a study never mixes
    trials that do not compare. Raises ParameterError if the study cannot be opened, NotFoundHere for a missing source.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    swept = {key: str(axis) for key, axis in plan.axes.items()}
    naming = {key: axis for key, axis in plan.axes.items() if key.split(".")[1] in keys.NAMING_INPUTS}
    others = [keys.common_key_of(*item) for point in grid(naming) for item in plan.resolve(point).items()]
    digest = keys.digest({"study": [swept, others, list(plan.seeds), plan.objective]})
    journal = outputs / f"sweep_{plan.base}.journal"
    files.require_space(outputs, 0)  # every trial writes there
    try:
        study = optuna.create_study(
            storage=storage or JournalStorage(JournalFileBackend(str(journal), JournalFileOpenLock(str(journal)))),
            study_name=f"{plan.base}_{digest[:8]}",
            direction="maximize",
            load_if_exists=True,
        )
    except Exception as error:  # each storage has its own, and its driver may be missing
        name = f"--storage {storage}" if storage else f"{journal}, the sweep's study"
        way_out = "" if storage else ": move it away, and the sweep takes over what its runs have finished"
        fault = next(iter(str(error).splitlines()), type(error).__name__)
        raise ParameterError(f"{name}: cannot be opened ({fault}){way_out}") from error
    first = min(10, max(4, plan.trials // 3))  # trials drawn at random before the model of good values begins
    # Another study draws other points, and so does a process that joins in.
    seed = zlib.crc32(study.study_name.encode()) + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=first, constant_liar=True, seed=seed % 2**32)
    return study


# --- trials ------------------------------------------------------------------------------------------------------------


def work(plan: Plan, study: "optuna.Study", outputs: Path) -> list[str]:
    """Run trials until the study has all of them; return the names of the points that failed here.

    Points that failed before are run again, and so are those of processes that died. Waits for trials of other processes.
    """
    failed: list[str] = []
    locks, is_waiting = locks_of(study, outputs), False
    with files.one_at_a_time(locks / "study.lock", lambda: None):
        _queue(plan, study)
    while True:
        with contextlib.ExitStack() as held:
            with files.one_at_a_time(locks / "study.lock", lambda: None):
                _queue_abandoned(plan, study, locks)
                if trial := _take(plan, study):
                    held.enter_context(files.one_at_a_time(locks / f"{trial.number}.lock", lambda: None))
            if trial:
                failed += _run_trial(plan, study, trial)
                continue
        if not (running := _in_state(study, "RUNNING")):
            return failed
        if not is_waiting:
            terminal.say(f"every trial is taken; waiting for other processes, which run {len(running)} of them")
        is_waiting = True
        time.sleep(POLL)


def locks_of(study: "optuna.Study", outputs: Path) -> Path:
    """The folder of files that processes lock: `study.lock` to take a trial, `<number>.lock` to run it."""
    return outputs / ".trials" / keys.digest({"study": study.study_name})


def _values(trial: "optuna.trial.FrozenTrial") -> dict[str, Any]:
    """The values that a trial was queued with, or those that it drew: not all, if its process died meanwhile."""
    return trial.system_attrs.get("fixed_params", trial.params)


def _queue_abandoned(plan: Plan, study: "optuna.Study", locks: Path) -> None:
    """Mark trials in the state RUNNING that no process locks as failed, and queue their points."""
    for trial in _in_state(study, "RUNNING"):
        with contextlib.suppress(TimeoutError):
            held = files.acquired(locks / f"{trial.number}.lock", 0)
            if trial.number in [one.number for one in _in_state(study, "RUNNING")]:  # it may have ended since
                _mark_failed(study, trial.number)
                if plan.axes.keys() == (values := _values(trial)).keys():
                    study.enqueue_trial(values, user_attrs={"point": _text(point_of(values))})
                    terminal.say(f"the process that ran trial {trial.number} has ended: its point is run again")
            if held:
                held.release()


def _in_state(study: "optuna.Study", *states: str) -> "list[optuna.trial.FrozenTrial]":
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in states]


def _queue(plan: Plan, study: "optuna.Study") -> None:
    """Queue the points of a grid that have no trial yet, and those whose trials failed."""
    points: dict[str, dict] = {} if plan.trials else {_text(point): dict(point) for point in grid(plan.axes)}
    points |= {trial.user_attrs["point"]: _values(trial) for trial in _in_state(study, "FAIL") if trial.user_attrs}
    there = {trial.user_attrs.get("point") for trial in _in_state(study, "WAITING", "RUNNING", "COMPLETE")}
    for text, values in points.items():
        if text not in there:
            study.enqueue_trial(values, user_attrs={"point": text})


def _mark_failed(study: "optuna.Study", number: int) -> None:
    from optuna.trial import TrialState

    study.tell(number, state=TrialState.FAIL)


def _take(plan: Plan, study: "optuna.Study") -> "optuna.Trial | None":
    """The next trial of the queue, or a new one of a search; None if there is none left.

    A new trial whose point the study has already counts as one of the search's trials, but is not run. Only one process at a
    time may call this.
    """
    while True:
        points = {trial.user_attrs.get("point", trial.number) for trial in study.get_trials(deepcopy=False)}
        if len(points) >= plan.trials and not _in_state(study, "WAITING"):
            return None
        trial = study.ask(dict(plan.axes))
        text = _text(point_of(trial.params))
        if text not in points:
            trial.set_user_attr("point", text)
        if "point" in trial.user_attrs:
            return trial
        _mark_failed(study, trial.number)


def _text(point: Point) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(point.items()))


def _run_trial(plan: Plan, study: "optuna.Study", trial: "optuna.Trial") -> list[str]:
    """Run a trial's runs and report to the study; return the point's name if it failed."""
    point = point_of({key: trial.params[key] for key in plan.axes})
    name = name_of(plan.base, point)
    terminal.say(f"\n[trial {trial.number}] {name}")
    values: dict[str, float] = {}
    try:
        for run, parameters_of_run in plan.runs(point):
            runner.run(plan.profile, list(STAGES), parameters_of_run, verbose=plan.verbose, is_shared=True)
            metrics = files.read_json(runner.run_of(parameters_of_run).path("metrics.json"))
            values[run] = float(metrics["val"][plan.objective])
    except Exception as error:  # whatever it is, the other trials can run
        terminal.say(f"\n{name}: {error or type(error).__name__}", sys.stderr)
        _mark_failed(study, trial.number)
        return [name]
    trial.set_user_attr("values", values)
    study.tell(trial, values=statistics.fmean(values.values()))
    return []


def print_ranking(plan: Plan, study: "optuna.Study", outputs: Path) -> None:
    """Print the ranked points, and write them to `outputs/sweep_<base>.csv`."""
    found, sheet = ranking(plan, study), outputs / f"sweep_{plan.base}.csv"
    files.write_csv(sheet, found)
    shown = found[["rank", "point", "score", "low", "high", "seeds", "state"]].round(4).map(str).replace("nan", "")
    print()
    terminal.print_table([list(shown), *shown.to_numpy().tolist()])
    finished = f"{found['score'].notna().sum()} of {len(found)} points finished"
    terminal.say(f"{finished}; ranked by VAL {plan.objective.replace('_f1', ' F1')}: {sheet}")


def ranking(plan: Plan, study: "optuna.Study") -> "pd.DataFrame":
    """A row for each finished point, best first, and for each that only failed.

    Columns: rank, point, score (mean over seeds on VAL), low and high (95 %, Student's t over seeds; empty for one seed),
    seeds, state, trial, a column for each swept parameter, runs.
    """
    import pandas as pd  # slow to import, as is SciPy
    from scipy.stats import t

    trials = [trial for trial in (*_in_state(study, "FAIL"), *_in_state(study, "COMPLETE")) if trial.user_attrs]
    rows = []
    for text, trial in {trial.user_attrs["point"]: trial for trial in trials}.items():
        values = trial.user_attrs.get("values", {})
        scores = pd.Series(values, dtype=float)
        half = t.ppf(0.975, len(scores) - 1) * scores.sem()  # NaN for fewer than two
        row = {"point": text, "score": scores.mean(), "low": scores.mean() - half, "high": scores.mean() + half}
        row |= {"seeds": len(scores), "state": "done" if values else "failed", "trial": trial.number}
        rows.append(row | point_of({key: trial.params[key] for key in plan.axes}) | {"runs": " ".join(values)})
    found = pd.DataFrame(rows).sort_values(["score", "trial"], ascending=[False, True], ignore_index=True)
    found.insert(0, "rank", [str(rank) if done else "–" for rank, done in enumerate(found["score"].notna(), 1)])
    return found
