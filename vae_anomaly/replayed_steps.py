"""Steps of training for a GPU: all that they take is laid out there beforehand, so that a step asks for nothing."""

import functools
import math
from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor

from vae_anomaly.pipeline import ahead
from vae_anomaly.replay import Replayed
from vae_anomaly.streaming import RowsOnDisk
from vae_anomaly.supply import LaidOut, Supply

__all__ = ["ReplayedSteps", "Step"]

# Numbers that are laid out at once, of base samples and of rows that do not lie on the device.
MAX_LAID_OUT = 16_000_000

Step = Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Takes a batch, base samples, beta, the learning rate, and how many rows are left out; gives two terms of each row."""


class ReplayedSteps:
    """Steps that find their place in what is laid out by a counter on the device.

    Parameters
    ----------
    step : callable
        One step, which waits for nothing.
    x : Tensor of shape (n_samples, *event_shape) or RowsOnDisk
    supply : Supply
    schedule : callable
        From the number of a step to beta, the learning rate, and how many rows of a batch are left out.
    n_steps : int
        Steps in all.
    most : int
        Steps that are taken at once.
    device : torch.device
    fused : bool, default=False
        Whether what a step takes and says is moved by programs of a GPU's own.
    """

    def __init__(
        self,
        step: Step,
        x: Tensor | RowsOnDisk,
        supply: Supply,
        schedule: Callable[[int], tuple[float, float, int]],
        n_steps: int,
        most: int,
        device: torch.device,
        *,
        fused: bool = False,
    ) -> None:
        self.step, self.x, self.supply, self.schedule, self.device = step, x, supply, schedule, device
        n_estimators, n_rows, event_shape = len(supply.generators), supply.batch_size, tuple(x.shape[1:])
        per_row = supply.latent_dim + (math.prod(event_shape) if isinstance(x, RowsOnDisk) else 0)
        self.n_laid_out = max(1, min(most, MAX_LAID_OUT // (n_estimators * n_rows * per_row)))
        lead = (self.n_laid_out, n_estimators, n_rows)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self.eps = torch.zeros(*lead, supply.latent_dim, device=device)
        self.rates = torch.zeros(self.n_laid_out, 2, device=device)
        self.terms = torch.zeros(self.n_laid_out, 2, n_estimators, device=device)
        self._calls: dict[int, Replayed] = {}
        self._fetched: Generator[Tensor, None, None] | None = None
        if isinstance(x, RowsOnDisk):
            self.samples = torch.zeros(*lead, *event_shape, device=device)
            spans = (
                span for first in range(0, n_steps, most) for span in self._spans(first, min(first + most, n_steps))
            )
            self._fetched = ahead(x.fetch(supply.rows(*span)) for span in spans)
        else:
            self.samples = torch.zeros(lead, dtype=torch.int64, device=device)
        self.laid_out = self._laid_out(fused=fused)

    def _laid_out(self, *, fused: bool) -> LaidOut:
        x = None if isinstance(self.x, RowsOnDisk) else self.x
        if x is None or not fused:
            return LaidOut(x, self.samples, self.eps, self.rates, self.terms, self.place)
        from vae_anomaly.kernels.supply import FusedLaidOut

        return FusedLaidOut(x, self.samples, self.eps, self.rates, self.terms, self.place)

    def advance(self, first: int, last: int) -> Tensor:
        """Take these steps; their terms, shape (2, n_steps, n_estimators)."""
        found = []
        for start, end in self._spans(first, last):
            for left_out in self._lay_out(start, end):
                self._call(left_out)()
            found.append(self.terms[: end - start].clone())
        return torch.cat(found).movedim(0, 1)

    def close(self) -> None:
        """Fetch no more rows."""
        if self._fetched is not None:
            self._fetched.close()

    def _spans(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        for start in range(first, last, self.n_laid_out):
            yield start, min(start + self.n_laid_out, last)

    def _lay_out(self, first: int, last: int) -> list[int]:
        """Put what these steps take into its place; how many rows each of them leaves out."""
        n = last - first
        betas, rates, left_out = zip(*map(self.schedule, range(first, last)), strict=True)
        rows = self.supply.rows(first, last) if self._fetched is None else next(self._fetched)
        self.samples[:n].copy_(rows, non_blocking=True)
        self.eps[:n].copy_(self.supply.noise(n, self.supply.batch_size).movedim(1, 0))
        self.rates[:n].copy_(torch.tensor([betas, rates]).T)
        self.place.zero_()
        return list(left_out)

    def _call(self, left_out: int) -> Replayed:
        if left_out not in self._calls:
            self._calls[left_out] = Replayed(functools.partial(self._take, left_out), self.device)
        return self._calls[left_out]

    def _take(self, left_out: int) -> None:
        batch, eps, (beta, rate) = self.laid_out.take()
        self.laid_out.note(*self.step(batch, eps, beta, rate, left_out))
