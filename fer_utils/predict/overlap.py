"""Runs an iterator in a thread, ahead of who uses it: so capture, detection and reading overlap."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def ahead(
    items: Iterable[Item], size: int = 2, may_drop: Callable[[Item], bool] = lambda item: False
) -> Iterator[Item]:
    """Yield the items in order, while a thread fetches up to `size` of them in advance.

    Where that many wait, the thread waits too. But of items that `may_drop` allows, the oldest that waits gives way to a new
    one, as the frames of a camera do when reading is slower. What `items` raises is raised here. The thread ends with this iterator.
    """
    waiting: deque[Item] = deque()
    changed = threading.Condition()
    ended, failed, is_closed = False, None, False

    def make_room(new: Item) -> None:
        old = next((item for item in waiting if may_drop(item)), None) if may_drop(new) else None
        if old is not None:
            del waiting[next(n for n, item in enumerate(waiting) if item is old)]
        else:
            changed.wait_for(lambda: len(waiting) < size or is_closed)

    def fetch() -> None:
        nonlocal ended, failed
        try:
            for item in items:
                with changed:
                    if len(waiting) >= size:
                        make_room(item)
                    if is_closed:
                        return
                    waiting.append(item)
                    changed.notify_all()
        except BaseException as error:
            failed = error
        finally:
            if hasattr(items, "close"):
                items.close()  # in its own thread: a generator cannot be closed by another while it runs
            with changed:
                ended = True
                changed.notify_all()

    thread = threading.Thread(target=fetch, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: waiting or ended)
                if not waiting:
                    break
                item = waiting.popleft()
                changed.notify_all()
            yield item
        if failed is not None:
            raise failed
    finally:
        with changed:
            is_closed = True
            changed.notify_all()
        thread.join()
