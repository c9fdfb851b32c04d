"""Decodes, converts, encodes and fingerprints the project's face pictures: 48×48 pixels, 8-bit grey."""

import hashlib
import importlib
import io
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SIZE = 48
LOW = 8  # side of the block of lowest DCT frequencies by which pictures are compared
SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp"})
PHOTOGRAPHS = SUFFIXES | {".mpo", ".webp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif", ".hif"}
FORMATS = ("JPEG", "PNG", "BMP")  # of the files with SUFFIXES; what a file is, its first bytes tell
_SOMETIMES = {"AVIF": "PIL.AvifImagePlugin", "HEIF": "pillow_heif"}  # format → what opens it, where it is installed
PHOTOGRAPH_FORMATS = (*FORMATS, "WEBP", "TIFF", "GIF", *(name for name in _SOMETIMES if find_spec(_SOMETIMES[name])))
_HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1")  # how these files begin, from the fifth byte on
MAX_MEGAPIXELS = 51  # phones take 8192 × 6144 in full resolution; decoding needs up to 17 bytes a pixel
MAX_SIDE = 65_535  # JPEG's own limit; Pillow keeps a pointer a row
MAX_FILE_BYTES = 205_000_000  # 51 megapixels of 32 bits without any compression
BLANK_STD = 2.0  # grey levels; a picture with a lower standard deviation is one grey area without a face
_FULL_SCALES = (1, 255, 1023, 4095, 16383, 65535)  # white in pictures of fractions and of 8, 10, 12, 14 and 16 bits
_ROWS = 256  # that are converted at once, so that no second copy of a large picture is made
_WAY_OUT = ": save it again in a program that opens it"
_TILE = (322, 323)  # TIFF's tags TileWidth and TileLength: one tile may be larger than its picture


class UnreadableImage(ValueError):
    """An image file that is empty, cut off, or no image."""


def read_file(path: Path, at_most: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of an image file or of a link to one. Raises UnreadableImage, without the path, if it is missing, has more than
    `at_most` bytes, or is no regular file: a pipe or a device may have no end.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImage("cannot be read (it is no regular file): give an image file")
        if status.st_size > at_most:
            raise UnreadableImage(f"has {status.st_size:,} bytes; at most {at_most:,} are read: save it smaller")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"cannot be read ({error.strerror})") from error


@contextmanager
def _opened(data: bytes, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """The picture in an image file's bytes, not yet decoded, with its limits checked by its header.

    Only these formats are tried, since Pillow starts other programs for some. Raises UnreadableImage, also for errors in the block.
    """
    if not data:
        raise UnreadableImage("the file is empty (zero bytes): copy it again")
    try:
        with Image.open(io.BytesIO(data), formats=formats) as picture:
            tags = getattr(picture, "tag_v2", {})
            for width, height in (picture.size, [int(tags.get(tag, 0)) for tag in _TILE]):
                if width * height > MAX_MEGAPIXELS * 1_000_000 or max(width, height) > MAX_SIDE:
                    found = f"has {width:,} × {height:,} pixels, {width * height / 1e6:.0f} megapixels"
                    most = f"at most {MAX_MEGAPIXELS} are read, {MAX_SIDE:,} pixels a side"
                    raise UnreadableImage(f"{found}; {most}: make it smaller")
            yield picture
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        if data[4:12] in _HEIC and formats == PHOTOGRAPH_FORMATS and "HEIF" not in formats:
            raise UnreadableImage(
                'is HEIC, which needs pillow-heif: `uv sync --extra heic`, or `pip install "pillow-heif>=1,<2"`; or save it as JPEG'
            ) from error
        kind = next((name for name in formats if (begins := Image.OPEN[name][1]) and begins(data[:16])), "")
        found = f"it begins as {kind}, and is cut off or damaged" if kind else f"it is no {', '.join(formats)}"
        raise UnreadableImage(f"not a whole image file ({found}){_WAY_OUT}") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"is far over {MAX_MEGAPIXELS} megapixels ({error}): make it smaller") from error
    except Exception as error:  # Pillow's decoders raise about ten types for damaged bytes, among them TypeError
        raise UnreadableImage(f"not a whole image file ({str(error) or type(error).__name__}){_WAY_OUT}") from error


