"""Decodes, converts, encodes and fingerprints the project's face pictures: 48×48 pixels, 8-bit grey."""

import hashlib
import io
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SIZE = 48
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp"})
PHOTOGRAPHS = SUFFIXES | {".webp", ".tif", ".tiff", ".gif"}  # what people bring
FORMATS = ("JPEG", "PNG", "BMP")  # of the files with SUFFIXES; what a file is, its first bytes tell
PHOTOGRAPH_FORMATS = (*FORMATS, "WEBP", "TIFF", "GIF", *(["AVIF"] if find_spec("PIL.AvifImagePlugin") else []))
MAX_MEGAPIXELS = 51  # phones take 8192 × 6144 in full resolution; decoding needs up to 17 bytes a pixel
MAX_SIDE = 65_535  # JPEG's own limit; Pillow keeps a pointer a row
MAX_FILE_BYTES = 205_000_000  # 51 megapixels of 32 bits without any compression
BLANK_STD = 2.0  # grey levels; a picture with a lower standard deviation is one grey area without a face
_ROWS = 256  # that are converted at once, so that no second copy of a large picture is made
_TILE = (322, 323)  # TIFF's tags TileWidth and TileLength: one tile may be larger than its picture


class UnreadableImage(ValueError):
    """An image file that is empty, cut off, or no image."""


def read_file(path: Path, at_most: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of an image file, which may be a link to one.

    Raises UnreadableImage, without the path, if it is missing, has more than `at_most` bytes, or is no regular file: a
    pipe or a device may have no end.
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
def _opened(data: bytes, formats: Sequence[str]) -> Iterator[Image.Image]:
    """The picture in an image file's bytes, not yet decoded: everything that this project decodes is opened here.

    Only these formats are tried, since Pillow starts other programs for some. A picture over MAX_MEGAPIXELS is refused by
    its header. Raises UnreadableImage, also for what goes wrong inside the block.
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats) as picture:
            tags = getattr(picture, "tag_v2", {})
            for width, height in (picture.size, [int(tags.get(tag, 0)) for tag in _TILE]):
                if width * height > MAX_MEGAPIXELS * 1_000_000 or max(width, height) > MAX_SIDE:
                    raise UnreadableImage(
                        f"has {width:,} × {height:,} pixels, {width * height / 1e6:.0f} megapixels; at most "
                        f"{MAX_MEGAPIXELS} are read, {MAX_SIDE:,} pixels a side: make it smaller"
                    )
            yield picture
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"not a whole image file (it is no {', '.join(formats)})") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"is far over {MAX_MEGAPIXELS} megapixels ({error}): make it smaller") from error
    except Exception as error:  # Pillow's decoders raise about ten types for damaged bytes, among them TypeError
        raise UnreadableImage(f"not a whole image file ({str(error) or type(error).__name__})") from error


def decode(data: bytes, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode an image file's bytes to uint8 grey of shape (48, 48), and list the conversions made.

    The second value holds any of `colour` (was not 8-bit grey, is now by ITU-R 601 luma), `resized` (was not 48×48) and
    `blank` (a picture of one grey, standard deviation under BLANK_STD). Raises UnreadableImage, naming `name`, for an
    empty, truncated, foreign or far too large file: Pillow, unlike OpenCV, refuses a JPEG that ends early.
    """
    if not data:
        raise UnreadableImage(f"{name}: the file is empty (zero bytes)")
    try:
        with _opened(data, FORMATS) as picture:
            flags = [] if picture.mode == "L" else ["colour"]
            grey = np.asarray(picture.convert("L"))
    except UnreadableImage as error:
        raise UnreadableImage(f"{name}: {error}") from error
    if grey.shape != (SIZE, SIZE):
        flags.append("resized")
        grey = cv2.resize(grey, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    if is_blank(grey):
        flags.append("blank")
    return grey, tuple(flags)


def decode_photograph(file: bytes | Path) -> np.ndarray:
    """An image file, or its bytes, as RGB uint8 (height, width, 3), turned upright by its EXIF orientation.

    Transparent parts become white; 16-bit and float pictures are scaled to 8 bits; of several frames the first is used.
    Raises UnreadableImage, without the path, if the file is missing, empty, truncated, over MAX_MEGAPIXELS, no regular
    file, or of none of PHOTOGRAPH_FORMATS.
    """
    with _opened(file if isinstance(file, bytes) else read_file(file), PHOTOGRAPH_FORMATS) as picture:
        ImageOps.exif_transpose(picture, in_place=True)
        return _as_rgb(picture)


def _as_rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith("I") or picture.mode == "F":
        return np.repeat(_to_8_bits(np.asarray(picture))[..., None], 3, axis=2)
    rgb = np.empty((picture.height, picture.width, 3), np.uint8)
    for top in range(0, picture.height, _ROWS):
        rows = picture.crop((0, top, picture.width, min(top + _ROWS, picture.height)))
        if rows.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in rows.info:
            rows = Image.alpha_composite(Image.new("RGBA", rows.size, "white"), rows.convert("RGBA"))
        rgb[top : top + _ROWS] = rows.convert("RGB")
    return rgb


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale grey values to 8 bits: from the range 0–1, 0–255 or 0–65535, or else from their minimum and maximum."""
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are no numbers")
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535:
        low, high = 0, next(full for full in (1, 255, 65535) if high <= full)
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _ROWS):
        rows = values[top : top + _ROWS].astype(np.float64)
        grey[top : top + _ROWS] = np.rint((rows - low) * (255 / max(high - low, 1)))
    return grey


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
