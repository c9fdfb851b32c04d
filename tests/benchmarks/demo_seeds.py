"""Does the demo learn whatever its seed, and however convolutions are rounded?

python tests/benchmarks/demo_seeds.py [--seeds 1 2 3 4 5] [--outputs outputs/demo_seeds] [-p STAGE.NAME=VALUE]

Runs the demo once for each seed with oneDNN's convolutions and once without, each in a folder of its own, and prints TEST's
scores and the CPU seconds of the run with all its kernels. Exit status 1 where an accuracy is below BAR. Some four minutes
a run on two CPU cores.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from fer_utils.pipeline import terminal

ROOT = Path(__file__).resolve().parents[2]
BAR = 0.85
HEADER = ("seed", "oneDNN", "TEST accuracy", "macro F1", "CPU seconds")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs/demo_seeds")
    parser.add_argument("-p", dest="overrides", action="append", default=[], metavar="STAGE.NAME=VALUE")
    options = parser.parse_args()
    rows, accuracies = [HEADER], []
    for seed in options.seeds:
        for switch, word in (("1", "on"), ("0", "off")):
            outputs = options.outputs / f"seed_{seed}_onednn_{word}"
            seconds = run_demo(seed, switch, outputs, options.overrides)
            test = json.loads((outputs / "demo/metrics.json").read_text())["test"]
            accuracies.append(test["accuracy"])
            scores = [f"{test[name]:.3f}" for name in ("accuracy", "macro_f1")]
            rows.append((str(seed), word, *scores, f"{seconds:.0f}"))
            print(rows[-1], file=sys.stderr, flush=True)
    print("\n".join(terminal.as_lines(rows)))
    print(f"lowest TEST accuracy {min(accuracies):.3f}, bar {BAR}")
    return int(min(accuracies) < BAR)


def run_demo(seed: int, switch: str, outputs: Path, overrides: list[str]) -> float:
    """Run the demo from its start; return the CPU seconds of the process and all its children."""
    command = [sys.executable, "run_all.py", "--params", "demo", "--force", "--outputs-dir", str(outputs.resolve())]
    for override in [*overrides, f"common.seed={seed}"]:
        command += ["-p", override]
    environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": switch}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"seed {seed}, TF_ENABLE_ONEDNN_OPTS={switch}: run_all.py ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
