"""Small sources that several test files read."""

import os
import shutil
from pathlib import Path

from fer_utils import demo
from fer_utils.splits import EMOTION_DETECTION, FER2013

import pytest
from hypothesis import settings

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


@pytest.fixture(scope="session")
def real_data() -> dict[str, Path]:
    """The zip files of the two real datasets; skips where they are not at hand."""
    folder = Path(os.environ.get("FER_REAL_DATA", Path(__file__).resolve().parents[2] / "shared/data"))
    archives = {FER2013: folder / "fer2013.zip", EMOTION_DETECTION: folder / "emotion-detection-fer.zip"}
    missing = [str(path) for path in archives.values() if not path.is_file()]
    if missing:
        pytest.skip(f"no real data: {' and '.join(missing)} not found (FER_REAL_DATA names the folder with both)")
    return archives
