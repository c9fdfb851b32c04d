"""Fake runs, and a disk that is soon full."""

import subprocess

import pytest
from fake_runs import FakeRun


@pytest.fixture
def fake_run(tmp_path):
    """Makes runs below a temporary outputs folder: fake_run("name", **{stage: {parameter: value}})."""
    return lambda name="demo", **overrides: FakeRun(tmp_path / "outputs", name, **overrides)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 kB; skips where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a tmpfs is not allowed here; the monkeypatched test above stands in")
    yield folder
    subprocess.run(["umount", folder], check=True)
