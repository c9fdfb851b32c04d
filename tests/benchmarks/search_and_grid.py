"""Does a search of 15 trials find a point as good as the best of a grid of 4 × 4?

    python tests/benchmarks/search_and_grid.py --results DIR --weights resnet50_notop.h5 [--tries 3]

Two learning rates on drawn faces at small size, the grid spread evenly over the logarithms of the ranges. Two processes
share each study. VAL's macro F1 decides, and each try searches from other first points. With --weights the backbone's
features are useful, so that a short training learns something that a learning rate can spoil.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RANGES = {"train_head.learning_rate": (1e-4, 1e-1), "fine_tune.learning_rate": (1e-6, 1e-2)}
SMALL = (
    "merge_split.demo_images=700", "common.image_size=36", "balance.target=0", "balance.target_disgust=0",
    "train_head.epochs=4", "fine_tune.epochs=2", "fine_tune.unfreeze_top=10", "fine_tune.batch_norm=frozen",
    "fine_tune.schedule=cosine",
)  # fmt: skip


def run(results: Path, weights: Path, name: str, *sweep: str) -> list[dict[str, str]]:
    """A sweep by two processes; its points, best first."""
    settings = [*SMALL, f"common.weights={weights}"]
    command = [sys.executable, "run_all.py", "--params", "demo", "--outputs-dir", str(results), "--run", name]
    command += [part for setting in settings for part in ("-p", setting)] + list(sweep)
    with (results / f"{name}.log").open("w") as log:
        processes = [subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) for _ in range(2)]
        codes = [process.wait() for process in processes]
        if any(codes):
            sys.exit(f"{name} failed: {log.name}")
    with (results / f"sweep_{name}.csv").open() as file:
        return list(csv.DictReader(file))


def told(name: str, points: list[dict[str, str]]) -> float:
    best = points[0]
    rates = ", ".join(f"{key} {best[key]}" for key in RANGES)
    print(f"{name}: {len(points)} points, best VAL macro F1 {float(best['score']):.4f} at {rates}", flush=True)
    return float(best["score"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--trials", type=int, default=15)
    options = parser.parse_args()
    results, weights = options.results.absolute(), options.weights.absolute()
    results.mkdir(parents=True, exist_ok=True)
    values = {name: ",".join(f"{rate:.3g}" for rate in np.geomspace(*ends, 4)) for name, ends in RANGES.items()}
    grid = told("grid", run(results, weights, "grid", *(f"--sweep={name}={text}" for name, text in values.items())))
    searched = [f"--sweep={name}={low:g}..{high:g}:log" for name, (low, high) in RANGES.items()]
    won = 0
    for number in range(1, options.tries + 1):
        name = f"search{number}"
        won += told(name, run(results, weights, name, *searched, f"--trials={options.trials}")) >= grid
    print(f"at least as good as the grid's best in {won} of {options.tries} tries")


if __name__ == "__main__":
    main()
