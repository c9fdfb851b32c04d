"""Decodes, converts, encodes and fingerprints the project's face pictures: 48×48 pixels, 8-bit grey."""

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SIZE = 48
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp"})
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
    if cv2.meanStdDev(grey)[1].item() < BLANK_STD:  # np.std is many times slower
        flags.append("blank")
    return grey, tuple(flags)


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
