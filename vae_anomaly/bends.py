"""Piecewise linear maps of many columns at once."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["PiecewiseLinear"]

Floats = NDArray[np.float64]

# Cells of equal width between the first and the last knot of a column, by which a value's place is looked up; most hold
# one knot or none. Of many columns, fewer.
MAX_CELLS, MIN_CELLS = 2048, 64
MAX_CELLS_IN_ALL = 1 << 20
# Places are sound by the way that they are found; NumPy takes half as long again to say so.
UNCHECKED: Final = "clip"


class PiecewiseLinear:
    """What ``numpy.interp`` gives, bit for bit, for a map of each column; 0 for a column without knots.

    A search that halves what is left of the knots goes one way or the other with each value, which processors can't
    foresee: it takes four times as long as these steps, which are the same for all values.

    Parameters
    ----------
    knots, values : sequence of sequence of float
        Of each column, in ascending order; the map is constant beyond them.

    Examples
    --------
    >>> maps = PiecewiseLinear([[0.0, 1.0, 3.0], []], [[0.0, 2.0, 0.0], []])
    >>> maps(np.array([[0.25, 7.0], [2.0, 7.0], [9.0, 7.0]])).tolist()
    [[0.5, 0.0], [1.0, 0.0], [0.0, 0.0]]
    """

    def __init__(self, knots: Sequence[Sequence[float]], values: Sequence[Sequence[float]]) -> None:
        pairs = zip(knots, values, strict=True)
        self._maps = [(np.array(own, dtype=float), np.array(at, dtype=float)) for own, at in pairs]
        self._n_cells = max(MIN_CELLS, min(MAX_CELLS, MAX_CELLS_IN_ALL // max(1, len(knots))))
        self._first, self._per_unit = self._grid()
        counts = np.zeros((len(knots), self._n_cells), dtype=np.intp)
        for column, (own, _) in enumerate(self._maps):
            counts[column] = np.bincount(self._cells(own, column), minlength=self._n_cells)
        fullest = int(counts.max(initial=0))
        # Halves of the fullest cell, largest first.
        self._strides = [2**power for power in reversed(range(fullest.bit_length()))]
        # Whatever the strides add up to, the knots that they lead to are those of the same column, or infinite.
        width = 2 + max(map(len, knots), default=0) + fullest * 2
        starts, self._cell_starts = (np.arange(len(knots)) * size for size in (width, self._n_cells))
        self._before = (counts.cumsum(axis=1) - counts + starts[:, None]).ravel()
        self._fill_tables(width)

    def _fill_tables(self, width: int) -> None:
        """Knots, and by the place of a value, 0 before the first knot and 1 behind it: slope, and where it starts."""
        shape = len(self._maps), width
        self._knots = np.full(shape, np.inf)
        self._slope, self._left, self._below = (np.zeros(shape) for _ in range(3))
        # Where a slope or a gap is infinite, sums need cases of their own.
        self.plain = True
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            for column, (own, at) in enumerate(self._maps):
                if len(own):
                    gaps, between = np.diff(own), slice(1, len(own))
                    self._knots[column, 1 : len(own) + 1] = own
                    self._slope[column, between] = np.diff(at) / gaps
                    self._left[column, between] = own[:-1]
                    self._below[column, : len(own) + 1] = np.concatenate([at[:1], at])
                    self.plain &= bool(np.isfinite(gaps).all() and np.isfinite(self._slope[column]).all())

    def _grid(self) -> tuple[Floats, Floats]:
        """First knot of each column, and cells per unit."""
        first = np.array([own[0] if len(own) else 0.0 for own, _ in self._maps])
        last = np.array([own[-1] if len(own) else 0.0 for own, _ in self._maps])
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            per_unit = self._n_cells / (last - first)
        # All of a column that is too narrow or too wide for numbers is in one cell.
        return first, np.where(np.isfinite(per_unit), per_unit, 0.0)

    def _cells(self, values: Floats, column: int | slice = slice(None)) -> NDArray[np.intp]:
        """Cell of each value: no lower one for a higher value, whatever was rounded."""
        with np.errstate(over="ignore", invalid="ignore"):
            cells = values - self._first[column]
            cells *= self._per_unit[column]
        # These pass over NaN.
        np.fmax(cells, 0.0, out=cells)
        np.fmin(cells, self._n_cells - 1, out=cells)
        return cells.astype(np.intp)

    @property
    def tables(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Of each column: its knots, infinite behind the last one, and by the number of knots that are no larger than a
        value the slope, and the point where it starts. Only ``plain`` maps need no more than these.
        """
        return self._knots[:, 1:].copy(), self._slope, self._left, self._below

    def __call__(self, values: Floats) -> Floats:
        """Of values of shape (n_rows, n_columns); NaN gives some number."""
        if not self.plain:
            return self._one_by_one(values)
        # With values beside each other in two orders, each operation would take twice as long.
        values = np.ascontiguousarray(values)
        cells = self._cells(values)
        cells += self._cell_starts
        place, ahead = self._before.take(cells, mode=UNCHECKED), np.empty_like(cells)
        for stride in self._strides:
            np.add(place, stride, out=ahead)
            np.multiply(self._knots.take(ahead, mode=UNCHECKED) <= values, stride, out=ahead)
            place += ahead
        mapped: Floats = values - self._left.take(place, mode=UNCHECKED)
        mapped *= self._slope.take(place, mode=UNCHECKED)
        mapped += self._below.take(place, mode=UNCHECKED)
        return mapped

    def _one_by_one(self, values: Floats) -> Floats:
        mapped = np.zeros(values.shape)
        for (knots, at), own, column in zip(self._maps, values.T, mapped.T, strict=True):
            if len(knots):
                column[:] = np.interp(own, knots, at)
        return mapped
