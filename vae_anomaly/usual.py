"""Where the scores of normal samples usually lie."""

import torch
from torch import Tensor

__all__ = ["middle_and_excess", "upper_tail"]

# Share of normal samples below the tail that `upper_tail` measures.
BELOW_TAIL = 0.8


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


def upper_tail(scores: Tensor) -> Tensor:
    """Where the upper fifth begins, and the root mean square of what its scores exceed that by: shape (2,).

    What normal samples below do says little about how far out an anomaly is.

    Examples
    --------
    >>> upper_tail(torch.tensor([5.0, 0.0, 1.0, 2.0, 3.0])).tolist()
    [3.0, 2.0]
    """
    n = scores.shape[0]
    begin = max(min(int(BELOW_TAIL * n), n - 1) - 1, 0)
    ordered = scores.sort().values
    excess = (ordered[begin + 1 :] - ordered[begin]).square().sum() / max(n - begin - 1, 1)
    return torch.stack([ordered[begin], excess.sqrt().clamp(min=1e-6)])
