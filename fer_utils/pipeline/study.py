"""Runs a sweep as an Optuna study, whose trials any number of processes share; TEST is never looked at.

A trial is a point of the sweep, run with one or several seeds. The study lies in a file beside the runs, or in a database.
A process takes a trial, and says every BEAT seconds that it is alive. If it falls silent, another process takes the trial
up. What trials have in common is computed once: see `runner.run`.

Optuna's GridSampler is not used for lists of values: processes that share a study may draw the same point from it. The
points are queued instead, and a process takes each from the queue once.
"""

import contextlib
import glob
import hashlib
import json
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
from fer_utils.pipeline import keys, paths, runner, sweeps, terminal
from fer_utils.pipeline.lock import RunIsBusy
from fer_utils.pipeline.parameters import STAGES, ParameterError
from fer_utils.pipeline.sweeps import Axis, Point

if TYPE_CHECKING:
    import optuna

OBJECTIVES = ("macro_f1", "accuracy")
PRUNERS = ("none", "median")
BEAT = 10.0  # seconds between two signs of life
POLL = 2.0  # seconds between two looks at other processes, and at a training's finished epochs
SILENCE = 120.0  # seconds without a sign of life after which a trial is given to another process
MOST_SEEDS = 1_000  # of a point
REPEATS = 50  # points drawn in a row that are there already, after which a search ends
SEED_STEP = 10_000  # a pruner compares epochs of the same seed: step = place of the seed × SEED_STEP + epoch


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
    silence: float = SILENCE
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
        if not self.silence >= 2 * BEAT:
            raise ParameterError(
                f"--silence is {self.silence:g}, expected at least {2 * BEAT:g}: a living process is heard every {BEAT:g} s"
            )
        names = [name for point in sweeps.grid(self.axes) for name, _ in self.runs(point)]
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise ParameterError(f"--sweep gives two runs the name {twice[0]}: leave one of the two values out")

    def runs(self, point: Point) -> list[tuple[str, dict[str, dict[str, Any]]]]:
        """The runs of a point, one for each seed: name and parameters."""
        points = [point] if len(self.seeds) == 1 else [sweeps.with_seed(point, seed) for seed in self.seeds]
        return [(sweeps.name_of(self.base, seeded), self.resolve(seeded)) for seeded in points]


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


def work(plan: Plan, study: "optuna.Study") -> list[str]:
    """Take and run trials until the study has all of them; return the names of the points that failed here.

    Waits for trials that other processes run, and takes up those whose process fell silent.
    """
    if not plan.is_search:
        _queue(plan, study)
    watch = _Silence(plan.silence)
    failed: list[str] = []
    is_waiting = is_exhausted = False
    while True:
        watch.requeue(study)
        try:
            taken = _take(plan, study, draws=not is_exhausted)
        except _Exhausted as error:
            terminal.say(str(error))
            taken, is_exhausted = None, True
        if taken:
            is_waiting = False
            failed += _run_trial(plan, study, *taken)
        elif any(_is_running(trial) for trial in _useful(study)):
            if not is_waiting:
                terminal.say("every trial is taken; waiting for the processes that run the last ones")
            is_waiting = True
            time.sleep(POLL)
        else:
            return failed


def _queue(plan: Plan, study: "optuna.Study") -> None:
    """Queue the points of a grid that no trial has, or that only failed."""
    present = {trial.user_attrs.get("point") for trial in _useful(study)}
    for point in sweeps.grid(plan.axes):
        if _text(point) not in present:
            values = {axis.key: point[axis.stage][axis.name] for axis in plan.axes}
            study.enqueue_trial(values, user_attrs={"point": _text(point)})


def _text(point: Point) -> str:
    return json.dumps(point, sort_keys=True)


def _useful(study: "optuna.Study") -> list:
    """The trials that count: waiting, running, complete or pruned."""
    from optuna.trial import TrialState

    return [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.FAIL]


def _is_running(trial) -> bool:
    return trial.state.name == "RUNNING"


class _Exhausted(Exception):
    """A search draws nothing but points that it had."""


