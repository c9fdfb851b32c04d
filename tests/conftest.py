"""Small sources and files that several test files read."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from fer_utils.data import demo
from fer_utils.data.splits import EMOTION_DETECTION, FER2013
from fer_utils.predict import detection

import h5py
import numpy as np
import pytest
from hypothesis import settings

# Two processes take the files from the top: the longest come first, so that neither ends the suite alone.
LONGEST = (
    *("notebooks/test_label_sets_run", "notebooks/test_demo_run", "notebooks/test_kaggle_run"),
    *("notebooks/test_two_gpus", "notebooks/test_in_a_kernel"),
    *("unit/training", "unit/predict", "unit/pipeline", "unit/data", "unit/export"),
)

# Each process of the suite, and those that it starts, take their share of the cores. Numbers of threads are read when
# TensorFlow and NumPy are imported.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    n_threads = str(max(1, (os.cpu_count() or 1) // workers))
    for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, n_threads)

# The same examples on every machine: what lands must not depend on a draw.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(item.path))


def _place(file: Path) -> int:
    """The place of a test file's name or folder in LONGEST; the short ones come after it."""
    tests = Path(__file__).parent
    name = file.relative_to(tests).as_posix() if file.is_relative_to(tests) else ""
    return next((place for place, begins in enumerate(LONGEST) if name.startswith(begins)), len(LONGEST))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> tuple[Path, Path]:
    """Both demo datasets, 350 faces: (fer2013, emotion-detection-fer). Read them only."""
    return demo.write_datasets(tmp_path_factory.mktemp("drawn"), 350, 1)


@pytest.fixture
def fer2013(drawn, tmp_path) -> Path:
    """A copy of the drawn FER2013 that a test may damage."""
    return Path(shutil.copytree(drawn[0], tmp_path / "fer2013"))


@pytest.fixture(scope="session")
def real_data() -> dict[str, Path]:
    """The zip files of the two real datasets; skips where they are not at hand."""
    folder = Path(os.environ.get("FER_REAL_DATA", Path(__file__).resolve().parents[2] / "shared/data"))
    archives = {FER2013: folder / "fer2013.zip", EMOTION_DETECTION: folder / "emotion-detection-fer.zip"}
    missing = [str(path) for path in archives.values() if not path.is_file()]
    if missing:
        pytest.skip(f"no real data: {' and '.join(missing)} not found (FER_REAL_DATA names the folder with both)")
    return archives


@pytest.fixture(scope="session")
def yunet_path() -> Path:
    """YuNet's file; skips where it is not at hand."""
    folder = Path(os.environ.get("FER_REAL_DATA", Path(__file__).resolve().parents[2] / "shared/data"))
    path = folder / "yunet" / next(iter(detection.YUNET))
    if not path.is_file():
        pytest.skip(f"no YuNet: {path} not found (FER_REAL_DATA names the folder with yunet/ in it)")
    return path


@pytest.fixture
def answer(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """What run_all.py answers, in this process: answer(*arguments) → exit status, output, errors.

    A new interpreter would import for a second before it answers.
    """
    import run_all

    def answer(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(Path(run_all.__file__).parent)
        capsys.readouterr()
        return run_all.main([*arguments]), *capsys.readouterr()

    return answer


def _older_name(layer: str) -> str:
    """The name that Keras before 2019 gave a layer of ResNet50."""
    match = re.fullmatch(r"conv(\d)_block(\d)_(\d)_(conv|bn)", layer)
    if not match:
        return {"conv1_conv": "conv1", "conv1_bn": "bn_conv1"}[layer]
    stage, block, branch, part = match.groups()
    where = f"{stage}{'abcdef'[int(block) - 1]}_branch{('1', '2a', '2b', '2c')[int(branch)]}"
    return f"{'res' if part == 'conv' else 'bn'}{where}"


@pytest.fixture(scope="session")
def write_older_weights() -> Callable:
    """Writes a ResNet50 without top as Keras did before 2019: write(model, path).

    Other names, and another order: in a block the shortcut (branch1) came last. `keras-applications` 1.0.7 wrote them so.
    number: what Keras 1 put after a name that it had given before, such as `_1`.
    """
    words = {"kernel": "W", "bias": "b", "moving_mean": "running_mean", "moving_variance": "running_std"}

    def write(model, path: Path, number: str = "") -> None:
        layers = {_older_name(layer.name): layer for layer in model.layers if layer.weights}
        order = sorted(layers, key=lambda name: (name[-6:] != "_conv1" and name != "conv1", name.endswith("branch1")))
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = np.array([b"input_1", *(name.encode() for name in order)])
            file.create_group("input_1").attrs["weight_names"] = np.array([], "S1")
            for name in order:
                group = file.create_group(name)
                values = {
                    f"{name}_{words.get(weight.name, weight.name)}{number}:0": weight.numpy()
                    for weight in layers[name].weights
                }
                group.attrs["weight_names"] = np.array([key.encode() for key in values])
                for key, value in values.items():
                    group.create_dataset(key, data=value)

    return write
