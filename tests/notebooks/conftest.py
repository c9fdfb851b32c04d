"""Kernels for the tests of notebooks."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def two_gpus(tmp_path_factory) -> Path:
    """IPython's folder for kernels that rehearse two T4 on two logical CPU devices: give it as IPYTHONDIR."""
    folder = tmp_path_factory.mktemp("ipython")
    startup = folder / "profile_default" / "startup"
    startup.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("two_gpus.py"), startup / "00_two_gpus.py")
    return folder
