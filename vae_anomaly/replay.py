"""Work of a GPU that is launched whole: the same operations on the same memory, again and again, as one CUDA graph.

The operations of networks as small as ours take a GPU less time than it takes to ask for them one by one.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["Replayed", "own_stream"]

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
        """The graph; None if it can't be recorded, which costs time, and no result: nothing was computed by then."""
        graph = torch.cuda.CUDAGraph()
        with _garbage_kept():
            try:
                # Other threads may use the device meanwhile.
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._result = self.function()
                finally:
                    graph.capture_end()
            except RuntimeError:
                return None
        return graph


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


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """A stream of operations beside the usual one, which may be recorded; whatever is in either waits for the other."""
    if device.type != "cuda":
        yield
        return
    usual, own = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    own.wait_stream(usual)
    with torch.cuda.stream(own):
        yield
    usual.wait_stream(own)
