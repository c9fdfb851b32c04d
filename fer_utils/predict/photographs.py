"""Reads pictures as RGB from image files, folders, videos and webcams."""

import errno
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fer_utils import images

import cv2
import numpy as np

VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"})
MISCOUNT = 0.02  # tolerated relative error of a container's frame count (Matroska's is duration times rate)


@dataclass(frozen=True)
class Picture:
    """One picture: RGB uint8 (height, width, 3). For a video also the frame's number from 0, seconds since the first
    frame, and frames per second, of which a video of a variable rate has the mean."""

    source: str
    rgb: np.ndarray
    frame: int | None = None
    seconds: float | None = None
    rate: float | None = None


@dataclass(frozen=True)
class PassedOver:
    """A file or frame that could not be read, and the reason."""

    source: str
    reason: str
    frame: int | None = None


def find(paths: Sequence[Path]) -> tuple[list[Path], list[PassedOver], dict[str, Counter[str]]]:
    """The files at `paths`, folders searched recursively, each file once; what is passed over, such as an empty folder,
    a pipe or a folder without permission; and for each folder how many entries of which kind are left alone: linked
    folders, and files that are hidden or by their suffix neither picture nor video."""
    found, errors, left_alone = [], list[OSError](), {}
    for path in paths:
        inside, n_errors = [path], len(errors)
        if path.is_dir():
            by_kind = dict[Path, str]()
            for folder, folders, names in os.walk(path, onerror=errors.append):
                links = filter(Path.is_symlink, (Path(folder, name) for name in folders))
                by_kind |= dict.fromkeys(links, "linked folder(s)")
                by_kind |= {Path(folder, name): _left_alone_as(Path(name)) for name in names}
            inside = sorted(entry for entry, kind in by_kind.items() if not kind)
            if len(inside) < len(by_kind):
                left_alone[str(path)] = Counter(by_kind[entry] for entry in sorted(by_kind.keys() - inside))
        if not inside and len(errors) == n_errors:
            errors.append(OSError(errno.ENOENT, "the folder holds no picture and no video", path))
        for entry in inside:
            try:
                if not entry.is_file():
                    raise OSError(errno.ENOENT, "no file: a link that leads nowhere, a pipe or a device", entry)
                if is_video(entry):
                    for_opencv(entry)
                found.append(entry)
            except OSError as error:
                errors.append(error)
    passed_over = [PassedOver(str(error.filename), str(error.strerror)) for error in errors]
    return list(dict.fromkeys(found)), passed_over, left_alone


def _left_alone_as(path: Path) -> str:
    """The kind of a file that is not read, empty for a picture or a video."""
    if path.name.startswith("."):  # such as .DS_Store, or the ._IMG_1.jpg that a Mac writes beside IMG_1.jpg
        return "hidden"
    suffix = path.suffix.lower()
    return "" if suffix in images.PHOTOGRAPHS | VIDEOS else suffix or "without a suffix"


def is_video(path: Path) -> bool:
    """Whether the file's suffix is that of a video."""
    return path.suffix.lower() in VIDEOS


def read(path: Path, every: int = 1) -> Iterator[Picture | PassedOver]:
    """A file's picture, or every `every`-th frame of a video; PassedOver for what could not be read."""
    return read_video(path, every) if is_video(path) else iter([read_picture(path)])


def read_picture(path: Path) -> Picture | PassedOver:
    """The picture in an image file, or why it could not be read."""
    try:
        return Picture(str(path), images.decode_photograph(path))
    except images.UnreadableImage as error:
        return PassedOver(str(path), str(error))


def for_opencv(path: Path) -> str:
    """The path for OpenCV, to which a bare `12:30.mp4` is a URL. Raises OSError unless it is UTF-8: OpenCV would crash."""
    try:
        return str(path.absolute()).encode().decode()
    except UnicodeEncodeError as error:
        raise OSError(errno.EILSEQ, "OpenCV opens no name that is not UTF-8: rename it", path) from error


def read_video(path: Path, every: int = 1) -> Iterator[Picture | PassedOver]:
    """Every `every`-th frame of a video; PassedOver for broken frames, and at the end for missing ones."""
    video = cv2.VideoCapture(for_opencv(path))
    width, height = (int(video.get(what)) for what in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if not video.isOpened():
        yield PassedOver(str(path), "not a video that can be opened: not whole, or of an unknown codec")
    elif width * height > images.MAX_MEGAPIXELS * 1_000_000:
        size, limit = f"{width:,} × {height:,} pixels", f"at most {images.MAX_MEGAPIXELS} megapixels are read"
        yield PassedOver(str(path), f"its pictures have {size}; {limit}")
    else:
        yield from _frames(video, str(path), every)


def _frames(video: cv2.VideoCapture, source: str, every: int) -> Iterator[Picture | PassedOver]:
    promised, rate = _promised_frames(video), video.get(cv2.CAP_PROP_FPS)
    number, begin, step, seconds = 0, 0.0, 0.0, 0.0
    while video.grab():
        stamp = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
        begin = stamp if number == 0 else begin
        if number and (step := stamp - begin - seconds) <= 0:  # no time stamps in the file or from this OpenCV
            step = 1 / rate if rate > 0 else 0.0
        seconds += step
        if number % every == 0:
            yield _frame(video, source, number, seconds, rate)
        number += 1
    reached = max(number, (seconds + step) * rate)  # a header may promise the duration times the rate
    if number == 0:
        yield PassedOver(source, "the video holds no frame")
    elif promised - reached > max(1, MISCOUNT * promised):
        yield PassedOver(source, f"the video ends early: {number} of {promised} frames could be read", number)


def _promised_frames(video: cv2.VideoCapture) -> int:
    count = video.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(count) if math.isfinite(count) and count > 0 else 0


def _frame(
    video: cv2.VideoCapture, source: str, number: int, seconds: float, rate: float | None = None
) -> Picture | PassedOver:
    is_whole, bgr = video.retrieve()
    if not is_whole or bgr is None:
        return PassedOver(source, f"frame {number} is broken", number)
    return Picture(source, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), number, round(seconds, 3), rate or None)


def count(path: Path, every: int = 1) -> int:
    """The approximate number of pictures from `read`: 1, or the number of frames in a video's header."""
    n_frames = _promised_frames(cv2.VideoCapture(for_opencv(path))) if is_video(path) else 1
    return max(1, math.ceil(n_frames / every))


def watch(camera: int) -> Iterator[Picture | PassedOver]:
    """The pictures of a webcam, until it or the caller stops, without those that come while the last ones are read."""
    source, video = f"webcam {camera}", cv2.VideoCapture(camera)
    if not video.isOpened():
        yield PassedOver(source, "no such camera, or another program has it")
        return
    video.set(cv2.CAP_PROP_BUFFERSIZE, 2)  # one is filled while one is read; the driver leaves out the others
    started, number = time.monotonic(), 0
    while video.grab():
        yield _frame(video, source, number, time.monotonic() - started)
        number += 1
    yield PassedOver(source, "the camera gives no more pictures", number)
