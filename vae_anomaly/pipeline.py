"""Work that overlaps: a thread that is a few steps ahead of who uses its results."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

__all__ = ["ahead"]

T = TypeVar("T")

# How long a thread that waits takes to see that nobody wants its results any more.
PATIENCE = 0.1


class _End(Exception):
    """There are no more items."""


def ahead(items: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items, made by a thread that is at most ``depth`` finished ones ahead.

    Errors of the thread come out where the item would have. A consumer that stops early, with ``close()`` or by an
    error of its own, ends the thread, and closes ``items`` if they are a generator.

    Examples
    --------
    >>> list(ahead(iter(range(5))))
    [0, 1, 2, 3, 4]
    """
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    unwanted = threading.Event()
    thread = threading.Thread(target=_make, args=(items, made, unwanted), daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, _End):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        unwanted.set()
        thread.join()


def _make(items: Iterator[Any], made: "queue.Queue[Any]", unwanted: threading.Event) -> None:
    try:
        for item in items:
            if not _put(made, (item, None), unwanted):
                break
        else:
            _put(made, (None, _End()), unwanted)
    except BaseException as error:
        _put(made, (None, error), unwanted)
    finally:
        if isinstance(items, Generator):
            items.close()


def _put(made: "queue.Queue[Any]", entry: Any, unwanted: threading.Event) -> bool:
    """Whether the entry found a place before nobody wanted it."""
    while not unwanted.is_set():
        try:
            made.put(entry, timeout=PATIENCE)
        except queue.Full:
            continue
        return True
    return False
