"""Several devices train what one trains, at the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

from fer_utils.training import devices, loop

import numpy as np
import pytest
import tensorflow as tf

SCRIPT = Path(__file__).with_name("distributed_training.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    """What the script's trainings gave."""
    command = [sys.executable, str(SCRIPT), str(tmp_path_factory.mktemp("stopped"))]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("strategy", "n_devices", "precision", "tolerance"),
    [("mirrored", 2, "float32", 1e-4), ("none", 1, "mixed_float16", 0.02), ("mirrored", 2, "mixed_float16", 0.02)],
)
def test_devices_and_precision_change_no_more_than_rounding(strategy, n_devices, precision, tolerance, trained):
    alone, found = (trained["histories"][name] for name in ("none float32", f"{strategy} {precision}"))
    assert found["replicas"] == n_devices
    rounded = precision != "float32"  # a rounded score can turn an argmax
    for name in ("loss", "val_loss", "weight_decay") if rounded else found.keys() - {"replicas"}:
        assert found[name] == pytest.approx(alone[name], abs=tolerance), name


@pytest.fixture(scope="module")
def two_devices(trained) -> dict:
    return trained["stopped"]


def test_two_devices_go_on_after_a_stop_and_score_val_as_the_model_itself_does(two_devices):
    found = two_devices
    assert found["resumed"] == pytest.approx(np.array(found["whole"]), abs=1e-6)
    assert found["itself"] == pytest.approx(found["resumed"][-1][1], abs=1e-3)  # float16 rounds by the shape of a batch


def test_one_iterator_serves_all_epochs(two_devices):
    two_epochs, resumed, _, three_epochs = two_devices["starts"]
    assert 0 < two_epochs == resumed == three_epochs


def test_val_is_scored_with_the_mean_of_the_devices_statistics(two_devices):
    first, second = np.array(two_devices["statistics"])
    assert abs(first - second).max() > 1e-3  # each device has seen other pictures
    for scored in two_devices["averaged"]:
        assert scored == pytest.approx((first + second) / 2, abs=1e-6)


def test_a_step_is_skipped_where_the_gradients_of_the_second_device_alone_overflow(two_devices):
    assert np.isfinite(two_devices["overflowing"]).all()


@pytest.mark.parametrize(
    ("gpus", "pixels", "spread"),
    [(0, 64 * 224**2, False), (1, 64 * 224**2, False), (2, 64 * 224**2, True), (2, 64 * 48**2, False), (2, 0, False)],
)
def test_auto_spreads_a_batch_where_there_are_gpus_and_enough_to_compute(gpus, pixels, spread, monkeypatch):
    taken = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [object()] * gpus)
    monkeypatch.setattr(
        tf.config, "list_logical_devices", lambda kind: [tf.config.LogicalDevice("/GPU:0", kind)] * gpus
    )
    monkeypatch.setattr(devices, "_mirrored", lambda names: taken.append(len(names)))
    assert devices.choose_strategy("auto", pixels) is None  # what the stand-in gives back, too
    assert taken == ([gpus] if spread else [])


def test_one_device_shares_its_batches_with_none(monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [tf.config.LogicalDevice("/CPU:0", kind)])
    assert devices.choose_strategy("mirrored", 64 * 224**2) is None


def test_a_batch_that_devices_cannot_share_evenly_is_refused_before_training():
    train, val = (loop.Batches(np.zeros((70, 12)), np.zeros(70), size, seed) for size, seed in ((17, 1), (64, None)))
    with pytest.raises(ValueError, match=r"17 images, which 2 devices cannot share.*multiple of 2 that is at most 70"):
        loop._share_evenly(train, val, 2)


@pytest.mark.parametrize(("n_images", "n_devices"), [(65, 2), (67, 4), (70, 4)])
def test_a_last_batch_that_leaves_a_device_without_a_picture_is_refused(n_images, n_devices):
    """In BatchNormalization the mean of no picture is no number, and gradients are summed over the devices."""
    val = loop.Batches(np.zeros((8, 12)), np.zeros(8), 8)
    rows = np.zeros((n_images, 12)), np.zeros(n_images), 64, 1
    with pytest.raises(ValueError, match=f"last batch has {n_images - 64} images, which leaves one of {n_devices}"):
        loop._share_evenly(loop.Batches(*rows), val, n_devices)
    loop._share_evenly(loop.training_batches(*rows), val, n_devices)


def test_a_last_batch_of_which_every_device_has_a_picture_is_shared():
    val = loop.Batches(np.zeros((8, 12)), np.zeros(8), 8)
    loop._share_evenly(loop.Batches(np.zeros((68, 12)), np.zeros(68), 64, 1), val, 4)


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
