"""Decodes, converts, encodes and fingerprints the project's face pictures: 48×48 pixels, 8-bit grey."""

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

SIZE = 48
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp"})
PHOTOGRAPHS = SUFFIXES | {".webp", ".tif", ".tiff", ".gif"}  # what people bring
BLANK_STD = 2.0  # grey levels; a picture with a lower standard deviation is one grey area without a face


class UnreadableImage(ValueError):
    """An image file that is empty, cut off, or no image."""


def decode(data: bytes, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode an image file's bytes to uint8 grey of shape (48, 48), and list the conversions made.

    The second value holds any of `colour` (was not 8-bit grey, is now by ITU-R 601 luma), `resized` (was not 48×48) and
    `blank` (a picture of one grey, standard deviation under BLANK_STD). Raises UnreadableImage, naming `name`, for an
    empty, truncated or foreign file: Pillow, unlike OpenCV, refuses a JPEG that ends early.
    """
    if not data:
        raise UnreadableImage(f"{name}: the file is empty (zero bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "BMP")) as picture:
            flags = [] if picture.mode == "L" else ["colour"]
            grey = np.asarray(picture.convert("L"))
    except Exception as error:  # Pillow's decoders raise about ten types for damaged bytes, among them TypeError
        raise UnreadableImage(f"{name}: not a whole image file ({error})") from error
    if grey.shape != (SIZE, SIZE):
        flags.append("resized")
        grey = cv2.resize(grey, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    if is_blank(grey):
        flags.append("blank")
    return grey, tuple(flags)


def decode_photograph(file: bytes | Path) -> np.ndarray:
    """An image file, or its bytes, as RGB uint8 (height, width, 3), turned upright by its EXIF orientation.

    Transparent parts become white; 16-bit and float pictures are scaled to 8 bits; of several frames the first is used.
    Raises UnreadableImage if the file is missing, empty, truncated or no image.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            return _as_rgb(ImageOps.exif_transpose(picture))
    except Exception as error:  # Pillow's decoders raise about ten types for damaged bytes, among them TypeError
        raise UnreadableImage(f"not a whole image file ({str(error) or type(error).__name__})") from error


def _as_rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith("I") or picture.mode == "F":
        return np.dstack([_to_8_bits(np.asarray(picture).astype(np.float64))] * 3)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        coloured = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), coloured)
    return np.array(picture.convert("RGB"))


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale grey values to 8 bits: from the range 0–1, 0–255 or 0–65535, or else from their minimum and maximum."""
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are no numbers")
    low, high = values.min(), values.max()
    if low >= 0 and high <= 65535:
        low, high = 0, next(full for full in (1, 255, 65535) if high <= full)
    return np.rint((values - low) * (255 / max(high - low, 1))).astype(np.uint8)


def as_face(rgb: np.ndarray) -> np.ndarray:
    """A whole RGB picture of a face like the training images: uint8 grey (48, 48), whatever its size and proportions."""
    grey = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    shrinks = min(grey.shape) > SIZE
    return cv2.resize(grey, (SIZE, SIZE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def is_blank(grey: np.ndarray) -> bool:
    """Whether a picture is one grey: its standard deviation is below BLANK_STD."""
    return cv2.meanStdDev(grey)[1].item() < BLANK_STD  # np.std is many times slower


def encode_png(image: np.ndarray) -> bytes:
    """Encode uint8 grey (height, width) as PNG, which is lossless."""
    return cv2.imencode(".png", image)[1].tobytes()


def fingerprint(image: np.ndarray) -> str:
    """A 32-digit hash of the pixels: equal for equal pictures, whatever their file format."""
    return hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).hexdigest()


def load(paths: Sequence[Path]) -> np.ndarray:
    """Read image files in order: uint8, shape (n, 48, 48). Raises UnreadableImage for the first that cannot be read."""
    stack = np.empty((len(paths), SIZE, SIZE), np.uint8)

    def read(position: int) -> None:
        path = paths[position]
        stack[position] = decode(Path(path).read_bytes(), str(path))[0]

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(read, range(len(paths)), chunksize=256):
            pass
    return stack
