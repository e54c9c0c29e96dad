"""Histogram of the scores of normal rows and anomalies, with the threshold."""

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vae_anomaly.metrics import Evaluation, Unlabelled
from vae_anomaly.report.axes import ANOMALY, INK, NORMAL, Floats, legend, new_axes
from vae_anomaly.report.formats import as_number

__all__ = ["plot_score_histogram"]


def plot_score_histogram(evaluation: Evaluation | Unlabelled, ax: Axes | None = None, *, bins: int = 48) -> Axes:
    """Histogram of the scores of each class, with the threshold as a line.

    The axis shows where the normal scores and most anomalies lie. Rows farther out are counted in one bar at the end,
    whose label says where it begins. The count axis is logarithmic when one class would be too low to see beside the
    other.

    Parameters
    ----------
    evaluation : Evaluation or Unlabelled
        Of :func:`vae_anomaly.metrics.evaluate`; without labels, all rows are one class.
    ax : matplotlib Axes, optional
        Where to draw; a figure of its own is made when left out.
    bins : int
        About how many bars to draw.

    Returns
    -------
    matplotlib.axes.Axes

    Examples
    --------
    >>> from vae_anomaly.metrics import evaluate
    >>> plot_score_histogram(evaluate([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], threshold=0.5)).get_xlabel()
    'anomaly score'
    """
    ax = new_axes() if ax is None else ax
    edges = _score_edges(evaluation, bins)
    width = edges[1] - edges[0]
    beyond = {"below": 0, "above": 0}
    peaks = []
    for scores, name, colour in _classes(evaluation):
        below, counts, above = _binned(scores, edges)
        ax.stairs(counts, edges, fill=True, color=colour, alpha=0.45, linewidth=0, label=name)
        ax.stairs(counts, edges, color=colour, linewidth=1.2)
        for n, side, left in (
            (below, "below", edges[0] - 3 * width),
            (above, "above", edges[-1] + width),
        ):
            if n:
                beyond[side] += n
                # Stairs here too: bars of different kinds would not line up.
                ax.stairs([n], [left, left + 2 * width], fill=True, color=colour, alpha=0.45, linewidth=0)
                ax.stairs([n], [left, left + 2 * width], color=colour, linewidth=1.2)
        peaks.append(max(below, above, int(counts.max())))
    if edges[0] < evaluation.threshold <= edges[-1]:
        ax.axvline(evaluation.threshold, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), label="threshold")
    else:
        ax.plot(
            [], [], color=INK, linestyle=(0, (4, 2)), label=f"threshold {as_number(evaluation.threshold)}, not shown"
        )

    if min(peaks) < 0.08 * max(peaks) and max(peaks) > 20:
        # Linear below one row, so that a bar of height 1 can be seen and one of height 0 can not.
        ax.set_yscale("symlog", linthresh=1, linscale=0.4)
        powers = 10 ** np.arange(int(np.ceil(np.log10(max(peaks)))) + 1)
        ax.set_yticks([0, *powers], ["0", *(f"{power:,}" for power in powers)])
        ax.yaxis.set_minor_locator(mpl.ticker.NullLocator())
        ax.set_ylim(0, max(peaks) * 1.5)
        ax.set_ylabel("rows (logarithmic)")
    else:
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.yaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
        ax.set_ylim(0, max(peaks) * 1.06)
        ax.set_ylabel("rows")
    _label_ends(ax, edges, beyond)
    ax.set_xlabel("anomaly score")
    legend(ax)
    return ax


def _classes(evaluation: Evaluation | Unlabelled) -> list[tuple[Floats, str, str]]:
    """Scores, name and colour of each class."""
    if isinstance(evaluation, Unlabelled):
        return [(evaluation.scores, "rows", NORMAL)]
    of = [evaluation.scores[evaluation.y == label] for label in (0, 1)]
    return [(of[0], "normal", NORMAL), (of[1], "anomalies", ANOMALY)]


def _score_edges(evaluation: Evaluation | Unlabelled, bins: int) -> Floats:
    """Evenly spaced edges over the scores worth showing; the threshold is one of them if it lies among them."""
    finite = np.isfinite(evaluation.scores)
    scores = np.clip(evaluation.scores[finite], -1e100, 1e100)
    if not len(scores):
        return np.linspace(-1, 1, bins + 1)
    labels = np.zeros(len(scores)) if isinstance(evaluation, Unlabelled) else evaluation.y[finite]
    normal = scores[labels == 0] if (labels == 0).any() else scores
    anomalous = scores[labels == 1] if (labels == 1).any() else scores
    low, high = np.quantile(normal, [0.01, 0.975])
    if high == low:
        low, high = scores.min(), scores.max()
    spread = high - low
    threshold = evaluation.threshold
    shown = low - 8 * spread <= threshold <= high + 8 * spread
    if shown:
        low, high = min(low, threshold), max(high, threshold)
    spread = high - low or max(abs(high) * 0.1, 1.0)
    left = max(scores.min(), low - spread)
    farther = min(np.quantile(anomalous, 0.9), high + 5 * spread)
    right = min(scores.max(), max(high + 1.5 * spread, farther))
    width = (right - left) / bins or spread / bins
    anchor = threshold if shown else left
    first = np.ceil((left - anchor) / width) - 1
    last = max(np.ceil((right - anchor) / width), first + 2)
    return np.asarray(anchor + width * np.arange(first, last + 1), dtype=np.float64)


def _binned(scores: Floats, edges: Floats) -> tuple[int, NDArray[np.int64], int]:
    """Numbers of scores below the edges, in each bin, and above.

    Bins hold their upper edge, so that a score at the threshold stands to the left of the line: it is not flagged.
    """
    at = np.bincount(np.searchsorted(edges, scores, side="left"), minlength=len(edges) + 1)
    return int(at[0]), at[1:-1], int(at[-1])


def _label_ends(ax: Axes, edges: Floats, beyond: Mapping[str, int]) -> None:
    """Ticks of the score axis, with one for each bar of the rows that lie beyond it."""
    width = edges[1] - edges[0]
    left, right = edges[0], edges[-1]
    ticks = [tick for tick in MaxNLocator(6).tick_values(left, right) if left <= tick <= right]
    texts = ax.xaxis.get_major_formatter().format_ticks(ticks)
    limits = [left - width, right + width]
    for side, sign, edge in (("below", "<", left), ("above", ">", right)):
        if beyond[side]:
            middle = edge + (2 if side == "above" else -2) * width
            near = 7 * width
            texts = [text for text, tick in zip(texts, ticks, strict=True) if abs(tick - middle) > near]
            ticks = [tick for tick in ticks if abs(tick - middle) > near]
            ticks.append(middle)
            texts.append(f"{sign} {edge:.3g}")
            limits[side == "above"] = edge + (4 if side == "above" else -4) * width
    ax.set_xticks(ticks, texts)
    ax.set_xlim(*limits)
