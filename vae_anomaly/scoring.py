"""Functions of a VAE on many rows: in blocks of one shape, by all members, holes filled where there are any."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_anomaly.ensemble import Ensemble, stacked
from vae_anomaly.memory import keep_freed_memory
from vae_anomaly.scratch import blocks
from vae_anomaly.vae import VAE
from vae_anomaly.workers import side_by_side

__all__ = ["IMPUTATION_STEPS", "SCORING_BATCH", "block_size", "by_blocks", "map_folds", "map_rows"]

# Rows are scored in blocks of this size, the last one padded: with one shape, the arithmetic of a row is the same
# whichever rows come with it.
SCORING_BATCH = 1024
# A few rows alone come in a smaller block, where that gives the same bits; tried the first time. In the smallest ones
# all members come at once.
SMALL_BATCHES = (8, 32, 128)
TOGETHER = (8, 32)
# Large images come in smaller blocks, whose size hangs on the width of a row alone. Some scores draw z 16 times for
# each row, for all members at once.
MAX_SCORING_ENTRIES = 500_000
# Passes that fill the holes of a row before it is scored; measured: 10 do what 30 do, 3 do not.
IMPUTATION_STEPS = 10

Floats = NDArray[np.float64]
RowFunction = Callable[..., Any]
"""``function(vae, x, eps)``: one result for each row of ``x``, or a tuple of such results."""

# What was found out about small blocks, by ensemble, function and whether rows have holes.
_SMALL: WeakKeyDictionary[Ensemble, dict[tuple[RowFunction, bool], tuple[int, ...]]] = WeakKeyDictionary()


def block_size(n_entries: int, n_parts: int = 1) -> int:
    """Rows of so many entries, each ``n_parts`` samples, that are scored together."""
    return max(1, min(SCORING_BATCH // n_parts, MAX_SCORING_ENTRIES // n_entries))


def by_blocks(
    function: Callable[[NDArray[np.float32]], NDArray[Any]],
    encoded: NDArray[np.float32],
    rows: NDArray[np.intp],
    n_parts: int = 1,
) -> NDArray[Any]:
    """``function`` of some rows, a part of them at a time: what is on disk need not fit into memory."""
    n_entries = encoded.shape[1]
    parts = list(blocks(len(rows), n_entries, multiple=block_size(n_entries, n_parts)))
    return np.concatenate([function(encoded[rows[part]]) for part in parts or [slice(0)]])


def _is_holed(encoded: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.asarray(np.isnan(encoded).any(axis=1))


def map_rows(
    ensemble: Ensemble,
    eps: Tensor,
    function: RowFunction,
    encoded: NDArray[np.float32],
    *,
    n_parts: int = 1,
    again: bool = False,
) -> Any:
    """``function`` of every encoded row, mean over the members; it sees each row as ``n_parts`` samples.

    A function that returns a tuple gives a tuple of arrays, each with the bits that it would have alone.

    ``again`` says that this very function will be asked for more often: then it pays to find out whether few rows can
    do with a small block.
    """
    holed = by_blocks(_is_holed, encoded, np.arange(len(encoded)))
    size = block_size(encoded.shape[1], n_parts)
    if again and 0 < len(encoded) <= SMALL_BATCHES[-1] and not (holed.any() and not holed.all()):
        alike = _small_batches(ensemble, eps, function, encoded.shape[1], holed=bool(holed.all()))
        small = next((small for small in alike if small >= len(encoded)), size)
        return _map_blocks(ensemble, eps, function, encoded, small, holed=bool(holed.all()), together=small in TOGETHER)
    if not holed.any():
        return _map_blocks(ensemble, eps, function, encoded, size, holed=False)
    # Imputation changes nothing for a complete row, so only the others pay for it.
    some = _map_blocks(ensemble, eps, function, encoded[holed], size, holed=True)
    if holed.all():
        return some
    others = _map_blocks(ensemble, eps, function, encoded[~holed], size, holed=False)
    if isinstance(some, tuple):
        return tuple(_merged(holed, *two) for two in zip(some, others, strict=True))
    return _merged(holed, some, others)


def _merged(chosen: NDArray[np.bool_], some: Floats, others: Floats) -> Floats:
    """Results of the chosen rows and of the others, in the order of the rows."""
    results = np.empty((len(chosen), *some.shape[1:]))
    results[chosen], results[~chosen] = some, others
    return results


def map_folds(
    ensemble: Ensemble, eps: Tensor, function: RowFunction, folds: NDArray[np.float32], *, n_parts: int = 1
) -> Any:
    """``function`` of rows of each member's own, shape (n_estimators, n_rows, n_entries): one result from each."""
    size = block_size(folds.shape[-1], n_parts)
    return _map_blocks(ensemble, eps, function, folds, size, holed=bool(np.isnan(folds).any()))


