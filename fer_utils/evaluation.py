"""Scores of predictions: plain functions of labels and probabilities.

Knows metrics; knows nothing of models, files or plots.
"""

import numpy as np
import pandas as pd
from sklearn.metrics import classification_report, confusion_matrix, precision_recall_fscore_support

from fer_utils.classes import CLASSES

PROBABILITIES = tuple(f"p_{label}" for label in CLASSES)
SMALLEST_PROBABILITY = 1e-7  # as keras.config.epsilon(): the loss of a probability of 0 stays finite


def prediction_table(table: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    """One row an image: what it is, what it was taken for, and all seven probabilities.

    table: columns path, label, usage (others are kept out). probabilities: (n, 7), rows sum to 1.
    """
    predicted = [CLASSES[place] for place in probabilities.argmax(axis=1)]
    rows = table[["path", "label", "usage"]].assign(predicted=predicted)
    return pd.concat([rows, pd.DataFrame(probabilities.round(7), columns=PROBABILITIES)], axis=1)


def scores(predictions: pd.DataFrame) -> dict[str, float]:
    """n, loss (sparse categorical cross-entropy, nats), accuracy, and macro precision, recall and F1 (zero_division 0)."""
    true = predictions["label"].map(CLASSES.index).to_numpy()
    chosen = predictions[list(PROBABILITIES)].to_numpy()[np.arange(len(true)), true]
    precision, recall, f1, _ = precision_recall_fscore_support(
        predictions["label"], predictions["predicted"], labels=CLASSES, average="macro", zero_division=0
    )
    return {
        "n": len(predictions),
        "loss": float(-np.log(np.clip(chosen, SMALLEST_PROBABILITY, 1)).mean()),
        "accuracy": float((predictions["label"] == predictions["predicted"]).mean()),
        "macro_precision": float(precision),
        "macro_recall": float(recall),
        "macro_f1": float(f1),
    }


def scores_by_usage(predictions: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The scores of the Public and the Private part, as far as the source tells them apart."""
    parts = {"public": "PublicTest", "private": "PrivateTest"}
    found = {part: predictions[predictions["usage"] == usage] for part, usage in parts.items()}
    return {part: scores(rows) for part, rows in found.items() if len(rows)}


def class_report(predictions: pd.DataFrame) -> pd.DataFrame:
    """Precision, recall, F1 and support: a row a class, then macro and weighted averages."""
    report = classification_report(
        predictions["label"], predictions["predicted"], labels=CLASSES, output_dict=True, zero_division=0
    )
    rows = {name: report[name] for name in (*CLASSES, "macro avg", "weighted avg")}
    return (
        pd.DataFrame(rows)
        .T.rename_axis("class")
        .rename(columns={"f1-score": "f1"})
        .astype({"support": int})
        .reset_index()
    )


def confusion(predictions: pd.DataFrame) -> np.ndarray:
    """Counts, shape (7, 7): row the true class, column the predicted one, in order of CLASSES."""
    return confusion_matrix(predictions["label"], predictions["predicted"], labels=CLASSES)


def worst_mistakes(predictions: pd.DataFrame, n: int) -> pd.DataFrame:
    """The `n` wrong predictions with the most confidence, surest first."""
    wrong = predictions[predictions["label"] != predictions["predicted"]]
    confidence = wrong[list(PROBABILITIES)].max(axis=1)
    return wrong.assign(confidence=confidence).sort_values(["confidence", "path"], ascending=[False, True]).head(n)
