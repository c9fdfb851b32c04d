"""Augmentation: random changes of each training batch, mixup, label smoothing, and the augmented copies of stage 02."""

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
    """How much a picture may be changed. Each amount is drawn uniformly between minus and plus the value given here."""

    shift: float  # share of the side
    degrees: float
    zoom: float  # share of the scale
    light: float  # brightness, as a share of 255, and contrast, as a share of itself
    erased: float  # share of the pictures that lose a rectangle


STRENGTHS = {
    "light": Strength(shift=0.08, degrees=10, zoom=0.1, light=0.2, erased=0.0),
    # Khaireddin & Chen 2021 (arXiv:2105.03588; code: usef-kh/fer): shift and zoom of 20 %, 10 degrees, half of the pictures erased.
    "heavy": Strength(shift=0.2, degrees=10, zoom=0.2, light=0.2, erased=0.5),
}
# Share of the picture, and width to height: the values of Zhong et al. 2020 (arXiv:1708.04896), but for the largest area. They
# have 0.33; up to 0.3 a square picture has room for every aspect.
ERASED_AREA = (0.02, 0.3)
ERASED_ASPECT = (0.3, 3.3)


@dataclass(frozen=True)
class Changes:
    """The changes of each training batch: changes(inputs, labels, rng) returns the inputs and labels to train on.

    Inputs are uint8 (n, height, width, 1) and keep type and shape; mixup returns float32. Without augmentation and mixup
    inputs may be anything and are returned unchanged. Labels are int (n,) or shares, float32 (n, 7), or (n, 14) with those
    of the votes; with mixup or smoothing they become shares. The result depends on the arguments and the generator alone.
    """

    augmentation: str = "none"  # or a name of STRENGTHS
    mixup: float = 0.0  # alpha of the mixing shares' Beta distribution (Zhang et al. 2018, arXiv:1710.09412); 0: none
    label_smoothing: float = 0.0  # share of each label spread over all classes (Szegedy et al. 2016, arXiv:1512.00567)

    @property
    def of_pictures(self) -> bool:
        """Whether pictures differ from epoch to epoch, so that nothing computed from them can be reused."""
        return self.augmentation != "none" or self.mixup > 0

    def __call__(self, inputs, labels: np.ndarray, rng: np.random.Generator) -> tuple:
        if self.of_pictures and (not isinstance(inputs, np.ndarray) or inputs.dtype != np.uint8 or inputs.ndim != 4):
            raise TypeError("augmentation and mixup change raw pictures, uint8 (n, height, width, 1), not activations")
        if self.augmentation != "none":
            inputs = augment(inputs, STRENGTHS[self.augmentation], rng)
        if not self.mixup and not self.label_smoothing:
            return inputs, labels
        soft = soften(labels, self.label_smoothing)
        return mix(inputs, soft, self.mixup, rng) if self.mixup else (inputs, soft)


def augment(images: np.ndarray, strength: Strength, rng: np.random.Generator) -> np.ndarray:
    """Augment each picture on its own: uint8 (n, height, width, 1) in and out.

    Half of the pictures are mirrored. Each is zoomed and turned about its centre and moved, in one step (bilinear, borders
    reflected: no black corners for the network to learn). Then contrast changes about the picture's own mean, and
    brightness. Last, a rectangle becomes noise in the share `strength.erased` of them, its area, aspect and position uniform.
    With OpenCV and NumPy alone, since albumentations takes about eight times as long (docs/measurements.md).
    """
    n, height, width = images.shape[:3]
    zoom, turn, contrast, brightness, *shift = rng.uniform(-1, 1, (6, n))
    zoom, angle, mirror = 1 + strength.zoom * zoom, np.deg2rad(strength.degrees * turn), rng.choice((-1, 1), n)
    along, across = zoom * np.cos(angle), zoom * np.sin(angle)
    turned = np.array([[mirror * along, across], [-mirror * across, along]]).transpose(2, 0, 1)
    centre, by = np.array([width - 1, height - 1]) / 2, strength.shift * np.array([width, height]) * np.transpose(shift)
    maps = np.dstack([turned, centre + by - turned @ centre])
    moved = np.empty_like(images)
    for image, matrix, result in zip(images, maps, moved, strict=True):
        cv2.warpAffine(image, matrix, (width, height), result, cv2.INTER_LINEAR, cv2.BORDER_REFLECT_101)
    steps = np.array([1 + strength.light * contrast, 255 * strength.light * brightness], np.float32)
    gain, offset = steps[..., None, None, None]
    mean = moved.mean(axis=(1, 2), keepdims=True, dtype=np.float32)
    seen = np.clip(np.rint(gain * moved + ((1 - gain) * mean + offset)), 0, 255).astype(np.uint8)
    for row in np.flatnonzero(rng.random(n) < strength.erased):
        area, aspect = height * width * rng.uniform(*ERASED_AREA), rng.uniform(*ERASED_ASPECT)
        tall, wide = min(height, round(np.sqrt(area / aspect))), min(width, round(np.sqrt(area * aspect)))
        top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
        seen[row, top : top + tall, left : left + wide] = rng.integers(0, 256, (tall, wide, 1), np.uint8)
    return seen


def soften(labels: np.ndarray, smoothing: float) -> np.ndarray:
    """Labels (n,), or shares (n, 7), as shares, float32 (n, 7), with the share `smoothing` spread evenly over all classes.

    Of rows with 14 columns the last seven, the votes, stay as they are: ten people's doubts are in them already.
    """
    shares = labels if labels.ndim == 2 else np.eye(len(CLASSES), dtype=np.float32)[labels]
    of_label, of_votes = np.split(shares, [len(CLASSES)], axis=1)
    return np.hstack([of_label * np.float32(1 - smoothing) + np.float32(smoothing / len(CLASSES)), of_votes])


def mix(
    images: np.ndarray, labels: np.ndarray, alpha: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Mix each picture and its label (n, 7) or (n, 14) with another of the batch; the shares are drawn from Beta(alpha, alpha)."""
    share = rng.beta(alpha, alpha, len(images)).astype(np.float32)
    partner = rng.permutation(len(images))
    image_share, label_share = share[:, None, None, None], share[:, None]
    mixed = image_share * images + (1 - image_share) * images[partner]
    return mixed.astype(np.float32), label_share * labels + (1 - label_share) * labels[partner]


@lru_cache(maxsize=1)
def offline_pipeline():
    """The specification's pipeline, of RGB. Its hue shift changes colour pictures, and no grey ones, whose saturation is 0."""
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
    """The `copy`-th augmentation of one image: uint8 grey (48, 48) in and out; it depends on (seed, path, copy) alone.

    It is never the image itself: the steps may leave it as it is, one time in a hundred, and are then drawn again.
    """
    copy_seed = np.random.SeedSequence([seed, copy, *path.encode()]).generate_state(1)[0]
    pipeline = offline_pipeline()
    # One stream for all steps: `set_random_seed` gives each step a stream with the same seed. Then flip, rotation and
    # brightness happen together or not at all, and one draw in eleven changes nothing.
    pipeline.set_random_state(np.random.default_rng(copy_seed), random.Random(int(copy_seed)))
    made = image
    while np.array_equal(made, image):
        made = pipeline(image=np.repeat(image[..., None], 3, axis=2))["image"][..., 0]
    return made
