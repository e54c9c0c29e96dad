"""Functions of a VAE on many rows: in blocks of one shape, by all members, holes filled where there are any."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vae_anomaly.ensemble import Ensemble, each, stacked
from vae_anomaly.memory import as_tensor, fits, keep_freed_memory
from vae_anomaly.products import multiplied
from vae_anomaly.replay import lent_stream, shared_stream
from vae_anomaly.replayed_blocks import blocks_of
from vae_anomaly.scratch import blocks
from vae_anomaly.vae import VAE
from vae_anomaly.workers import side_by_side

__all__ = ["IMPUTATION_STEPS", "SCORING_BATCH", "block_size", "by_blocks", "has_holes", "map_folds", "map_rows"]

# Rows are scored in blocks of this size, the last one padded: with one shape, the arithmetic of a row is the same
# whichever rows come with it.
SCORING_BATCH = 1024
# What is done to a row by a light function takes no longer than Python takes to ask for it, for fewer rows.
LIGHT_BATCH = 2048
# A GPU takes as long for a block of these sizes as for one of so many times as many rows.
GPU_TIMES = 8
# A few rows alone come in a smaller block, where that gives the same bits; tried the second time that few come, as many
# come once, and it takes as long as three or four whole blocks. In the smallest ones all members come at once.
SMALL_BATCHES = (4, 8, 32, 128)
TOGETHER = (4, 8, 32)
# How many of each size are tried.
TRIALS = 8
# More blocks of them cost as much as a whole one.
MAX_SMALL = 4
# Large images come in smaller blocks, whose size hangs on the width of a row alone. Some scores draw z 16 times for
# each row, for all members at once.
MAX_SCORING_ENTRIES = 500_000
# Passes that fill the holes of a row before it is scored; measured: 10 do what 30 do, 3 do not.
IMPUTATION_STEPS = 10

Floats = NDArray[np.float64]
RowFunction = Callable[..., Any]
"""``function(vae, x, eps)``: one result for each row of ``x``, or a tuple of such results."""

# What was found out about small blocks, by ensemble, function, whether rows have holes, and number of threads; None
# where few rows came once.
_SMALL: WeakKeyDictionary[Ensemble, dict[tuple[RowFunction, bool, int], tuple[int, ...] | None]] = WeakKeyDictionary()


def block_size(
    n_entries: int, n_parts: int = 1, device: torch.device | None = None, function: RowFunction | None = None
) -> int:
    """Rows of so many entries, each ``n_parts`` samples, that are scored together; on a CPU if none is named."""
    most = LIGHT_BATCH if getattr(function, "light", False) else SCORING_BATCH
    if device is not None and device.type == "cuda":
        most *= GPU_TIMES
    return max(1, min(most // n_parts, MAX_SCORING_ENTRIES // n_entries))


def by_blocks(
    function: Callable[[NDArray[np.float32]], NDArray[Any]],
    encoded: NDArray[np.float32],
    rows: NDArray[np.intp] | None = None,
    n_parts: int = 1,
) -> NDArray[Any]:
    """``function`` of some rows, or of all, a part of them at a time: what is on disk need not fit into memory."""
    n_rows, n_entries = len(encoded) if rows is None else len(rows), encoded.shape[1]
    parts = list(blocks(n_rows, n_entries, multiple=block_size(n_entries, n_parts))) or [slice(0)]
    return np.concatenate([function(encoded[part if rows is None else rows[part]]) for part in parts])


def has_holes(encoded: NDArray[np.float32]) -> bool:
    """Whether an entry is missing, in a tenth of the time that it takes to say which."""
    return bool(encoded.size and np.isnan(encoded.min()))


def _is_holed(encoded: NDArray[np.float32]) -> NDArray[np.bool_]:
    if not has_holes(encoded):
        return np.zeros(len(encoded), dtype=bool)
    return np.asarray(np.isnan(encoded).any(axis=1))


def map_rows(
    ensemble: Ensemble,
    eps: Tensor,
    function: RowFunction,
    encoded: NDArray[np.float32],
    *,
    n_parts: int = 1,
    again: bool = False,
    at_once: int | None = None,
) -> Any:
    """``function`` of every encoded row, mean over the members; it sees each row as ``n_parts`` samples.

    A function that returns a tuple gives a tuple of arrays, each with the bits that it would have alone.

    ``again`` says that this very function will be asked for more often: then it pays to find out whether few rows, and
    those that are left over when blocks are full, can do with small blocks, and a GPU may record what a block takes.
    ``at_once`` names fewer rows than usual for a block; bits then hang on it.
    """
    holed = by_blocks(_is_holed, encoded)
    size = block_size(encoded.shape[1], n_parts, ensemble.device, function)
    size = min(size, at_once or size)

    def of(rows: NDArray[np.float32], *, holed: bool) -> Any:
        few = 0 < len(rows) % size <= MAX_SMALL * SMALL_BATCHES[-1]
        tried = again and few and ensemble.device.type == "cpu"
        small = _small_batches(ensemble, eps, function, rows.shape[1], holed=holed) if tried else ()
        blocks = _spans(len(rows), size, small)
        together = len(blocks) == 1 and blocks[0].size in small and blocks[0].size in TOGETHER
        return _map_blocks(ensemble, eps, function, rows, blocks, holed=holed, together=together, again=again)

    if not holed.any():
        return of(encoded, holed=False)
    # Imputation changes nothing for a complete row, so only the others pay for it.
    some = of(encoded[holed], holed=True)
    if holed.all():
        return some
    others = of(encoded[~holed], holed=False)
    if isinstance(some, tuple):
        return tuple(_merged(holed, *two) for two in zip(some, others, strict=True))
    return _merged(holed, some, others)


def _merged(chosen: NDArray[np.bool_], some: Floats, others: Floats) -> Floats:
    """Results of the chosen rows and of the others, in the order of the rows."""
    results = np.empty((len(chosen), *some.shape[1:]))
    results[chosen], results[~chosen] = some, others
    return results


def map_folds(
    ensemble: Ensemble,
    eps: Tensor,
    function: RowFunction,
    folds: NDArray[np.float32],
    *,
    n_parts: int = 1,
    at_once: int | None = None,
) -> Any:
    """``function`` of rows of each member's own, shape (n_estimators, n_rows, n_entries): one result from each."""
    size = block_size(folds.shape[-1], n_parts, ensemble.device, function)
    blocks = _spans(folds.shape[-2], min(size, at_once or size))
    return _map_blocks(ensemble, eps, function, folds, blocks, holed=has_holes(folds))


