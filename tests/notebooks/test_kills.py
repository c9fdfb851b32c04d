"""One of the kills of tests/benchmarks/kills.py, in phase 2: the restarted run ends as a clean one."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_killed_in_training_ends_as_one_that_was_not(tmp_path):
    command = [sys.executable, "tests/benchmarks/kills.py", "--first", "3", "--kills", "1", "--outputs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "1 of 1 ended as the clean run" in done.stdout
