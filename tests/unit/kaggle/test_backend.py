"""An exported notebook computes with JAX where it can use several GPUs, and says so; what a user set stays."""

import sys

from fer_utils.kaggle import backend

import pytest


@pytest.mark.parametrize(
    ("devices", "plugin", "given", "chosen", "said"),
    [
        ("nvidia0 nvidia1 nvidiactl", "jax_cuda12_plugin", "", "jax", "with it 2 GPUs share each batch"),
        ("nvidia0 nvidia1", "jax_cuda13_plugin", "", "jax", "with it 2 GPUs share each batch"),
        ("nvidia0 nvidia1", "", "", "tensorflow", "on one of 2 GPUs: JAX for CUDA is not installed"),
        ("nvidia0 nvidia1", "jax_cuda12_plugin", "tensorflow", "tensorflow", "as KERAS_BACKEND says"),
        ("nvidia0 nvidiactl nvidia-uvm", "jax_cuda12_plugin", "", "tensorflow", "this machine has 1 GPU"),
        ("nvidiactl", "jax_cuda12_plugin", "", "tensorflow", "this machine has no GPU"),
        ("nvidia0", "", "jax", "jax", "as KERAS_BACKEND says"),
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
    sentence = backend.choose()
    assert sentence.startswith(f"Keras computes with {chosen}") and sentence.endswith(said)
    assert backend.os.environ["KERAS_BACKEND"] == chosen