def _take(plan: Plan, study: "optuna.Study", draws: bool) -> "tuple[optuna.Trial, Point] | None":
    """A trial for this process and its point, or None if there is none left to take.

    draws: whether a search may draw a new point. Two processes may ask at the same moment, and then get one trial too many,
    or the same point twice. The trial with the higher number is given up. Raises _Exhausted after REPEATS points in a row
    that the search had before.
    """
    repeated = 0
    while True:
        useful = _useful(study)
        is_queued = any(trial.state.name == "WAITING" for trial in useful)
        if not is_queued and not (plan.is_search and draws and len(useful) < plan.trials):
            return None
        if repeated == REPEATS:
            raise _Exhausted(
                f"the last {REPEATS} points drawn were there already: the search ends after {len(useful)} points"
            )
        trial = study.ask()
        if not plan.is_search and "point" not in trial.user_attrs:
            _give_up(study, trial, "the queue was empty")
            continue
        point = sweeps.point_of({axis: _drawn(trial, axis) for axis in plan.axes})
        trial.set_user_attr("point", _text(point))
        trial.set_user_attr("alive", time.time())
        earlier = [other for other in _useful(study) if other.number < trial.number]
        if _text(point) in {other.user_attrs.get("point") for other in earlier}:
            _give_up(study, trial, "another trial has this point")
            repeated += 1
        elif plan.is_search and len(earlier) >= plan.trials:
            _give_up(study, trial, "there are enough trials")
        else:
            return trial, point


def _drawn(trial: "optuna.Trial", axis: Axis) -> str | float:
    if not axis.is_range:
        return trial.suggest_categorical(axis.key, axis.values)
    if axis.is_int:
        return trial.suggest_int(axis.key, int(axis.low), int(axis.high), log=axis.is_log)
    return trial.suggest_float(axis.key, axis.low, axis.high, log=axis.is_log)


def _give_up(study: "optuna.Study", trial: "optuna.Trial", why: str) -> None:
    from optuna.trial import TrialState

    trial.set_user_attr("given up", why)
    study.tell(trial, state=TrialState.FAIL)


class _Silence:
    """Finds trials whose process gives no sign of life, by this process's own clock."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._seen: dict[int, tuple[Any, float]] = {}  # number → last sign, when it was first seen

    def requeue(self, study: "optuna.Study") -> None:
        """Fail the silent trials, and queue their points again."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        for trial in filter(_is_running, _useful(study)):
            sign, now = trial.user_attrs.get("alive"), time.monotonic()
            last, since = self._seen.get(trial.number, (None, now))
            if trial.number not in self._seen or sign != last:
                self._seen[trial.number] = sign, now
            elif now - since > self.seconds:
                with contextlib.suppress(ValueError, UpdateFinishedTrialError):  # another process was faster
                    study.tell(trial.number, state=TrialState.FAIL)
                    terminal.say(f"trial {trial.number} gave no sign of life for {self.seconds:.0f} s: it is run again")
                    _requeue(study, trial)


def _requeue(study: "optuna.Study", trial) -> None:
    fixed = trial.params or trial.system_attrs.get("fixed_params", {})  # it may have ended before it drew its values
    point = {"point": trial.user_attrs["point"]} if "point" in trial.user_attrs else {}
    study.enqueue_trial(fixed, user_attrs=point)


# --- running a trial ---------------------------------------------------------------------------------------------------


@dataclass
class _Attempt:
    """A running trial: what its watching thread and its runs share."""

    trial: "optuna.Trial"
    step: int = 0  # of the current seed
    folders: paths.RunFolders | None = None
    is_pruned: bool = False
    reported: int = 0  # epochs of the current seed
    ended: threading.Event = field(default_factory=threading.Event)


