"""Runs a trained model on pictures: predictions, with test-time augmentation and under corruptions, and Grad-CAM's heat maps.

Kinds of corruption after Hendrycks & Dietterich 2019 (arXiv:1903.12261), each in five strengths, chosen by eye for faces of
48 px.
"""

from functools import partial

from fer_utils.classes import CLASSES
from fer_utils.data.loading import Faces
from fer_utils.evaluation import scores
from fer_utils.training import devices, loop, network

import cv2
import keras
import numpy as np
import pandas as pd
from keras import ops
from sklearn.metrics import f1_score

CROP_SHARE = 0.9  # of the image's side, for each of the ten crops
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
SMALLEST_MAP = 5  # squares of a heat map per side; with fewer, it cannot separate mouth and eyes
GRADIENT_BATCH = 32


def predict(model: keras.Model, faces: Faces, views: str = "none") -> pd.DataFrame:
    """The model's predictions for the faces, as scores.prediction_table; views: the kind, as for predict_with_views."""
    return scores.prediction_table(faces.table, predict_with_views(model, faces.images, views))


def predict_with_views(model: keras.Model, images: np.ndarray, kind: str) -> np.ndarray:
    """Probabilities averaged over the views of `kind`: float32 (n, 7).

    images: (n, height, width, 1). kind: `none` (the image alone), `flip` (the image and its mirror image) or `ten_crop`
    (crops of the four corners and the centre, and their mirror images; Krizhevsky et al. 2012, section 4.1).
    """
    shown = views(images, kind)
    together = loop.predict(model, np.concatenate(shown))
    return together.reshape(len(shown), len(images), -1).mean(axis=0)


def views(images: np.ndarray, kind: str) -> list[np.ndarray]:
    """The views of the images of which `predict_with_views` averages the predictions."""
    if kind == "none":
        return [images]
    plain = [images]
    if kind == "ten_crop":
        height, width = images.shape[1:3]
        tall, wide = round(CROP_SHARE * height), round(CROP_SHARE * width)
        bottom, right = height - tall, width - wide
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
        plain = [images[:, y : y + tall, x : x + wide] for y, x in corners]
    return plain + [view[:, :, ::-1] for view in plain]


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


def score_corrupted(model: keras.Model, faces: Faces, seed: int) -> pd.DataFrame:
    """Accuracy and macro F1 of the faces under each corruption: one row a kind and level.

    Columns: corruption, level (1 to 5), strength, accuracy, macro_f1. Takes 40 passes through the model.
    """
    rows = []
    for kind, (_, strengths) in STRENGTHS.items():
        for level in FIVE:
            predicted = loop.predict(model, corrupt(faces.images, kind, level, seed)).argmax(axis=1)
            f1 = f1_score(faces.labels, predicted, labels=range(len(CLASSES)), average="macro", zero_division=0)
            rows.append((kind, level + 1, strengths[level], float((predicted == faces.labels).mean()), float(f1)))
    return pd.DataFrame(rows, columns=["corruption", "level", "strength", "accuracy", "macro_f1"])


def corruption_summary(table: pd.DataFrame) -> dict:
    """The result of `score_corrupted` as in metrics.json: the means over all corruptions and levels, by kind, and each level."""
    by_kind = {
        kind: rows[["accuracy", "macro_f1"]].mean().to_dict() | {"accuracy_by_level": rows["accuracy"].tolist()}
        for kind, rows in table.groupby("corruption", sort=False)
    }
    return {f"mean_{name}": float(table[name].mean()) for name in ("accuracy", "macro_f1")} | {"by_kind": by_kind}


def corruption_examples(image: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """One image, uint8 (height, width, 1), under each corruption: name → uint8 (5, height, width), weakest first."""
    return {
        kind: np.concatenate([corrupt(image[None], kind, level, seed)[..., 0] for level in FIVE]) for kind in STRENGTHS
    }


def grad_cam(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """How much each part of each image speaks for a class: float32 (n, squares, squares), 0 to 1, 1 the strongest.

    model: a whole network, or an exported one. images: uint8 (n, height, width, 1). classes: int (n,), the class for
    each image. The maps come from the deepest layer of the backbone with at least SMALLEST_MAP squares per side: the
    last one from 160 px on, an earlier one at smaller sizes. As in Selvaraju et al. 2017, "Grad-CAM", the layer's
    channels are weighted by the mean gradient of the class's score before softmax, and negative values are set to zero.
    A map without positive values is all zeros.
    """
    if network.PREPROCESSING not in [layer.name for layer in model.layers]:  # exported: a model of any colour around it
        model = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    backbone = network.backbone_of(model)
    blocks = [layer.output for layer in backbone.layers if layer.name.endswith("_out")]
    deepest = [output for output in blocks if output.shape[1] >= SMALLEST_MAP][-1]
    *layers, last = [model.get_layer(name) for name in (network.FEATURES, *network.HEAD_LAYERS)]
    x = backbone.output
    for layer in layers:
        x = layer(x)
    before, after = keras.Model(backbone.input, deepest), keras.Model(deepest, x)

    def score(maps, codes: np.ndarray):
        x = ops.cast(after(maps, training=False), last.kernel.dtype)  # float16 in a model trained in mixed precision
        return ops.take_along_axis(ops.matmul(x, last.kernel) + last.bias, ops.expand_dims(codes, 1), axis=1)

    found = []
    for rows in (slice(start, start + GRADIENT_BATCH) for start in range(0, len(images), GRADIENT_BATCH)):
        pixels = ops.convert_to_tensor(images[rows], "float32")
        maps = before(model.get_layer(network.PREPROCESSING)(pixels), training=False)
        slopes = ops.cast(devices.gradient(partial(score, codes=classes[rows]), maps), "float32")
        weights = ops.mean(slopes, axis=(1, 2), keepdims=True)
        heat = ops.relu(ops.sum(weights * ops.cast(maps, "float32"), axis=-1))
        found.append(ops.convert_to_numpy(ops.divide_no_nan(heat, ops.max(heat, axis=(1, 2), keepdims=True))))
    return np.concatenate(found)
