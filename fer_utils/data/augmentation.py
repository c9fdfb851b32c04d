"""What training sees of a batch: pictures moved, mirrored and lit anew each time, mixed in pairs, labels softened.

Knows raw pictures and labels as arrays; knows nothing of files, of networks, or of the copies that 02 writes to disk.
All of it follows from the generator handed in, so that a batch does not depend on what was drawn before it.
"""

import os
import random
from dataclasses import dataclass
from functools import lru_cache

from fer_utils.classes import CLASSES

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no look at PyPI on import


@dataclass(frozen=True)
class Strength:
    """How far a picture may be changed. All moves are drawn evenly from minus to plus what stands here."""

    shift: float  # share of the side
    degrees: float
    zoom: float  # share of the scale
    light: float  # brightness, as a share of 255, and contrast, as a share of itself
    erased: float  # how many pictures lose a rectangle


STRENGTHS = {
    "light": Strength(shift=0.08, degrees=10, zoom=0.1, light=0.2, erased=0.0),
    # Khaireddin & Chen 2021 (arXiv:2105.03588; code: usef-kh/fer): shift and zoom of 20 %, 10 degrees, half of them erased.
    "heavy": Strength(shift=0.2, degrees=10, zoom=0.2, light=0.2, erased=0.5),
}
ERASED_AREA = (0.02, 0.33)  # of the picture; with ERASED_ASPECT the figures of Zhong et al. 2020 (arXiv:1708.04896)
ERASED_ASPECT = (0.3, 3.3)  # height to width


@dataclass(frozen=True)
class Changes:
    """What happens to each batch before a step: changes(inputs, labels, rng) gives the inputs and labels to train on.

    augmentation: `none` or a name of STRENGTHS. mixup: alpha of the Beta distribution from which each pair's shares are
    drawn (Zhang et al. 2018, arXiv:1710.09412), 0 for none. label_smoothing: what is taken from the label and spread
    over all seven classes (Szegedy et al. 2016, arXiv:1512.00567).

    Inputs are uint8 (n, height, width, 1), or anything where pictures stay as they are; they come back as they went in,
    mixed ones as float32. Labels are int (n,); softened or mixed they come back as float32 (n, 7), else unchanged.
    """

    augmentation: str = "none"
    mixup: float = 0.0
    label_smoothing: float = 0.0

    @property
    def of_pictures(self) -> bool:
        """Whether a picture differs from epoch to epoch, so that nothing computed for it may be kept."""
        return self.augmentation != "none" or self.mixup > 0

    def __call__(self, inputs, labels: np.ndarray, rng: np.random.Generator) -> tuple:
        if self.of_pictures and (not isinstance(inputs, np.ndarray) or inputs.dtype != np.uint8 or inputs.ndim != 4):
            raise TypeError("augmentation and mixup change raw pictures, uint8 (n, height, width, 1), nothing computed")
        if self.augmentation != "none":
            inputs = augment(inputs, STRENGTHS[self.augmentation], rng)
        if not self.mixup and not self.label_smoothing:
            return inputs, labels
        soft = soften(labels, self.label_smoothing)
        return mix(inputs, soft, self.mixup, rng) if self.mixup else (inputs, soft)


def augment(images: np.ndarray, strength: Strength, rng: np.random.Generator) -> np.ndarray:
    """Each picture mirrored or not, moved, lit and perhaps erased in part; uint8 (n, height, width, 1) in and out."""
    moved = np.stack([_moved(image[..., 0], strength, rng) for image in images])
    contrast = 1 + rng.uniform(-strength.light, strength.light, (len(images), 1, 1))
    brightness = 255 * rng.uniform(-strength.light, strength.light, (len(images), 1, 1))
    middle = moved.mean(axis=(1, 2), keepdims=True)
    lit = np.clip((moved - middle) * contrast + middle + brightness, 0, 255).round().astype(np.uint8)
    for place in np.flatnonzero(rng.random(len(lit)) < strength.erased):
        _erase(lit[place], rng)
    return lit[..., None]


def _moved(image: np.ndarray, strength: Strength, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape
    if rng.random() < 0.5:
        image = image[:, ::-1]
    angle = rng.uniform(-strength.degrees, strength.degrees)
    scale = 1 + rng.uniform(-strength.zoom, strength.zoom)
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
    matrix[:, 2] += rng.uniform(-strength.shift, strength.shift, 2) * (width, height)
    # No black corners for the network to learn.
    return cv2.warpAffine(np.ascontiguousarray(image), matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)


def _erase(image: np.ndarray, rng: np.random.Generator) -> None:
    """Fill a rectangle with noise, in place."""
    area = rng.uniform(*ERASED_AREA) * image.size
    aspect = np.exp(rng.uniform(*np.log(ERASED_ASPECT)))
    height = int(np.clip(round(np.sqrt(area * aspect)), 1, image.shape[0]))
    width = int(np.clip(round(np.sqrt(area / aspect)), 1, image.shape[1]))
    top, left = rng.integers(image.shape[0] - height + 1), rng.integers(image.shape[1] - width + 1)
    image[top : top + height, left : left + width] = rng.integers(0, 256, (height, width))


def soften(labels: np.ndarray, smoothing: float) -> np.ndarray:
    """Labels (n,) as probabilities, float32 (n, 7), each giving `smoothing` of itself to all classes alike."""
    sure = np.eye(len(CLASSES), dtype=np.float32)[labels]
    return sure * np.float32(1 - smoothing) + np.float32(smoothing / len(CLASSES))


def mix(
    images: np.ndarray, labels: np.ndarray, alpha: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each picture and its label (n, 7) mixed with another of the batch, its own share drawn from Beta(alpha, alpha)."""
    share = rng.beta(alpha, alpha, len(images)).astype(np.float32)
    partner = rng.permutation(len(images))
    of_image, of_label = share[:, None, None, None], share[:, None]
    mixed = of_image * images + (1 - of_image) * images[partner]
    return mixed.astype(np.float32), of_label * labels + (1 - of_label) * labels[partner]


@lru_cache(maxsize=1)
def offline_pipeline():
    """The specification's pipeline: flip, rotation, shear, brightness, contrast, hue shift.

    It takes and returns RGB. A hue shift leaves a grey picture as it is (its saturation is 0); it stands in the pipeline
    because the specification names it, and would act on colour pictures.
    """
    import albumentations as A  # noqa: N812 (the library's own convention); slow to import

    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.Affine(
                rotate=(-15, 15),  # degrees: heads tilt, they do not lie down
                shear=(-8, 8),  # degrees
                border_mode=cv2.BORDER_REFLECT_101,  # no black corners for the network to learn
                p=0.9,
            ),
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.8),
            A.HueSaturationValue(hue_shift_limit=10, sat_shift_limit=0, val_shift_limit=0, p=0.3),
        ]
    )


def augmented_copy(image: np.ndarray, path: str, copy: int, seed: int) -> np.ndarray:
    """The `copy`-th augmentation of one image: uint8 grey (48, 48) in and out.

    It depends on (seed, path, copy) alone, so neither the number of workers nor the order of the work changes it.
    """
    own_seed = np.random.SeedSequence([seed, copy, *path.encode()]).generate_state(1)[0]
    pipeline = offline_pipeline()
    # One stream for all steps: `set_random_seed` would start each step's own stream at the same number, so that flip,
    # rotation and brightness happen together or not at all, and a copy in eleven is the very image it was made from.
    pipeline.set_random_state(np.random.default_rng(own_seed), random.Random(int(own_seed)))
    return pipeline(image=np.repeat(image[..., None], 3, axis=2))["image"][..., 0]
