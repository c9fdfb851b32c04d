"""Short videos for tests: of any times, turned, and with two drawn faces that cross."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

_HOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")  # boxes of boxes


def write(path: Path, pictures: Sequence[np.ndarray], code: str = "mp4v", rate: float = 10) -> Path:
    """A video of RGB pictures at a fixed rate."""
    height, width = pictures[0].shape[:2]
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), rate, (width, height))
    assert video.isOpened(), f"this OpenCV writes no {code}"
    for picture in pictures:
        video.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    video.release()
    return path


def _changed(data: bytes, changes: dict[bytes, Callable[[bytes], bytes]]) -> bytes:
    """MP4 boxes, the content of those named changed."""
    out = b""
    while data:
        size, kind = struct.unpack(">I4s", data[:8])
        content = data[8:size]
        if kind in _HOLDERS:
            content = _changed(content, changes)
        elif kind in changes:
            content = changes[kind](content)
        out += struct.pack(">I4s", len(content) + 8, kind) + content
        data = data[size:]
    return out


def with_times(path: Path, seconds: Sequence[float]) -> Path:
    """Give the frames of an MP4, in place, these times from 0 on, to a millisecond, as a phone's camera does."""
    times = [round(1000 * value) for value in [*seconds, 2 * seconds[-1] - seconds[-2]]]
    steps = b"".join(struct.pack(">II", 1, int(step)) for step in np.diff(times))
    table = struct.pack(">II", 0, len(seconds)) + steps
    # mdhd: units a second, and how many of them the track lasts; the edit list would cut it to its former length.
    changes = {
        b"stts": lambda _: table,
        b"mdhd": lambda old: old[:12] + struct.pack(">II", 1000, times[-1]) + old[20:],
        b"edts": lambda old: bytes(len(old)),
    }
    path.write_bytes(_changed(path.read_bytes(), changes))
    return path


def turned(path: Path) -> Path:
    """Mark an MP4, in place, as one that a player turns by a quarter to the right, as of a phone held upright."""
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(_changed(path.read_bytes(), {b"tkhd": lambda old: old[:40] + quarter + old[76:]}))
    return path


def crossing(path: Path, n: int = 20) -> Path:
    """A video of two seconds: a face goes from left to right, and before another one that goes from right to left."""
    import photograph_sets as sets

    left, top, right, bottom = sets.HEAD
    head = sets.rgb("astronaut.png")[top:bottom, left:right]
    pictures = []
    for way in np.linspace(0, 1, n):
        picture = np.full((240, 400, 3), 128, np.uint8)
        sets.paste(picture, 0.7 * head, (330 - 260 * way, 130), 0.8, 0, True)
        sets.paste(picture, head, (70 + 260 * way, 110), 0.8, 0, False)
        pictures.append(picture)
    return write(path, pictures, rate=n / 2)