class _Span(NamedTuple):
    """Rows of a block; where there are fewer, it is padded to ``size``."""

    start: int
    size: int


def _spans(n_rows: int, size: int, small: Sequence[int] = ()) -> list[_Span]:
    """Blocks of ``size`` rows; those left over come in the ``small`` one that holds them, or in some of the largest."""
    full = n_rows // size * size
    if not small or n_rows - full > MAX_SMALL * small[-1]:
        return [_Span(start, size) for start in range(0, n_rows, size)]
    fitting = next((one for one in small if one >= n_rows - full), small[-1])
    return [*_spans(full, size), *(_Span(start, fitting) for start in range(full, n_rows, fitting))]


@torch.no_grad()
def _map_blocks(
    ensemble: Ensemble,
    eps: Tensor,
    function: RowFunction,
    encoded: NDArray[np.float32],
    spans: Sequence[_Span],
    *,
    holed: bool,
    together: bool = False,
    again: bool = False,
) -> Any:
    keep_freed_memory()
    ensemble, device = ensemble.told(complete=not holed, imputation_steps=IMPUTATION_STEPS * holed), ensemble.device
    shared, n_rows = encoded.ndim == 2, encoded.shape[-2]
    axis = 0 if shared else 1

    @torch.no_grad()
    def whole(x: Tensor, eps: Tensor) -> Any:
        found = ensemble.map(function, x, eps, in_dims=(None if shared else 0, None), together=together)
        return _joined(found, shared=shared)

    def kept(values: Any, span: _Span) -> Any:
        rows = slice(n_rows - span.start)
        return each(lambda part: part[rows] if shared else part[:, rows], values)

    def alone(span: _Span) -> Any:
        return kept(whole(_block(encoded, span).to(device), eps), span)

    if device.type == "cuda":
        with lent_stream(device) as copies:
            with _on_gpu(encoded, device, copies) as rows:
                if again and ensemble.runs_as_one(function):
                    one = functools.partial(blocks_of(ensemble, (function, shared, spans[0].size), eps), whole)
                else:
                    # What is kept for a function that nobody asks for again would be kept for ever, and others may wait
                    # for what they compute.
                    one = functools.partial(whole, eps=eps.to(device))
                # It is not waited for before it has been told of all blocks.
                found = _in_a_row([kept(one(_block(rows, span).to(device)), span) for span in spans], axis)
            with torch.cuda.stream(copies):
                return _to_numpy(found)
    if device.type != "cpu" or together:
        eps = eps.to(device)
        with multiplied(device):
            results = list(map(alone, spans))
    elif len(spans) >= torch.get_num_threads():
        # With all that is done to its result, as the caller's operations would wait for these threads.
        results = list(side_by_side(alone, spans))
    else:
        few = [_block(encoded, span) for span in spans]
        by_members = _by_members(ensemble.views(), eps, function, few)
        results = [kept(_joined(values, shared=shared), span) for values, span in zip(by_members, spans, strict=True)]
    return _to_numpy(_in_a_row(results, axis))


def _joined(values: Any, *, shared: bool) -> Any:
    """Means of what all members found, where they saw the same rows."""
    return each(lambda part: part.double().mean(dim=0) if shared else part.double(), values)


