"""Harder pictures: the model's scores under blur, noise, JPEG, low light, low resolution, rotation and covered parts.

Kinds after Hendrycks & Dietterich 2019 (arXiv:1903.12261), each in five strengths, chosen by eye for faces of 48 px.
"""

from fer_utils.classes import CLASSES
from fer_utils.training import loop

import cv2
import keras
import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

FIVE = range(5)
# Name → what a strength means, and the five strengths.
STRENGTHS = {
    "blur": ("Gaussian, sigma in pixels", (0.5, 0.8, 1.2, 1.7, 2.4)),
    "noise": ("Gaussian, standard deviation as share of the grey range", (0.02, 0.04, 0.06, 0.08, 0.11)),
    "jpeg": ("quality", (60, 40, 25, 15, 8)),
    "low light": ("factor of the grey values", (0.7, 0.5, 0.35, 0.25, 0.18)),
    "low resolution": ("factor of the sides", (0.7, 0.5, 0.375, 0.25, 0.17)),
    "rotation": ("degrees, to either side", (10, 20, 30, 45, 60)),
    "covered mouth": ("share of the height, from below", (0.15, 0.22, 0.3, 0.37, 0.45)),
    "covered eyes": ("share of the height, about the eyes", (0.08, 0.14, 0.2, 0.27, 0.34)),
}
_EYES = 0.38  # height of the eyes in FER2013's crops, from above


def corrupt(images: np.ndarray, kind: str, level: int, seed: int) -> np.ndarray:
    """The images under a corruption: uint8 (n, height, width, 1) in and out.

    kind: a name of STRENGTHS. level: 0 (weakest) to 4. Noise and the side of a rotation depend on (seed, kind, level) and on
    the order of the images.
    """
    rng = np.random.default_rng([seed, list(STRENGTHS).index(kind), level])
    strength = STRENGTHS[kind][1][level]
    harder = [_corrupted(image, kind, strength, rng) for image in images[..., 0]]
    return np.clip(np.round(harder), 0, 255).astype(np.uint8)[..., None]


def _corrupted(image: np.ndarray, kind: str, strength: float, rng: np.random.Generator) -> np.ndarray:
    """One picture, uint8 (height, width), under a corruption; its values are not yet rounded or clipped."""
    height, width = image.shape
    match kind:
        case "blur":
            return cv2.GaussianBlur(image, (0, 0), strength)
        case "noise":
            return image + rng.normal(0, 255 * strength, image.shape)
        case "jpeg":
            _, file = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(strength)])
            return np.asarray(cv2.imdecode(file, cv2.IMREAD_GRAYSCALE))
        case "low light":
            return image * strength
        case "low resolution":
            small = cv2.resize(image, None, fx=strength, fy=strength, interpolation=cv2.INTER_AREA)
            return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
        case "rotation":
            degrees = rng.choice([-1, 1]) * strength
            turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
            return cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    size = round(strength * height)
    top = height - size if kind == "covered mouth" else max(0, round(_EYES * height - size / 2))
    covered = image.copy()
    covered[top : top + size] = np.round(image.mean())
    return covered


def score(model: keras.Model, faces, seed: int) -> pd.DataFrame:
    """Accuracy and macro F1 of `faces` (fer_utils.data.loading.Faces) under each corruption: one row a kind and level.

    Columns: corruption, level (1 to 5), strength, accuracy, macro_f1. Takes 40 passes through the model.
    """
    rows = []
    for kind, (_, strengths) in STRENGTHS.items():
        for level in FIVE:
            predicted = loop.predict(model, corrupt(faces.images, kind, level, seed)).argmax(axis=1)
            f1 = f1_score(faces.labels, predicted, labels=range(len(CLASSES)), average="macro", zero_division=0)
            rows.append((kind, level + 1, strengths[level], float((predicted == faces.labels).mean()), float(f1)))
    return pd.DataFrame(rows, columns=["corruption", "level", "strength", "accuracy", "macro_f1"])


def summary(table: pd.DataFrame) -> dict:
    """The result of `score` as in metrics.json: the means over all corruptions and levels, by kind, and each level."""
    by_kind = {
        kind: rows[["accuracy", "macro_f1"]].mean().to_dict() | {"accuracy_by_level": rows["accuracy"].tolist()}
        for kind, rows in table.groupby("corruption", sort=False)
    }
    return {f"mean_{name}": float(table[name].mean()) for name in ("accuracy", "macro_f1")} | {"by_kind": by_kind}


def examples(image: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """One image, uint8 (height, width, 1), under each corruption: name → uint8 (5, height, width), weakest first."""
    return {
        kind: np.concatenate([corrupt(image[None], kind, level, seed)[..., 0] for level in FIVE]) for kind in STRENGTHS
    }
