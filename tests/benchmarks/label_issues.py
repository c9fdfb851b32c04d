"""Does training without the labels that confident learning doubts help, on TEST as FER+'s voters see it?

python tests/benchmarks/label_issues.py --run outputs/issues --weights FILE [--image-size 48] [--seeds 1 2 3]

The run has done 01 (with votes), 02 and 03 with `find_label_issues`. The specification's head is trained on the pooled
features of a frozen backbone, phase 1 of the notebooks, three ways: on all originals of TRAIN, without the issues, and
without as many pictures of each class drawn at random, which shows what losing pictures alone does. Printed are accuracy
and macro F1 on TEST against FER+'s majority and against FER2013's label, for each seed, and the mean difference to all
originals with a 95 % interval (Student's t over the seeds, which decide first weights, order and what is drawn).
"""

import argparse
from pathlib import Path

from fer_utils import files
from fer_utils.classes import CLASSES
from fer_utils.data import loading
from fer_utils.evaluation import scores
from fer_utils.pipeline import runs
from fer_utils.training import devices, frozen_prefix, loop, network, optimizers

import keras
import numpy as np
import pandas as pd
from scipy import stats

EPOCHS, BATCH, RATE = 10, 64, 5e-4  # phase 1 of the specification
WAYS = ("all", "without issues", "without random ones")
MEASURES = ("accuracy", "macro_f1")


def head(features: np.ndarray, labels: np.ndarray, val: tuple, weights: str, image_size: int, seed: int) -> keras.Model:
    """The head after phase 1."""
    devices.make_reproducible(seed)
    _, model = frozen_prefix.split(network.build(image_size, weights))
    loop.compile_for_training(model, optimizers.make_optimizer("adam", RATE, 0), loop.HEAD_STEPS)
    batches = loop.Batches(features, labels, BATCH, seed), loop.Batches(*val, loop.PREDICT_BATCH)
    loop.fit(model, *batches, "head", 0, EPOCHS)
    return model


def chosen(way: str, issues: pd.DataFrame, seed: int) -> np.ndarray:
    """Rows of TRAIN's originals to train on."""
    is_issue = issues["is_issue"].astype(str).eq("True").to_numpy()
    if way == "all":
        return np.arange(len(issues))
    if way == "without issues":
        return np.flatnonzero(~is_issue)
    rng, left_out = np.random.default_rng(seed), []
    for label in CLASSES:
        of_class = np.flatnonzero(issues["label"] == label)
        left_out.append(rng.choice(of_class, is_issue[of_class].sum(), replace=False))
    return np.setdiff1d(np.arange(len(issues)), np.concatenate(left_out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--weights", required=True, help="a ResNet50 notop file")
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    folders = runs.run_named(options.run.name, str(options.run.absolute().parent), "")
    file = options.run / "label_issues_train.csv"
    if not file.is_file():
        raise SystemExit(f"{file} is missing: run 03 of this run with find_label_issues")
    issues = loading.read_table(file, ("path", "label", "is_issue"))
    manifest = loading.read_table(folders.path("manifest.csv"), loading.MANIFEST_COLUMNS)
    faces = {name: loading.load_faces(manifest[manifest["split"] == name], folders.data) for name in ("VAL", "TEST")}
    faces["TRAIN"] = loading.load_faces(issues, folders.data)
    prefix, _ = frozen_prefix.split(network.build(options.image_size, options.weights))
    features = {name: loop.predict(prefix, found.images) for name, found in faces.items()}
    rows = []
    for seed in options.seeds:
        for way in WAYS:
            kept = chosen(way, issues, seed)
            val = features["VAL"], faces["VAL"].labels
            trained = features["TRAIN"][kept], faces["TRAIN"].labels[kept]
            model = head(*trained, val, options.weights, options.image_size, seed)
            test = faces["TEST"].table.assign(
                seen_in_training=False
            )  # the profile `clean` left no copy of one in TRAIN
            predictions = scores.prediction_table(test, loop.predict(model, features["TEST"]))
            found = scores.against_both({"TEST": predictions})["test"]
            row = {"seed": seed, "way": way, "n": len(kept)}
            row |= {
                f"{measure}, {name}": found[name][measure] for name in ("ferplus", "fer2013") for measure in MEASURES
            }
            rows.append(row)
            print(row, flush=True)
    table = pd.DataFrame(rows)
    files.write_csv(options.run / "label_issues_benchmark.csv", table)
    print(table.round(4).to_string(index=False))
    for way in WAYS[1:]:
        for column in table.columns[3:]:
            per_seed = table.pivot(index="seed", columns="way", values=column)
            difference = per_seed[way] - per_seed["all"]
            half = stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / len(difference) ** 0.5
            print(f"{way} − all, {column}: {difference.mean():+.4f} ± {half:.4f}")


if __name__ == "__main__":
    main()
