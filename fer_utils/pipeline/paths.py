"""The folders and files of a run, and their names."""

import os
import reprlib
from dataclasses import dataclass
from pathlib import Path

from fer_utils import places
from fer_utils.pipeline.parameters import ParameterError

LONGEST_NAME = 128  # bytes of a run's name: file systems hold 255 (eCryptfs 143), and files are named after runs


@dataclass(frozen=True)
class RunFolders:
    """Every file and folder of one run. `run` is the folder of results, `data` that of the image folders."""

    run: Path
    data: Path

    def split(self, name: str) -> Path:
        """The image folder TRAIN, VAL, TEST or TRAIN_BALANCED."""
        return self.data / name

    def for_split(self, stem: str, split: str, suffix: str) -> Path:
        """A result of one split, such as `predictions_val.csv`."""
        return self.run / f"{stem}_{split.lower()}{suffix}"

    def figure(self, name: str) -> Path:
        """The file of a figure: confusion matrices are in the run's folder, other figures in its folder `figures`."""
        folder = self.run if name.startswith("confusion_matrix_") else self.run / "figures"
        return folder / f"{name}.png"

    def is_figure(self, path: Path) -> bool:
        """Whether a path is a figure in the folder `figures`."""
        return path.is_relative_to(self.run / "figures")

    def stage_record(self, stage: str) -> Path:
        """The record of a stage's last successful end."""
        return self.run / "stages" / f"{stage}.json"

    def checkpoint(self, stage: str) -> Path:
        """The state of an unfinished training after its last finished epoch."""
        return self.run / f"checkpoint_{stage}.npz"

    @property
    def description(self) -> Path:
        """Profile and parameters of the run; a folder with this file is a run."""
        return self.run / "run.json"

    @property
    def manifest(self) -> Path:
        return self.run / "manifest.csv"

    @property
    def balanced(self) -> Path:
        return self.run / "balanced.csv"

    @property
    def history_head(self) -> Path:
        return self.run / "history_head.csv"

    @property
    def history_fine_tune(self) -> Path:
        return self.run / "history_fine_tune.csv"

    @property
    def model(self) -> Path:
        return self.run / "model.keras"

    @property
    def metrics(self) -> Path:
        return self.run / "metrics.json"

    @property
    def report(self) -> Path:
        return self.run / "report.html"

    @property
    def notebooks(self) -> Path:
        return self.run / "notebooks"


def run_folders(run: str, outputs_dir: str, data_dir: str) -> RunFolders:
    """The folders of the run called `run`; relative paths start at the project's root.

    An empty `data_dir` means `<run folder>/images`. Raises ParameterError for a run name that is no plain folder name, or
    longer than LONGEST_NAME.
    """
    if not run or run != Path(run).name or run.startswith(".") or "\\" in run or not run.isprintable():
        raise ParameterError(f"run is {run!r}, expected a plain folder name such as 'demo' or 'lr_1e-3'")
    if len(os.fsencode(run)) > LONGEST_NAME:
        raise ParameterError(
            f"run is {reprlib.repr(run)} of {len(os.fsencode(run))} bytes, expected at most {LONGEST_NAME}"
        )
    folder = places.place(outputs_dir) / run
    return RunFolders(folder, _data_folder(data_dir) if data_dir else folder / "images")


def _data_folder(given: str) -> Path:
    """The folder at `given`; if it is in Kaggle's `content` and cannot be written, the folder of its name in Kaggle's `temp`."""
    folder = places.place(given)
    if places.kaggle_root() / "content" in folder.parents and not _can_be_made(folder):
        return places.kaggle_root() / "temp" / folder.name
    return folder


def _can_be_made(folder: Path) -> bool:
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def cache_folder(cache_dir: str, outputs_dir: str) -> Path:
    """The folder of cached activations that runs share: `cache_dir`, or if empty `.cache` in `outputs_dir`."""
    return places.place(cache_dir) if cache_dir else places.place(outputs_dir) / ".cache"
