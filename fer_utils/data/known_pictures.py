"""Which row of fer2013.csv a picture is, told by its pixels: so label and usage are known where a copy of FER2013 lost them."""

import lzma
from pathlib import Path

from fer_utils.classes import CSV_CODES

import cv2
import numpy as np

UNKNOWN = -1
PARTS = {"Training": "train", "PublicTest": "test", "PrivateTest": "test"}  # of each usage
USAGES = tuple(PARTS)
_ROWS = (28_709, 3_589, 3_589)  # of each usage, in this order
_BITS = 63
_FAR = 5  # bits: a JPEG of a picture differs by at most so many
_AT_ONCE = 512  # pictures that are compared at once: 74 MB


def codes(pixels: np.ndarray) -> np.ndarray:
    """The signs of each picture's 63 lowest frequencies: uint8 (n, 8), bits. pixels: uint8 (n, 48, 48).

    JPEG changes few of them, and other pictures differ in half of them (Zauner 2010, "Implementation and Benchmarking of
    Perceptual Image Hash Functions").
    """
    spectra = [cv2.dct(image.astype(np.float32))[:8, :8].ravel() for image in pixels]
    return np.packbits(np.array(spectra).reshape(-1, 64)[:, 1:] > 0, axis=1)


def fer2013() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row of fer2013.csv: code, uint8 (n, 8); label, str (n,); usage, str (n,)."""
    packed, digits = (
        lzma.decompress(Path(__file__).with_name(f"fer2013_{name}.xz").read_bytes())
        for name in ("pixels", "labels.txt")
    )
    labels = np.array(CSV_CODES)[[int(digit) for digit in digits.split()[0].decode()]]
    return np.frombuffer(packed, np.uint8).reshape(-1, 8), labels, np.repeat([*PARTS], _ROWS)


def find_rows(pixels: np.ndarray, labels: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The row of fer2013.csv that each picture is, UNKNOWN if none: int (n,); each row once, the nearest first.

    labels: str (n,), FER2013's, or "" where the source does not say it. parts: str (n,); of copies of one picture in both
    parts, each goes to its own.
    """
    known, row_labels, usages = fer2013()
    row_parts, found = np.array([*map(PARTS.get, usages)]), np.full(len(labels), UNKNOWN)
    own, pairs = codes(pixels), []
    for label in np.unique(labels):
        pictures, rows = np.flatnonzero(labels == label), np.flatnonzero((row_labels == label) | (label == ""))
        signs = _signs(known[rows]).T
        for start in range(0, len(pictures), _AT_ONCE):
            some = pictures[start : start + _AT_ONCE]
            far = (_BITS - _signs(own[some]) @ signs) / 2
            picture, row = np.nonzero(far <= _FAR)
            other_part = parts[some[picture]] != row_parts[rows[row]]
            pairs += zip(far[picture, row] + other_part / 2, some[picture], rows[row], strict=True)
    taken = np.zeros(len(usages), bool)
    for _, picture, row in sorted(pairs):
        if found[picture] == UNKNOWN and not taken[row]:
            found[picture], taken[row] = row, True
    return found


def _signs(packed: np.ndarray) -> np.ndarray:
    return np.where(np.unpackbits(packed, axis=1, count=_BITS), np.float32(1), np.float32(-1))
