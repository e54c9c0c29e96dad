"""Independent pieces of work side by side on the processors, each in a thread that uses one of them."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["side_by_side"]

T = TypeVar("T")
R = TypeVar("R")

_POOLS: dict[int, ThreadPoolExecutor] = {}
_LOCK = threading.Lock()


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
    return _pool(torch.get_num_threads()).map(function, items)


def _pool(n_threads: int) -> ThreadPoolExecutor:
    with _LOCK:
        if n_threads not in _POOLS:
            _POOLS[n_threads] = _new_pool(n_threads)
        return _POOLS[n_threads]


def _forget_pools() -> None:
    """Start anew in a process that was forked: the threads stayed behind."""
    global _LOCK
    _LOCK = threading.Lock()
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
        meeting.wait()

    list(pool.map(begin, range(n_threads)))
    # Torch keeps the number last set for threads to come.
    torch.set_num_threads(n_threads)
    return pool
