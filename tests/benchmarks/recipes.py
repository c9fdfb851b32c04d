"""Does `params/strong.yaml` beat the specification's recipe with the same weights, pictures and compute?

python tests/benchmarks/recipes.py --run outputs/clean --weights FILE --results outputs/recipes --seeds 1 2 3

Both recipes start from the same backbone and train on the same pictures of TRAIN_BALANCED, drawn anew by each seed.
Phase 1 is the same for both. In phase 2 the strong recipe takes `--epochs` epochs. Then the specification's trains, its
early stopping off, until its process has used at least as many CPU seconds as the strong one's did: all threads, in user
and system, with compiling, the caching of activations and validation. So it never gets less, and neither is hurt by
what else the machine does.

VAL is divided, the same way for every seed: CHOOSE pictures choose the epoch whose weights are kept, TUNE pictures are
scored with `--tune`, for trying settings out, the rest only without it. Nothing is chosen by the rest. What
differs from the profile at this scale stands in SMALL and in `-p`.

Pictures are scored as `evaluate.test_time_augmentation` of the recipe says, the strong one's in one view besides. Printed
are accuracy and macro F1 for each seed, their differences, and two 95 % intervals of the mean difference: Student's t over
the seeds, and a bootstrap that draws seeds and pictures, the pictures alike for both recipes and all seeds. A training
that `--results` holds is not repeated; `--only strong 2` does a single one.
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path

from fer_utils.classes import CLASSES
from fer_utils.data import loading
from fer_utils.pipeline import parameters, runs

import numpy as np
from scipy import stats

RECIPES = ("strong", "specification")
# A few hundred steps instead of forty thousand: gentler augmentation, a shorter average, a shorter warm-up.
SMALL = {"augmentation": "light", "mixup": 0.0, "weight_averaging": 0.98, "warmup_epochs": 1.0}
CHOOSE, TUNE = 1_000, 1_500  # pictures of VAL
VIEWS = ("as the recipe says", "in one view")
RESAMPLES = 2_000
ENDLESS = 10_000  # epochs: the budget ends training


def settings(recipe: str, options: argparse.Namespace) -> dict[str, dict]:
    """What each stage's parameters are in a recipe: the defaults, or the profile with what differs at this scale."""
    layers = []
    if recipe == "strong":
        own = {"fine_tune": {**SMALL, **dict(given.split("=", 1) for given in options.p), "epochs": options.epochs}}
        layers = [("strong", parameters.load_profile(parameters.profile_path("strong"))), ("small", own)]
    return parameters.resolve(parameters.declared(), layers)


def load(options: argparse.Namespace, seed: int) -> dict[str, loading.Faces]:
    """The pictures to `train` on, to `choose` the epoch by, and the ones to `score`."""
    folders = runs.Run(options.run, options.run / "images")
    manifest = loading.read_table(folders.path("manifest.csv"), ("split", "label", "path"))
    balanced = loading.read_table(folders.path("balanced.csv"), ("label", "path"))
    val = manifest[manifest["split"] == "VAL"]
    order = np.random.default_rng(0).permutation(len(val))
    scored = order[CHOOSE : CHOOSE + TUNE] if options.tune else order[CHOOSE + TUNE :]
    return {
        "train": loading.load_faces(balanced, folders.data, options.per_class, seed),
        "choose": loading.load_faces(val.iloc[order[:CHOOSE]], folders.data),
        "score": loading.load_faces(val.iloc[scored], folders.data),
    }


