"""Bounds what a call may take, so that a hostile input that hangs or grows fails its test instead of the whole suite."""

import contextlib
import resource
import signal
import tracemalloc
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def limited(seconds: int = 10, largest: int = 0) -> Iterator[None]:
    """Fail the block after some seconds, if the process grows by more than 1 GB, or if Python and NumPy allocate more than
    `largest` bytes; 0: not measured, faster."""

    def stop(*_):
        pytest.fail(f"took more than {seconds} seconds")  # no Exception, which the code under test might catch

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    if largest:
        tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]  # 0 where it does not run
        assert peak <= largest, f"allocated {peak:,} bytes"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - size < 1_000_000  # kilobytes
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
