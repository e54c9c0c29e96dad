"""Which of many points is nearest."""

import functools
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_anomaly.kernels import works
from vae_anomaly.streaming import rows_of

__all__ = ["half_squared_lengths", "nearest", "taken"]

# So many distances at once are still in the cache when the least of them is looked for.
MAX_DISTANCES = 512_000
# Enough to keep a GPU busy, few enough for a small one's memory, for each of the members.
MAX_DISTANCES_AT_ONCE = 16_000_000
# A GPU keeps none but the least where rows have so few entries. Triton compiles for a second, once: fewer distances are
# not worth it.
MAX_FUSED = 64
MIN_FUSED = 1 << 24
# The least of a group takes a quarter of the time that finding its place takes, so the place is looked for in the group
# with the least distance alone, where differences also settle what rounding leaves open.
GROUP = 8
# Up to so many rows are no narrow factor of a product; see `_row_by_row`.
FEW_ROWS = 32
# With up to so many entries, a product of a thousand rows takes twice as long as two of half of them.
FEW_ENTRIES = 8
# Rows come in multiples of so many then, as many as leave the least distances of their groups in the cache.
ROWS = 256
MAX_LEAST = 320_000
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

    All arguments may have a first axis over several searches; ``observed`` then has one over the rows, too, and
    ``lengths`` one of length 1 before that over the points.

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
    x, n_points = x.detach(), points.shape[-2]
    counted = torch.ones_like(points[0]) if observed is None else observed
    if lengths is None and counted.ndim == 1:
        lengths = half_squared_lengths(points, counted)
    if x.device.type == "cuda" and _is_fused(x, points, holed=lengths is None):
        from vae_anomaly.kernels.search import fused_nearest

        return fused_nearest(x, points, counted, lengths, GROUP)
    if x.device.type == "cuda":
        best = _nearest_on_gpu(x, points, counted, lengths) // GROUP
    elif x.shape[-2] <= FEW_ROWS:
        best = _nearest_at_once(x, points, counted, lengths) // GROUP
    else:
        best = _nearest_group(x, points, counted, lengths)
    members = (best[..., None] * GROUP + torch.arange(GROUP, device=x.device)).clamp(max=n_points - 1)
    if counted.ndim > 1:
        counted = counted.unsqueeze(-2)
    # In the memory of what was taken: of wide rows, fresh memory takes longer than the arithmetic.
    differences = taken(points, members).sub_(x.unsqueeze(-2)).mul_(counted)
    nearest_member = differences.mul_(differences).sum(dim=-1).argmin(dim=-1, keepdim=True)
    return members.gather(-1, nearest_member).squeeze(-1)


def taken(points: Tensor, places: Tensor) -> Tensor:
    """Points at these places, shape (\\*places.shape, n_entries); with a first axis over several searches or without.

    Examples
    --------
    >>> points = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    >>> taken(points[0], torch.tensor([1])).tolist(), taken(points, torch.tensor([[1], [0]])).tolist()
    ([[2.0]], [[[2.0]], [[3.0]]])
    """
    if points.ndim == 2:
        return rows_of(points, places)
    own = torch.arange(len(points), device=points.device)
    return points[own.reshape(-1, *(1 for _ in places.shape[1:])), places]


def _is_fused(x: Tensor, points: Tensor, *, holed: bool) -> bool:
    (n_rows, n_entries), n_points = x.shape[-2:], points.shape[-2]
    return n_entries <= MAX_FUSED and n_rows * n_points >= MIN_FUSED and _fuses(x.device, n_entries, holed)


@functools.cache
def _fuses(device: torch.device, n_entries: int, holed: bool) -> bool:
    """Whether the program can be made for this GPU, and such rows."""
    row = torch.zeros(1, n_entries, device=device)

    def trial() -> None:
        from vae_anomaly.kernels.search import fused_nearest

        fused_nearest(row, row, row, None if holed else row[:, 0], GROUP)

    return works(trial)


