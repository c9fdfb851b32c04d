"""One sweep by one process, by two, by two of which one is killed, and by a third that joins in late.

    python tests/benchmarks/shared_sweep.py --results DIR [--storage URL]

Eight points on the demo's faces at small size, each process with one thread. Told are the seconds, whether the rankings
are the same, and how often each point was trained. With --storage, as postgresql+psycopg2://user@localhost/fer, one more
pair of processes shares the study in that database.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SWEPT = ("train_head.learning_rate=0.002,0.0005", "fine_tune.unfreeze_top=10,22,32,42")
SMALL = (
    "merge_split.demo_images=700", "common.image_size=32", "balance.target=0", "balance.target_disgust=0",
    "train_head.epochs=2", "fine_tune.epochs=2", "common.deterministic=no",
)  # fmt: skip
ONE_THREAD = dict.fromkeys(
    ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
)


def start(outputs: Path, log: Path, *more: str) -> subprocess.Popen:
    """Start a process of the sweep."""
    command = [
        sys.executable,
        "run_all.py",
        "--params",
        "demo",
        "--outputs-dir",
        str(outputs),
        *more,
    ]
    command += [part for setting in SMALL for part in ("-p", setting)] + [
        part for text in SWEPT for part in ("--sweep", text)
    ]
    log.parent.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | ONE_THREAD, stdout=log.open("w"), stderr=subprocess.STDOUT, text=True
    )


def wait(processes: list[subprocess.Popen]) -> list[int]:
    return [process.wait() for process in processes]


def ranking(outputs: Path) -> list[tuple[str, str]]:
    """Run and score, best first."""
    with (outputs / "sweep_demo.csv").open() as file:
        return [(row["runs"], row["score"]) for row in csv.DictReader(file)]


def trained(outputs: Path) -> Counter:
    """How many logs of processes say that a point's phase 2 came to its end."""
    found: Counter = Counter()
    for log in outputs.parent.glob(f"{outputs.name}_*.log"):
        name = ""
        for line in log.read_text().splitlines():
            name = line.split("] ", 1)[1] if line.startswith("[trial ") else name
            found[name] += line.startswith("fine_tune: done")
    return found


def has_finished_epochs(checkpoint: Path) -> bool:
    try:
        with np.load(checkpoint) as file:
            return bool(json.loads(str(file["state"]))["rows"])
    except (OSError, ValueError, zipfile.BadZipFile):  # being replaced
        return False


def say(outputs: Path, seconds: float, single: list | None, codes: list[int]) -> None:
    found, n = ranking(outputs), trained(outputs)
    same = "" if single is None else f", ranking {'the same' if found == single else 'NOT the same'}"
    print(
        f"{outputs.name}: {seconds:.0f} s, exits {codes}, {len(found)} points{same}, "
        f"trained to the end: {sorted(n.values())}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--storage", default="")
    options = parser.parse_args()
    results = options.results.absolute()

    outputs, began = results / "one", time.monotonic()
    codes = wait([start(outputs, results / "one_a.log")])
    alone, single = time.monotonic() - began, ranking(outputs)
    say(outputs, alone, None, codes)
    print(json.dumps(single, indent=1))

    outputs, began = results / "two", time.monotonic()
    codes = wait([start(outputs, results / f"two_{name}.log") for name in "ab"])
    shared = time.monotonic() - began
    say(outputs, shared, single, codes)
    print(f"two processes take {shared / alone:.2f} of one's time", flush=True)

    outputs, began = results / "killed", time.monotonic()
    first, second = (start(outputs, results / f"killed_{name}.log") for name in "ab")
    while not (begun := [file for file in outputs.glob("*/checkpoint_fine_tune.npz") if has_finished_epochs(file)]):
        time.sleep(0.05)
    busy = begun[0].parent.name
    victim, other = (first, second) if busy in (results / "killed_a.log").read_text() else (second, first)
    os.kill(victim.pid, signal.SIGKILL)
    third = start(outputs, results / "killed_c.log")
    codes = wait([other, third])
    say(outputs, time.monotonic() - began, single, codes)
    print(f"killed while it trained {busy}", flush=True)

    if options.storage:
        outputs, began = results / "database", time.monotonic()
        codes = wait([start(outputs, results / f"database_{name}.log", "--storage", options.storage) for name in "ab"])
        say(outputs, time.monotonic() - began, single, codes)


if __name__ == "__main__":
    main()
