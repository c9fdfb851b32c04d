"""What an exported notebook does on Kaggle beside its stages: it computes with JAX where it can use several GPUs, and says
so, and a value that a user set stays; it leaves results, and one zip of the rest."""

import os
import sys
import zipfile

from fer_utils.kaggle import session
from fer_utils.pipeline import runs

import pytest


@pytest.mark.parametrize(
    ("devices", "plugin", "given", "chosen", "said"),
    [
        ("nvidia0 nvidia1 nvidiactl", "jax_cuda12_plugin", "", "jax", ". GPUs: 2. JAX for CUDA: installed."),
        ("nvidia0 nvidia1", "jax_cuda13_plugin", "", "jax", ". GPUs: 2. JAX for CUDA: installed."),
        ("nvidia0 nvidia1", "", "", "tensorflow", ". GPUs: 2. JAX for CUDA: not installed."),
        ("nvidia0 nvidia1", "jax_cuda12_plugin", "tensorflow", "tensorflow", ", as KERAS_BACKEND says"),
        ("nvidia0 nvidiactl nvidia-uvm", "jax_cuda12_plugin", "", "tensorflow", ". GPUs: 1. JAX for CUDA: installed."),
        ("nvidiactl", "jax_cuda12_plugin", "", "tensorflow", ". GPUs: 0. JAX for CUDA: installed."),
        ("nvidia0", "", "jax", "jax", ", as KERAS_BACKEND says"),
    ],
)
def test_jax_only_where_it_can_use_several_gpus(tmp_path, monkeypatch, devices, plugin, given, chosen, said):
    monkeypatch.setenv("FER_KAGGLE_ROOT", str(tmp_path / "kaggle"))
    monkeypatch.setenv("KERAS_BACKEND", given)
    (tmp_path / "dev").mkdir()
    for name in devices.split():
        (tmp_path / "dev" / name).touch()
    (tmp_path / "packages" / (plugin or "other")).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packages")])
    assert session.choose_backend() == f"Keras computes with {chosen}{said}"
    assert os.environ["KERAS_BACKEND"] == chosen


def test_results_lie_beside_one_zip_of_the_rest_also_after_an_error_and_a_second_call(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_KAGGLE_ROOT", str(tmp_path))
    of = runs.run_named("r", "/kaggle/working", "/kaggle/content/images")
    names = ("metrics.json", "report.html", "model.keras", "confusion_matrix_val.png", "confusion_matrix_test.png")
    best, picture = [of.path(name) for name in names], of.path("images/VAL/happy/b.png")
    for path in (*best, of.path("manifest.csv"), of.figure("faces"), of.path(".stage.lock"), picture):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    with monkeypatch.context() as full_disk, pytest.raises(OSError, match="full"):
        full_disk.setattr(zipfile.ZipFile, "write", lambda *given: (_ for _ in ()).throw(OSError("full")))
        session.deliver(of)
    left = session.deliver(of)
    assert session.deliver(of) == left
    assert {path.name for path in (tmp_path / "working").iterdir()} == {path.name for path in best} | {"r.zip"}
    assert sorted(left) == sorted((tmp_path / "working").iterdir())
    assert (tmp_path / "working/metrics.json").read_text() == "metrics.json"
    with zipfile.ZipFile(tmp_path / "working/r.zip") as packed:
        assert sorted(packed.namelist()) == ["run/figures/faces.png", "run/manifest.csv"]  # no lock, no picture
    assert picture.is_file()
