"""What a step takes from where it was laid out, and what it says, each as one program of a GPU."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from vae_anomaly.kernels.launch import begun, early
from vae_anomaly.supply import LaidOut

__all__ = ["FusedLaidOut"]

# The most numbers that a program has at work at once.
NUMBERS = 1024


@triton.jit(do_not_specialize=["n_rows", "n_entries", "n_latent"])  # type: ignore[untyped-decorator]
def _take(  # type: ignore[no-untyped-def]
    place, now, chosen, x, eps, rates, batch, batch_eps, batch_rates, n_rows, n_entries, n_latent,
    NUMBERS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Of the step at ``place``, which is noted as the one that is ``now`` taken, a row of a member's batch."""
    begun(EARLY)
    row, member, n_members = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    step = tl.load(place)
    sample = member * n_rows + row
    lead = step * n_members * n_rows + sample
    here, there = tl.load(chosen + lead) * n_entries, sample.to(tl.int64) * n_entries
    for start in range(0, n_entries, NUMBERS):
        entries = start + tl.arange(0, NUMBERS)
        real = entries < n_entries
        tl.store(batch + there + entries, tl.load(x + here + entries, mask=real), mask=real)
    for start in range(0, n_latent, NUMBERS):
        entries = start + tl.arange(0, NUMBERS)
        real = entries < n_latent
        drawn = tl.load(eps + lead * n_latent + entries, mask=real)
        tl.store(batch_eps + sample * n_latent + entries, drawn, mask=real)
    if sample == 0:
        both = tl.arange(0, 2)
        tl.store(batch_rates + both, tl.load(rates + 2 * step + both))
        tl.store(now, step)


@triton.jit(do_not_specialize=["n_rows"])  # type: ignore[untyped-decorator]
def _note(  # type: ignore[no-untyped-def]
    reconstruction, kl, terms, now, place, n_rows, NUMBERS: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    """Means of both terms of a member's batch; the next step is at the place that follows."""
    begun(EARLY)
    member, n_members = tl.program_id(0), tl.num_programs(0)
    first, second = tl.zeros((NUMBERS,), tl.float32), tl.zeros((NUMBERS,), tl.float32)
    for start in range(0, n_rows, NUMBERS):
        rows = start + tl.arange(0, NUMBERS)
        real = rows < n_rows
        first += tl.load(reconstruction + member * n_rows + rows, mask=real, other=0.0)
        second += tl.load(kl + member * n_rows + rows, mask=real, other=0.0)
    step = tl.load(now)
    terms += step * 2 * n_members + member
    tl.store(terms, tl.sum(first, axis=0) / n_rows)
    tl.store(terms + n_members, tl.sum(second, axis=0) / n_rows)
    if member == 0:
        tl.store(place, step + 1)


class FusedLaidOut(LaidOut):
    """On a CUDA device, of places in ``x``; what a step is given is overwritten by the one after it."""

    def __init__(self, x: Tensor, samples: Tensor, eps: Tensor, rates: Tensor, terms: Tensor, place: Tensor) -> None:
        super().__init__(x, samples, eps, rates, terms, place)
        self.now = torch.zeros_like(place)
        self.batch = x.new_zeros(*samples.shape[1:], *x.shape[1:])
        self.batch_eps, self.batch_rates = torch.zeros_like(eps[:1]), torch.zeros_like(rates[0])

    def take(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self.x is not None
        n_members, n_rows = self.samples.shape[1:]
        n_entries, n_latent = math.prod(self.x.shape[1:]), self.eps.shape[-1]
        _take[(n_rows, n_members)](
            self.place, self.now, self.samples, self.x, self.eps, self.rates,
            self.batch, self.batch_eps, self.batch_rates, n_rows, n_entries, n_latent,
            NUMBERS=min(NUMBERS, triton.next_power_of_2(max(n_entries, n_latent))),
            **early(self.batch.device),
        )  # fmt: skip
        return self.batch, self.batch_eps, self.batch_rates

    def note(self, reconstruction: Tensor, kl: Tensor) -> None:
        n_members, n_rows = kl.shape
        _note[(n_members,)](
            reconstruction.contiguous(), kl.contiguous(), self.terms, self.now, self.place, n_rows,
            NUMBERS=min(NUMBERS, triton.next_power_of_2(n_rows)),
            **early(kl.device),
        )  # fmt: skip
