"""Where YuNet's file is: at a path, or in Keras' cache folder, into which it is fetched once."""

import contextlib
import hashlib
import os
import sys
from pathlib import Path

# Name → SHA-256. Both hold the same network and give the same faces. The older one states a fixed size of its input, and
# some engines then refuse any other (opencv/opencv_zoo#310).
KNOWN = {
    "face_detection_yunet_2023mar.onnx": "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
    "face_detection_yunet_2026may.onnx": "ebafce4e3c118d6554634be5c27ab333b4c047a9a8c3faf1d7cf93101c22f0f0",
}
NAME = "face_detection_yunet_2026may.onnx"  # the one that is fetched: 230 KB, MIT licence
URL = f"https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/{NAME}"
SHA256 = KNOWN[NAME]
MAX_BYTES = 1_000_000  # of a file that may be YuNet's


class YuNetMissing(FileNotFoundError):
    """YuNet's file is not there, is another file, or could not be fetched."""


def locate(given: Path | None = None) -> Path:
    """YuNet's file: the one given, else the one in Keras' cache folder, fetched if it is not there.

    Raises YuNetMissing, naming the file and the way out.
    """
    folder = Path(os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser()) / "models"
    cached = next((folder / name for name in KNOWN if (folder / name).is_file()), None)
    path = given or cached or _fetched(folder / NAME)
    if not path.is_file():
        raise YuNetMissing(f"no file at {path}: YuNet's is {URL}")
    with path.open("rb") as file:
        found = hashlib.sha256(file.read(MAX_BYTES)).hexdigest()
    if found not in KNOWN.values():
        known = " or ".join(KNOWN)
        raise YuNetMissing(f"{path} is not {known} (its SHA-256 begins with {found[:8]}): take it from {URL}")
    return path


def _fetched(cached: Path) -> Path:
    import keras  # takes seconds to import

    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras shows its progress, and standard output is for rows
            return Path(keras.utils.get_file(NAME, URL, cache_subdir="models", file_hash=SHA256))
    except Exception as error:  # Keras raises a plain Exception without a network, ValueError for another hash
        reason, way = str(error).splitlines()[0], f"put {URL} at {cached}, or name its path with --detector"
        raise YuNetMissing(f"YuNet's file could not be fetched ({reason}): {way}") from error