def _in_a_row(results: Sequence[Any], axis: int) -> Any:
    """Results of blocks as one, or as one for each part of them."""
    if isinstance(results[0], tuple):
        return tuple(torch.cat(parts, dim=axis) for parts in zip(*results, strict=True))
    return torch.cat(list(results), dim=axis)


def _to_numpy(results: Any) -> Any:
    return each(lambda part: part.cpu().numpy(), results)


def _by_members(members: Sequence[VAE], eps: Tensor, function: RowFunction, few: Sequence[Tensor]) -> Iterator[Any]:
    """``function`` of each of a few blocks by all members; what one member does with a block is a piece of its own."""

    @torch.no_grad()
    def one(piece: tuple[Tensor, int]) -> Any:
        x, member = piece
        return function(members[member], x if x.ndim == 2 else x[member], eps)

    results = side_by_side(one, itertools.product(few, range(len(members))))
    return (stacked(list(itertools.islice(results, len(members)))) for _ in few)


@contextmanager
def _on_gpu(
    encoded: NDArray[np.float32], device: torch.device, copies: torch.cuda.Stream
) -> Iterator[NDArray[np.float32] | Tensor]:
    """All rows, if they fit, in the stream that threads share, of which it is this one's turn.

    A copy waits until a stream is through with all that it has been told before, so rows come by another one, and what
    is found is to leave by it.
    """
    usual, shared = torch.cuda.current_stream(device), shared_stream(device)
    with torch.cuda.stream(copies):
        rows = as_tensor(encoded).to(device) if fits(encoded.nbytes, device) else encoded
    with multiplied(device), torch.cuda.stream(shared):
        shared.wait_stream(usual)
        shared.wait_stream(copies)
        try:
            yield rows
        finally:
            copies.wait_stream(shared)


def _block(encoded: NDArray[np.float32] | Tensor, span: _Span) -> Tensor:
    """The rows of a block: where there are fewer, zeros follow."""
    block = encoded[..., span.start : span.start + span.size, :]
    missing = span.size - block.shape[-2]
    if isinstance(block, Tensor):
        return F.pad(block, (0, 0, 0, missing))
    if missing:
        padding = np.zeros((*block.shape[:-2], missing, block.shape[-1]), dtype=np.float32)
        block = np.concatenate([block, padding], axis=-2)
    return as_tensor(block)


def _small_batches(
    ensemble: Ensemble, eps: Tensor, function: RowFunction, n_entries: int, *, holed: bool
) -> tuple[int, ...]:
    """Sizes of blocks in which this function gives the very bits that it gives in a block of the usual size.

    Which ones these are depends on the processor and on the libraries: they may multiply few rows in another order, or
    work on the ends of an array element by element. So it is tried, with rows that leave no bit to chance; among them
    such as lie between two samples that the model keeps, where the last bit of a distance says which is nearer. The
    first time there are none.
    """
    known, asked = _SMALL.setdefault(ensemble, {}), (function, holed, torch.get_num_threads())
    if asked not in known:
        known[asked] = None
        return ()
    if known[asked] is None:
        usual = block_size(n_entries, function=function)
        rng = np.random.default_rng(0)
        rows = rng.normal(size=(min(SMALL_BATCHES[-1], usual), n_entries)).astype(np.float32)
        between = _between_samples(ensemble, len(rows) // 2)
        rows[: len(between)] = between
        if holed:
            rows[rng.random(rows.shape) < 0.5] = np.nan

        def found(some: NDArray[np.float32], size: int) -> Any:
            blocks, together = _spans(len(some), size), size < usual and size in TOGETHER
            return _map_blocks(ensemble, eps, function, some, blocks, holed=holed, together=together)

        def works(size: int) -> bool:
            every = math.ceil(len(rows) / (TRIALS * size))
            return _same(found(np.ascontiguousarray(rows[::every]), size), _every(wanted, every))

        wanted = found(rows, usual)
        known[asked] = tuple(size for size in SMALL_BATCHES if size < usual and works(size))
    return known[asked] or ()


def _every(found: Any, step: int) -> Any:
    """Results of every so many rows."""
    return each(lambda part: part[::step], found)


def _same(found: Any, wanted: Any) -> bool:
    """Whether all bits are the same."""
    if isinstance(wanted, tuple):
        return all(itertools.starmap(_same, zip(found, wanted, strict=True)))
    return np.array_equal(found, wanted, equal_nan=True)


def _between_samples(ensemble: Ensemble, n: int) -> NDArray[np.float32]:
    """Points halfway between samples that the first member keeps and those nearest to them, ``n`` at most."""
    samples = ensemble.buffers["exemplars"][0].flatten(1)
    distances = torch.cdist(samples[:n], samples)
    # A sample is no neighbour of its own.
    distances.fill_diagonal_(torch.inf)
    between: NDArray[np.float32] = (0.5 * (samples[:n] + samples[distances.argmin(dim=1)])).cpu().numpy()
    return between
