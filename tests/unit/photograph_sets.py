"""Twenty photographs with faces at known places and twenty without one, from pictures that packages carry.

Pictures: scikit-image's astronaut (NASA, public domain) and those of its and scikit-learn's wheels that show no person.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

skimage_data = pytest.importorskip("skimage.data", reason="scikit-image is not installed: its pictures are the test")
SKIMAGE = Path(skimage_data.__file__).parent
SKLEARN = Path(sklearn.datasets.__file__).parent / "images"
HEAD = (120, 0, 340, 220)  # left, top, right, bottom of a square around the astronaut's head
FACE = (102, 117, 80)  # in that square: the face's centre and its width, from ear to ear, read off the picture
LANDSCAPES = ("china.jpg", "flower.jpg", "coffee.png", "rocket.jpg", "gravel.png")
FACELESS = (
    *("china.jpg", "flower.jpg", "coffee.png", "rocket.jpg", "chelsea.png", "gravel.png", "brick.png", "grass.png"),
    *("cell.png", "clock_motion.png", "coins.png", "horse.png", "hubble_deep_field.jpg", "moon.png", "page.png"),
    *("text.png", "ihc.png", "motorcycle_left.png", "motorcycle_right.png", "color.png"),
)


def rgb(name: str) -> np.ndarray:
    """A picture of the packages, RGB uint8."""
    folder = SKLEARN if name in ("china.jpg", "flower.jpg") else SKIMAGE
    return np.array(Image.open(folder / name).convert("RGB"))


def with_faces(seed: int, max_turn: float = 0) -> tuple[np.ndarray, list[tuple[float, float, float]]]:
    """A photograph with one to four frontal faces 41–100 px wide: RGB, and the faces' centres and widths.

    Each is the astronaut's head, scaled, mirrored or not, lighter or darker, turned in the picture by up to `max_turn`
    degrees, in a cell of its own. Every fourth photograph is grey.
    """
    rng = np.random.default_rng(seed)
    picture = cv2.resize(rgb(LANDSCAPES[seed % len(LANDSCAPES)]), (800, 560))
    left, top, right, bottom = HEAD
    head = rgb("astronaut.png")[top:bottom, left:right]
    faces = []
    for cell in rng.permutation(4)[: 1 + seed % 4]:
        width = rng.uniform(41, 100)
        x, y = 200 + 400 * (cell % 2) + rng.uniform(-60, 60), 150 + 270 * (cell // 2) + rng.uniform(-10, 10)
        light, turn = rng.uniform(0.6, 1.2), rng.uniform(-max_turn, max_turn)
        mirrored = bool(rng.integers(2))
        paste(picture, np.clip(head * light, 0, 255), (x, y), width / FACE[2], turn, mirrored)
        faces.append((x, y, width))
    if seed % 4 == 0:
        picture = np.dstack([cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)] * 3)
    return picture, faces


def paste(
    picture: np.ndarray, head: np.ndarray, centre: tuple[float, float], scale: float, turn: float, mirrored: bool
):
    """Lay a head over the picture, in place, its face's centre at `centre`, with a soft oval edge."""
    size = head.shape[0]
    face_x = FACE[0]
    if mirrored:
        head, face_x = head[:, ::-1], size - 1 - face_x
    mask = np.zeros((size, size), np.float32)
    cv2.ellipse(mask, (face_x, 112), (82, 96), 0, 0, 360, 1, cv2.FILLED)
    mask = cv2.GaussianBlur(mask, (0, 0), 4)
    way = cv2.getRotationMatrix2D((face_x, FACE[1]), turn, scale)
    way[:, 2] += np.subtract(centre, (face_x, FACE[1]))
    if scale < 1:
        head = cv2.GaussianBlur(head.astype(np.float32), (0, 0), 0.4 / scale)
    shape = picture.shape[1::-1]
    laid = cv2.warpAffine(np.ascontiguousarray(head, dtype=np.float32), way, shape)
    share = cv2.warpAffine(mask, way, shape)[..., None]
    picture[:] = np.rint(picture * (1 - share) + laid * share).astype(np.uint8)


def unmatched(boxes, faces) -> tuple[list, list]:
    """Faces that no box has found, and boxes that are no face's: found is a centre within 0.35 of the face's width."""
    lost, strangers = [], list(boxes)
    for face in faces:
        x, y, width = face
        near = [b for b in strangers if np.hypot(b.x + b.width / 2 - x, b.y + b.height / 2 - y) < 0.35 * width]
        if near:
            strangers.remove(near[0])
        else:
            lost.append(face)
    return lost, strangers
