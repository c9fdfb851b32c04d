"""An iterator that runs ahead in a thread: order, errors, and the end."""

import threading
import time

from fer_utils.predict.reader import ahead

import pytest


def wait_for(condition) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("waited in vain for five seconds")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_everything_comes_in_order():
    assert list(ahead(iter(range(100)))) == list(range(100))
    assert list(ahead([])) == [] and not threads()


def test_the_next_item_is_fetched_while_the_first_is_used_and_no_more():
    fetched = []

    def items():
        for number in range(10):
            fetched.append(number)
            yield number

    running = ahead(items())
    assert next(running) == 0
    wait_for(lambda: len(fetched) >= 2)
    time.sleep(0.05)
    assert fetched == [0, 1]
    running.close()


def test_an_error_comes_after_what_was_before_it():
    def items():
        yield 1
        raise OSError("unplugged")

    running = ahead(items())
    assert next(running) == 1
    with pytest.raises(OSError, match="unplugged"):
        next(running)
    assert not threads()


def test_closing_ends_the_thread_and_closes_the_source():
    closed = []

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    running = ahead(items())
    next(running)
    running.close()
    assert closed and not threads()
