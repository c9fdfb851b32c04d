"""Several devices train what one trains, at the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from fer_utils import devices

SCRIPT = Path(__file__).with_name("distributed_training.py")
TOLERANCE = 1e-4  # sums of floats in another order


def _start(strategy: str, n_devices: int, **environment) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), strategy, str(n_devices)]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.Popen(
        command, env=os.environ | quiet | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _history(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def alone() -> dict:
    return _history(_start("none", 1))


def _assert_same(found: dict, alone: dict, replicas: int) -> None:
    assert (found.pop("replicas"), alone["replicas"]) == (replicas, 1)
    for name, values in found.items():
        assert values == pytest.approx(alone[name], abs=TOLERANCE), name


def test_two_mirrored_devices_train_as_one(alone):
    _assert_same(_history(_start("mirrored", 2)), alone, 2)


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