def train(recipe: str, seed: int, options: argparse.Namespace, cpu_seconds: float) -> dict:
    """Both phases as 03 and 04 run them, then the scores. `cpu_seconds` is the least that phase 2 takes."""
    from fer_utils.data.augmentation import Changes
    from fer_utils.evaluation import inference
    from fer_utils.training import devices, frozen_prefix, loop, network, optimizers

    import keras

    stages = settings(recipe, options)
    own, shown_as = stages["fine_tune"], stages["evaluate"]["test_time_augmentation"]
    is_strong = recipe == "strong"
    devices.make_reproducible(seed)
    faces = load(options, seed)
    model = network.build(options.image_size, str(options.weights))

    def fit(phase, first, epochs, optimizer_of, changes, callbacks, steps_per_execution):
        prefix, suffix = frozen_prefix.split(model)
        images = (faces["train"].images, faces["choose"].images)
        with contextlib.redirect_stdout(sys.stderr):
            subject, inputs = frozen_prefix.prepare(
                prefix, suffix, images, "memory", options.results, changes.of_pictures
            )
        shown = loop.Batches(inputs[0], faces["train"].labels, own["batch_size"], seed, first, changes)
        validated = loop.Batches(inputs[1], faces["choose"].labels, loop.PREDICT_BATCH)
        loop.compile_for_training(subject, optimizer_of(len(shown)), steps_per_execution)
        return loop.fit(subject, shown, validated, phase, first, epochs, callbacks)

    head_epochs = parameters.declared()["train_head"]["epochs"].default
    fit("head", 0, head_epochs, lambda _: optimizers.make_optimizer("adam", 5e-4, 0.0), Changes(), (), loop.HEAD_STEPS)

    began, wall = time.process_time(), time.monotonic()

    class Budget(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            left = cpu_seconds - (time.process_time() - began)
            print(f"{recipe} {seed} epoch {epoch + 1}: {logs}, {left:.0f} CPU s left", file=sys.stderr, flush=True)
            if not is_strong and left <= 0:
                self.model.stop_training = True

    epochs = own["epochs"] if is_strong else ENDLESS
    network.unfreeze_top(model, own["unfreeze_top"], own["batch_norm"])
    callbacks = [
        Budget(),
        keras.callbacks.EarlyStopping(monitor="val_loss", patience=ENDLESS, restore_best_weights=True),
    ]
    if own["schedule"] == "plateau":
        callbacks.append(keras.callbacks.ReduceLROnPlateau(factor=own["lr_factor"], patience=own["lr_patience"]))
        callbacks.append(optimizers.IncreaseWeightDecayOnLRDrop(own["weight_decay_factor"], own["weight_decay_cap"]))
    if own["weight_averaging"]:
        callbacks.insert(0, optimizers.WeightAveraging(own["weight_averaging"]))

    def optimizer_of(steps: int):
        rate = optimizers.make_rate(own["schedule"], own["learning_rate"], steps, epochs, own["warmup_epochs"])
        return optimizers.make_optimizer(own["optimizer"], rate, own["weight_decay"])

    changes = Changes(own["augmentation"], own["mixup"], own["label_smoothing"])
    history = fit("fine_tune", head_epochs, epochs, optimizer_of, changes, callbacks, 1)
    used = {"cpu_seconds": time.process_time() - began, "seconds": time.monotonic() - wall}
    best = int(history["val_loss"].idxmin())
    result = used | {"epochs": len(history), "best_epoch": best + 1, "history": history.to_dict("list")}
    images = faces["score"].images
    plain = loop.predict(model, images)
    shown = plain if shown_as == "none" else inference.predict_with_views(model, images, shown_as)
    arrays = dict(zip(VIEWS, (shown, plain), strict=True), labels=faces["score"].labels)
    return {"result": result, "arrays": arrays}


def place(recipe: str, seed: int, options: argparse.Namespace) -> Path:
    """Where the result of one training is kept."""
    return options.results / f"{recipe}_{seed}.json"


def do(recipe: str, seed: int, options: argparse.Namespace) -> None:
    """Train and score one recipe with one seed, unless it was done."""
    file = place(recipe, seed, options)
    if file.is_file():
        return
    budget = 0.0
    if recipe == "specification":
        budget = json.loads(place("strong", seed, options).read_text(encoding="utf-8"))["cpu_seconds"]
    done = train(recipe, seed, options, budget)
    np.savez(file.with_suffix(".npz"), **done["arrays"])
    file.write_text(json.dumps(done["result"]), encoding="utf-8")


def scores(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Accuracy and macro F1, a class without pictures and predictions counting 0: as scikit-learn's, but 100 times as fast."""
    n = len(CLASSES)
    counts = np.bincount(labels * n + predicted, minlength=n * n).reshape(n, n)
    hits, sums = np.diagonal(counts), counts.sum(axis=0) + counts.sum(axis=1)
    return np.array([hits.sum() / len(labels), (2 * hits / np.maximum(sums, 1)).mean()])


def bootstrap(labels: np.ndarray, predicted: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """The mean difference, strong less specification, in each of RESAMPLES draws of seeds and pictures: (RESAMPLES, 2).

    predicted: for each recipe, (seeds, n).
    """
    strong, specification = (predicted[recipe] for recipe in RECIPES)
    found = np.empty((RESAMPLES, 2))
    for i in range(RESAMPLES):
        pictures = rng.integers(len(labels), size=len(labels))
        seeds = rng.integers(len(strong), size=len(strong))
        differences = {
            seed: scores(labels[pictures], strong[seed, pictures])
            - scores(labels[pictures], specification[seed, pictures])
            for seed in set(seeds.tolist())
        }
        found[i] = np.mean([differences[seed] for seed in seeds.tolist()], axis=0)
    return found


def report(options: argparse.Namespace) -> None:
    """Print what the trainings in `--results` gave."""
    results = {
        (recipe, seed): json.loads(place(recipe, seed, options).read_text(encoding="utf-8"))
        for recipe in RECIPES
        for seed in options.seeds
    }
    print("phase 2: recipe, seed, CPU seconds, seconds, epochs, the epoch kept")
    for (recipe, seed), result in results.items():
        print(
            f"  {recipe:14} {seed:3}  {result['cpu_seconds']:5.0f}  {result['seconds']:5.0f}  {result['epochs']:3}  {result['best_epoch']:3}"
        )
    files = {key: np.load(place(*key, options).with_suffix(".npz")) for key in results}
    labels = files[RECIPES[0], options.seeds[0]]["labels"]
    for name in VIEWS:
        predicted = {
            recipe: np.stack([files[recipe, seed][name].argmax(axis=1) for seed in options.seeds]) for recipe in RECIPES
        }
        print_scores(name, labels, predicted, options.seeds)


def print_scores(name: str, labels: np.ndarray, predicted: dict[str, np.ndarray], seeds: list[int]) -> None:
    """A row a seed, then the mean difference with both intervals."""
    each = {recipe: np.array([scores(labels, row) for row in rows]) for recipe, rows in predicted.items()}
    differences = each["strong"] - each["specification"]
    print(f"VAL, {len(labels):,} pictures, {name}: accuracy and macro F1, strong, specification, difference")
    for place_, seed in enumerate(seeds):
        rows = [each["strong"][place_], each["specification"][place_], differences[place_]]
        print(f"  seed {seed}: " + "   ".join(f"{accuracy:+.4f} {macro:+.4f}" for accuracy, macro in rows))
    draws = bootstrap(labels, predicted, np.random.default_rng(0))
    for column, score in enumerate(("accuracy", "macro F1")):
        mean = differences[:, column].mean()
        low, high = np.percentile(draws[:, column], [2.5, 97.5])
        text = f"  {score}: {mean:+.4f}, bootstrap over seeds and pictures {low:+.4f} to {high:+.4f}"
        if len(seeds) > 1:
            half = stats.t.ppf(0.975, len(seeds) - 1) * stats.sem(differences[:, column])
            text += f", t over seeds {mean - half:+.4f} to {mean + half:+.4f}"
        print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run whose 01 and 02 are done, with `leakage: drop`")
    parser.add_argument("--weights", type=Path, required=True, help="a ResNet50 notop file")
    parser.add_argument("--results", type=Path, required=True, help="folder for what each training gave")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--per-class", type=int, default=300, help="pictures of each class that train")
    parser.add_argument("--epochs", type=int, default=5, help="of the strong recipe's phase 2")
    parser.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", help="of 04, in the strong recipe")
    parser.add_argument("--tune", action="store_true", help="score the pictures set aside for trying settings out")
    parser.add_argument("--only", nargs=2, metavar=("RECIPE", "SEED"), help="one training, no report")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    if options.only:
        do(options.only[0], int(options.only[1]), options)
        return
    for seed in options.seeds:
        for recipe in RECIPES:
            do(recipe, seed, options)
    here = settings("strong", options)["fine_tune"]
    shown = ", ".join(f"{name}={here[name]}" for name in ("epochs", "learning_rate", *SMALL))
    print(f"{options.image_size} px, {options.per_class} pictures a class; strong at this scale: {shown}")
    report(options)


if __name__ == "__main__":
    main()
