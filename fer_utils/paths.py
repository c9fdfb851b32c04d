"""The one module that knows folders: the project's, a run's, the datasets', Kaggle's.

Knows where things are and what they are called; knows nothing of what stands in them.
"""

import os
from dataclasses import dataclass
from pathlib import Path

# What to download and where to put it, by the name of the notebook parameter.
DATASETS = {
    "fer2013": ("msambare/fer2013", "fer2013"),
    "emotion_detection": ("ananthu017/emotion-detection-fer", "emotion-detection-fer"),
}
KAGGLE_DATA = "content/fer2013_by_usage_1"  # the specification's folder of processed images


class NotFoundHere(FileNotFoundError):
    """Something that a stage needs is not where it should be."""


def project_root() -> Path:
    """The folder with `notebooks/`: the working folder or the nearest one above it, else the working folder."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks" / "01_merge_split.py").is_file():
            return folder
    return here


def kaggle_root() -> Path:
    """`/kaggle`; the environment variable FER_KAGGLE_ROOT moves it, for tests."""
    return Path(os.environ.get("FER_KAGGLE_ROOT", "/kaggle"))


def on_kaggle() -> bool:
    """Whether this is a Kaggle notebook machine."""
    return (kaggle_root() / "input").is_dir() and (kaggle_root() / "working").is_dir()


@dataclass(frozen=True)
class RunFolders:
    """Every file and folder of one run. `run` holds results, `data` the image folders."""

    run: Path
    data: Path

    def split(self, name: str) -> Path:
        """The image folder TRAIN, VAL, TEST or TRAIN_BALANCED."""
        return self.data / name

    def for_split(self, stem: str, split: str, suffix: str) -> Path:
        """A result of one split, such as `predictions_val.csv`."""
        return self.run / f"{stem}_{split.lower()}{suffix}"

    def figure(self, name: str) -> Path:
        """A figure that is no named result."""
        return self.run / "figures" / f"{name}.png"

    def stage_record(self, stage: str) -> Path:
        """What a stage's last successful end left on record."""
        return self.run / "stages" / f"{stage}.json"

    def checkpoint(self, stage: str) -> Path:
        """Where training stood after the last finished epoch of a stage under way."""
        return self.run / f"checkpoint_{stage}.npz"

    @property
    def demo_sources(self) -> Path:
        return self.data / "demo_sources"

    @property
    def manifest(self) -> Path:
        return self.run / "manifest.csv"

    @property
    def leakage(self) -> Path:
        return self.run / "leakage.json"

    @property
    def balanced(self) -> Path:
        return self.run / "balanced.csv"

    @property
    def head_weights(self) -> Path:
        return self.run / "head.weights.h5"

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
    def model_weights(self) -> Path:
        return self.run / "model.weights.h5"

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
    """The folders of the run called `run`; relative ones start at the project's root.

    `data_dir` empty means `<run folder>/images`. Raises ValueError for a run name that is no plain folder name.
    """
    if not run or run != Path(run).name or run.startswith(".") or "\\" in run:
        raise ValueError(f"run is {run!r}, expected a plain folder name such as 'demo' or 'lr_1e-3'")
    folder = project_root() / outputs_dir / run
    return RunFolders(folder, project_root() / data_dir if data_dir else folder / "images")


def find_dataset(name: str, given: str) -> Path:
    """Where a source dataset is: at `given`, or with `auto` in the usual places.

    Usual: `/kaggle/input/datasets/<owner>/<slug>`, `/kaggle/input/<slug>`, `data/<slug>`, `data/<slug>.zip`.
    Raises NotFoundHere, naming the dataset to download and the places looked at.
    """
    owner_slug, local = DATASETS[name]
    if given != "auto":
        path = project_root() / given
        if path.exists():
            return path
        raise NotFoundHere(f"{name}: nothing at {path}\n{_how_to_get(owner_slug, local)}")
    inputs = kaggle_root() / "input"
    data = project_root() / "data"
    places = [inputs / "datasets" / owner_slug, inputs / local, data / local, data / f"{local}.zip"]
    for place in places:
        if place.exists():
            return place
    looked = "\n".join(f"  {place}" for place in places)
    raise NotFoundHere(f"{name}: the dataset is in none of\n{looked}\n{_how_to_get(owner_slug, local)}")


def has_datasets() -> bool:
    """Whether both source datasets stand in a usual place."""
    try:
        return all(find_dataset(name, "auto") for name in DATASETS)
    except NotFoundHere:
        return False


def _how_to_get(owner_slug: str, local: str) -> str:
    return (
        f"Download https://www.kaggle.com/datasets/{owner_slug} and put the folder or the zip at data/{local} or "
        f"data/{local}.zip; with kagglehub installed, `python run_all.py --download` does it. To see everything run "
        "without any download: `python run_all.py --params params/demo.yaml`."
    )


def has_gpu() -> bool:
    """Whether an NVIDIA driver shows a GPU; asks no TensorFlow, whose import takes seconds."""
    return any(Path("/dev").glob("nvidia[0-9]*"))