def decode(data: bytes, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode an image file's bytes to uint8 grey of shape (48, 48), and list the conversions made.

    The second value holds any of `colour` (was not 8-bit grey, is now by ITU-R 601 luma), `resized` (was not 48×48) and
    `blank` (see is_blank). Raises UnreadableImage, naming `name`, for an empty, truncated, foreign or far too large file:
    Pillow, unlike OpenCV, refuses a JPEG that ends early.
    """
    try:
        with _opened(data, FORMATS) as picture:
            flags = [] if picture.mode == "L" else ["colour"]
            grey = _pixels(picture, "L")
    except UnreadableImage as error:
        raise UnreadableImage(f"{name}: {error}") from error
    if grey.shape != (SIZE, SIZE):
        flags.append("resized")
        grey = cv2.resize(grey, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    if is_blank(grey):
        flags.append("blank")
    return grey, tuple(flags)


def decode_photograph(file: bytes | Path) -> np.ndarray:
    """An image file, or its bytes, as RGB uint8 (height, width, 3); of several pictures or frames the first.

    Raises UnreadableImage, without the path, as read_file does and for what is cut off, too large, or of another format.
    """
    if "HEIF" in PHOTOGRAPH_FORMATS:
        importlib.import_module("pillow_heif.HeifImagePlugin")  # once imported, Pillow opens such files
    with _opened(file if isinstance(file, bytes) else read_file(file), PHOTOGRAPH_FORMATS) as picture:
        return _pixels(picture, "RGB")


def _pixels(picture: Image.Image, mode: Literal["L", "RGB"]) -> np.ndarray:
    """The pixels of an opened picture, upright by its EXIF orientation: uint8, (height, width) or (height, width, 3).

    Transparent parts become white. Grey of more than 8 bits, and fractions, are scaled: see _range.
    """
    picture.load()
    picture.getexif()  # now kept; exif_transpose would write the blocks in `info` again, which fails for some tags
    picture.info = {name: value for name, value in picture.info.items() if "exif" not in str(name)}
    ImageOps.exif_transpose(picture, in_place=True)
    is_deep = picture.mode[0] in "IF"
    low, high = _range(picture) if is_deep else (0, 255)
    pixels = np.empty((picture.height, picture.width, 3)[: 2 if mode == "L" else 3], np.uint8)
    for top, rows in _strips(picture):
        if is_deep:
            rows = Image.fromarray(np.rint((np.asarray(rows, float) - low) * (255 / (high - low))).astype(np.uint8))
        elif rows.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in rows.info:
            rows = Image.alpha_composite(Image.new("RGBA", rows.size, "white"), rows.convert("RGBA"))
        pixels[top : top + _ROWS] = np.asarray(rows.convert(mode))
    return pixels


def _strips(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    for top in range(0, picture.height, _ROWS):
        yield top, picture.crop((0, top, picture.width, min(top + _ROWS, picture.height)))


def _range(picture: Image.Image) -> tuple[float, float]:
    """The values of black and white in a picture of one deep channel: 0, and the smallest of _FULL_SCALES that holds them all,
    since files do not say how many of their 16 bits a camera used; for other values the smallest and the largest.
    """
    strips = (np.asarray(rows) for _, rows in _strips(picture))
    ends = np.array([(values.min(), values.max()) for values in strips], float)
    if not np.isfinite(ends).all():
        raise ValueError("it holds values that are no numbers")
    low, high = ends[:, 0].min(), ends[:, 1].max()
    if low < 0 or high > _FULL_SCALES[-1]:
        return low, max(high, low + 1)
    return 0, next(full for full in _FULL_SCALES if high <= full)


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


def low_frequencies(pictures: Iterable[np.ndarray]) -> np.ndarray:
    """The lowest frequencies of each picture's orthonormal DCT-II: float32 (n, 8, 8). Pictures: uint8 (48, 48)."""
    spectra = (cv2.dct(picture.astype(np.float32))[:LOW, :LOW] for picture in pictures)
    return np.fromiter(spectra, np.dtype((np.float32, (LOW, LOW))))


def load(paths: Sequence[Path]) -> np.ndarray:
    """Read image files in order: uint8, shape (n, 48, 48). Raises UnreadableImage for the first that cannot be read."""
    with ThreadPoolExecutor() as pool:
        pictures = pool.map(lambda path: decode(Path(path).read_bytes(), str(path))[0], paths)
        return np.fromiter(pictures, np.dtype((np.uint8, (SIZE, SIZE))), len(paths))
