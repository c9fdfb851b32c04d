"""The exported notebooks run as on Kaggle: no checkout, no network, inputs mounted read from a root that stands for
`/kaggle`, and weights in the layout of Keras before 2019. The notebook's first cell finds either two GPUs, and JAX computes on
two logical CPU devices, or none, and TensorFlow computes.

Drawn datasets go through the all-in-one notebook: on JAX in this environment, and on both with the versions of Kaggle's image
where FER_KAGGLE_PYTHON names a Python that has them without this project (`uv venv --python 3.12 ENV`,
`uv pip install --no-config -p ENV -r tests/notebooks/kaggle_versions.txt`). The real ones go through it
where FER_KAGGLE_REAL is set.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fer_utils.classes import CLASSES
from fer_utils.data import demo, near_duplicates
from fer_utils.pipeline.parameters import STAGES

import keras
import nbformat
import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA, WEIGHTS = ROOT.parent / "shared/data", ROOT.parent / "shared/weights/resnet50_fer2013_notop.h5"
KAGGLE_PYTHON = os.environ.get("FER_KAGGLE_PYTHON", "")
NEEDS_PYTHON = "needs FER_KAGGLE_PYTHON"
SLUG = "fer-resnet50"
FACES = 620  # of each dataset: with both the copy search has more than one block of rows
LIMIT = 8  # images of each class that train and are scored: four steps an epoch, the last not full
TRAINING = (
    "common.image_size=32",
    "common.batch_size=16",
    f"common.limit_per_class={LIMIT}",
    "common.epochs=1",
    "common.precision=mixed_float16",  # what `auto` takes on two T4
    "common.deterministic=yes",
    "fine_tune.unfreeze_top=10",
)
SMALL = (
    *TRAINING,
    "balance.target=30",
    "balance.target_disgust=20",
    "balance.max_per_class=40",
)


@dataclass
class Machine:
    """A folder that stands for `/kaggle`, the Python that runs notebooks there, and variables of its environment."""

    root: Path
    python: str
    environment: dict[str, str]

    def run(self, notebook: Path) -> nbformat.NotebookNode:
        """Execute a notebook without a network and with nothing of this project at hand; return it executed."""
        for name in ("working", "content", "temp"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        (self.root / "working").mkdir()
        executed = self.root / "executed.ipynb"
        command = [self.python, "-m", "papermill", str(notebook), str(executed), "-k", "python3"]
        command += ["--no-progress-bar", "--start-timeout", "300"]
        done = subprocess.run(
            [*_without_network(), *command],
            cwd=self.root / "working",
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.root),  # where Keras would keep weights of an earlier download
                "FER_KAGGLE_ROOT": str(self.root),
                "http_proxy": "http://127.0.0.1:9",
                "https_proxy": "http://127.0.0.1:9",
                **self.environment,
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return nbformat.read(executed, as_version=4)


def _without_network() -> list[str]:
    """A prefix that gives a command a network of its own with nothing in it, where the system allows that."""
    prefix = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    try:
        works = subprocess.run([*prefix, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        works = False
    return prefix if works else []


def export(folder: Path, *overrides: str) -> Path:
    """Write the exported folders to `folder`; return it."""
    arguments = [part for text in overrides for part in ("-p", text)]
    done = subprocess.run(
        [sys.executable, "run_all.py", "--export-kaggle", str(folder), "--kaggle-user", "jane", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def text_of(notebook: nbformat.NotebookNode) -> str:
    """Everything that its cells printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def check_results(machine: Machine, notebook: nbformat.NotebookNode) -> None:
    """The results lie where the specification wants them, and every cell ran."""
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    working = machine.root / "working"
    assert {path.name for path in working.iterdir()} == {
        "confusion_matrix_test.png",
        "confusion_matrix_val.png",
        "kaggle.zip",
        "metrics.json",
        "model.keras",
        "report.html",
    }
    metrics = json.loads((working / "metrics.json").read_text())
    assert 0 < metrics["test"]["accuracy"] <= 1
    assert list(metrics["run"]["seconds_per_stage"]) == list(STAGES)
    with zipfile.ZipFile(working / "kaggle.zip") as packed:
        names = set(packed.namelist())
    assert {"run/manifest.csv", "run/leakage.json", "run/model.weights.h5", "run/predictions_test.csv"} <= names
    assert not any(name.startswith("TRAIN") for name in names)


