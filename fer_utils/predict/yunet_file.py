"""Where YuNet's file is: at a path, or in Keras' cache folder, into which it is fetched once."""

import contextlib
import hashlib
import os
import sys
from pathlib import Path

NAME = "face_detection_yunet_2023mar.onnx"
URL = f"https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/{NAME}"  # 228 KB, MIT licence
SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"

MAX_BYTES = 1_000_000  # of a file that may be YuNet's


class YuNetMissing(FileNotFoundError):
    """YuNet's file is not there, is another file, or could not be fetched."""


def locate(given: Path | None = None) -> Path:
    """YuNet's file: the one given, else the one in Keras' cache folder, fetched if it is not there.

    Raises YuNetMissing, naming the file and the way out.
    """
    if given is not None:
        return _checked(given)
    cached = Path(os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser()) / "models" / NAME
    return _checked(cached) if cached.is_file() else _fetched(cached)


def _checked(path: Path) -> Path:
    if not path.is_file():
        raise YuNetMissing(f"no file at {path}: YuNet's is {URL}")
    with path.open("rb") as file:
        found = hashlib.sha256(file.read(MAX_BYTES)).hexdigest()
    if found != SHA256:
        raise YuNetMissing(
            f"{path} is not {NAME} (its SHA-256 begins with {found[:8]}, expected {SHA256[:8]}): take it from {URL}"
        )
    return path


def _fetched(cached: Path) -> Path:
    import keras  # takes seconds to import

    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras shows its progress, and standard output is for rows
            return Path(keras.utils.get_file(NAME, URL, cache_subdir="models", file_hash=SHA256))
    except Exception as error:  # Keras raises a plain Exception without a network, ValueError for another hash
        raise YuNetMissing(
            f"YuNet's file could not be fetched ({str(error).splitlines()[0]}): put {URL} at {cached}, or name its "
            "path with --detector"
        ) from error
