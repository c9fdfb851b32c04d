"""Adjusts a trained model's scores to classes with few pictures (Menon et al. 2021, arXiv:2007.07314, section 4.1)."""

from fer_utils.classes import CLASSES
from fer_utils.training import loop
from fer_utils.training.network import HEAD_LAYERS

import keras
import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

STRENGTHS = np.linspace(0, 1, 11)


def with_adjusted_logits(
    model: keras.Model, images: np.ndarray, labels: np.ndarray, train_labels: np.ndarray
) -> tuple[keras.Model, pd.DataFrame]:
    """A copy of the model whose scores before softmax are lower by strength × log(share of the class), and what was tried.

    model: as from network.for_inference. images, labels: VAL's, (n, height, width, 1) and (n,) int; the strength with
    their highest macro F1 is taken, the lowest of equal ones. train_labels: (n,) int, of the pictures that trained; a class
    without any counts as one picture. The table has a row a strength, with VAL's accuracy and macro_f1 at it.
    """
    counts = np.maximum(np.bincount(train_labels, minlength=len(CLASSES)), 1)
    log_shares = np.log(counts / counts.sum())
    scores = np.log(loop.predict(model, images) + np.finfo(np.float32).tiny)
    predicted = [(scores - strength * log_shares).argmax(axis=1) for strength in STRENGTHS]
    table = pd.DataFrame({"accuracy": [(classes == labels).mean() for classes in predicted]}, index=STRENGTHS)
    table["macro_f1"] = [f1_score(labels, classes, average="macro") for classes in predicted]
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    last = copy.get_layer(HEAD_LAYERS[-1])
    last.bias.assign_sub(table["macro_f1"].idxmax() * log_shares)
    return copy, table.rename_axis("strength")
