"""The search for the nearest of many points as one program of a GPU, which keeps no distance but the least."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["fused_nearest"]

# Products want so many entries at least.
MIN_ENTRIES = 16
# Rows and points that are at work at once.
ROWS, POINTS, N_WARPS = 128, 64, 8
# To fetch points ahead takes a program the room of another one.
N_STAGES = 1


# One program for tables of all lengths, as each takes a second to compile. It takes annotations for its own.
@triton.jit(do_not_specialize=["n_rows", "n_points", "n_entries", "step", "per_search"])  # type: ignore[untyped-decorator]
def _search(  # type: ignore[no-untyped-def]
    x, points, counted, lengths, found,
    n_rows, n_points, n_entries, step, per_search,
    HOLED: tl.constexpr, ENTRIES: tl.constexpr, ROWS: tl.constexpr, POINTS: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Of some rows of one search; from one row of ``counted`` to the next it is ``step`` entries."""
    search = tl.program_id(1).to(tl.int64)
    x += search * n_rows * n_entries
    points += search * n_points * n_entries
    counted += search * per_search
    lengths += search * n_points
    found += search * n_rows
    rows, entries = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, ENTRIES)
    real_row, real_entry = rows < n_rows, entries < n_entries
    real = real_row[:, None] & real_entry[None, :]
    here = tl.load(x + rows[:, None] * n_entries + entries[None, :], mask=real, other=0.0)
    seen = tl.load(counted + rows[:, None] * step + entries[None, :], mask=real, other=0.0)

    # In each place of a tile the least there was, and of which tile it was: rows are gone through once, at the end.
    least = tl.full((ROWS, POINTS), float("inf"), tl.float32)
    tile = tl.zeros((ROWS, POINTS), tl.int32)
    for start in range(0, n_points, POINTS):
        places = start + tl.arange(0, POINTS)
        real_point = places < n_points
        there = tl.load(
            points + places[None, :] * n_entries + entries[:, None],
            mask=real_point[None, :] & real_entry[:, None],
            other=0.0,
        )
        if HOLED:
            half = tl.dot(seen, 0.5 * there * there, input_precision=PRECISION)
            half = tl.where(real_point[None, :], half, float("inf"))
        else:
            half = tl.load(lengths + places, mask=real_point, other=float("inf"))[None, :]
        rest = half - tl.dot(here, there, input_precision=PRECISION)
        nearer = rest < least
        least = tl.where(nearer, rest, least)
        tile = tl.where(nearer, start, tile)
    column = tl.argmin(least, axis=1)
    chosen = tl.arange(0, POINTS)[None, :] == column[:, None]
    first = (tl.sum(tl.where(chosen, tile, 0), axis=1) + column) // GROUP * GROUP

    nearest = first
    shortest = tl.full((ROWS,), float("inf"), tl.float32)
    for member in range(GROUP):
        place = tl.minimum(first + member, n_points - 1)
        there = tl.load(points + place[:, None] * n_entries + entries[None, :], mask=real, other=0.0)
        difference = (here - there) * seen
        distance = tl.sum(difference * difference, axis=1)
        nearer = distance < shortest
        shortest = tl.where(nearer, distance, shortest)
        nearest = tl.where(nearer, place, nearest)
    tl.store(found + rows, nearest.to(tl.int64), mask=real_row)


class _Nearest(torch.autograd.Function):
    """Of searches side by side: ``x`` (n, n_rows, n_entries), ``counted`` of as many rows or 1, lengths (n, n_points).

    A function of autograd, as these may be mapped over members.
    """

    @staticmethod
    def forward(x: Tensor, points: Tensor, counted: Tensor, lengths: Tensor | None, group: int) -> Tensor:
        x, points, counted = x.contiguous(), points.contiguous(), counted.contiguous()
        n, n_rows, n_entries = x.shape
        found = torch.empty(n, n_rows, dtype=torch.int64, device=x.device)
        grid = (triton.cdiv(n_rows, ROWS), n)
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            _search[grid](
                x, points, counted, x if lengths is None else lengths.contiguous(), found,
                n_rows, points.shape[1], n_entries, 0 if counted.shape[1] == 1 else n_entries, counted[0].numel(),
                HOLED=lengths is None, ENTRIES=max(MIN_ENTRIES, triton.next_power_of_2(n_entries)),
                ROWS=ROWS, POINTS=POINTS, GROUP=group, PRECISION="tf32x3", num_warps=N_WARPS,
                num_stages=N_STAGES,
            )  # fmt: skip
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        def joined(value: Any, axis: int | None) -> Any:
            if not isinstance(value, Tensor):
                return value
            each = value.expand(info.batch_size, *value.shape) if axis is None else value.movedim(axis, 0)
            return each.flatten(0, 1)

        found: Tensor = _Nearest.apply(*map(joined, args, in_dims))
        return found.reshape(info.batch_size, -1, found.shape[-1]), 0


def fused_nearest(x: Tensor, points: Tensor, counted: Tensor, lengths: Tensor | None, group: int) -> Tensor:
    """Index of the point nearest to each row on a CUDA device, as :func:`vae_anomaly.neighbours.nearest` says it.

    Rows stay in registers, so it is for few entries.

    Parameters
    ----------
    x : Tensor of shape (n_rows, n_entries), or with a first axis over several searches, as all others have it then
    points : Tensor of shape (n_points, n_entries)
    counted : Tensor of shape (n_rows, n_entries) or (n_entries,); of several searches (n, n_rows or 1, n_entries)
        1 for an entry that counts, else 0; then ``x`` is 0 there, too.
    lengths : Tensor of shape (n_points,), or (n, 1, n_points), or None
        Half the squared lengths over these entries, if they are the same for all rows.
    group : int
        Points that follow each other, of which differences say which is nearest where rounding leaves it open.
    """
    several = x.ndim == 3
    if not several:
        x, points, counted = x[None], points[None], counted.reshape(1, -1, counted.shape[-1])
    if lengths is not None:
        lengths = lengths.reshape(-1, points.shape[1])
    found: Tensor = _Nearest.apply(x, points, counted, lengths, group)
    return found if several else found[0]