def check_leak_counts(machine: Machine) -> None:
    """Under `keep` what is said of TEST counts the images that trained: some of each class, of all that TRAIN holds."""
    leakage = json.loads((machine.root / "working/metrics.json").read_text())["leakage"]
    with zipfile.ZipFile(machine.root / "working/kaggle.zip") as packed:
        split = json.loads(packed.read("run/leakage.json"))
        tables = {
            name: pd.read_csv(packed.open(f"run/{name}.csv"), keep_default_na=False)
            for name in ("manifest", "balanced", "trained", "predictions_test")
        }
    manifest, trained = tables["manifest"].set_index("path"), set(tables["trained"]["train_path"])
    assert leakage["policy"] == "keep"
    assert split["test_images_in_train"] > leakage["test_images_seen_in_training"]
    assert len(trained) <= LIMIT * len(CLASSES) < tables["balanced"]["train_path"].nunique()
    seen = manifest["group"][tables["predictions_test"]["path"]].isin(set(manifest["group"][list(trained)]))
    assert leakage["test_images_seen_in_training"] == seen.sum() < len(seen)
    assert (tables["predictions_test"]["seen_in_training"].to_numpy() == seen.to_numpy()).all()


@pytest.fixture(scope="module")
def notop(tmp_path_factory, write_older_weights) -> Path:
    """ResNet50 without top, random, in the layout that the attached dataset has."""
    path = tmp_path_factory.mktemp("weights") / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    backbone = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(32, 32, 3))
    for layer in backbone.layers:
        if layer.name.endswith("_3_bn"):  # else random blocks add up to more than float16 holds
            layer.gamma.assign(np.full(layer.gamma.shape, 0.1))
    write_older_weights(backbone, path)
    yield path
    path.unlink()


kaggles = [
    pytest.param(
        (KAGGLE_PYTHON, backend),
        id=f"kaggles-{backend}",
        marks=pytest.mark.skipif(not KAGGLE_PYTHON, reason=NEEDS_PYTHON),
    )
    for backend in ("jax", "tensorflow")
]
# On TensorFlow the demo's run computes here, the same notebooks with the same package.
environments = pytest.mark.parametrize(
    "environment", [pytest.param((sys.executable, "jax"), id="here-jax"), *kaggles], indirect=True, scope="module"
)


@pytest.fixture(scope="module")
def environment(request) -> tuple[str, str]:
    """The Python that runs the notebooks, and what they are to compute with: JAX on two GPUs, TensorFlow where there is none."""
    return request.param


@pytest.fixture(scope="module")
def machine_in(environment, two_devices) -> Callable[[Path], Machine]:
    """Makes a machine in an empty folder."""
    python, backend = environment

    def machine_in(folder: Path) -> Machine:
        (folder / "kaggle").mkdir()
        if backend == "tensorflow":
            return Machine(folder / "kaggle", python, {})
        (folder / "dev").mkdir()
        for name in ("nvidia0", "nvidia1", "nvidiactl"):
            (folder / "dev" / name).touch()
        (folder / "packages/jax_cuda12_plugin").mkdir(parents=True)  # found, but nothing in it that JAX could load
        return Machine(folder / "kaggle", python, {**two_devices, "PYTHONPATH": str(folder / "packages")})

    return machine_in


