"""Decodes picture files as photographs and as a dataset's pictures; prints what became of each, and its own peak memory.

python picture_worker.py FILE … → a JSON list of [photograph, dataset's picture, seconds], then the peak in bytes. A picture is
its shape or its flags, an error its type and message.
"""

import json
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fer_utils import images
from fer_utils.data.archives import FolderReader


def tried(decode: Callable[[Path], list], path: Path) -> list | str:
    try:
        return decode(path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def as_photograph(path: Path) -> list[int]:
    rgb = images.decode_photograph(path)
    assert rgb.dtype == "uint8" and rgb.flags.c_contiguous
    return list(rgb.shape)


def in_a_dataset(path: Path) -> list[str]:
    grey, flags = images.decode(FolderReader(path.parent).read(path.name), path.name)
    assert grey.shape == (images.SIZE, images.SIZE)
    return list(flags)


def peak() -> int:
    """Bytes. On Linux getrusage counts the process that started this one, too."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


found = []
for path in map(Path, sys.argv[1:]):
    began = time.monotonic()
    found.append([tried(as_photograph, path), tried(in_a_dataset, path), time.monotonic() - began])
print(json.dumps(found))
print(peak())
