"""What is done to blocks of rows, by a GPU: recorded for one of them, and replayed for the others.

The operations of a block are hundreds, and a thread that asks for them one by one waits before each of them for
Python's lock, where others encode and write at the same time.
"""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from vae_anomaly.ensemble import Ensemble, each, same_tensors
from vae_anomaly.replay import recorded

__all__ = ["ReplayedBlocks", "blocks_of"]

# A recording takes as long as so many blocks, and keeps the memory that one of them takes.
N_BEFORE = 16

# What is recorded, by ensemble, and by what is done to blocks of which shape.
_KNOWN: WeakKeyDictionary[Ensemble, dict[Any, "ReplayedBlocks"]] = WeakKeyDictionary()


class ReplayedBlocks:
    """One function of blocks of one shape, recorded once it has been called ``N_BEFORE`` times.

    It has to take the same way each time, and to wait for nothing. All calls have to be made, one thread at a time, in
    the :func:`~vae_anomaly.replay.shared_stream`.

    Parameters
    ----------
    reads : sequence of Tensor
        What the function reads on its device, beside the block and ``eps``.
    eps : Tensor
        Base samples, on any device.
    device : torch.device
    """

    def __init__(self, reads: Sequence[Tensor], eps: Tensor, device: torch.device) -> None:
        self.reads = [*reads, eps]
        # What is recorded reads them where they are.
        self.eps = eps.to(device)
        self.n_calls = 0
        self.beside: torch.cuda.CUDAGraph | None = None
        """What is recorded of others: as only one is at work at a time, all can have their memory from one pool."""
        self.graph: torch.cuda.CUDAGraph | None = None
        self._x = self._result = torch.empty(0)

    def __call__(self, function: Callable[[Tensor, Tensor], Any], x: Tensor) -> Any:
        """``function(x, self.eps)``, a tensor or a tuple of them; the same function each time, which is not kept."""
        self.n_calls += 1
        if self.graph is not None:
            self._x.copy_(x)
            self.graph.replay()
            return each(Tensor.clone, self._result)
        # Before the recording, in its thread, too: libraries set up at the first call what they may not set up later.
        result = function(x, self.eps)
        if self.n_calls == N_BEFORE and x.device.type == "cuda":
            self._x = x.clone()
            pool = None if self.beside is None else self.beside.pool()
            self.graph, self._result = recorded(lambda: function(self._x, self.eps), pool)
        return result


def blocks_of(ensemble: Ensemble, what: Any, eps: Tensor) -> ReplayedBlocks:
    """The blocks of an ensemble for which ``what`` says the same, if they still read these very tensors."""
    known, reads = _KNOWN.setdefault(ensemble, {}), list(ensemble.tensors().values())
    if what not in known or not same_tensors(known[what].reads, [*reads, eps]):
        known[what] = ReplayedBlocks(reads, eps, ensemble.device)
    one = known[what]
    one.beside = next((other.graph for other in known.values() if other is not one and other.graph is not None), None)
    return one
