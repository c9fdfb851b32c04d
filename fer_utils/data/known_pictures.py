"""Which row of fer2013.csv a picture is, by its pixels: this gives label and usage where a copy of FER2013 lost them."""

import lzma
from functools import cache
from pathlib import Path

from fer_utils.classes import CSV_CODES
from fer_utils.images import low_frequencies

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
    return np.packbits(low_frequencies(pixels).reshape(len(pixels), -1)[:, 1:] > 0, axis=1)


def shipped(name: str) -> bytes:
    """A file of this package, unpacked: `labels.txt` (see ferplus.LABELS_FILE) or `pixels`, the code of each row."""
    return lzma.decompress(Path(__file__).with_name(f"fer2013_{name}.xz").read_bytes())


def labels_of(digits: str) -> np.ndarray:
    """The labels that a text of digits stands for, one a row: str (n,)."""
    return np.array(CSV_CODES)[[int(digit) for digit in digits]]


@cache
def fer2013() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each row of fer2013.csv: code, uint8 (n, 8); label, str (n,); usage, str (n,)."""
    known = np.frombuffer(shipped("pixels"), np.uint8).reshape(-1, 8)
    return known, labels_of(shipped("labels.txt").split()[0].decode()), np.repeat([*PARTS], _ROWS)


def find_rows(pixels: np.ndarray, labels: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The row of fer2013.csv that each picture is, UNKNOWN if none: int (n,); each row once, the nearest first.

    labels: str (n,), FER2013's, or "" where the source does not say it. parts: str (n,); if one picture is in both parts,
    each copy gets the row of its own part.
    """
    known, row_labels, usages = fer2013()
    row_parts, found = np.array([*map(PARTS.get, usages)]), np.full(len(labels), UNKNOWN)
    own = codes(pixels)
    pairs: list[tuple[float, int, int]] = []
    for label in np.unique(labels):
        pictures, rows = np.flatnonzero(labels == label), np.flatnonzero((row_labels == label) | (label == ""))
        signs = _signs(known[rows]).T
        for start in range(0, len(pictures), _AT_ONCE):
            some = pictures[start : start + _AT_ONCE]
            far = (_BITS - _signs(own[some]) @ signs) / 2
            ours, theirs = np.nonzero(far <= _FAR)
            other_part = parts[some[ours]] != row_parts[rows[theirs]]
            pairs += zip(far[ours, theirs] + other_part / 2, some[ours], rows[theirs], strict=True)
    taken = np.zeros(len(usages), bool)
    for _, picture, row in sorted(pairs):
        if found[picture] == UNKNOWN and not taken[row]:
            found[picture], taken[row] = row, True
    return found


def _signs(packed: np.ndarray) -> np.ndarray:
    return np.where(np.unpackbits(packed, axis=1, count=_BITS), np.float32(1), np.float32(-1))
