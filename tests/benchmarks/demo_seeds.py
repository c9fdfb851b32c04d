"""Does the demo learn whatever its seed and the machine's instructions, and how long does it take?

python tests/benchmarks/demo_seeds.py [--seeds 1 2 3 4 5] [--kernels default AVX2 plain] [--outputs outputs/demo_seeds]
    [-p STAGE.NAME=VALUE]

Runs the demo once for each seed and each kind of kernels, each in a folder of its own: `default` takes what the CPU has,
`AVX2` makes oneDNN compute as on a CPU without AVX-512, `plain` is TensorFlow without oneDNN. Prints TEST's scores, the
seconds of the run, and the seconds of each epoch of phase 2. Exit status 1 where an accuracy is below BAR.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from fer_utils.pipeline import terminal

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
BAR = 0.88
KERNELS = {"default": {}, "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "plain": {"TF_ENABLE_ONEDNN_OPTS": "0"}}
HEADER = ("seed", "kernels", "TEST accuracy", "macro F1", "calibration error", "seconds", "CPU seconds", "epochs of 04")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--kernels", choices=KERNELS, nargs="+", default=list(KERNELS))
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs/demo_seeds")
    parser.add_argument("-p", dest="overrides", action="append", default=[], metavar="STAGE.NAME=VALUE")
    options = parser.parse_args()
    rows, accuracies = [HEADER], []
    for seed, kernels in itertools.product(options.seeds, options.kernels):
        outputs = options.outputs / f"seed_{seed}_{kernels}"
        began = time.monotonic()
        cpu_seconds = run_demo(seed, KERNELS[kernels], outputs, options.overrides)
        seconds = time.monotonic() - began
        test = json.loads((outputs / "demo/metrics.json").read_text(encoding="utf-8"))["test"]
        epochs = pd.read_csv(outputs / "demo/history_fine_tune.csv")["seconds"]
        accuracies.append(test["accuracy"])
        scores = [f"{test[name]:.3f}" for name in ("accuracy", "macro_f1", "calibration_error")]
        shown = " ".join(f"{each:.0f}" for each in epochs)
        rows.append((str(seed), kernels, *scores, f"{seconds:.0f}", f"{cpu_seconds:.0f}", shown))
        print(rows[-1], file=sys.stderr, flush=True)
    print("\n".join(terminal.as_lines(rows)))
    print(f"lowest TEST accuracy {min(accuracies):.3f}, bar {BAR}")
    return int(min(accuracies) < BAR)


def run_demo(seed: int, switches: dict[str, str], outputs: Path, overrides: list[str]) -> float:
    """Run the demo from its start; return the CPU seconds of the process and all its children."""
    command = [sys.executable, "run_all.py", "--params", "demo", "--force", "--outputs-dir", str(outputs.resolve())]
    for override in [*overrides, f"common.seed={seed}"]:
        command += ["-p", override]
    environment = os.environ | switches
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"seed {seed}, {switches}: run_all.py ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
