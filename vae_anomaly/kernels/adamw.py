"""A step of AdamW with clipped gradients as two programs of a GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vae_anomaly.adamw import BETAS, EPS, AdamW
from vae_anomaly.kernels.launch import begun, early

__all__ = ["FusedAdamW"]

# Numbers that a program has at work at once.
NUMBERS = 1024
# The most parts of which a member's squares are added up: each program of the second kind adds these once more.
MAX_PARTS = 1024
LENGTHS = ["n_numbers", "n_parts", "per_part"]


@triton.jit(do_not_specialize=LENGTHS)  # type: ignore[untyped-decorator]
def _squares(  # type: ignore[no-untyped-def]
    gradient, squares, decays, n_numbers, n_parts, per_part, FIRST: tl.constexpr, SECOND: tl.constexpr,
    NUMBERS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Sum of squares of each part of each member's gradient; ``decays``, powers of what moments keep, once more."""
    begun(EARLY)
    part, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    gradient += member * n_numbers
    total = tl.zeros((NUMBERS,), tl.float32)
    for start in range(part * per_part, (part + 1) * per_part, NUMBERS):
        places = start + tl.arange(0, NUMBERS)
        own = tl.load(gradient + places, mask=places < n_numbers, other=0.0)
        total += own * own
    tl.store(squares + member * n_parts + part, tl.sum(total, axis=0))
    if part + member == 0:
        tl.store(decays, tl.load(decays) * FIRST)
        tl.store(decays + 1, tl.load(decays + 1) * SECOND)


@triton.jit(do_not_specialize=LENGTHS)  # type: ignore[untyped-decorator]
def _update(  # type: ignore[no-untyped-def]
    flat, gradient, mean, square, squares, decays, rate, n_numbers, n_parts, per_part, limit, weight_decay,
    FIRST: tl.constexpr, SECOND: tl.constexpr, EPS: tl.constexpr, NUMBERS: tl.constexpr, PARTS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    begun(EARLY)
    part, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lead = member * n_numbers
    parts = tl.arange(0, PARTS)
    norm = tl.sqrt(tl.sum(tl.load(squares + member * n_parts + parts, mask=parts < n_parts, other=0.0), axis=0))
    factor = tl.minimum(limit / (norm + 1e-6), 1.0)
    learning_rate = tl.load(rate)
    step = learning_rate / (1.0 - tl.load(decays)).to(tl.float32)
    root = tl.sqrt(1.0 - tl.load(decays + 1)).to(tl.float32)
    kept = 1.0 - learning_rate * weight_decay
    for start in range(part * per_part, (part + 1) * per_part, NUMBERS):
        places = start + tl.arange(0, NUMBERS)
        real = places < n_numbers
        places += lead
        g = tl.load(gradient + places, mask=real, other=0.0) * factor
        first = tl.load(mean + places, mask=real, other=0.0)
        first += (1.0 - FIRST) * (g - first)
        second = SECOND * tl.load(square + places, mask=real, other=0.0) + (1.0 - SECOND) * g * g
        tl.store(mean + places, first, mask=real)
        tl.store(square + places, second, mask=real)
        value = tl.load(flat + places, mask=real, other=0.0) * kept
        tl.store(flat + places, value - step * first / (tl.sqrt(second) / root + EPS), mask=real)


class FusedAdamW(AdamW):
    """In float32, on a CUDA device."""

    def __init__(self, flat: Tensor, gradient: Tensor, limit: float, weight_decay: float) -> None:
        super().__init__(flat, gradient, limit, weight_decay)
        # As a difference from 1, which float32 knows to four digits at first.
        self.decays = torch.ones(2, dtype=torch.float64, device=flat.device)
        n_members, n_numbers = flat.shape
        n_blocks = triton.cdiv(n_numbers, NUMBERS)
        self.per_part = NUMBERS * triton.cdiv(n_blocks, MAX_PARTS)
        self.n_parts = triton.cdiv(n_numbers, self.per_part)
        self.squares = torch.zeros(n_members, self.n_parts, device=flat.device)

    def step(self, learning_rate: Tensor) -> None:
        n_members, n_numbers = self.flat.shape
        grid, (first, second) = (self.n_parts, n_members), BETAS
        _squares[grid](
            self.gradient, self.squares, self.decays, n_numbers, self.n_parts, self.per_part,
            FIRST=first, SECOND=second, NUMBERS=NUMBERS, **early(self.flat.device),
        )  # fmt: skip
        _update[grid](
            self.flat, self.gradient, self.mean, self.square, self.squares, self.decays, learning_rate,
            n_numbers, self.n_parts, self.per_part, self.limit, self.weight_decay,
            FIRST=first, SECOND=second, EPS=EPS, NUMBERS=NUMBERS, PARTS=triton.next_power_of_2(self.n_parts),
            **early(self.flat.device),
        )  # fmt: skip