@pytest.fixture(scope="module")
def drawn_run(machine_in, notop, tmp_path_factory) -> tuple[Machine, nbformat.NotebookNode]:
    """The all-in-one notebook, run on drawn faces: one dataset in its usual place, one to be searched for."""
    machine = machine_in(tmp_path_factory.mktemp("machine"))
    inputs = machine.root / "input"
    first, second = demo.write_datasets(tmp_path_factory.mktemp("faces"), FACES, 1)
    shutil.copytree(first, inputs / "datasets/msambare/fer2013")
    shutil.copytree(second, inputs / "datasets/someone/another-copy/archive")
    (inputs / "datasets/keras/resnet50").mkdir(parents=True)
    (inputs / "datasets/keras/resnet50/page_notop.h5").write_text("<html>")
    shutil.copy(notop, inputs / "datasets/keras/resnet50")
    folder = export(tmp_path_factory.mktemp("export"), *SMALL)
    return machine, machine.run(folder / SLUG / f"{SLUG}.ipynb")


@environments
def test_all_stages_run_in_one_notebook_on_drawn_faces(drawn_run):
    check_results(*drawn_run)
    check_leak_counts(drawn_run[0])


@environments
def test_it_runs_the_embedded_package_and_says_which(drawn_run):
    machine, notebook = drawn_run
    printed = text_of(notebook)
    (home,) = (machine.root / "temp").glob("fer_utils-*")
    assert f"in {home}" in printed and f"sha256 {home.name.removeprefix('fer_utils-')}" in printed
    with zipfile.ZipFile(machine.root / "working/kaggle.zip") as packed:
        record = json.loads(packed.read("run/stages/balance.json"))
    assert record["parameters"]["target"] == 30
    assert (home / "fer_utils/training/network.py").read_text() == (ROOT / "fer_utils/training/network.py").read_text()


@environments
def test_it_says_which_inputs_it_found(drawn_run):
    machine, notebook = drawn_run
    printed = text_of(notebook)
    assert f"fer2013: {machine.root}/input/datasets/msambare/fer2013\n" in printed
    assert f"{machine.root}/input/datasets/someone/another-copy/archive\n" in printed
    assert f"weights from {machine.root}/input/datasets/keras/resnet50/resnet50_weights_tf" in printed
    assert "(NOT Keras' ImageNet file" in printed
    assert (machine.root / "content/fer2013_by_usage_1/TRAIN_BALANCED/happy").is_dir()


@environments
def test_it_announces_how_long_training_takes(drawn_run):
    printed = text_of(drawn_run[1])
    assert "fine_tune: " in printed and "ms a step" in printed and "the budget leaves" in printed


