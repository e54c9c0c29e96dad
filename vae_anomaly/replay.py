"""Work of a GPU that is launched whole: the same operations on the same memory, again and again, as one CUDA graph.

The operations of networks as small as ours take a GPU less time than it takes to ask for them one by one.
"""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

__all__ = ["Branch", "Replayed", "own_stream", "recorded", "stream_of"]

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
            self._graph = self._recorded()
        self.n_calls += 1
        if self._graph is None:
            return self.function()
        self._graph.replay()
        return self._result

    def _recorded(self) -> torch.cuda.CUDAGraph | None:
        """The graph; None if it can't be recorded."""
        graph, self._result = recorded(self.function)
        return graph


def recorded(function: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph | None, Any]:
    """A graph of what a function asks of a GPU, and where its result will be.

    None in place of a graph that can't be recorded, which costs time, and no result: nothing was computed by then.
    """
    graph = torch.cuda.CUDAGraph()
    with _garbage_kept():
        try:
            # Other threads may use the device meanwhile.
            graph.capture_begin(capture_error_mode="thread_local")
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


# Streams of each thread, and those that all share, by device: for each one in use, libraries keep memory to work in.
_OWN, _SHARED = threading.local(), dict[torch.device, torch.cuda.Stream]()
# A second one beside each of them, by the address of the first.
_BESIDE: dict[int, torch.cuda.Stream] = {}


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """A stream of operations beside the usual one, which may be recorded; whatever is in either waits for the other."""
    if device.type != "cuda":
        yield
        return
    usual, own = torch.cuda.current_stream(device), stream_of(device)
    own.wait_stream(usual)
    with torch.cuda.stream(own):
        yield
    usual.wait_stream(own)


def stream_of(device: torch.device, *, shared: bool = False) -> torch.cuda.Stream:
    """The stream of this thread, or one for all threads, which have to take turns, on a CUDA device."""
    known: dict[torch.device, torch.cuda.Stream] = _SHARED if shared else vars(_OWN).setdefault("streams", {})
    if device not in known:
        own, beside = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]
        known[device], _BESIDE[own.cuda_stream] = own, beside
    return known[device]


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
