"""Short trainings of the whole network, to choose settings of a long one by: VAL's scores under both sets of labels.

    python run_all.py --params strong_cpu --run s01 --only 01
    python run_all.py --params strong_cpu --run s01 --only 02 -p balance.target_disgust=1
    python tests/benchmarks/short_trainings.py --run outputs/s01 --weights FILE --steps 84 \
        "label" label_smoothing=0.1 -- "half votes" votes_share=0.5 -- "a second output" label_smoothing=0.1 votes_output=1

Settings of one training follow its name, those of the next follow `--`. What is not given is that of SETTINGS. Each training
takes the backbone's weights, a random head, and `--steps` steps on the cosine schedule; VAL is scored after each third of them,
with the averaged weights; of two outputs each on its own labels. TEST is not read.
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from fer_utils.classes import CLASSES
from fer_utils.data import ferplus, loading
from fer_utils.data.augmentation import Changes
from fer_utils.training import devices, frozen_prefix, loop, network, optimizers

import keras
import numpy as np

SETTINGS = {
    "image_size": 40,
    "batch_size": 256,
    "learning_rate": 7e-4,
    "weight_decay": 0.05,
    "votes_share": 0.0,
    "votes_output": 0.0,
    "augmentation": "light",
    "mixup": 0.0,
    "label_smoothing": 0.0,
    "weight_averaging": 0.98,
}
PARTS = 3  # VAL is scored after each


class _Short(loop.Batches):
    """Batches of which an epoch shows the first `steps`."""

    steps = 1

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple:
        # Batches would join all remaining pictures to the last batch.
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        rng = np.random.default_rng([self.seed, self.epoch, index])
        return self.changes(self.inputs[chosen], self.labels[chosen], rng)


class _ScoreVal(keras.callbacks.Callback):
    """Prints VAL's accuracy after each part, against its own labels and against FER+'s majority."""

    def __init__(self, name: str, val: loading.Faces):
        super().__init__()
        majority = ferplus.majority(ferplus.from_text(val.table["votes"]))
        self.name, self.val, self.majority, self.began = name, val, majority, time.monotonic()

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        predictions = loop.predict(self.model, self.val.images).reshape(len(self.val), -1, len(CLASSES))
        predicted = np.array(CLASSES)[predictions.argmax(axis=2)]
        of_label, of_votes = predicted[:, 0], predicted[:, -1]
        voted = self.majority != ""
        accuracies = (of_label == self.val.table["label"]).mean(), (of_votes == self.majority)[voted].mean()
        seconds = time.monotonic() - self.began
        print(f"| {self.name} | {epoch + 1} of {PARTS} | {seconds:.0f} | {accuracies[0]:.3f} | {accuracies[1]:.3f} |")


def train(name: str, given: dict, options: argparse.Namespace) -> None:
    chosen = SETTINGS | given
    devices.set_up(options.seed, "no", options.precision)
    tables = [
        loading.read_table(options.run / file, loading.COLUMNS[file]) for file in ("balanced.csv", "manifest.csv")
    ]
    shares = chosen["votes_share"], chosen["votes_output"]
    faces, val = loading.load_training(*tables, options.run / "images", 0, options.seed, *shares)
    model = network.build(chosen["image_size"], options.weights)
    if chosen["votes_output"]:
        model = network.with_votes_output(model)
    network.unfreeze_top(model, len(network.backbone_of(model).layers), "trained")
    model = frozen_prefix.joined(
        *frozen_prefix.split(model)
    )  # whole, it would train with the backbone's kept statistics
    changes = Changes(chosen["augmentation"], chosen["mixup"], chosen["label_smoothing"])
    batches = _Short(faces.images, faces.targets, chosen["batch_size"], options.seed, 0, changes)
    batches.steps = options.steps // PARTS
    rate = optimizers.make_rate("cosine", chosen["learning_rate"], batches.steps, PARTS, 0.5)
    loop.compile_for_training(model, optimizers.make_optimizer("adamw", rate, chosen["weight_decay"], 0.0))
    callbacks = [optimizers.WeightAveraging(chosen["weight_averaging"]), _ScoreVal(name, val)]
    loop.fit(model, batches, loop.Batches(val.images, val.labels, 256), "short", 0, PARTS, callbacks)


def parse_trainings(words: list[str]) -> dict[str, dict]:
    """Name → settings, from `NAME SETTING=VALUE … -- NAME …`."""
    trainings: dict[str, dict] = {}
    for words_of_one in " ".join(word.replace(" ", "\0") for word in words).split(" -- "):
        name, *settings = (word.replace("\0", " ") for word in words_of_one.split())
        pairs = dict(setting.split("=", 1) for setting in settings)
        if unknown := set(pairs) - set(SETTINGS):
            raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(SETTINGS)}")
        trainings[name] = {key: type(SETTINGS[key])(value) for key, value in pairs.items()}
    return trainings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a run with 01 and 02")
    parser.add_argument("--weights", required=True, help="none, or a notop file")
    parser.add_argument("--steps", type=int, default=84)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--precision", default="float32", choices=("float32", "mixed_bfloat16"))
    parser.add_argument("trainings", nargs=argparse.REMAINDER, help="NAME SETTING=VALUE … -- NAME …")
    options = parser.parse_args()
    print("| training | part | seconds | VAL, its labels | VAL, FER+'s labels |\n|---|---|---|---|---|")
    for name, given in parse_trainings(options.trainings).items():
        train(name, given, options)
        keras.backend.clear_session()


if __name__ == "__main__":
    main()
