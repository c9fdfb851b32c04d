"""What every answer to a hostile input keeps to: ten seconds, 1 GB."""

import contextlib
import resource
import time
from collections.abc import Iterator

SECONDS, KILOBYTES = 10, 1_000_000


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Assert that the block takes no longer than SECONDS, and that the process grows by no more than KILOBYTES."""
    began, size = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size < KILOBYTES
