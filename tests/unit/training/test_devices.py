"""JAX on several devices trains what one trains, and what TensorFlow trains; each backend is set up as its devices need."""

import json
import os
import subprocess
import sys
from pathlib import Path

from fer_utils.training import devices, loop, network

import jax_training
import keras
import numpy as np
import pytest
import tensorflow as tf

TWO_DEVICES = {
    "KERAS_BACKEND": "jax",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
}


@pytest.fixture(scope="module")
def of_tensorflow(tmp_path_factory) -> tuple[Path, dict]:
    """A folder with what TensorFlow wrote, and what its network gives."""
    folder, random = tmp_path_factory.mktemp("backends"), np.random.default_rng(3)
    faces, labels = random.integers(0, 256, (24, 48, 48, 1), np.uint8), random.integers(0, 7, 24).astype(np.int32)
    np.savez(folder / "faces.npz", faces=faces, labels=labels)
    keras.utils.set_random_seed(4)
    found = {}
    for backbone in (network.RESNET50, network.SMALL):
        model = network.build(32, "none", backbone)
        for layer in network.backbone_of(model).layers:
            if hasattr(layer, "gamma") and not layer.gamma.numpy().any():
                layer.gamma.assign(np.full(layer.gamma.shape, 0.3))  # else the backbone would be but its shortcuts
        network.plain_copy(model).save(folder / f"{backbone}.keras")
        found |= {backbone: loop.predict(model, faces)}
    found |= {"first_epoch": jax_training.first_epoch(model, faces, labels)}
    return folder, found | {"faces": faces}


@pytest.fixture(scope="module")
def of_jax(of_tensorflow) -> dict:
    """What the script's trainings gave."""
    command = [sys.executable, jax_training.__file__, str(of_tensorflow[0])]
    done = subprocess.run(command, env=os.environ | TWO_DEVICES, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("backbone", [network.RESNET50, network.SMALL])
def test_the_same_weights_give_the_same_probabilities_on_both_backends(backbone, of_tensorflow, of_jax):
    assert np.array(of_jax[backbone]) == pytest.approx(of_tensorflow[1][backbone], abs=1e-5)


def test_the_first_epoch_of_phase_2_has_the_same_losses_on_both_backends(of_tensorflow, of_jax):
    for name, values in of_tensorflow[1]["first_epoch"].items():
        assert of_jax["first_epoch"][name] == pytest.approx(values, abs=1e-3), name


def test_a_model_trained_with_jax_is_read_by_tensorflow(of_tensorflow, of_jax):
    folder, found = of_tensorflow
    model = keras.saving.load_model(folder / "from_jax.keras", compile=False, safe_mode=True)
    assert loop.predict(model, found["faces"]) == pytest.approx(np.array(of_jax["from_jax"]), abs=1e-5)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-4), ("mixed_float16", 0.02), ("mixed_bfloat16", 0.05)]
)
def test_two_devices_and_precision_change_no_more_than_rounding(precision, tolerance, of_jax):
    alone, found = (of_jax["histories"][name] for name in ("1 float32", f"2 {precision}"))
    rounded = precision != "float32"  # a rounded score can turn an argmax
    for name in ("loss", "val_loss", "weight_decay") if rounded else found:
        assert found[name] == pytest.approx(alone[name], abs=tolerance), name
    assert of_jax["said"] == "2 devices share each batch\n"


def test_two_devices_go_on_after_a_stop_and_score_val_as_the_model_itself_does(of_jax):
    whole, found = of_jax["histories"]["2 mixed_float16"], of_jax["stopped"]
    for name, values in whole.items():
        assert found["resumed"][name] == pytest.approx(values, abs=1e-6), name
    assert found["itself"] == pytest.approx(whole["val_loss"][-1], abs=1e-3)  # float16 rounds by the shape of a batch


def test_a_batch_that_devices_cannot_share_evenly_is_refused_before_training():
    train, val = (loop.Batches(np.zeros((70, 12)), np.zeros(70), size, seed) for size, seed in ((17, 1), (64, None)))
    with pytest.raises(ValueError, match=r"17 images, which 2 devices cannot share.*multiple of 2 that is at most 70"):
        loop._share_evenly(train, val, 2)


@pytest.mark.parametrize(("n_images", "n_devices"), [(8, 3), (70, 4), (3, 2), (49, 1)])
def test_vals_batches_are_shared_evenly_and_lose_no_picture(n_images, n_devices):
    train = loop.Batches(np.zeros((24, 12)), np.zeros(24), 12, 1)
    val = loop.Batches(np.zeros((n_images, 12)), np.arange(n_images), 32)
    loop._share_evenly(train, val, n_devices)
    batches = [val[i] for i in range(len(val))]
    assert {len(labels) % n_devices for _, labels, _ in batches} == {0}
    counted = np.concatenate([labels[weights > 0] for _, labels, weights in batches])
    assert counted.tolist() == list(range(n_images))


def test_on_several_gpus_tensorflow_says_how_to_use_them_all(monkeypatch):
    monkeypatch.setattr(devices, "_gpus", lambda: [("Tesla T4", (7, 5))] * 2)
    assert devices.share_batches() == "1 of 2 GPUs computes: set KERAS_BACKEND=jax to use them all\n"
    monkeypatch.setattr(devices, "_gpus", lambda: [("Tesla T4", (7, 5))])
    assert devices.share_batches() == ""


@pytest.mark.parametrize(
    ("deterministic", "gpu", "expected"),
    [("auto", True, True), ("auto", False, False), ("yes", False, True), ("no", True, False)],
)
def test_kernels_are_deterministic_where_asked_for_and_on_gpus(deterministic, gpu, expected, monkeypatch):
    enabled = []
    monkeypatch.setattr(devices, "has_gpu", lambda: gpu)
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: enabled.append(True))
    assert devices.make_reproducible(1, deterministic) is expected
    assert bool(enabled) is expected


@pytest.mark.parametrize("gpu", [False, True])
def test_the_graph_optimizer_is_off_without_a_gpu_alone(gpu, monkeypatch):
    options = []
    monkeypatch.setattr(devices, "has_gpu", lambda: gpu)
    monkeypatch.setattr(tf.config.optimizer, "set_experimental_options", options.append)
    devices.set_up(1, deterministic="no", precision="float32")
    assert options == ([] if gpu else [{"disable_meta_optimizer": True}])


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "mixed_float16"), ((6, 0), "float32"), (None, "float32")]
)
def test_precision_is_mixed_on_tensor_cores_alone(capability, expected, monkeypatch):
    chosen = []
    gpus = [object()] if capability else []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: gpus)
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": capability}, raising=True
    )
    monkeypatch.setattr(devices.keras.mixed_precision, "set_global_policy", chosen.append)
    assert devices.choose_precision("auto") == expected == chosen[0]
