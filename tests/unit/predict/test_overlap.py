"""An iterator that runs ahead in a thread: order, errors, the end, and what gives way."""

import threading
import time

from fer_utils.predict.overlap import ahead

import pytest


def wait_for(condition) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("waited in vain for five seconds")


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


@pytest.mark.parametrize("size", [1, 2, 50])
def test_everything_comes_in_order(size):
    assert list(ahead(iter(range(100)), size)) == list(range(100))
    assert list(ahead([], size)) == [] and not threads()


def test_items_are_fetched_while_the_first_is_used_and_no_more_than_asked():
    fetched = []

    def items():
        for number in range(10):
            fetched.append(number)
            yield number

    running = ahead(items(), 2)
    assert next(running) == 0
    wait_for(lambda: len(fetched) >= 4)  # two wait, and one is in the thread's hand
    time.sleep(0.05)
    assert fetched == [0, 1, 2, 3]
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


def test_old_items_give_way_where_they_may_and_others_never_do():
    fetched, may_go_on = [], threading.Event()

    def items():
        for number in range(20):
            fetched.append(number)
            yield number
            if number == 0:
                may_go_on.wait(5)

    running = ahead(items(), 1, lambda number: number != 7)
    assert next(running) == 0
    may_go_on.set()
    wait_for(lambda: 7 in fetched)  # it takes no other's place, so the thread waits with it
    time.sleep(0.05)
    assert fetched[-1] == 7
    assert next(running) == 6
    wait_for(lambda: 8 in fetched)  # nor does 7 give way to 8
    time.sleep(0.05)
    assert fetched[-1] == 8
    assert next(running) == 7
    wait_for(lambda: 19 in fetched)
    rest = list(running)
    assert rest[-1] == 19 and rest == sorted(rest)
