"""Which of many points is nearest."""

import torch
from torch import Tensor

__all__ = ["nearest"]

# So many distances at once are still in the cache when the least of them is looked for.
MAX_DISTANCES = 256_000


def nearest(x: Tensor, points: Tensor, observed: Tensor | None = None) -> Tensor:
    """Index of the point nearest to each row, by Euclidean distance over the observed entries.

    Parameters
    ----------
    x : Tensor of shape (n_rows, n_entries)
    points : Tensor of shape (n_points, n_entries)
    observed : Tensor of shape (n_rows, n_entries), optional
        1 where ``x`` has a value; then ``x`` is 0 elsewhere.

    Returns
    -------
    LongTensor of shape (n_rows,)

    Examples
    --------
    >>> nearest(torch.tensor([[0.9, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])).tolist()
    [1]
    """
    x, half_squares = x.detach(), 0.5 * points.square()
    lengths = half_squares.sum(dim=1)
    size = max(1, MAX_DISTANCES // len(x))
    least, index = [], []
    for start in range(0, len(points), size):
        tile = slice(start, start + size)
        # Half the squared distance, less half the squared length of x, which is the same for all points.
        if observed is None:
            rest = torch.addmm(lengths[tile], x, points[tile].T, alpha=-1.0)
        else:
            rest = torch.addmm(observed @ half_squares[tile].T, x, points[tile].T, alpha=-1.0)
        values, places = rest.min(dim=1)
        least.append(values)
        index.append(places + start)
    best = torch.stack(least).argmin(dim=0, keepdim=True)
    return torch.stack(index).gather(0, best).squeeze(0)