def _run_trial(plan: Plan, study: "optuna.Study", trial: "optuna.Trial", point: Point) -> list[str]:
    """Run a trial's runs and tell the study; return the point's name if it failed."""
    from optuna.trial import TrialState

    name = sweeps.name_of(plan.base, point)
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
                _note(trial, runs=[one for one, _ in named[: place + 1]], values=values)
    except Exception as error:  # whatever it is, the other trials can run
        terminal.say(f"\n{name}: {error or type(error).__name__}", sys.stderr)
        _note(trial, error=str(error)[:500])
        _tell(study, trial, state=TrialState.FAIL)
        return [name]
    except BaseException:  # interrupted: the next process that is free goes on with it
        _note(trial, error="interrupted")
        if _tell(study, trial, state=TrialState.FAIL):
            _requeue(study, trial)
        raise
    if attempt.is_pruned:
        terminal.say(f"{name}: pruned after an epoch below the median of the other trials")
        _tell(study, trial, state=TrialState.PRUNED)
    else:
        _tell(study, trial, values=statistics.fmean(values))
    return []


def _note(trial: "optuna.Trial", **noted) -> None:
    """Note something of a trial in the study, unless another process has ended it."""
    from optuna.exceptions import UpdateFinishedTrialError

    with contextlib.suppress(UpdateFinishedTrialError):
        for name, value in noted.items():
            trial.set_user_attr(name, value)


def _tell(study: "optuna.Study", trial: "optuna.Trial", **told) -> bool:
    """Tell the study how a trial ended; return whether it was still this process's."""
    from optuna.exceptions import UpdateFinishedTrialError

    try:
        study.tell(trial, **told)
    except (ValueError, UpdateFinishedTrialError):
        terminal.say(
            f"trial {trial.number} was given to another process, since this one gave no sign of life", sys.stderr
        )
        return False
    return True


def _score(plan: Plan, attempt: _Attempt, values: dict[str, dict[str, Any]]) -> float:
    """Run one run of a trial and return its score on VAL; if it is pruned, 0 and nothing of its phase 2 stays."""
    attempt.folders = folders = runner.folders_of(values)
    stop_file(folders).unlink(missing_ok=True)

    def siblings() -> list[paths.RunFolders]:
        found = []
        for other in sorted(folders.run.parent.glob(f"{glob.escape(plan.base)}__*")):
            with contextlib.suppress(ParameterError):  # its name is no run's
                found.append(paths.run_folders(other.name, str(other.parent), _data_dir(values, other.name)))
        return [other for other in found if other != folders]

    while True:
        try:
            runner.run(
                plan.profile, list(STAGES), values, verbose=plan.verbose, donors=siblings,
                goes_on=lambda stage: not attempt.is_pruned,
            )  # fmt: skip
            break
        except RunIsBusy:  # a process that was given up for silent still runs it
            time.sleep(POLL)
    if attempt.is_pruned:
        for file in (folders.stage_record("fine_tune"), folders.checkpoint("fine_tune"), stop_file(folders)):
            file.unlink(missing_ok=True)
        return 0.0
    return float(files.read_json(folders.metrics)["val"][plan.objective])


def _data_dir(values: dict[str, dict[str, Any]], run: str) -> str:
    """Where another run of this sweep has its image folders."""
    data_dir = values["merge_split"]["data_dir"]
    return f"{Path(data_dir).parent}/{run}" if data_dir else ""


def stop_file(folders: paths.RunFolders) -> Path:
    """The file that asks a training of phase 2 to end after its epoch: see fer_utils.training.checkpoint."""
    return folders.checkpoint("fine_tune").with_suffix(".stop")


@contextlib.contextmanager
def _watched(plan: Plan, attempt: _Attempt) -> Iterator[None]:
    """While a trial runs, give signs of life and report finished epochs to the pruner."""

    def watch() -> None:
        beaten, said = 0.0, ""
        while not attempt.ended.wait(POLL):
            try:
                if time.monotonic() - beaten >= BEAT:
                    beaten = time.monotonic()
                    _note(attempt.trial, alive=time.time())
                if plan.pruner != "none" and attempt.folders and not attempt.is_pruned:
                    _report(plan, attempt)
            except Exception as error:  # a database that is away for a moment must not end the signs of life
                if _first_line(error) != said:
                    said = _first_line(error)
                    terminal.say(f"trial {attempt.trial.number}: the study cannot be reached ({said})", sys.stderr)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        attempt.ended.set()
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
