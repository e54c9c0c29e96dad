"""How a row of pixels is seen as an image: its shape, and the patches of it that are compared with those of others."""

import functools
from typing import NamedTuple

__all__ = ["Picture", "View", "views_of"]

# Sides, in cells, to which an image is brought to compare its large parts: half of such a side is still a stroke, an
# edge or a corner, and no longer an image of its own, of which no two are alike.
COARSE_SIDE = 14
# Finer views, down to two or three pixels a cell, look for what is small.
FINE_PATCH = 7


class View(NamedTuple):
    """One way to cut an image into patches: brought to a grid of cells, patches of so many cells, compared with those
    of other images at most ``window`` cells away."""

    rows: int
    columns: int
    patch: int
    stride: int
    window: int

    @property
    def tops(self) -> list[int]:
        """First row of cells of each row of patches."""
        return _starts(self.rows, self.patch, self.stride)

    @property
    def lefts(self) -> list[int]:
        """First column of cells of each column of patches."""
        return _starts(self.columns, self.patch, self.stride)

    @property
    def n_places(self) -> int:
        """Number of patches of an image."""
        return len(self.tops) * len(self.lefts)


class Picture(NamedTuple):
    """Shape of the image that a row of scaled pixels stands for, and how they were scaled, by channel.

    Examples
    --------
    >>> picture = Picture((1, 28, 28), (0.13,), (0.31,))
    >>> picture.n_views, picture.n_places
    (2, 34)
    """

    shape: tuple[int, int, int]
    center: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    @property
    def views(self) -> tuple[View, ...]:
        """How it is cut into patches."""
        return views_of(*self.shape[1:])

    @property
    def n_views(self) -> int:
        """Number of them."""
        return len(self.views)

    @property
    def n_places(self) -> int:
        """Number of patches of all views."""
        return sum(view.n_places for view in self.views)


@functools.cache
def views_of(height: int, width: int) -> tuple[View, ...]:
    """Views of images of this size, the coarsest first.

    Two of large parts, half and about two thirds of the shorter side, the larger one with some room to move; and for
    images of some fifty pixels a side and more finer ones, each with half as large cells as the one before.

    Examples
    --------
    >>> [(view.rows, view.patch) for view in views_of(28, 28)]
    [(14, 7), (14, 10)]
    >>> [(view.rows, view.patch) for view in views_of(128, 128)]
    [(14, 7), (14, 10), (32, 7), (64, 7)]
    """
    pixels = max(1, round(min(height, width) / COARSE_SIDE))
    rows, columns = max(1, round(height / pixels)), max(1, round(width / pixels))
    short = min(rows, columns)
    half, most = max(1, short // 2), max(1, round(0.7 * short))
    views = [
        View(rows, columns, half, max(1, round(half / 3.5)), 0),
        View(rows, columns, most, max(1, round(half / 3.5)), 1),
    ]
    while pixels >= 4:
        pixels //= 2
        views.append(View(height // pixels, width // pixels, FINE_PATCH, 4, 2))
    return tuple(views)


def _starts(n: int, patch: int, stride: int) -> list[int]:
    """Where patches start along one side: the first at one end, the last at the other, evenly between."""
    steps = -(-(n - patch) // stride)
    return [round(step * (n - patch) / max(steps, 1)) for step in range(steps + 1)]
