"""Small sources that several test files read."""

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from fer_utils import demo

# The same examples on every machine: what lands must not depend on a draw.
settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> tuple[Path, Path]:
    """Both demo datasets, 350 faces: (fer2013, emotion-detection-fer). Read them only."""
    return demo.write_datasets(tmp_path_factory.mktemp("drawn"), 350, 1)


@pytest.fixture
def fer2013(drawn, tmp_path) -> Path:
    """A copy of the drawn FER2013 that a test may damage."""
    return Path(shutil.copytree(drawn[0], tmp_path / "fer2013"))
