"""Locks that let only one process work on a run, and marks that let only one run have an image folder.

A lock is released when its process ends.

Each folder has two locks. `runner` is held by run_all.py from start to end, `stage` by the process that computes a stage,
in Jupyter or started by run_all.py. A kernel survives a killed run_all.py by about a second; meanwhile its lock keeps the
next run from writing to the same folder. On Kaggle a session is alone with its folders, so no lock is taken and
`filelock`, which may be missing there, is not imported.

An image folder outside the run's folder has a file that names the run. Another run does not write to it.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fer_utils import files, places
from fer_utils.data import finding
from fer_utils.pipeline import keys, paths

if TYPE_CHECKING:
    from filelock import FileLock

RUNNER, STAGE = "runner", "stage"
_PATIENCE = 15  # seconds; an orphaned kernel checks for its parent once a second
_LOOK = 0.5  # seconds; longer than another process looks at a lock, see is_held
_OWNER = ".images_of_run.json"  # in an image folder outside the run's folder: the run whose images these are


class RunIsBusy(RuntimeError):
    """Another process works on the run."""


@contextlib.contextmanager
def held_by_runner(folders: paths.RunFolders) -> Iterator[None]:
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


def hold_for_stage(folders: paths.RunFolders) -> "list[FileLock]":
    """Lock the run for a stage that this process computes, until the returned locks are released or the process ends.

    The same process may take the locks again, as a notebook that runs twice does. Raises as held_by_runner does.
    """
    require_own(folders)
    locks = [_acquired(lock, _PATIENCE) for lock in _locks(folders, STAGE)]
    _mark(folders)
    return locks


def require_own(folders: paths.RunFolders) -> None:
    """Raise OutputError if the run's folder holds something and no run, or if the image folder is another run's."""
    held = {path.name for path in folders.run.glob("[!.]*")}
    if held and not {"run.json", "stages"} & held:
        raise files.OutputError(f"{folders.run} is no run: it holds {min(held)}. Choose another --run or --outputs-dir")
    owner = _owner(folders.data.resolve())
    if owner and owner != folders.run.resolve():
        raise files.OutputError(
            f"{folders.data} belongs to the run {owner.name} ({owner}): choose another data_dir, or leave it empty"
        )


def require_own_images(folders: paths.RunFolders, stage: str) -> None:
    """Raise OutputError if an image folder that the stage replaces holds what this project did not write.

    Earlier versions left no lists in these folders. In the run's own folder, one without a list is taken for theirs.
    """
    require_own(folders)
    written = {name for inputs in keys.INPUTS.values() for name, writer in inputs.items() if writer == stage}
    names = [name.removeprefix("images/") for name in sorted(written) if name.startswith("images/")]
    for name in [*names, *([finding.DRAWN] if stage == "merge_split" else [])]:
        path = folders.split(name)
        is_inside = path.is_dir() and path.resolve().is_relative_to(folders.run.resolve())
        if is_inside and not path.is_symlink() and not (path / files.WRITTEN).exists():
            files.note_written(path)
        files.require_own(path)


def _owner(data: Path) -> Path | None:
    """The run that an image folder lies in, or that its mark names, if that is still there."""
    marked = [Path(files.read_json(data / _OWNER)["run"])] if (data / _OWNER).is_file() else []
    return next((run for run in (data, *data.parents[:2], *marked) if (run / "run.json").is_file()), None)


def _mark(folders: paths.RunFolders) -> None:
    if not folders.data.is_relative_to(folders.run):
        files.write_json(folders.data / _OWNER, {"run": str(folders.run.resolve())})


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