@torch.no_grad()
def _map_blocks(
    ensemble: Ensemble,
    eps: Tensor,
    function: RowFunction,
    encoded: NDArray[np.float32],
    size: int,
    *,
    holed: bool,
    together: bool = False,
) -> Any:
    keep_freed_memory()
    vae, device = ensemble.skeleton, ensemble.device
    eps, shared, n_rows = eps.to(device), encoded.ndim == 2, encoded.shape[-2]
    starts = range(0, n_rows, size)
    vae.imputation_steps, vae.complete = IMPUTATION_STEPS if holed else 0, not holed

    def kept(values: Any, start: int) -> Any:
        if isinstance(values, tuple):
            return tuple(kept(part, start) for part in values)
        values = values[:, : n_rows - start].double()
        return (values.mean(dim=0) if shared else values).cpu().numpy()

    @torch.no_grad()
    def whole(start: int) -> Any:
        x = _block(encoded, start, size).to(device)
        dims = (None if shared else 0, None)
        return kept(ensemble.map(function, x, eps, in_dims=dims, together=together), start)

    try:
        if device.type != "cpu" or together:
            results = list(map(whole, starts))
        elif len(starts) >= torch.get_num_threads():
            # With all that is done to its result, as the caller's operations would wait for these threads.
            results = list(side_by_side(whole, starts))
        else:
            few = [_block(encoded, start, size) for start in starts]
            results = list(map(kept, _by_members(ensemble.views(), eps, function, few), starts))
    finally:
        vae.imputation_steps, vae.complete = 0, False
    axis = 0 if shared else 1
    if isinstance(results[0], tuple):
        return tuple(np.concatenate(parts, axis=axis) for parts in zip(*results, strict=True))
    return np.concatenate(results, axis=axis)


def _by_members(members: Sequence[VAE], eps: Tensor, function: RowFunction, few: Sequence[Tensor]) -> Iterator[Any]:
    """``function`` of each of a few blocks by all members; what one member does with a block is a piece of its own."""

    @torch.no_grad()
    def one(piece: tuple[Tensor, int]) -> Any:
        x, member = piece
        return function(members[member], x if x.ndim == 2 else x[member], eps)

    results = side_by_side(one, itertools.product(few, range(len(members))))
    return (stacked(list(itertools.islice(results, len(members)))) for _ in few)


def _block(encoded: NDArray[np.float32], start: int, size: int) -> Tensor:
    """Rows from ``start`` on, ``size`` of them: where there are fewer, zeros follow."""
    block = encoded[..., start : start + size, :]
    missing = size - block.shape[-2]
    if missing:
        padding = np.zeros((*block.shape[:-2], missing, block.shape[-1]), dtype=np.float32)
        block = np.concatenate([block, padding], axis=-2)
    return torch.from_numpy(block if block.flags.writeable else block.copy())


def _small_batches(
    ensemble: Ensemble, eps: Tensor, function: RowFunction, n_entries: int, *, holed: bool
) -> tuple[int, ...]:
    """Sizes of blocks in which this function gives the very bits that it gives in a block of the usual size.

    Which ones these are depends on the processor and on the libraries: they may multiply few rows in another order, or
    work on the ends of an array element by element. So it is tried, once, with rows that leave no bit to chance; among
    them such as lie between two samples that the model keeps, where the last bit of a distance says which is nearer.
    """
    known = _SMALL.setdefault(ensemble, {})
    if (function, holed) not in known:
        usual = block_size(n_entries)
        rng = np.random.default_rng(0)
        rows = rng.normal(size=(min(SMALL_BATCHES[-1], usual), n_entries)).astype(np.float32)
        between = _between_samples(ensemble, len(rows) // 2)
        rows[: len(between)] = between
        if holed:
            rows[rng.random(rows.shape) < 0.5] = np.nan
        wanted = _map_blocks(ensemble, eps, function, rows, usual, holed=holed)

        def found(size: int) -> Any:
            return _map_blocks(ensemble, eps, function, rows, size, holed=holed, together=size in TOGETHER)

        known[function, holed] = tuple(
            size for size in SMALL_BATCHES if size < usual and np.array_equal(found(size), wanted, equal_nan=True)
        )
    return known[function, holed]


def _between_samples(ensemble: Ensemble, n: int) -> NDArray[np.float32]:
    """Points halfway between samples that the first member keeps and those nearest to them, ``n`` at most."""
    samples = ensemble.buffers["exemplars"][0].flatten(1)
    distances = torch.cdist(samples[:n], samples)
    # A sample is no neighbour of its own.
    distances.fill_diagonal_(torch.inf)
    between: NDArray[np.float32] = (0.5 * (samples[:n] + samples[distances.argmin(dim=1)])).cpu().numpy()
    return between
