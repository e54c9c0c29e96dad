"""The layers of many networks that learn, on a GPU: one program for each affine map and for each of its gradients.

All are sums of products of a row of one matrix with a row of another, as such rows go through a GPU's products in the
order in which they lie in memory: what is wanted in the other order is written in both.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import silu

from vae_anomaly.kernels.launch import begun, early
from vae_anomaly.replay import Branch

__all__ = ["FusedLayers"]


class Tile(NamedTuple):
    """How much of a result one program has at work."""

    rows: int
    columns: int
    factors: int
    """Of each sum, by each of a program's warps."""
    n_warps: int
    n_stages: int
    """How many tiles of factors are on their way at once."""


# Batches are small: tiles as small as these keep all of a GPU's processors busy, and each warp has a part of the
# factors, as a sum has to wait for the product before.
OF_SAMPLES = Tile(16, 32, 32, 2, 3)
OF_WEIGHTS = Tile(16, 32, 32, 2, 2)
# Of matrices whose rows are laid out anew.
TURNED = 32
# A GPU reads so many numbers at once, where they begin at a multiple of so many.
ALIGNED = 4
# What differs from layer to layer; a program for each takes a second to compile.
OF_LAYER = ["n_rows", "n_columns", "n_factors", "per_weight", "per_bias", "has_plus", "has_silu", "is_turned"]


