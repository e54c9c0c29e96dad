"""From the patches of an image to the image: one score of many, and pixels from the places of a grid."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["on_pixels", "place_codes", "rank_weights", "summarised"]

# The share of the patches that a defect has to fill to be seen whole.
TOP_SHARE = 0.01
# Beyond that share, weights fall with this power of the rank.
DECAY = 3.0

RowFunction = Callable[..., Tensor]


def rank_weights(n_patches: int, *, n_whole: float | None = None) -> Tensor:
    """Weight of the highest score, of the second highest, and so on; they sum to one.

    They fall slowly over the top hundredth of the patches, and fast beyond: a defect is small, and among a thousand
    normal patches the highest score alone is noise. None is zero, so that a map of what patches contribute ranks all.
    With ``n_whole``, it is the top hundredth of so many patches.

    Examples
    --------
    >>> [round(float(weight), 2) for weight in rank_weights(4)]
    [0.85, 0.11, 0.03, 0.01]
    """
    scale = max(1.0, TOP_SHARE * (n_patches if n_whole is None else n_whole))
    weights = (1.0 + torch.arange(n_patches, dtype=torch.float64) / scale) ** -DECAY
    return (weights / weights.sum()).float()


def summarised(scores: Tensor, *, n_whole: float | None = None) -> tuple[Tensor, Tensor]:
    """Score of each image, and what each of its patches contributes to it, from scores of shape (n, n_patches).

    The score is the mean of those of the patches, weighted by their rank. All patches contribute alike to what the
    lowest of them has, and each its part of what it has beyond: so they contribute in the order of their scores.
    ``n_whole`` is that of :func:`rank_weights`.
    """
    n_patches = scores.shape[1]
    lowest = scores.min(dim=1, keepdim=True).values
    order = scores.argsort(dim=1, descending=True, stable=True)
    excess = rank_weights(n_patches, n_whole=n_whole).to(scores) * (scores.gather(1, order) - lowest)
    parts = torch.zeros_like(scores).scatter(1, order, excess) + lowest / n_patches
    return parts.sum(dim=1), parts


def place_codes(rows: int, columns: int) -> NDArray[np.float32]:
    """Where each place of a grid is, shape (rows, columns, 4): cosines of a half and a whole turn along each axis.

    They change smoothly, lie in [-1, 1] whatever the size, and no two places share all four.

    Examples
    --------
    >>> place_codes(2, 2).shape
    (2, 2, 4)
    """
    turns = [np.pi * (np.arange(n) + 0.5) / n for n in (rows, columns)]
    y, x = (np.stack([np.cos(turn), np.cos(2 * turn)], axis=-1) for turn in turns)
    both = np.broadcast_arrays(y[:, None], x[None])
    codes: NDArray[np.float32] = np.concatenate(both, axis=-1).astype(np.float32)
    return codes


def on_pixels(parts: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """What falls to each pixel, shape (n, height, width), of what the places of a grid contribute; sums stay the same.

    Each place spreads its part over the pixels around its middle, with weights that fall linearly to its neighbours'.
    """
    rows, columns = (_spread(n, side) for n, side in zip(parts.shape[1:], (height, width), strict=True))
    return np.asarray(rows @ parts @ columns.T)


def _spread(n_places: int, n_pixels: int) -> NDArray[np.float64]:
    """Share of each place that falls to each pixel along one axis, shape (n_pixels, n_places); columns sum to one."""
    middles = (np.arange(n_places) + 0.5) * n_pixels / n_places
    distances = np.abs(np.arange(n_pixels)[:, None] + 0.5 - middles) * n_places / n_pixels
    weights = np.maximum(1.0 - distances, 1e-9)
    return np.asarray(weights / weights.sum(axis=0))
