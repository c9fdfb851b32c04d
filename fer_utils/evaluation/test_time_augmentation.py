"""Test-time augmentation: the model's probabilities are averaged over several views of an image."""

from fer_utils.training import loop

import keras
import numpy as np

CROP_SHARE = 0.9  # of the image's side, for each of the ten crops


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
