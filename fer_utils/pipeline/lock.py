"""One process a run: locks that hold while their process lives, and no longer.

Two locks a folder. `runner` is held by run_all.py from start to end, `stage` by the process that computes a stage,
opened by hand in Jupyter or started by run_all.py. A kernel outlives a killed run_all.py by about a second; its lock
keeps the next run from writing beside it. On Kaggle a session has its folders to itself: no lock is taken there, and the
package of locks, which its image may lack, is not imported.
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
_PATIENCE = 15  # seconds: an orphaned kernel looks for its parent once a second


class RunIsBusy(RuntimeError):
    """Another process works on the run."""


@contextlib.contextmanager
def held_by_runner(folders: paths.RunFolders) -> Iterator[None]:
    """Hold the run, and its image folder where that lies elsewhere, for the block.

    Raises RunIsBusy where another run_all.py holds it, or where a notebook computes in it and does not end soon.
    """
    with contextlib.ExitStack() as stack:
        for lock in _locks(folders, RUNNER):
            stack.callback(_acquired(lock, 0).release)
        for lock in _locks(folders, STAGE):
            _acquired(lock, _PATIENCE).release()
        yield


def hold_for_stage(folders: paths.RunFolders) -> "list[FileLock]":
    """Hold the run for a stage that this process computes, until the locks returned are released or the process ends.

    Beginning again in one process, as a notebook run twice does, is no clash. Raises RunIsBusy.
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
    """Whether a process works on the run at this moment."""
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