@triton.jit  # type: ignore[untyped-decorator]
def _tile(  # type: ignore[no-untyped-def]
    a, b, n_rows, n_columns, n_factors,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FACTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """This program's part of the products of the rows of ``a`` with those of ``b``; its rows and columns."""
    rows, columns = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real_row, real_column = rows < n_rows, columns < n_columns
    places = (tl.arange(0, SPLITS) * FACTORS)[:, None] + tl.arange(0, FACTORS)[None, :]
    total = tl.zeros((SPLITS, ROWS, COLUMNS), tl.float32)
    for start in range(0, n_factors, SPLITS * FACTORS):
        factors = (start + places)[:, None, :]
        real = factors < n_factors
        of_rows = tl.load(a + rows[None, :, None] * n_factors + factors, mask=real_row[None, :, None] & real, other=0.0)
        of_columns = tl.load(
            b + columns[None, :, None] * n_factors + factors, mask=real_column[None, :, None] & real, other=0.0
        )
        total = tl.dot(of_rows, tl.permute(of_columns, (0, 2, 1)), total, input_precision=PRECISION)
    return tl.sum(total, axis=0), rows, columns


@triton.jit
def _places(rows, columns, n_rows, n_columns, member):  # type: ignore[no-untyped-def]
    """Where a tile of a member's result lies, by rows and by columns, and what of it there is."""
    real = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    lead = member * n_rows * n_columns
    return lead + rows[:, None] * n_columns + columns[None, :], lead + columns[None, :] * n_rows + rows[:, None], real


@triton.jit(do_not_specialize=OF_LAYER)  # type: ignore[untyped-decorator]
def _affine(  # type: ignore[no-untyped-def]
    x, weight, bias, plus, out, active, turned,
    n_rows, n_columns, n_factors, per_weight, per_bias, has_plus, has_silu, is_turned, QUAD: tl.constexpr,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FACTORS: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """``out`` is weight x + bias + plus, ``active`` SiLU of it, and ``turned`` the last of them by columns.

    Lengths of rows, and what lies between members, come in units of ``QUAD`` numbers.
    """
    begun(EARLY)
    member = tl.program_id(2).to(tl.int64)
    n_factors *= QUAD
    x += member * n_rows * n_factors
    weight += member * (per_weight * QUAD)
    total, rows, columns = _tile(x, weight, n_rows, n_columns, n_factors, SPLITS, ROWS, COLUMNS, FACTORS, PRECISION)
    total += tl.load(bias + member * per_bias + columns, mask=columns < n_columns, other=0.0)[None, :]
    places, turned_places, real = _places(rows, columns, n_rows, n_columns, member)
    total += tl.load(plus + places, mask=real & (has_plus != 0), other=0.0)
    tl.store(out + places, total, mask=real)
    shown = tl.where(has_silu != 0, total * tl.sigmoid(total), total)
    tl.store(active + places, shown, mask=real & (has_silu != 0))
    tl.store(turned + turned_places, shown, mask=real & (is_turned != 0))


@triton.jit(do_not_specialize=OF_LAYER)  # type: ignore[untyped-decorator]
def _back(  # type: ignore[no-untyped-def]
    g, weight, x, plus, out, turned,
    n_rows, n_columns, n_factors, has_plus, has_silu, QUAD: tl.constexpr,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FACTORS: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """``out`` is what the gradient ``g`` of the result makes that of ``x``, and plus; ``turned`` the same by columns.

    So comes ``weight``.
    """
    begun(EARLY)
    member = tl.program_id(2).to(tl.int64)
    n_factors *= QUAD
    g += member * n_rows * n_factors
    weight += member * n_columns * n_factors
    total, rows, columns = _tile(g, weight, n_rows, n_columns, n_factors, SPLITS, ROWS, COLUMNS, FACTORS, PRECISION)
    places, turned_places, real = _places(rows, columns, n_rows, n_columns, member)
    h = tl.load(x + places, mask=real & (has_silu != 0), other=0.0)
    gate = tl.sigmoid(h)
    total *= tl.where(has_silu != 0, gate * (1.0 + h * (1.0 - gate)), 1.0)
    total += tl.load(plus + places, mask=real & (has_plus != 0), other=0.0)
    tl.store(out + places, total, mask=real)
    tl.store(turned + turned_places, total, mask=real)


@triton.jit(do_not_specialize=OF_LAYER)  # type: ignore[untyped-decorator]
def _learn(  # type: ignore[no-untyped-def]
    g, x, of_weight, of_bias, n_rows, n_columns, n_factors, per_weight, per_bias, QUAD: tl.constexpr,
    SPLITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FACTORS: tl.constexpr, PRECISION: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Gradients of weight and bias, from that of the result and from what came in, both by columns."""
    begun(EARLY)
    member = tl.program_id(2).to(tl.int64)
    n_factors *= QUAD
    g += member * n_rows * n_factors
    x += member * n_columns * n_factors
    total, rows, columns = _tile(g, x, n_rows, n_columns, n_factors, SPLITS, ROWS, COLUMNS, FACTORS, PRECISION)
    real_row = rows < n_rows
    places = member * per_weight + rows[:, None] * n_columns + columns[None, :]
    tl.store(of_weight + places, total, mask=real_row[:, None] & (columns < n_columns)[None, :])
    if tl.program_id(1) == 0:
        of_each = tl.zeros((ROWS, SPLITS * FACTORS), tl.float32)
        for start in range(0, n_factors, SPLITS * FACTORS):
            factors = (start + tl.arange(0, SPLITS * FACTORS))[None, :]
            real = real_row[:, None] & (factors < n_factors)
            of_each += tl.load(g + rows[:, None] * n_factors + factors, mask=real, other=0.0)
        tl.store(of_bias + member * per_bias + rows, tl.sum(of_each, axis=1), mask=real_row)


@triton.jit(do_not_specialize=OF_LAYER)  # type: ignore[untyped-decorator]
def _turn(  # type: ignore[no-untyped-def]
    x, out, n_rows, n_columns, per_weight, SIDE: tl.constexpr, EARLY: tl.constexpr
):  # fmt: skip
    """Rows become columns."""
    begun(EARLY)
    member = tl.program_id(2).to(tl.int64)
    rows, columns = tl.program_id(0) * SIDE + tl.arange(0, SIDE), tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    real_row, real_column = rows < n_rows, columns < n_columns
    x += member * per_weight
    here = tl.load(x + rows[:, None] * n_columns + columns[None, :], mask=real_row[:, None] & real_column[None, :])
    out += member * n_rows * n_columns
    there = out + columns[:, None] * n_rows + rows[None, :]
    tl.store(there, tl.trans(here), mask=real_column[:, None] & real_row[None, :])


def _options(tile: Tile, n_rows: int, n_columns: int, *rows: Tensor) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """Programs for a result of this size, of matrices of such ``rows``, and what they are told."""
    matmul = torch.backends.cuda.matmul
    grid = (triton.cdiv(n_rows, tile.rows), triton.cdiv(n_columns, tile.columns), len(rows[0]))
    aligned = all(
        value.shape[-1] % ALIGNED == 0 and value.stride(0) % ALIGNED == 0 and value.data_ptr() % (4 * ALIGNED) == 0
        for value in rows
    )
    return grid, {
        "QUAD": ALIGNED if aligned else 1,
        "SPLITS": tile.n_warps,
        "ROWS": tile.rows,
        "COLUMNS": tile.columns,
        "FACTORS": tile.factors,
        # Where torch may not take TF32, three of them, which give what float32 gives.
        "PRECISION": "tf32" if matmul.fp32_precision == "tf32" else "tf32x3",
        "num_warps": tile.n_warps,
        "num_stages": tile.n_stages,
        **early(rows[0].device),
    }


class Value(NamedTuple):
    """Samples between two maps, shape (n_networks, n_samples, n)."""

    plain: Tensor
    active: Tensor | None = None
    """SiLU of them, if that is what the next map takes."""
    turned: Tensor | None = None
    """What the next map takes, by columns: shape (n_networks, n, n_samples)."""


def _mapped(x: Tensor, weight: Tensor, bias: Tensor, plus: Tensor | None, *, silu: bool, turned: bool) -> Value:
    (n, n_rows, n_in), n_out = x.shape, weight.shape[1]
    out = x.new_empty(n, n_rows, n_out)
    active = torch.empty_like(out) if silu else None
    by_columns = x.new_empty(n, n_out, n_rows) if turned else None
    grid, options = _options(OF_SAMPLES, n_rows, n_out, x, weight)
    _affine[grid](
        x, weight, bias, _or(plus, out), out, _or(active, out), _or(by_columns, out),
        n_rows, n_out, n_in // options["QUAD"], weight.stride(0) // options["QUAD"], bias.stride(0),
        int(plus is not None), int(silu), int(turned), **options,
    )  # fmt: skip
    return Value(out, active, by_columns)


def _taken_back(g: Tensor, weight: Tensor, x: Tensor, plus: Tensor | None, *, silu: bool) -> tuple[Tensor, Tensor]:
    """Gradient of ``x``, from the one of the result and the weight by columns; the same by columns."""
    (n, n_rows, n_out), n_in = g.shape, x.shape[2]
    out, turned = torch.empty_like(x), x.new_empty(n, n_in, n_rows)
    grid, options = _options(OF_SAMPLES, n_rows, n_in, g, weight)
    _back[grid](
        g, weight, x, _or(plus, out), out, turned,
        n_rows, n_in, n_out // options["QUAD"], int(plus is not None), int(silu), **options,
    )  # fmt: skip
    return out, turned


def _learned(g: Tensor, g_turned: Tensor | None, x: Tensor, turned: Tensor | None, into: Sequence[Tensor]) -> None:
    g_turned = _turned(g) if g_turned is None else g_turned
    turned = _turned(x) if turned is None else turned
    of_weight, of_bias = into
    (n_out, n_in), n_rows = of_weight.shape[1:], g.shape[1]
    grid, options = _options(OF_WEIGHTS, n_out, n_in, g_turned, turned)
    _learn[grid](
        g_turned, turned, of_weight, of_bias, n_out, n_in, n_rows // options["QUAD"],
        of_weight.stride(0), of_bias.stride(0), **options,
    )  # fmt: skip


def _turned(x: Tensor) -> Tensor:
    n, n_rows, n_columns = x.shape
    out = x.new_empty(n, n_columns, n_rows)
    grid = (triton.cdiv(n_rows, TURNED), triton.cdiv(n_columns, TURNED), n)
    _turn[grid](x, out, n_rows, n_columns, x.stride(0), SIDE=TURNED, **early(x.device))
    return out


def _or(value: Tensor | None, other: Tensor) -> Tensor:
    """What a program is given in place of nothing."""
    return other if value is None else value


class Map(NamedTuple):
    """An affine map, and what is done on the way with it."""

    silu: bool
    """Of its input, first."""
    splits: bool
    """Whether the input is kept, before that,"""
    joins: bool
    """and what was kept last is added to the output."""


def _moves(steps: Sequence[str]) -> Iterator[Map | None]:
    """Steps as of :func:`~vae_anomaly.fused.run_layers` as maps; None for a SiLU by itself."""
    silu = splits = False
    for step, after in zip(steps, [*steps[1:], ""], strict=True):
        if step == "affine":
            yield Map(silu, splits, after == "join")
            silu = splits = False
        elif step == "split":
            splits = True
        elif step == "silu" and after == "affine":
            silu = True
        elif step == "silu":
            yield None


class FusedLayers:
    """As :class:`~vae_anomaly.fused.LearnedLayers`, in float32, on a CUDA device.

    Bias, SiLU and residual branch are part of the product before or after them, as a GPU takes longer to begin an
    operation than such small ones take.

    Parameters
    ----------
    steps, weights, wanted
        As of :class:`~vae_anomaly.fused.LearnedLayers`.
    into : sequence of Tensor
        Where the gradients of weights and biases go, in the same order and of the same shapes.
    """

    def __init__(
        self, steps: Sequence[str], weights: Sequence[Tensor], into: Sequence[Tensor], *, wanted: bool = True
    ) -> None:
        self.moves = list(_moves(steps))
        values = [value.detach() for value in weights]
        self.maps = list(zip(values[::2], values[1::2], strict=True))
        self.into, self.wanted = list(into), wanted
        self.begun: tuple[list[Tensor], Branch] | None = None

    @torch.no_grad()
    def begin(self) -> tuple[list[Tensor], Branch]:
        """The weights by columns, for which nobody waits before the way back; the next call takes them."""
        beside = Branch(self.maps[0][0].device)
        turned = [beside.run(functools.partial(_turned, weight)) for weight, _ in self.maps[not self.wanted :]]
        self.begun = turned, beside
        return self.begun

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, "FusedPullback"]:
        """Of samples of shape (n_networks, n_samples, n_in)."""
        (turned, beside), self.begun = self.begun or self.begin(), None
        kept, skipped = [], []
        h, maps = Value(x.contiguous()), iter(self.maps)
        for move, after in zip(self.moves, [*self.moves[1:], None], strict=True):
            if move is None:
                kept.append(h)
                h = Value(silu(h.plain))
                continue
            if move.silu and h.active is None:
                h = h._replace(active=silu(h.plain))
            kept.append(h)
            if move.splits:
                skipped.append(h.plain)
            inputs = h.active if move.silu else h.plain
            assert inputs is not None
            plus = skipped.pop() if move.joins else None
            h = _mapped(inputs, *next(maps), plus, silu=after is not None and after.silu, turned=after is not None)
        return h.plain, FusedPullback(self, kept, turned, beside)


class FusedPullback:
    """The way back through :class:`FusedLayers`, to be gone once."""

    def __init__(self, layers: FusedLayers, kept: list[Value], turned: list[Tensor], beside: Branch) -> None:
        self.layers, self.kept, self.turned, self.beside = layers, kept, turned, beside

    @torch.no_grad()
    def __call__(self, g: Tensor, branch: Branch) -> tuple[Tensor | None, list[Tensor]]:
        """As :class:`~vae_anomaly.fused.LayersPullback`; gradients of weights are in their places."""
        self.beside.join()
        g, g_turned, skipped, into = g.contiguous(), None, [], list(self.layers.into)
        moves = list(self.layers.moves)
        while moves:
            move, h = moves.pop(), self.kept.pop()
            if move is None:
                g, g_turned = torch.ops.aten.silu_backward(g, h.plain), None
                continue
            inputs = h.active if move.silu else h.plain
            assert inputs is not None
            places = [into.pop(), into.pop()][::-1]
            reads = [value for value in (g, g_turned, inputs, h.turned) if value is not None]
            branch.run(functools.partial(_learned, g, g_turned, inputs, h.turned, places), *reads)
            if not moves and not self.layers.wanted:
                return None, self.layers.into
            weight = self.turned.pop()
            if move.joins:
                skipped.append(g)
            plus = skipped.pop() if move.splits else None
            g, g_turned = _taken_back(g, weight, h.plain, plus, silu=move.silu)
        return g, self.layers.into
