"""Which of many points is nearest."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["half_squared_lengths", "nearest"]

# So many distances at once are still in the cache when the least of them is looked for.
MAX_DISTANCES = 256_000
# The least of a group takes a quarter of the time that finding its place takes, so the place is looked for in the group
# with the least distance alone, where differences also settle what rounding leaves open.
GROUP = 8
# Up to so many rows are no narrow factor of a product; see `_rest`.
FEW_ROWS = 32
# So many groups make one of the groups among which the least is looked for.
GROUPS = 32
# Fewer numbers than this are gone through sooner than they are grouped.
MIN_GROUPED = 1 << 17


def half_squared_lengths(points: Tensor, counted: Tensor) -> Tensor:
    """Half the squared length of each point over the entries that ``counted`` is 1 for, shape (n_points,).

    Examples
    --------
    >>> half_squared_lengths(torch.tensor([[2.0, 4.0]]), torch.tensor([1.0, 0.0])).tolist()
    [2.0]
    """
    return (0.5 * points.square()) @ counted


def nearest(x: Tensor, points: Tensor, observed: Tensor | None = None, lengths: Tensor | None = None) -> Tensor:
    """Index of the point nearest to each row, by Euclidean distance over the observed entries.

    Parameters
    ----------
    x : Tensor of shape (n_rows, n_entries)
    points : Tensor of shape (n_points, n_entries)
    observed : Tensor of shape (n_rows, n_entries) or (n_entries,), optional
        1 for an entry that counts, else 0; then ``x`` is 0 there, too.
    lengths : Tensor of shape (n_points,), optional
        :func:`half_squared_lengths` over these entries, if they are the same for all rows and were computed before.

    Returns
    -------
    LongTensor of shape (n_rows,)

    Examples
    --------
    >>> nearest(torch.tensor([[0.9, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])).tolist()
    [1]
    """
    x = x.detach()
    counted = torch.ones_like(points[0]) if observed is None else observed
    if lengths is None and counted.ndim == 1:
        lengths = half_squared_lengths(points, counted)

    def rest(tile: slice) -> Tensor:
        # Half the squared distance, less half the squared length of x, which is the same for all points.
        constant = half_squared_lengths(points[tile], counted.T) if lengths is None else lengths[tile, None]
        return _rest(constant, points[tile], x)

    if len(x) <= FEW_ROWS:
        # The place of the least of all at once, as distances from a row lie beside each other here.
        best = rest(slice(None)).argmin(dim=0) // GROUP
    else:
        size = max(1, MAX_DISTANCES // len(x) // GROUP) * GROUP
        tiles = (slice(start, start + size) for start in range(0, len(points), size))
        best = _least_of_all(torch.cat([_grouped(rest(tile), GROUP).amin(dim=1) for tile in tiles]))
    members = (best[:, None] * GROUP + torch.arange(GROUP, device=x.device)).clamp(max=len(points) - 1)
    differences = (points[members] - x[:, None]) * counted.reshape(-1, 1, x.shape[1])
    nearest_member = differences.square().sum(dim=2).argmin(dim=1, keepdim=True)
    return members.gather(1, nearest_member).squeeze(1)


def _rest(constant: Tensor, points: Tensor, x: Tensor) -> Tensor:
    """``constant`` less the products of points and rows, shape (n_points, n_rows)."""
    if len(x) <= FEW_ROWS:
        # Four times as fast the other way round, and with the bits that many rows have: as the narrow factor they are
        # multiplied in another order, and of equally distant points another one is nearest.
        return torch.addmm(constant.T, x, points.T, alpha=-1.0).T
    return torch.addmm(constant, points, x.T, alpha=-1.0)


def _least_of_all(rest: Tensor) -> Tensor:
    """Row of the least of each column: first the ``GROUPS`` rows that hold it, for the same reason."""
    if rest.numel() <= MIN_GROUPED:
        return rest.argmin(dim=0)
    groups = _grouped(rest, GROUPS)
    best = groups.amin(dim=1).argmin(dim=0)
    columns = torch.arange(rest.shape[1], device=rest.device)
    return best * GROUPS + groups[best, :, columns].argmin(dim=1)


def _grouped(rest: Tensor, size: int) -> Tensor:
    """``size`` rows that follow each other, each time, shape (n_groups, size, n_columns); infinity at the end."""
    missing = -len(rest) % size
    whole = F.pad(rest, (0, 0, 0, missing), value=torch.inf) if missing else rest
    return whole.reshape(-1, size, rest.shape[1])
