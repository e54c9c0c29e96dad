"""Work of a GPU that is launched whole: the same operations on the same memory, again and again, as one CUDA graph.

The operations of networks as small as ours take a GPU less time than it takes to ask for them one by one.
"""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

__all__ = ["Branch", "Replayed", "lent_stream", "own_stream", "recorded", "shared_stream"]

T = TypeVar("T")

# Calls before the recording, in which libraries set up what they may not set up while they are recorded.
N_WARM = 3


class Replayed:
    """A function without arguments, recorded at its fourth call on a CUDA device and replayed from then on.

    It has to read and write tensors that stay where they are, take the same way each time, and wait for no result. On
    other devices it is called each time. A result is overwritten by the next call. On a GPU all calls have to be made
    within one :func:`own_stream`.

    Examples
    --------
    >>> count = torch.zeros(())
    >>> step = Replayed(lambda: count.add_(1.0), count.device)
    >>> [float(step()) for _ in range(5)]
    [1.0, 2.0, 3.0, 4.0, 5.0]
    """

    def __init__(self, function: Callable[[], Any], device: torch.device) -> None:
        self.function, self.device = function, device
        self.n_calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> Any:
        if self.device.type == "cuda" and self.n_calls == N_WARM:
            self._graph, self._result = recorded(self.function)
        self.n_calls += 1
        if self._graph is None:
            return self.function()
        self._graph.replay()
        return self._result


def recorded(function: Callable[[], Any], pool: Any = None) -> tuple[torch.cuda.CUDAGraph | None, Any]:
    """A graph of what a function asks of a GPU, and where its result will be.

    None in place of a graph that can't be recorded, which costs time, and no result: nothing was computed by then.
    Graphs that are replayed one at a time, and whose results are copied at once, can have memory from one ``pool``.
    """
    graph = torch.cuda.CUDAGraph()
    with _garbage_kept():
        try:
            # Other threads may use the device meanwhile.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                result = function()
            finally:
                graph.capture_end()
        except RuntimeError:
            return None, None
    return graph, result


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """What a device holds for objects that nobody refers to any more may not be given back while it records."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# Priorities of streams. Torch has 32 of each, and hands them out again and again: what is recorded may not be in one by
# which another thread copies, as it waits for its copies, and waiting ends a recording. What nobody waits for before
# the end comes after what others do.
RECORDED, BESIDE, COPIED = -2, -1, 0
# Streams that nobody has at the moment, by device and priority: for each one in use, libraries keep memory to work in.
_IDLE: dict[tuple[torch.device, int], list[torch.cuda.Stream]] = {}
# The one that all threads share, by device.
_SHARED: dict[torch.device, torch.cuda.Stream] = {}
# A second one beside each in which a fit is at work, by the address of the first.
_BESIDE: dict[int, torch.cuda.Stream] = {}
_LOCK = threading.Lock()


@contextmanager
def lent_stream(device: torch.device, priority: int = COPIED) -> Iterator[torch.cuda.Stream]:
    """A stream of a CUDA device that nobody else has meanwhile."""
    with _LOCK:
        idle = _IDLE.setdefault((device, priority), [])
        stream = idle.pop() if idle else _new_stream(device, priority)
    try:
        yield stream
    finally:
        with _LOCK:
            idle.append(stream)


def _new_stream(device: torch.device, priority: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]


def shared_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a CUDA device that all threads share, one at a time; it may be recorded."""
    with _LOCK:
        if device not in _SHARED:
            _SHARED[device] = _new_stream(device, RECORDED)
        return _SHARED[device]


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """A stream of operations beside the usual one, which may be recorded; whatever is in either waits for the other."""
    if device.type != "cuda":
        yield
        return
    usual = torch.cuda.current_stream(device)
    with lent_stream(device, RECORDED) as own, lent_stream(device, BESIDE) as beside:
        _BESIDE[own.cuda_stream] = beside
        own.wait_stream(usual)
        try:
            with torch.cuda.stream(own):
                yield
        finally:
            usual.wait_stream(own)
            del _BESIDE[own.cuda_stream]


class Branch:
    """Operations that need not be waited for before :meth:`join`, beside those of an :func:`own_stream`.

    Small operations leave most of a GPU idle, and two of them at a time take as long as one. Elsewhere they are done
    at once.

    Examples
    --------
    >>> branch, x = Branch(torch.device("cpu")), torch.ones(3)
    >>> total = branch.run(lambda: x.sum(), x)
    >>> branch.join()
    >>> float(total)
    3.0
    """

    def __init__(self, device: torch.device) -> None:
        self._beside: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._main = torch.cuda.current_stream(device)
            self._beside = _BESIDE.get(self._main.cuda_stream)
        self._read: list[Any] = []

    def run(self, function: Callable[[], T], *reads: torch.Tensor) -> T:
        """What ``function`` gives, which reads these tensors; for use after :meth:`join`."""
        if self._beside is None:
            return function()
        # Their memory may go to nobody else meanwhile.
        self._read += reads
        self._beside.wait_stream(self._main)
        with torch.cuda.stream(self._beside):
            return function()

    def join(self) -> None:
        """From here on, operations of the stream wait for those of the branch."""
        if self._beside is not None:
            self._main.wait_stream(self._beside)
            self._read.clear()
