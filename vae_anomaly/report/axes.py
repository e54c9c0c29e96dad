"""What all charts share: axes in the colours of the page, legends, and lines with no more points than can be seen."""

import heapq

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["ANOMALY", "GRID", "INK", "MUTED", "NORMAL", "Floats", "legend", "mark", "new_axes", "steps", "thin"]

Floats = NDArray[np.float64]

INK, MUTED, GRID = "#1b2430", "#667180", "#dfe3e8"
NORMAL, ANOMALY = "#2b6cb0", "#c4501b"

# At the 300 points that a chart is wide, less than this can't be seen.
TOLERANCE = 4e-4
MAX_POINTS = 1000


def new_axes(size: tuple[float, float] = (4.6, 3.5)) -> Axes:
    """Axes of a new figure, of a size in inches, that pyplot doesn't know."""
    ax = Figure(figsize=size, layout="constrained").add_subplot()
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GRID)
    ax.tick_params(colors=MUTED, labelsize=9, length=0, pad=5)
    ax.xaxis.label.set(color=INK, size=9.5)
    ax.yaxis.label.set(color=INK, size=9.5)
    return ax


def legend(ax: Axes) -> None:
    """Legend in a line above the axes, where no curve can cross it."""
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=3,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=1.5,
        columnspacing=1.4,
        borderpad=0.2,
    )


def mark(ax: Axes, x: float | None, y: float | None) -> None:
    """Point where the threshold lies; none where a coordinate is not defined."""
    if x is not None and y is not None:
        # clip_on: half of a mark at (0, 1) would be cut off otherwise.
        ax.plot([x], [y], "o", color=ANOMALY, markersize=7, zorder=5, clip_on=False, label="threshold")


def steps(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Corners of a staircase whose height over ``(x[i - 1], x[i]]`` is ``y[i]``."""
    return np.repeat(x, 2)[:-1], np.repeat(y, 2)[1:]


def thin(x: Floats, y: Floats, tolerance: float = TOLERANCE, max_points: int = MAX_POINTS) -> tuple[Floats, Floats]:
    """The points of a line that matter: the others lie within ``tolerance`` of the line through those that are kept.

    Ramer, Douglas and Peucker's algorithm on axes scaled to 0..1, which splits the worst stretch first, so that
    ``max_points`` are the best ones it can find when they do not suffice.
    """
    if len(x) <= 2:
        return x, y
    points = np.stack([x, y], axis=1)
    points = (points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-300)

    def worst(first: int, last: int) -> tuple[float, int, int, int]:
        """Negative distance and place of the point farthest from the chord, for a heap whose top is the least."""
        inner = points[first + 1 : last] - points[first]
        dx, dy = points[last] - points[first]
        # To the segment and not to the line through it: a vertical curve may overshoot and come back.
        along = np.clip((inner @ [dx, dy]) / max(dx * dx + dy * dy, 1e-300), 0, 1)
        distance = np.hypot(inner[:, 0] - along * dx, inner[:, 1] - along * dy)
        at = int(distance.argmax())
        return -float(distance[at]), first + 1 + at, first, last

    kept = {0, len(x) - 1}
    heap = [worst(0, len(x) - 1)]
    while heap and len(kept) < max_points:
        distance, at, first, last = heapq.heappop(heap)
        if -distance <= tolerance:
            break
        kept.add(at)
        for a, b in ((first, at), (at, last)):
            if b - a > 1:
                heapq.heappush(heap, worst(a, b))
    order = sorted(kept)
    return x[order], y[order]
