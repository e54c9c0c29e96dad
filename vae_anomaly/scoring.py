"""Functions of a VAE on many rows: in blocks of one shape, by all members, holes filled where there are any."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_anomaly.ensemble import Ensemble
from vae_anomaly.scratch import blocks

__all__ = ["IMPUTATION_STEPS", "SCORING_BATCH", "block_size", "by_blocks", "map_folds", "map_rows"]

# Rows are scored in blocks of this size, the last one padded: with one shape, the arithmetic of a row is the same
# whichever rows come with it.
SCORING_BATCH = 512
# Large images come in smaller blocks, whose size hangs on the width of a row alone. Some scores draw z 16 times for
# each row, for all members at once.
MAX_SCORING_ENTRIES = 500_000
# Passes that fill the holes of a row before it is scored; measured: 10 do what 30 do, 3 do not.
IMPUTATION_STEPS = 10

Floats = NDArray[np.float64]
RowFunction = Callable[..., Tensor]
"""``function(vae, x, eps)``: one result for each row of ``x``."""


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
    ensemble: Ensemble, eps: Tensor, function: RowFunction, encoded: NDArray[np.float32], *, n_parts: int = 1
) -> Floats:
    """``function`` of every encoded row, mean over the members; it sees each row as ``n_parts`` samples."""
    holed = by_blocks(_is_holed, encoded, np.arange(len(encoded)))
    if not holed.any():
        return _map_blocks(ensemble, eps, function, encoded, n_parts, imputation_steps=0)
    # Imputation changes nothing for a complete row, so only the others pay for it.
    some = _map_blocks(ensemble, eps, function, encoded[holed], n_parts, imputation_steps=IMPUTATION_STEPS)
    results = np.empty((len(encoded), *some.shape[1:]))
    results[holed] = some
    if not holed.all():
        results[~holed] = _map_blocks(ensemble, eps, function, encoded[~holed], n_parts, imputation_steps=0)
    return results


def map_folds(
    ensemble: Ensemble, eps: Tensor, function: RowFunction, folds: NDArray[np.float32], *, n_parts: int = 1
) -> Floats:
    """``function`` of rows of each member's own, shape (n_estimators, n_rows, n_entries): one result from each."""
    steps = IMPUTATION_STEPS if np.isnan(folds).any() else 0
    return _map_blocks(ensemble, eps, function, folds, n_parts, imputation_steps=steps)


def _map_blocks(
    ensemble: Ensemble,
    eps: Tensor,
    function: RowFunction,
    encoded: NDArray[np.float32],
    n_parts: int,
    *,
    imputation_steps: int,
) -> Floats:
    device = ensemble.device
    eps = eps.to(device)
    results = []
    ensemble.skeleton.imputation_steps = imputation_steps
    shared = encoded.ndim == 2
    size = block_size(encoded.shape[-1], n_parts)
    for start in range(0, encoded.shape[-2], size):
        block = encoded[..., start : start + size, :]
        n_rows = block.shape[-2]
        padded = np.zeros((*block.shape[:-2], size, block.shape[-1]), dtype=np.float32)
        padded[..., :n_rows, :] = block
        with torch.no_grad():
            x = torch.from_numpy(padded).to(device)
            values = ensemble.map(function, x, eps, in_dims=(None if shared else 0, None))
        kept = values[:, :n_rows].double()
        results.append((kept.mean(dim=0) if shared else kept).cpu().numpy())
    return np.concatenate(results, axis=0 if shared else 1)