def _nearest_on_gpu(x: Tensor, points: Tensor, counted: Tensor, lengths: Tensor | None) -> Tensor:
    """The place of the least distance, which a GPU finds as fast as it finds what stands there.

    Half the squared lengths come as one more entry, or more, of the product: as what it begins with, they would have to
    be written out for each row first, which takes as long as the product.
    """
    if lengths is None:
        left, right = [x, counted.expand_as(x)], [-points, 0.5 * points.square()]
    else:
        left, right = [x, torch.ones_like(x[..., :1])], [-points, lengths.reshape(*points.shape[:-1], 1)]
    rows, columns = torch.cat(left, dim=-1), torch.cat(right, dim=-1).mT
    size = max(1, MAX_DISTANCES_AT_ONCE // points.shape[-2])
    found = [(part @ columns).argmin(dim=-1) for part in torch.split(rows, size, dim=-2)]
    return found[0] if len(found) == 1 else torch.cat(found, dim=-1)


def _nearest_at_once(x: Tensor, points: Tensor, counted: Tensor, lengths: Tensor | None) -> Tensor:
    """The place of the least of all, as the distances from a row lie beside each other."""
    constant = counted @ (0.5 * points.square()).mT if lengths is None else lengths
    return _row_by_row(constant, points, x).argmin(dim=-1)


def _row_by_row(constant: Tensor, points: Tensor, x: Tensor) -> Tensor:
    """Half the squared distance, less half the squared length of x: ``constant`` less products, (n_rows, n_points).

    For few rows four times as fast as the other way round, and with the bits that many rows have: as the narrow factor
    they are multiplied in another order, and of equally distant points another one is nearest.
    """
    if x.ndim == 3:
        return torch.baddbmm(constant, x, points.mT, alpha=-1.0)
    return torch.addmm(constant, x, points.mT, alpha=-1.0)


def _nearest_group(x: Tensor, points: Tensor, counted: Tensor, lengths: Tensor | None) -> Tensor:
    """The group of ``GROUP`` points that holds the nearest one; of few entries, for some of the rows at a time."""
    if x.shape[1] > FEW_ENTRIES:
        return _by_tiles(x, points, counted, lengths)
    size = max(ROWS, MAX_LEAST * GROUP // len(points) // ROWS * ROWS)
    seen = torch.split(counted, size) if counted.ndim > 1 else itertools.repeat(counted)
    pairs = zip(torch.split(x, size), seen, strict=False)
    found = [_by_tiles(part, points, own, lengths) for part, own in pairs]
    return found[0] if len(found) == 1 else torch.cat(found)


def _by_tiles(x: Tensor, points: Tensor, counted: Tensor, lengths: Tensor | None) -> Tensor:
    """The same of rows that come together, tile after tile of the points."""

    def least_of(start: int) -> Tensor:
        # Of the same difference, (n_points, n_rows).
        tile = slice(start * GROUP, (start + size) * GROUP)
        constant = half_squared_lengths(points[tile], counted.T) if lengths is None else lengths[tile, None]
        return _grouped(torch.addmm(constant, points[tile], x.T, alpha=-1.0), GROUP).amin(dim=1)

    size, n_groups = max(1, MAX_DISTANCES // len(x) // GROUP), -(-len(points) // GROUP)
    first = least_of(0)
    # A list that is joined and then padded would be there three times. Under vmap, it has to be made of what it holds.
    least = first.new_full((n_groups + -n_groups % GROUPS, len(x)), torch.inf)
    least[: len(first)] = first
    for start in range(size, n_groups, size):
        least[start : min(start + size, n_groups)] = least_of(start)
    return _least_of_all(least)


def _least_of_all(least: Tensor) -> Tensor:
    """Row of the least of each column: first the ``GROUPS`` rows that hold it, for the same reason."""
    if least.numel() <= MIN_GROUPED:
        return least.argmin(dim=0)
    groups = _grouped(least, GROUPS)
    best = groups.amin(dim=1).argmin(dim=0)
    columns = torch.arange(least.shape[1], device=least.device)
    return best * GROUPS + groups[best, :, columns].argmin(dim=1)


def _grouped(rest: Tensor, size: int) -> Tensor:
    """``size`` rows that follow each other, each time, shape (n_groups, size, n_columns); infinity at the end."""
    missing = -len(rest) % size
    whole = F.pad(rest, (0, 0, 0, missing), value=torch.inf) if missing else rest
    return whole.reshape(-1, size, rest.shape[1])
