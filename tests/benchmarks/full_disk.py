"""Fills the disk under each of the first four stages: is the error clear, and does the run go on once there is room?

python tests/benchmarks/full_disk.py        (as root, on Linux: mounts a small tmpfs)

The run's folder lies on the tmpfs. Before each stage a file takes the room that is left but for a little; the run has to
end with a message that says so and leave no half-written file. Then the file goes, and the same command has to finish
the stage. Exit status 0 only when all did.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fer_utils import files
from fer_utils.pipeline import runs

from kills import ROOT, command, faults, results, run_to_its_end

DISK = 1_500  # MB, more than a small run writes
LEFT = {"merge_split": 300, "balance": 60, "train_head": 100, "fine_tune": 30_000}  # kB left under each stage


def fill(disk: Path, left_kb: int) -> Path:
    """Take the room on the disk but for `left_kb` kB; return the file that takes it."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        wanted = shutil.disk_usage(disk).free - left_kb * 1024
        while wanted > 0:
            wanted -= file.write(b"\0" * min(wanted, 1 << 20))
    return ballast


def run_stage(stage: str, disk: Path) -> subprocess.CompletedProcess:
    return subprocess.run([*command("run", disk), "--only", stage], cwd=ROOT, capture_output=True, text=True)


def main() -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", disk], check=True)
        try:
            run_to_its_end("clean", disk)
            clean = results(runs.run_named("clean", str(disk), ""))
            folders = runs.run_named("run", str(disk), "")
            for stage, left in LEFT.items():
                folders.folder.mkdir(parents=True, exist_ok=True)
                ballast = fill(disk, left)
                full = run_stage(stage, disk)
                said = [line for line in full.stderr.splitlines() if "free" in line and "space" in line]
                half = [path.name for path in folders.folder.rglob(f"{files.PARTIAL}*")]
                ballast.unlink()
                again = run_stage(stage, disk)
                is_right = full.returncode and said and not half and not again.returncode
                failed += not is_right
                print(
                    f"{stage}, {left} kB left: status {full.returncode}, {said[-1:] or full.stderr[-800:]}, half-written {half}"
                )
                print(
                    f"{stage}, with room: status {again.returncode} {again.stderr[-800:] if again.returncode else ''}",
                    flush=True,
                )
            run_to_its_end("run", disk)
            found = faults(clean, folders)
            print(f"the run as a whole: {'; '.join(found) or 'as the clean run'}")
            return bool(failed or found)
        finally:
            subprocess.run(["umount", disk], check=True)


if __name__ == "__main__":
    sys.exit(main())
