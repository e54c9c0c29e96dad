"""Images side by side with what the model expected, and where they are odd."""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vae_anomaly.report.axes import INK, MUTED

__all__ = ["Grid", "Pictures", "plot_grid", "plot_pictures"]

MAX_PICTURES = 8
MAX_NAME = 18
MAP_COLOURS = "inferno"


class Pictures(NamedTuple):
    """Images of shape (n, channels, height, width) in [0, 1], and what belongs to them."""

    names: list[str]
    images: NDArray[np.float32]
    expected: NDArray[np.float32] | None = None
    """What the model makes of each, in the same shape."""
    maps: NDArray[np.float64] | None = None
    """What each pixel adds to the score, shape (n, height, width)."""
    scale: tuple[float, float] = (0.0, 1.0)
    """Where the colours of the maps begin and end."""


class Grid(NamedTuple):
    """Images of shape (n_rows, n_columns, channels, height, width) in [0, 1], and what the rows and columns are."""

    images: NDArray[np.float32]
    rows: list[str]
    columns: list[str]


def plot_grid(grid: Grid) -> Axes:
    """Images in rows and columns, named at the side and above.

    Examples
    --------
    >>> ax = plot_grid(Grid(np.zeros((1, 2, 1, 8, 8), np.float32), ["unit 1"], ["-3", "3"]))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['unit 1']
    """
    n_rows, n_columns, _, height, width = grid.images.shape
    # One picture, with a line of white between the images.
    gap = max(1, width // 32)
    framed = np.pad(grid.images, ((0, 0), (0, 0), (0, 0), (0, gap), (0, gap)), constant_values=1.0)
    sheet = framed.transpose(0, 3, 1, 4, 2).reshape(n_rows * (height + gap), n_columns * (width + gap), -1)
    ratio = sheet.shape[0] / sheet.shape[1]
    figure = Figure(figsize=(7.0, min(6.4 * ratio, 12.0) + 0.3), layout="constrained")
    ax: Axes = figure.add_subplot()
    _draw(ax, np.moveaxis(sheet, -1, 0), (0.0, 1.0))
    ax.set_xticks((np.arange(n_columns) + 0.5) * (width + gap) - 0.5, grid.columns)
    ax.set_yticks((np.arange(n_rows) + 0.5) * (height + gap) - 0.5, grid.rows)
    ax.xaxis.tick_top()
    ax.tick_params(colors=MUTED, labelsize=9, length=0)
    return ax


def plot_pictures(pictures: Pictures) -> Axes:
    """A line of images, one of what was expected, and one of the maps; the first 8 of them.

    Returns
    -------
    matplotlib.axes.Axes
        The first of the figure; each picture has its own.

    Examples
    --------
    >>> ax = plot_pictures(Pictures(["a", "b"], np.zeros((2, 1, 8, 8), np.float32)))
    >>> len(ax.figure.axes)
    2
    """
    lines = {"seen": pictures.images, "expected": pictures.expected, "odd": pictures.maps}
    shown = {name: line for name, line in lines.items() if line is not None}
    n = min(len(pictures.images), MAX_PICTURES)
    height, width = pictures.images.shape[2:]
    size = 9.2 / MAX_PICTURES
    figure = Figure(figsize=(9.2, len(shown) * size * min(height / width, 2.0) + 0.35), layout="constrained")
    axes = figure.subplots(len(shown), MAX_PICTURES, squeeze=False)
    for number, (name, line) in enumerate(shown.items()):
        for place, ax in enumerate(axes[number]):
            if place >= n:
                ax.remove()
                continue
            _draw(ax, line[place], pictures.scale)
            if place == 0:
                ax.set_ylabel(name, color=MUTED, size=9)
            if number == 0:
                ax.set_title(_short(pictures.names[place]), color=INK, size=7.5)
    first: Axes = axes[0][0]
    return first


def _draw(ax: Axes, picture: NDArray[np.floating], scale: tuple[float, float]) -> None:
    if picture.ndim == 2:
        ax.imshow(picture, cmap=MAP_COLOURS, vmin=scale[0], vmax=scale[1], interpolation="nearest")
    elif len(picture) == 1:
        ax.imshow(picture[0], cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    else:
        ax.imshow(np.moveaxis(picture, 0, -1).clip(0.0, 1.0), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _short(name: str) -> str:
    """The end of a path says most."""
    text = "".join(character if character.isprintable() else "\ufffd" for character in name)
    # matplotlib takes what stands between dollars for a formula.
    text = text.replace("$", "\ufe69")
    return text if len(text) <= MAX_NAME else f"…{text[-MAX_NAME + 1 :]}"
