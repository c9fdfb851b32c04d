"""The one module that knows folders: the project's, a run's, the datasets', Kaggle's.

Knows where things are and what they are called; knows nothing of what stands in them.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from fer_utils import mounts
from fer_utils.classes import CLASSES, EMOTION_DETECTION_SPELLINGS

# What to download and where to put it, by the name of the notebook parameter.
DATASETS = {
    "fer2013": ("msambare/fer2013", "fer2013"),
    "emotion_detection": ("ananthu017/emotion-detection-fer", "emotion-detection-fer"),
}
# The class folders that tell the datasets apart, wherever they are mounted.
CLASS_FOLDERS = {
    "fer2013": CLASSES,
    "emotion_detection": tuple(EMOTION_DETECTION_SPELLINGS.get(name, name) for name in CLASSES),
}


class NotFoundHere(FileNotFoundError):
    """Something that a stage needs is not where it should be."""


def project_root() -> Path:
    """The folder with `notebooks/`: the working folder or the nearest one above it, else the working folder."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if _holds_notebooks(folder):
            return folder
    return here


def source_root() -> Path:
    """The folder with this project's `notebooks/` and `params/`: the project's root, else where this package lies."""
    root = project_root()
    return root if _holds_notebooks(root) else Path(__file__).resolve().parents[1]


def _holds_notebooks(folder: Path) -> bool:
    return (folder / "notebooks" / "01_merge_split.py").is_file()


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

    def is_figure(self, path: Path) -> bool:
        """Whether a path is that of such a figure."""
        return path.is_relative_to(self.run / "figures")

    def stage_record(self, stage: str) -> Path:
        """What a stage's last successful end left on record."""
        return self.run / "stages" / f"{stage}.json"

    def checkpoint(self, stage: str) -> Path:
        """Where training stood after the last finished epoch of a stage under way."""
        return self.run / f"checkpoint_{stage}.npz"

    @property
    def description(self) -> Path:
        """Profile and parameters of the run: what makes a folder a run."""
        return self.run / "run.json"

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
    def trained_head(self) -> Path:
        """The images of TRAIN that phase 1 trained on."""
        return self.run / "trained_head.csv"

    @property
    def trained(self) -> Path:
        """The images of TRAIN that the model was trained on, in either phase."""
        return self.run / "trained.csv"

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
    folder = place(outputs_dir) / run
    return RunFolders(folder, _data_folder(data_dir) if data_dir else folder / "images")


def place(given: str) -> Path:
    """A folder as given in a parameter; `/kaggle/…` moves with Kaggle's root, a relative one starts at the project's."""
    path = Path(given)
    if path.is_relative_to("/kaggle"):
        return kaggle_root() / path.relative_to("/kaggle")
    return project_root() / path


def weights_source(weights: str) -> str:
    """The parameter `weights` for a working folder of any kind: `imagenet` and `none` as they are, else the file's path."""
    return weights if weights in ("imagenet", "none") else str(place(weights))


def _data_folder(given: str) -> Path:
    """The folder at `given`; where Kaggle's `content` cannot be written, the one of its name in Kaggle's `temp`."""
    folder = place(given)
    if kaggle_root() / "content" in folder.parents and not _can_be_made(folder):
        return kaggle_root() / "temp" / folder.name
    return folder


def _can_be_made(folder: Path) -> bool:
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def cache_folder(cache_dir: str, outputs_dir: str) -> Path:
    """The folder of activations that runs share: `cache_dir`, or `.cache` under `outputs_dir` where that is empty."""
    return place(cache_dir) if cache_dir else place(outputs_dir) / ".cache"


def find_dataset(name: str, given: str) -> Path:
    """Where a source dataset is: at `given`, or with `auto` in the usual places.

    In this order: `/kaggle/input/datasets/<owner>/<slug>`, `/kaggle/input/<slug>`, any folder mounted on Kaggle that
    holds `train/` and `test/` with the dataset's class folders, `data/<slug>`, `data/<slug>.zip`. Raises NotFoundHere,
    naming the dataset to get and what is there; also where several mounted folders fit.
    """
    owner_slug, local = DATASETS[name]
    if given != "auto":
        path = place(given)
        if path.exists():
            return path
        raise NotFoundHere(f"{name}: nothing at {path}\n{_how_to_get(owner_slug, local)}")
    inputs = kaggle_root() / "input"
    data = project_root() / "data"
    for usual in (inputs / "datasets" / owner_slug, inputs / local):
        if usual.exists():
            return usual
    mounted = mounts.find_parts(inputs, ("train", "test"), CLASS_FOLDERS[name])
    if len(mounted) > 1:
        raise NotFoundHere(
            f"{name}: {' and '.join(map(str, mounted))} both look like it: set the parameter {name} to one of them"
        )
    for found in (*mounted, data / local, data / f"{local}.zip"):
        if found.exists():
            return found
    looked = f"looked for {data / local} and {data / local}.zip; data/ holds {', '.join(held_data()) or 'nothing'}"
    looked = mounts.describe(inputs) if on_kaggle() else looked
    raise NotFoundHere(f"{name}: the dataset is not here; {looked}\n{_how_to_get(owner_slug, local)}")


def mounted_weights() -> list[Path]:
    """The `.h5` files mounted on Kaggle, those called `notop` first."""
    return sorted(mounts.find_files(kaggle_root() / "input", ".h5"), key=lambda path: "notop" not in path.name.lower())


def held_data() -> list[str]:
    """What lies in the project's `data/`, by name, folders with a slash; without hidden files."""
    data = project_root() / "data"
    found = sorted(data.iterdir()) if data.is_dir() else []
    return [f"{path.name}/" if path.is_dir() else path.name for path in found if not path.name.startswith(".")]


def has_datasets() -> bool:
    """Whether both source datasets stand in a usual place."""
    try:
        return all(find_dataset(name, "auto") for name in DATASETS)
    except NotFoundHere:
        return False


def _how_to_get(owner_slug: str, local: str) -> str:
    address = f"https://www.kaggle.com/datasets/{owner_slug}"
    if on_kaggle():
        return f"Attach {address} to the notebook: Add Input, Datasets, {owner_slug}."
    return (
        f"Download {address} and put the folder or the zip at data/{local} or "
        f"data/{local}.zip; with kagglehub installed, `python run_all.py --download` does it. To see everything run "
        "without any download: `python run_all.py --params params/demo.yaml`."
    )


def has_gpu() -> bool:
    """Whether an NVIDIA driver shows a GPU; asks no TensorFlow, whose import takes seconds."""
    return any(Path("/dev").glob("nvidia[0-9]*"))