@environments
def test_figures_are_in_the_notebook(drawn_run):
    outputs = [output for cell in drawn_run[1].cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 8


@environments
def test_it_says_what_it_computes_on_and_takes_the_branches_of_a_full_size(drawn_run, environment):
    (machine, notebook), backend = drawn_run, environment[1]
    printed = text_of(notebook)
    chosen = {
        "jax": "Keras computes with jax. GPUs: 2. JAX for CUDA: installed.\n",
        "tensorflow": "Keras computes with tensorflow. GPUs: 0. JAX for CUDA: not installed.\n",
    }
    assert printed.count(chosen[backend]) == 1
    computing = rf"computing on CPU, \d+ cores with {backend} [\d.]+ in mixed_float16 with deterministic kernels\n"
    shared = "2 devices share each batch\n" if backend == "jax" else ""
    assert len(re.findall(computing + shared, printed)) == 2  # 03, 04
    assert "activations of the frozen layers: kept on disk" in printed
    assert re.search(r"epoch of [2-9] steps", printed)
    with zipfile.ZipFile(machine.root / "working/kaggle.zip") as packed:
        manifest = pd.read_csv(packed.open("run/manifest.csv"), keep_default_na=False)
        balanced = pd.read_csv(packed.open("run/balanced.csv"))
    assert len(manifest) > near_duplicates._ROWS
    assert (balanced["copy"] > 0).sum() >= 2  # something for each process of the pool


ANSWER = """
import sys, keras, numpy as np
from fer_utils.training import network
given, answer = sys.argv[1:]
if given.endswith(".weights.h5"):
    model = network.build(32, "none")
    model.load_weights(given)
else:
    model = keras.saving.load_model(given, compile=False)
faces = np.arange(2 * 48 * 48, dtype="float32").reshape(2, 48, 48, 1) % 256
np.save(answer, model.predict(faces, verbose=0))
"""


def answer_of(python: str, model: Path, folder: Path) -> np.ndarray:
    """What a saved model says of two fixed pictures in the environment of `python`."""
    answer = folder / "answer.npy"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run([python, "-c", ANSWER, model, answer], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.load(answer)


@pytest.mark.parametrize("environment", kaggles, indirect=True, scope="module")
def test_what_was_trained_there_answers_alike_here_and_the_weights_both_ways(drawn_run, tmp_path):
    machine = drawn_run[0]
    saved = machine.root / "working/model.keras"
    with zipfile.ZipFile(machine.root / "working/kaggle.zip") as packed:
        weights = Path(packed.extract("run/model.weights.h5", tmp_path))
    expected = answer_of(machine.python, saved, tmp_path)
    assert expected.shape == (2, len(CLASSES))
    # Keras reads files of older versions, not of newer ones: weights alone go both ways.
    assert answer_of(sys.executable, saved, tmp_path) == pytest.approx(expected, abs=1e-4)
    assert answer_of(sys.executable, weights, tmp_path) == pytest.approx(expected, abs=1e-4)
    assert answer_of(KAGGLE_PYTHON, weights, tmp_path) == pytest.approx(expected, abs=1e-4)


real = pytest.mark.skipif(
    not (os.environ.get("FER_KAGGLE_REAL") and (DATA / "fer2013.zip").is_file() and WEIGHTS.is_file()),
    reason=f"needs FER_KAGGLE_REAL=1, {DATA}/*.zip and {WEIGHTS}: a quarter of an hour",
)


@pytest.fixture(scope="module")
def real_data(tmp_path_factory, write_older_weights) -> Path:
    """The two real datasets unpacked, and a weights file in the older layout, each in a folder of its slug."""
    folder = tmp_path_factory.mktemp("real")
    for slug in ("fer2013", "emotion-detection-fer"):
        with zipfile.ZipFile(DATA / f"{slug}.zip") as packed:
            packed.extractall(folder / slug)
    (folder / "resnet50").mkdir()
    backbone = keras.applications.ResNet50(include_top=False, weights=WEIGHTS, input_shape=(32, 32, 3))
    write_older_weights(backbone, folder / "resnet50/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5")
    yield folder
    shutil.rmtree(folder)  # 70,000 files


@pytest.fixture(scope="module")
def real_export(tmp_path_factory) -> Path:
    """01 and 02 as specified, at full size; 03 to 05 small."""
    return export(tmp_path_factory.mktemp("export"), *TRAINING)


def mount(machine: Machine, data: Path) -> None:
    """Mount the real data in Kaggle's newer layout; tests/unit/kaggle/test_kaggle_paths.py knows the older one."""
    for owner, slug in (("msambare", "fer2013"), ("ananthu017", "emotion-detection-fer"), ("keras", "resnet50")):
        place = machine.root / "input/datasets" / owner / slug
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(data / slug)


@real
@environments
def test_all_stages_run_in_one_notebook_on_the_whole_real_data(machine_in, real_data, real_export, tmp_path):
    machine = machine_in(tmp_path)
    mount(machine, real_data)
    executed = machine.run(real_export / SLUG / f"{SLUG}.ipynb")
    check_results(machine, executed)
    check_leak_counts(machine)
    metrics = json.loads((machine.root / "working/metrics.json").read_text())
    with zipfile.ZipFile(machine.root / "working/kaggle.zip") as packed:
        assert len(pd.read_csv(packed.open("run/manifest.csv"))) == 71_774
        assert len(pd.read_csv(packed.open("run/balanced.csv"))) == 51_343
    print(metrics["run"]["seconds_per_stage"])
    shutil.rmtree(tmp_path)
