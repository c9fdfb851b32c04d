"""How much faster this project trains than `naive.py`: the same pictures, epochs, batches and first weights, in turn.

python tests/benchmarks/compare.py --run outputs/cpu --weights FILE --image-size 48 --per-class 100 --rounds 3

Both sides run with oneDNN on and XLA off, the quicker setting for both on a CPU. Prints, for each part, the ratio
naive : ours (min, median, max over the rounds), both peaks of memory, the largest difference of a final metric, and the
share of this machine's matrix-multiply speed that phase 2's arithmetic reaches.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from fer_utils.classes import CLASSES
from fer_utils.data import loading
from fer_utils.pipeline import runs

import naive
import numpy as np

PARTS = ("phase 1", "phase 2", "evaluation", "whole")
HERE = Path(__file__).resolve().parent
HEAD_EPOCHS, FINE_TUNE_EPOCHS, UNFREEZE_TOP, BATCH, SEED = 10, 20, 50, 64, 42


def begin_alike(model, start: Mapping[str, np.ndarray]) -> None:
    """Give the head the first weights and the dropout seed that prepare_job drew."""
    from fer_utils.training import network

    for place, name in enumerate(network.HEAD_LAYERS):
        layer = model.get_layer(name)
        layer.set_weights([start[f"{place}_{i}"] for i in range(len(layer.weights))])
    model.get_layer("head_dropout").seed_generator.state.assign(start["dropout"])


def ours(job: dict) -> dict:
    """The two phases as notebooks 03 and 04 run them, and the evaluation's predictions."""
    from fer_utils import images
    from fer_utils.training import devices, frozen_prefix, loop, network, optimizers

    import keras
    import pandas as pd

    devices.make_reproducible(job["seed"])
    devices.skip_graph_optimizer()
    tables = {name: pd.read_csv(job[name]) for name in ("train", "val", "test")}
    began = time.monotonic()
    faces = {name: images.load(table["file"])[..., None] for name, table in tables.items()}
    labels = {name: table["code"].to_numpy(np.int32) for name, table in tables.items()}
    model = network.build(job["image_size"], job["weights"])
    begin_alike(model, np.load(job["start"], allow_pickle=False))
    cache = Path(job["cache"])

    def fit(phase, optimizer, first, epochs, steps, callbacks=()):
        prefix, suffix = frozen_prefix.split(model)
        with contextlib.redirect_stdout(sys.stderr):
            subject, inputs = frozen_prefix.prepare(prefix, suffix, (faces["train"], faces["val"]), "auto", cache)
        loop.compile_for_training(subject, optimizer, steps)
        loop.fit(
            subject,
            loop.Batches(inputs[0], labels["train"], job["batch_size"], job["seed"], first),
            loop.Batches(inputs[1], labels["val"], loop.PREDICT_BATCH),
            phase,
            first,
            epochs,
            callbacks,
        )

    fit("head", optimizers.make_optimizer("adam", 5e-4, 0), 0, job["head_epochs"], loop.HEAD_STEPS)
    phase_1 = time.monotonic()
    network.unfreeze_top(model, job["unfreeze_top"], "frozen")
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=2)
    adamw = optimizers.make_optimizer("adamw", 8e-5, 0.01)
    fit("fine_tune", adamw, job["head_epochs"], job["fine_tune_epochs"], 1, [plateau])
    phase_2 = time.monotonic()
    probabilities = loop.predict(model, faces["test"])
    return naive.measured(began, phase_1, phase_2, time.monotonic(), probabilities, labels["test"])


def operations(model) -> tuple[float, float]:
    """Floating-point operations that a picture takes, forward: in the frozen layers below any trained one, and in the others.

    Those of the backbone's convolutions, 2 a weight and output position; a layer's two gradients take as many each.
    """
    from fer_utils.training import frozen_prefix, network

    import keras

    prefix, _ = frozen_prefix.split(model)
    frozen = {id(layer) for part in prefix.layers if isinstance(part, keras.Model) for layer in part.layers}
    below, above = 0.0, 0.0
    for layer in network.backbone_of(model).layers:
        if isinstance(layer, keras.layers.Conv2D):
            count = 2 * float(np.prod(layer.output.shape[1:3])) * float(np.prod(layer.kernel.shape))
            below, above = below + count * (id(layer) in frozen), above + count * (id(layer) not in frozen)
    return below, above


def arithmetic(job: dict, n_train: int, n_val: int) -> float:
    """Operations that phase 2 cannot do without: the prefix once, the suffix forward and backward."""
    from fer_utils.training import network

    model = network.build(job["image_size"], "none")
    network.unfreeze_top(model, job["unfreeze_top"], "frozen")
    below, above = operations(model)
    return (n_train + n_val) * below + job["fine_tune_epochs"] * (3 * n_train + n_val) * above


