"""What TensorFlow's graph optimizer (Grappler) costs and gains on a CPU: one training with it and one without, in turn.

python tests/benchmarks/graph_optimizer.py [--image-size 40] [--unfreeze-top 136] [--pictures 1088] [--rounds 2]

Random pictures and weights; two epochs of phase 2 in a process of its own each. Prints the seconds of the first step of each
epoch, which trace and rewrite the graph, and of the other steps of the second epoch.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

BATCH = 32


def train(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the first steps and of the rest of epoch 2."""
    from fer_utils.training import devices, frozen_prefix, loop, network, optimizers

    import keras
    import numpy as np

    devices.make_reproducible(1)
    if options.without:
        devices.skip_graph_optimizer()
    model = network.build(options.image_size, "none")
    network.unfreeze_top(model, options.unfreeze_top, "trained")
    prefix, suffix = frozen_prefix.split(model)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (options.pictures, 48, 48, 1), np.uint8)
    plan = frozen_prefix.Plan("memory", "float32", 0, "")
    trained, (inputs,) = frozen_prefix.prepare(prefix, suffix, [images], plan, Path())
    loop.compile_for_training(trained, optimizers.make_optimizer("adamw", 1e-3, 0.01))
    batches = loop.Batches(inputs, rng.integers(0, 7, options.pictures), BATCH, seed=1)
    ends = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda *_, **__: ends.append([time.monotonic()]),
        on_train_batch_end=lambda *_, **__: ends[-1].append(time.monotonic()),
    )
    trained.fit(batches, epochs=2, shuffle=False, verbose=0, callbacks=[note])
    first, second = ends
    return {
        "first step": first[1] - first[0],
        "first step of epoch 2": second[1] - second[0],
        "a further step of epoch 2": (second[-1] - second[1]) / (len(second) - 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=40)
    parser.add_argument("--unfreeze-top", type=int, default=136)
    parser.add_argument("--pictures", type=int, default=1088)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=("with", "without"), help="one training, its seconds as JSON")
    options = parser.parse_args()
    options.without = options.side == "without"
    if options.side:
        print(json.dumps(train(options)))
        return
    for _ in range(options.rounds):
        for side in ("with", "without"):
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            seconds = json.loads(done.stdout.splitlines()[-1])
            print(side.ljust(8), ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()), flush=True)


if __name__ == "__main__":
    main()
