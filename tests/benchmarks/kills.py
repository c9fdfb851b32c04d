"""Kills runs at random moments of every stage and restarts them: does each end as a run that nobody disturbed?

python tests/benchmarks/kills.py --kills 20 --outputs outputs/kills

A trial takes the undisturbed run up to a stage, starts run_all.py on it, kills it after a random time with SIGKILL, every
second time together with its notebook kernel, and starts it again. Compared are the manifest, the balanced pictures, both
histories and the metrics; temporary files left anywhere are a fault. Exit status 0 only when every trial agrees.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from fer_utils import digests, files
from fer_utils.pipeline import runs
from fer_utils.pipeline.parameters import STAGES

import numpy as np
import pandas as pd
import psutil

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "merge_split.demo_images": 350,
    "balance.target": 20,
    "balance.target_disgust": 20,
    "balance.max_per_class": 30,
    "train_head.epochs": 4,
    "fine_tune.epochs": 4,
    "fine_tune.unfreeze_top": 10,
    "fine_tune.batch_norm": "frozen",
}


def command(run: str, outputs: Path) -> list[str]:
    """run_all.py on the demo profile with the little that SMALL leaves."""
    given = [part for name, value in SMALL.items() for part in ("-p", f"{name}={value}")]
    return [sys.executable, "run_all.py", "--params", "demo", "--run", run, "--outputs-dir", str(outputs), *given]


def run_to_its_end(run: str, outputs: Path) -> None:
    """Run what is not done; raise RuntimeError with the end of what it printed where it fails."""
    done = subprocess.run(command(run, outputs), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{run} ended with status {done.returncode}: {done.stderr[-2000:]}")


def begin_before(stage: str, clean: runs.Run, run: str, outputs: Path) -> runs.Run:
    """A run that has what the clean one had when `stage` began."""
    folders = runs.run_named(run, str(outputs), "")
    files.remove(folders.folder)
    shutil.copytree(clean.folder, folders.folder)
    names = list(STAGES)
    for later in names[names.index(stage) :]:
        record = files.read_json(folders.stage_record(later))
        for name in record["outputs"]:
            files.remove(folders.path(name))
        folders.stage_record(later).unlink()
    return folders


def kill_after(seconds: float, run: str, outputs: Path, with_kernel: bool) -> bool:
    """Start the run and kill it; return whether it was still running."""
    with (outputs / f"{run}.log").open("w") as log:
        process = subprocess.Popen(command(run, outputs), cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            process.wait(seconds)
            return False
        except subprocess.TimeoutExpired:
            children = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGKILL)
            for child in children if with_kernel else []:
                child.kill()
            process.wait()
            return True


def results(folders: runs.Run) -> dict:
    """What a disturbed run must have in common with an undisturbed one, to the byte, and to float tolerance."""
    metrics = json.loads(folders.path("metrics.json").read_text())
    numbers = [pd.read_csv(path).drop(columns=["phase", "seconds"]).to_numpy(float) for path in histories(folders)]
    scores = [metrics[split][name] for split in ("val", "test") for name in ("n", "loss", "accuracy", "macro_f1")]
    return {
        "manifest": digests.of_file(folders.path("manifest.csv")),
        "balanced": digests.of_file(folders.path("balanced.csv")),
        "pictures": digests.describe(folders.path("images/TRAIN_BALANCED"))["digest"],
        "numbers": np.concatenate([*(array.ravel() for array in numbers), scores]),
    }


def histories(folders: runs.Run) -> list[Path]:
    return [folders.path("history_head.csv"), folders.path("history_fine_tune.csv")]


def faults(clean: dict, folders: runs.Run) -> list[str]:
    """How a run differs from the clean one, in words; empty where it does not."""
    found = []
    mine = results(folders)
    for name in ("manifest", "balanced", "pictures"):
        if mine[name] != clean[name]:
            found.append(f"{name} differs")
    if mine["numbers"].shape != clean["numbers"].shape:
        found.append("another number of epochs")
    elif not np.allclose(mine["numbers"], clean["numbers"], rtol=1e-3, atol=1e-5):
        found.append(f"numbers differ by up to {np.abs(mine['numbers'] - clean['numbers']).max():.2g}")
    left = [path.name for path in folders.folder.rglob("*") if path.name.startswith((files.PARTIAL, "checkpoint_"))]
    return found + [f"left behind: {name}" for name in left]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many trials")
    parser.add_argument("--first", type=int, default=0, help="number of the first one, to go on where one stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--outputs", type=Path, required=True, help="folder of the runs; a clean one there is used again"
    )
    options = parser.parse_args()
    outputs = options.outputs.resolve()
    run_to_its_end("clean", outputs)
    clean = runs.run_named("clean", str(outputs), "")
    expected, recorded = results(clean), clean.all_records()
    failed = 0
    for trial in range(options.first, options.first + options.kills):
        rng = random.Random(f"{options.seed} {trial}")
        stage = list(STAGES)[trial % len(STAGES)]
        # run_all.py and the kernel's imports come before the stage begins.
        seconds = rng.uniform(1, 8 + recorded[stage]["seconds"])
        folders = begin_before(stage, clean, f"trial_{trial}", outputs)
        was_running = kill_after(seconds, folders.folder.name, outputs, with_kernel=trial % 2 == 1)
        half_written = len(list(folders.folder.rglob(f"{files.PARTIAL}*")))
        began = time.monotonic()
        run_to_its_end(folders.folder.name, outputs)
        found = faults(expected, folders)
        failed += bool(found)
        print(
            f"trial {trial}: {stage}, {'killed' if was_running else 'had ended'} after {seconds:.1f} s, {half_written} half-"
            f"written then, finished in {time.monotonic() - began:.0f} s: {'; '.join(found) or 'as the clean run'}",
            flush=True,
        )
        if not found:
            files.remove(folders.folder)
    print(f"{options.kills - failed} of {options.kills} ended as the clean run")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
