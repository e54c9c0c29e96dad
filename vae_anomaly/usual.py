"""Where the scores of normal samples usually lie."""

import torch
from torch import Tensor

__all__ = ["middle_and_excess"]


def middle_and_excess(scores: Tensor, *, least: float = 1e-6) -> Tensor:
    """Median, and by how much the scores above it exceed it on average, ``least`` at least: shape (2,).

    Examples
    --------
    >>> middle_and_excess(torch.tensor([0.0, 3.0, 1.0, 2.0])).tolist()
    [2.0, 0.5]
    """
    # torch.quantile has no rule for vmap.
    middle = scores.sort().values[scores.shape[0] // 2]
    excess = (scores - middle).clamp(min=0.0).sum() / max(scores.shape[0] // 2, 1)
    return torch.stack([middle, excess.clamp(min=least)])
