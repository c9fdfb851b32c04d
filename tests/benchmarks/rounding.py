"""How far rounding alone moves the scores: phase 1 on features as computed, and on features a ten-millionth off.

python tests/benchmarks/rounding.py --run outputs/clean --weights FILE --image-size 48 --per-class 250

Two programs that compute the same thing in another order differ by about as much as the noise added here. What this prints
is therefore how close the final metrics of `compare.py`'s two sides can be expected to be.
"""

import argparse
import tempfile
from pathlib import Path

from fer_utils import images
from fer_utils.training import frozen_prefix, loop, network, optimizers

import compare
import keras
import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

NOISE = (0.0, 0.0, 1e-7, 1e-6)  # of a feature; float32 carries 6e-8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run whose 01 and 02 are done")
    parser.add_argument("--weights", type=Path, required=True, help="a ResNet50 notop file")
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--per-class", type=int, default=250)
    parser.add_argument("--head-epochs", type=int, default=compare.HEAD_EPOCHS)
    parser.set_defaults(fine_tune_epochs=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        job = compare.prepare_job(options, Path(folder))
        tables = {name: pd.read_csv(job[name]) for name in ("train", "val", "test")}
        start = dict(np.load(job["start"], allow_pickle=False))
    model = network.build(options.image_size, job["weights"])
    prefix, head = frozen_prefix.split(model)
    features = {name: loop.predict(prefix, images.load(table["file"])[..., None]) for name, table in tables.items()}
    labels = {name: table["code"].to_numpy(np.int32) for name, table in tables.items()}
    first = None
    for noise in NOISE:
        random = np.random.default_rng(1)
        inputs = {
            name: (values * (1 + noise * random.standard_normal(values.shape))).astype(np.float32)
            for name, values in features.items()
        }
        probabilities = _trained(model, head, inputs, labels, start, job)
        first = probabilities if first is None else first
        predicted = probabilities.argmax(axis=1)
        accuracy = (predicted == labels["test"]).mean()
        macro_f1 = f1_score(labels["test"], predicted, average="macro")
        changed = (predicted != first.argmax(axis=1)).sum()
        print(
            f"noise {noise:.0e}: accuracy {accuracy:.4f}, macro F1 {macro_f1:.4f}, "
            f"{changed} of {len(predicted)} TEST pictures predicted otherwise than first",
            flush=True,
        )


def _trained(model: keras.Model, head: keras.Model, inputs: dict, labels: dict, start: dict, job: dict) -> np.ndarray:
    """Probabilities of TEST, (n, 7), after phase 1 from the first weights in `start`."""
    compare.begin_alike(model, start)
    loop.compile_for_training(head, optimizers.make_optimizer("adam", 5e-4, 0), loop.HEAD_STEPS)
    shown = loop.Batches(inputs["train"], labels["train"], job["batch_size"], job["seed"])
    validated = loop.Batches(inputs["val"], labels["val"], loop.PREDICT_BATCH)
    loop.fit(head, shown, validated, "head", 0, job["head_epochs"])
    return loop.predict(head, inputs["test"])


if __name__ == "__main__":
    main()
