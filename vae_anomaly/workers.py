"""Independent pieces of work side by side on the processors, each in a thread that uses one of them."""

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

import torch

from vae_anomaly.pipeline import ahead

__all__ = ["beside", "side_by_side", "stream"]

T = TypeVar("T")
R = TypeVar("R")

_POOLS: dict[int, ThreadPoolExecutor] = {}
_LOCK = threading.Lock()
# The pool that a thread belongs to, and how many threads that has.
_OURS = threading.local()


def side_by_side(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``function`` of every item, in order, by as many threads as torch may use, each of which computes by itself.

    Torch splits an operation among its threads and waits for the last of them, which for operations as small as those
    of our networks costs as much as it brings. Pieces that know nothing of each other need not wait. What a piece
    computes does not hang on the number of threads.

    A thread does not know whether its caller has switched gradients off: ``function`` has to say so.

    Examples
    --------
    >>> list(side_by_side(lambda n: int(torch.ones(n).sum()), [3, 1, 2]))
    [3, 1, 2]
    """
    if hasattr(_OURS, "pool"):
        return iter(_with_idle(function, list(items), _OURS.pool, _OURS.n_threads))
    return _pool(torch.get_num_threads()).map(function, items)


def stream(function: Callable[[T], R], items: Iterator[T]) -> Generator[R, None, None]:
    """The same of items that come one by one: only a few more are taken than there are threads.

    Errors of ``items`` come after the results of all those before. Whoever stops early has to ``close()`` it.

    Examples
    --------
    >>> list(stream(lambda n: int(torch.ones(n).sum()), iter([3, 1, 2])))
    [3, 1, 2]
    """
    n_threads = torch.get_num_threads()
    pool = _pool(n_threads)
    # Those that may not have begun yet.
    last: deque[Future[R]] = deque(maxlen=n_threads + 3)

    def begun() -> Iterator[Future[R]]:
        for item in items:
            last.append(pool.submit(function, item))
            yield last[-1]

    try:
        with closing(ahead(begun(), depth=n_threads)) as futures:
            for future in futures:
                yield future.result()
    finally:
        for future in last:
            future.cancel()


def beside(function: Callable[..., R], *args: Any) -> Future[R]:
    """Begin ``function(*args)`` while the caller goes on, in one of these threads.

    A thread whose operations torch splits brings threads of its own along. As long as these are there, all in the
    process are more than the processors, and OpenMP's no longer wait awake for the next operation: to wake them takes
    longer than most operations of ours.

    Examples
    --------
    >>> beside(lambda n: int(torch.ones(n).sum()), 3).result()
    3
    """
    return _pool(torch.get_num_threads()).submit(function, *args)


def _with_idle(function: Callable[[T], R], items: list[T], pool: ThreadPoolExecutor, n_threads: int) -> list[R]:
    """``function`` of pieces of a piece: by the thread that does that one, and by those that have nothing to do."""
    results: list[R | None] = [None] * len(items)
    places = itertools.count()

    def go_on() -> None:
        # One step of a counter can't be interrupted.
        while (place := next(places)) < len(items):
            results[place] = function(items[place])

    # They queue behind all other pieces, and what nobody has begun to do when this thread is through is not needed:
    # no thread waits for one that waits.
    helpers = [pool.submit(go_on) for _ in range(min(n_threads, len(items)) - 1)]
    try:
        go_on()
    finally:
        begun = [helper for helper in helpers if not helper.cancel()]
    for helper in begun:
        helper.result()
    return results  # type: ignore[return-value]


def _pool(n_threads: int) -> ThreadPoolExecutor:
    with _LOCK:
        if n_threads not in _POOLS:
            _POOLS[n_threads] = _new_pool(n_threads)
        return _POOLS[n_threads]


def _forget_pools() -> None:
    """Start anew in a process that was forked: the threads stayed behind.

    So did those of torch, which its operations would wait for without end: such a process computes in one thread.
    """
    global _LOCK, _OURS
    if _POOLS:
        # Where nothing was computed before, none are missing.
        torch.set_num_threads(1)
    _LOCK, _OURS = threading.Lock(), threading.local()
    _POOLS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)


def _new_pool(n_threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="vae_anomaly")
    # All threads meet before any goes on, so that each of them is told once.
    meeting = threading.Barrier(n_threads)

    def begin(_: int) -> None:
        # A thread that has not asked yet would take the number last set for all when it first computes.
        torch.get_num_threads()
        torch.set_num_threads(1)
        _OURS.pool, _OURS.n_threads = pool, n_threads
        meeting.wait()

    list(pool.map(begin, range(n_threads)))
    # Torch keeps the number last set for threads to come.
    torch.set_num_threads(n_threads)
    return pool
