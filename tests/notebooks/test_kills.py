"""Two of the kills of tests/benchmarks/kills.py, one in each phase of training: the restarted run ends as a clean one."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_killed_in_training_ends_as_one_that_was_not(tmp_path):
    command = [sys.executable, "tests/benchmarks/kills.py", "--first", "2", "--kills", "2", "--outputs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "2 of 2 ended as the clean run" in done.stdout
