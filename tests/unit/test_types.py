"""mypy finds nothing in the package and in run_all.py; its settings stand in pyproject.toml."""

import subprocess
import sys
from pathlib import Path


def test_types_are_right():
    done = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
