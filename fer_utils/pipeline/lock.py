"""Locks that let only one process work on a run; a lock is released when its process ends.

Each folder has two locks. `runner` is held by run_all.py from start to end, `stage` by the process that computes a stage,
in Jupyter or started by run_all.py. A kernel survives a killed run_all.py by about a second; meanwhile its lock keeps the
next run from writing to the same folder. On Kaggle a session is alone with its folders, so no lock is taken and
`filelock`, which may be missing there, is not imported.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fer_utils import files, places
from fer_utils.pipeline import paths

if TYPE_CHECKING:
    from filelock import FileLock

RUNNER, STAGE = "runner", "stage"
_PATIENCE = 15  # seconds; an orphaned kernel checks for its parent once a second


class RunIsBusy(RuntimeError):
    """Another process works on the run."""


@contextlib.contextmanager
def held_by_runner(folders: paths.RunFolders) -> Iterator[None]:
    """Lock the run, and its image folder if that is elsewhere, for the block.

    Raises RunIsBusy if another run_all.py holds it, or if a notebook computes in it and does not end soon.
    """
    with contextlib.ExitStack() as stack:
        for lock in _locks(folders, RUNNER):
            stack.callback(_acquired(lock, 0).release)
        for lock in _locks(folders, STAGE):
            _acquired(lock, _PATIENCE).release()
        yield


def hold_for_stage(folders: paths.RunFolders) -> "list[FileLock]":
    """Lock the run for a stage that this process computes, until the returned locks are released or the process ends.

    The same process may take the locks again, as a notebook that runs twice does. Raises RunIsBusy.
    """
    return [_acquired(lock, _PATIENCE) for lock in _locks(folders, STAGE)]


def _locks(folders: paths.RunFolders, kind: str) -> "list[FileLock]":
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


def is_held(folders: paths.RunFolders) -> bool:
    """Whether a process works on the run now."""
    from filelock import Timeout

    for kind in (RUNNER, STAGE):
        for lock in _locks(folders, kind):
            if not Path(lock.lock_file).exists():
                continue
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return True
            lock.release()
    return False
