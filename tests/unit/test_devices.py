"""Several devices train what one trains, at the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

from fer_utils import devices

import pytest
import tensorflow as tf

SCRIPT = Path(__file__).with_name("distributed_training.py")


def _history(strategy: str, n_devices: int, precision: str) -> dict:
    command = [sys.executable, str(SCRIPT), strategy, str(n_devices), precision]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def alone() -> dict:
    return _history("none", 1, "float32")


@pytest.mark.parametrize(
    ("strategy", "n_devices", "precision", "tolerance"),
    [("mirrored", 2, "float32", 1e-4), ("none", 1, "mixed_float16", 0.02), ("mirrored", 2, "mixed_float16", 0.02)],
)
def test_devices_and_precision_change_no_more_than_rounding(strategy, n_devices, precision, tolerance, alone):
    found = _history(strategy, n_devices, precision)
    assert found.pop("replicas") == n_devices
    rounded = precision != "float32"  # a rounded score can turn an argmax
    for name in ("loss", "val_loss", "weight_decay") if rounded else found:
        assert found[name] == pytest.approx(alone[name], abs=tolerance), name


def test_auto_is_one_device_where_there_is_one(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
    assert devices.choose_strategy("auto") is None


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
