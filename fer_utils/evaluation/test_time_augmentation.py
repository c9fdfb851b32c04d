"""Test-time augmentation: the model's probabilities are averaged over several views of an image."""

from collections.abc import Callable

from fer_utils.training import loop

import keras
import numpy as np

CROP_SHARE = 0.9  # of the image's side, for each of the ten crops

VIEWS: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {
    "none": lambda images: [images],
    "flip": lambda images: _with_mirrored([images]),
    "ten_crop": lambda images: _with_mirrored(_five_crops(images)),
}


def predict_with_views(model: keras.Model, images: np.ndarray, kind: str) -> np.ndarray:
    """Probabilities averaged over the views of `kind`: float32 (n, 7).

    images: (n, height, width, 1). kind: `none` (the image alone), `flip` (the image and its mirror image) or `ten_crop`
    (crops of the four corners and the centre, and their mirror images; Krizhevsky et al. 2012, section 4.1).
    """
    views = VIEWS[kind](images)
    together = loop.predict(model, np.concatenate(views))
    return together.reshape(len(views), len(images), -1).mean(axis=0)


def _with_mirrored(views: list[np.ndarray]) -> list[np.ndarray]:
    return [*views, *(view[:, :, ::-1] for view in views)]


def _five_crops(images: np.ndarray) -> list[np.ndarray]:
    height, width = images.shape[1:3]
    tall, wide = round(CROP_SHARE * height), round(CROP_SHARE * width)
    bottom, right = height - tall, width - wide
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    return [images[:, y : y + tall, x : x + wide] for y, x in corners]