def matmul_peak() -> float:
    """Operations a second of TensorFlow's best of ten products of two 2048 × 2048 matrices."""
    import tensorflow as tf

    square = tf.random.normal((2048, 2048))
    product = tf.function(lambda: tf.reduce_max(tf.matmul(square, square)))
    product()
    seconds = []
    for _ in range(10):
        began = time.monotonic()
        product()
        seconds.append(time.monotonic() - began)
    return 2 * 2048**3 / min(seconds)


def prepare_job(options: argparse.Namespace, folder: Path) -> dict:
    """Tables of the pictures, first weights of the head, and what both sides are to do."""
    from fer_utils.training import network

    import keras

    folders = runs.run_named(options.run.name, str(options.run.absolute().parent), "")
    manifest = loading.read_table(folders.path("manifest.csv"), ("split", "label", "path"))
    sources = {
        "train": loading.read_table(folders.path("balanced.csv"), ("label", "path")),
        "val": manifest[manifest["split"] == "VAL"],
        "test": manifest[manifest["split"] == "TEST"],
    }
    job = {}
    for name, table in sources.items():
        table = loading.take_per_class(table, options.per_class if name == "train" else options.per_class // 2, SEED)
        table = table.assign(
            file=[folders.data / path for path in table["path"]], code=table["label"].map(CLASSES.index)
        )
        job[name] = str(folder / f"{name}.csv")
        table[["file", "code"]].to_csv(job[name], index=False)
    keras.utils.set_random_seed(SEED)
    model = network.build(32, "none")
    arrays = {"dropout": model.get_layer("head_dropout").seed_generator.state.numpy()}
    for place, name in enumerate(network.HEAD_LAYERS):
        arrays.update({f"{place}_{i}": value for i, value in enumerate(model.get_layer(name).get_weights())})
    np.savez(folder / "start.npz", **arrays)
    return job | {
        "start": str(folder / "start.npz"),
        "image_size": options.image_size,
        "weights": str(options.weights.absolute()),
        "momentum": network.TRAINED_NORM_MOMENTUM,
        "seed": SEED,
        "batch_size": BATCH,
        "unfreeze_top": UNFREEZE_TOP,
        "head_epochs": options.head_epochs,
        "fine_tune_epochs": options.fine_tune_epochs,
    }


def run(side: str, job: dict, folder: Path, turn: int) -> dict:
    """One side in a process of its own, its cache empty; what it measured."""
    job = job | {"cache": str(folder / f"cache_{turn}")}
    file = folder / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    command = [str(HERE / "naive.py")] if side == "naive" else [str(HERE / "compare.py"), "--ours"]
    environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, *command, str(file)], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    measured["whole"] = sum(measured[part] for part in PARTS[:3])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", metavar="JOB", type=Path, help="run our side of a job and print what it measured")
    parser.add_argument("--run", type=Path, help="a run whose 01 and 02 are done")
    parser.add_argument("--weights", type=Path, help="a ResNet50 notop file")
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument(
        "--per-class", type=int, default=100, help="pictures of each class that train; half to validate"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--head-epochs", type=int, default=HEAD_EPOCHS)
    parser.add_argument("--fine-tune-epochs", type=int, default=FINE_TUNE_EPOCHS)
    options = parser.parse_args()
    if options.ours:
        print(json.dumps(ours(json.loads(options.ours.read_text(encoding="utf-8")))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = prepare_job(options, folder)
        counts = [len(Path(job[part]).read_text().splitlines()) - 1 for part in ("train", "val", "test")]
        print(f"{options.image_size} px; TRAIN {counts[0]}, VAL {counts[1]}, TEST {counts[2]}", flush=True)
        rounds = []
        for turn in range(options.rounds):
            rounds.append({side: run(side, job, folder, turn) for side in ("naive", "ours")})
            print(json.dumps(rounds[-1]), flush=True)
        for part in PARTS:
            ratios = sorted(both["naive"][part] / both["ours"][part] for both in rounds)
            seconds = [statistics.median(both[side][part] for both in rounds) for side in ("naive", "ours")]
            print(
                f"{part:10}  {ratios[0]:.2f} {statistics.median(ratios):.2f} {ratios[-1]:.2f} times"
                f"  ({seconds[0]:.1f} s : {seconds[1]:.1f} s)"
            )
        both_phases = sorted(
            sum(both["naive"][part] for part in PARTS[:2]) / sum(both["ours"][part] for part in PARTS[:2])
            for both in rounds
        )
        print(f"{'03 + 04':10}  {both_phases[0]:.2f} {statistics.median(both_phases):.2f} {both_phases[-1]:.2f} times")
        for side in ("naive", "ours"):
            print(f"peak memory, {side}: {max(both[side]['peak MB'] for both in rounds):.0f} MB")
        for metric in ("accuracy", "macro F1"):
            print(f"{metric}: {max(abs(both['naive'][metric] - both['ours'][metric]) for both in rounds):.4f} apart")
        reached = arithmetic(job, *counts[:2]) / statistics.median(both["ours"]["phase 2"] for both in rounds)
        peak = matmul_peak()
        print(
            f"phase 2: {reached / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s, {reached / peak:.0%} of the matrix-multiply peak"
        )


if __name__ == "__main__":
    main()
