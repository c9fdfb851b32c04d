"""Draws the demo datasets: cartoon faces in the exact layouts of the two real datasets.

Both folders have the same pictures, as the two real datasets do: one as JPEG, one as PNG.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from fer_utils.classes import CLASSES, CSV_CODES, EMOTION_DETECTION_SPELLINGS
from fer_utils.data.addresses import VOTES_FILE
from fer_utils.data.ferplus import ANSWERS, LABELS_FILE, VOTES
from fer_utils.data.known_pictures import USAGES
from fer_utils.images import SIZE, encode_png

import cv2
import numpy as np

_CANVAS = 4 * SIZE  # drawn large, then shrunk, for smooth lines

# Class shares in FER2013's train folder (3995, 436, 4097, 7215, 4830, 3171, 4965 of 28,709).
_SHARES = dict(zip(CLASSES, (0.139, 0.015, 0.143, 0.251, 0.168, 0.110, 0.173), strict=True))


@dataclass(frozen=True)
class Expression:
    """Movements of the face; 0 is a face at rest, ±1 the full movement."""

    brow_raise: float = 0.0  # whole brow up (+) or down (-)
    brow_tilt: float = 0.0  # inner ends up (+, worry) or down (-, anger)
    eye_open: float = 0.0  # wide (+) or narrowed (-)
    mouth_curve: float = 0.0  # corners up (+) or down (-)
    mouth_open: float = 0.0  # 0 closed … 1 wide
    mouth_width: float = 0.0  # wide (+) or round (-)
    nose_wrinkle: float = 0.0  # 0 … 1


# After the action units of Ekman & Friesen's Facial Action Coding System, much simplified.
EXPRESSIONS = {
    "angry": Expression(brow_raise=-0.8, brow_tilt=-1.0, eye_open=-0.2, mouth_curve=-0.35, mouth_width=-0.1),
    "disgust": Expression(
        brow_raise=-0.6, brow_tilt=-0.4, eye_open=-0.7, mouth_curve=-0.7, mouth_open=0.3, nose_wrinkle=1.0
    ),
    "fear": Expression(brow_raise=0.8, brow_tilt=0.8, eye_open=0.8, mouth_curve=-0.3, mouth_open=0.5, mouth_width=0.6),
    "happy": Expression(eye_open=-0.3, mouth_curve=1.0, mouth_open=0.35, mouth_width=0.6),
    "sad": Expression(brow_raise=0.1, brow_tilt=1.0, eye_open=-0.5, mouth_curve=-0.9, mouth_width=-0.2),
    "surprise": Expression(brow_raise=1.0, eye_open=1.0, mouth_open=1.0, mouth_width=-0.8),
    "neutral": Expression(),
}

# The expression that people take another one for, in the votes on drawn faces.
_TAKEN_FOR = dict(zip(CLASSES, ("disgust", "angry", "surprise", "neutral", "neutral", "fear", "sad"), strict=True))
_VOTERS = 10


def draw_face(label: str, rng: np.random.Generator) -> np.ndarray:
    """One face that shows `label`: uint8 grey, shape (48, 48), values 0–255.

    Identity, pose, light, noise and the strength of the expression are drawn from `rng`.
    """
    face = _perform(EXPRESSIONS[label], rng)
    skin = rng.uniform(110, 210)
    backdrop = rng.uniform(20, 235, (4, 4)).astype(np.float32)  # blurred patches, so that backgrounds differ
    canvas = cv2.resize(backdrop, (_CANVAS, _CANVAS), interpolation=cv2.INTER_CUBIC)
    _draw_head(canvas, skin, rng)
    _draw_features(canvas, face, skin, rng)
    canvas = _pose(canvas, rng)
    small = cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return _expose(small, rng)


def _perform(expression: Expression, rng: np.random.Generator) -> Expression:
    strength = rng.uniform(0.75, 1.1)
    moved = {name: strength * value + rng.normal(0, 0.1) for name, value in vars(expression).items()}
    return replace(expression, **moved | {name: max(0.0, moved[name]) for name in ("mouth_open", "nose_wrinkle")})


def _draw_head(canvas: np.ndarray, skin: float, rng: np.random.Generator) -> None:
    hair = skin * rng.uniform(0.15, 0.6)
    width, height = rng.uniform(62, 74), rng.uniform(82, 94)
    _ellipse(canvas, (96, 90), (width + 8, height - 4), hair)
    _ellipse(canvas, (96, 100), (width, height), skin)
    _ellipse(canvas, (96, 26), (width * 0.75, rng.uniform(22, 34)), hair)


def _draw_features(canvas: np.ndarray, face: Expression, skin: float, rng: np.random.Generator) -> None:
    dark, light = skin * rng.uniform(0.2, 0.4), min(255.0, skin * 1.25)
    eye_gap, eye_y, mouth_y = rng.uniform(27, 33), rng.uniform(80, 86), rng.uniform(142, 149)
    brow_thick = int(rng.integers(4, 8))
    for side in (-1, 1):
        _draw_eye(canvas, 96 + side * eye_gap, eye_y, max(2.0, 8 + 5 * face.eye_open), dark)
        brow_y = eye_y - 22 - 9 * face.brow_raise
        inner = (96 + side * (eye_gap - 15), brow_y - 8 * face.brow_tilt)
        middle = (96 + side * eye_gap, brow_y - 4)
        outer = (96 + side * (eye_gap + 17), brow_y + 5 * face.brow_tilt)
        _polyline(canvas, [inner, middle, outer], dark, brow_thick)
    _polyline(canvas, [(96, 90), (88, 122), (103, 124)], skin * 0.7, 3)  # the nose, and wrinkles on it
    for y in (88, 96, 104):
        _polyline(canvas, [(82, y + 5), (96, y), (110, y + 5)], skin * (1 - 0.55 * min(1.0, face.nose_wrinkle)), 3)
    _draw_mouth(canvas, mouth_y, face, dark, light)


def _draw_eye(canvas: np.ndarray, x: float, y: float, height: float, dark: float) -> None:
    _ellipse(canvas, (x, y), (15, height), 240)
    _ellipse(canvas, (x, y), (min(6.5, height), min(6.5, height)), dark)
    _polyline(canvas, [(x - 16, y), (x, y - height - 1), (x + 16, y)], dark, 3)


def _draw_mouth(canvas: np.ndarray, y: float, face: Expression, dark: float, light: float) -> None:
    half = 26 + 10 * face.mouth_width
    steps = np.linspace(-1, 1, 15)
    x = 96 + half * steps
    middle = y - 14 * face.mouth_curve * (steps**2 - 0.5)
    gap = 17 * face.mouth_open * np.sqrt(np.clip(1 - steps**2, 0, 1))
    upper, lower = np.stack([x, middle - gap], 1), np.stack([x, middle + gap], 1)
    if face.mouth_open > 0.1:
        outline = np.concatenate([upper, lower[::-1]])
        cv2.fillPoly(canvas, [_fixed(outline)], dark * 0.6, cv2.LINE_AA, 4)
        teeth = np.concatenate([upper, (upper + np.stack([0 * x, 0.7 * gap], 1))[::-1]])
        if face.mouth_width > 0.2:
            cv2.fillPoly(canvas, [_fixed(teeth)], light, cv2.LINE_AA, 4)
    _polyline(canvas, upper, dark, 5)
    _polyline(canvas, lower, dark, 5)


def _pose(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    turn = np.asarray(cv2.getRotationMatrix2D((96, 100), rng.normal(0, 4), rng.uniform(0.95, 1.05)), float)
    turn[:, 2] += rng.normal(0, 3, 2)
    turn[0, 1] += rng.normal(0, 0.03)
    return cv2.warpAffine(canvas, turn, (_CANVAS, _CANVAS), borderMode=cv2.BORDER_REFLECT_101)


def _expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rows, columns = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
    lit = image * (1 + slope * (np.cos(angle) * columns + np.sin(angle) * rows))
    lit = (lit - 128) * rng.uniform(0.8, 1.1) + 128 + rng.normal(0, 10)
    return np.clip(lit + rng.normal(0, rng.uniform(2, 6), image.shape), 0, 255).astype(np.uint8)


def _fixed(points: np.ndarray | list | tuple) -> np.ndarray:
    return np.round(np.asarray(points) * 16).astype(np.int32)  # 4 fractional bits, as cv2's `shift=4` reads them


def _ellipse(canvas: np.ndarray, centre: tuple, axes: tuple, value: float) -> None:
    cv2.ellipse(canvas, _fixed(centre).tolist(), _fixed(axes).tolist(), 0, 0, 360, float(value), -1, cv2.LINE_AA, 4)


def _polyline(canvas: np.ndarray, points: np.ndarray | list, value: float, thickness: int) -> None:
    cv2.polylines(canvas, [_fixed(points)], False, float(value), thickness, cv2.LINE_AA, 4)


def write_datasets(folder: Path, n_images: int, seed: int) -> tuple[Path, Path]:
    """Draw `n_images` faces and write them as both source datasets; return the two folders.

    `<folder>/fer2013` has `train/<class>/Training_*.jpg` and `test/<class>/{PublicTest,PrivateTest}_*.jpg`, four fifths
    and one fifth of the images; `<folder>/emotion-detection-fer` has the same pictures as `im*.png` under its own class
    spellings, numbered in each class as they would stand in a CSV. As in FER2013 a few test images repeat a train image,
    one of them under another label, and one is blank. `<folder>/ferplus` has drawn votes on them, in FER+'s form. Raises
    ValueError if `n_images` is too small for every class to be in every part.
    """
    if n_images < 350:
        raise ValueError(f"n_images is {n_images}, the demo needs at least 350: its rarest class has 1.5 % of them")
    rng = np.random.default_rng(seed)
    train = _draw_part(round(n_images * 0.8), rng)
    test = _draw_part(n_images - len(train), rng)
    drawn_as = [label for label, _ in (*train, *test)]
    _blemish(train, test, rng)
    first, second = Path(folder) / "fer2013", Path(folder) / "emotion-detection-fer"
    usages = _write_part(first, second, "train", train, rng) + _write_part(first, second, "test", test, rng)
    _write_votes(Path(folder) / "ferplus", [*train, *test], drawn_as, usages, seed)
    return first, second


def _draw_part(n: int, rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    counts = {label: max(5, round(n * share)) for label, share in _SHARES.items()}
    counts["happy"] += n - sum(counts.values())
    return [(label, draw_face(label, rng)) for label in CLASSES for _ in range(counts[label])]


def _blemish(train: list, test: list, rng: np.random.Generator) -> None:
    copied = [row for row, (label, _) in enumerate(test) if label != "disgust"]
    chosen = rng.choice(copied, size=max(3, len(test) // 60), replace=False)
    for row in chosen:
        label = test[row][0]
        test[row] = (label, next(image for name, image in train[row:] + train if name == label))
    label, image = test[chosen[0]]
    test[chosen[0]] = ("sad" if label != "sad" else "neutral", image)
    train[-1] = (train[-1][0], np.zeros((SIZE, SIZE), np.uint8))


def _write_part(first: Path, second: Path, part: str, faces: list, rng: np.random.Generator) -> list[str]:
    """Write one part of both datasets; return the usage of each face."""
    numbers = rng.permutation(len(faces) * 10)[: len(faces)]  # FER2013 numbers its files with gaps
    usages = ["Training" if part == "train" else USAGES[1 + row % 2] for row in range(len(faces))]
    number_in_class = dict.fromkeys(CLASSES, 0)
    for row in _csv_order(usages):
        label, image = faces[row]
        jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        _write(first / part / label / f"{usages[row]}_{numbers[row]}.jpg", jpeg)
        spelled = EMOTION_DETECTION_SPELLINGS.get(label, label)
        _write(second / part / spelled / f"im{number_in_class[label]}.png", encode_png(image))
        number_in_class[label] += 1
    return usages


def _csv_order(usages: list[str]) -> list[int]:
    """The faces in the order in which a CSV would list them: Training, then PublicTest, then PrivateTest."""
    return sorted(range(len(usages)), key=lambda row: USAGES.index(usages[row]))


def _write_votes(folder: Path, faces: list, drawn_as: list[str], usages: list[str], seed: int) -> None:
    """Write votes on the faces as FER+ does, and FER2013's labels in the same order.

    Most voters name the expression that was drawn, some the one it is taken for; of a blank picture all say: not a face.
    """
    rng, order = np.random.default_rng([seed, 1]), _csv_order(usages)
    counts = np.empty((len(order), len(ANSWERS)), int)
    for number, row in enumerate(order):
        shares = dict.fromkeys(ANSWERS, 0.015) | {drawn_as[row]: 0.7, _TAKEN_FOR[drawn_as[row]]: 0.18}
        chances = np.array([*shares.values()]) if faces[row][1].any() else np.eye(len(ANSWERS))[-1]
        counts[number] = rng.multinomial(_VOTERS, chances / chances.sum())
    rows = [("Usage", "Image name", *VOTES)]
    rows += [(usages[row], f"fer{number:07}.png", *counts[number]) for number, row in enumerate(order)]
    content = "".join(",".join(map(str, row)) + "\n" for row in rows).encode()
    _write(folder / VOTES_FILE, content)
    digits = "".join(str(CSV_CODES.index(faces[row][0])) for row in order)
    _write(folder / LABELS_FILE, f"{digits}\n{hashlib.sha256(content).hexdigest()}\n".encode())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
