"""Charts of an evaluation and of a training run, as matplotlib Axes and as SVG text for a web page."""

import heapq
import html
import io
import re
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from vae_anomaly.metrics import Evaluation, Interval
from vae_anomaly.report.formats import as_figure, as_number

__all__ = ["plot_intervals", "plot_precision_recall", "plot_roc", "plot_score_histogram", "plot_training", "to_svg"]

Floats = NDArray[np.float64]

INK, MUTED, GRID = "#1b2430", "#667180", "#dfe3e8"
NORMAL, ANOMALY = "#2b6cb0", "#c4501b"

# The page gives these custom properties other values on a dark background.
CSS_COLOURS = {INK: "ink", MUTED: "muted", GRID: "grid", NORMAL: "normal", ANOMALY: "anomaly"}

# At the 300 points that a chart is wide, less than this can't be seen.
TOLERANCE = 4e-4
MAX_POINTS = 1000


def plot_roc(evaluation: Evaluation, ax: Axes | None = None) -> Axes:
    """ROC curve with its bootstrap band, the chance line, and a mark where the threshold lies.

    Parameters
    ----------
    evaluation : Evaluation
        Of :func:`vae_anomaly.metrics.evaluate`.
    ax : matplotlib Axes, optional
        Where to draw; a figure of its own is made when left out.

    Returns
    -------
    matplotlib.axes.Axes

    Examples
    --------
    >>> from vae_anomaly.metrics import evaluate
    >>> plot_roc(evaluate([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], threshold=0.5)).get_xlabel()
    'false-alarm rate'
    """
    ax = _new_axes() if ax is None else ax
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 3)), label="at random")
    if evaluation.roc_band is not None:
        fpr, low, high = evaluation.roc_band
        ax.fill_between(fpr, low, high, color=NORMAL, alpha=0.15, linewidth=0)
    x, y = _thin(evaluation.roc.fpr, evaluation.roc.tpr)
    ax.plot(x, y, color=NORMAL, linewidth=1.8, label=f"area {as_figure(evaluation.roc_auc.value)}")
    _mark(ax, evaluation.false_alarm_rate.value, evaluation.recall.value)
    ax.set(xlabel="false-alarm rate", ylabel="recall", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _legend(ax)
    return ax


def plot_precision_recall(evaluation: Evaluation, ax: Axes | None = None) -> Axes:
    """Precision-recall curve with the share of anomalies as a line, and a mark where the threshold lies.

    The curve is drawn in steps, so that the area under it is the average precision.

    Parameters
    ----------
    evaluation : Evaluation
        Of :func:`vae_anomaly.metrics.evaluate`.
    ax : matplotlib Axes, optional
        Where to draw; a figure of its own is made when left out.

    Returns
    -------
    matplotlib.axes.Axes

    Examples
    --------
    >>> from vae_anomaly.metrics import evaluate
    >>> plot_precision_recall(evaluate([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], threshold=0.5)).get_ylabel()
    'precision'
    """
    ax = _new_axes() if ax is None else ax
    ax.axhline(evaluation.prevalence, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), label="at random")
    x, y = _thin(*_steps(evaluation.pr.recall[::-1], evaluation.pr.precision[::-1]))
    ax.plot(x, y, color=NORMAL, linewidth=1.8, label=f"area {as_figure(evaluation.average_precision.value)}")
    _mark(ax, evaluation.recall.value, evaluation.precision.value)
    ax.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _legend(ax)
    return ax


def plot_score_histogram(evaluation: Evaluation, ax: Axes | None = None, *, bins: int = 48) -> Axes:
    """Histogram of the scores of both classes, with the threshold as a line.

    The axis shows where the normal scores and most anomalies lie. Rows farther out are counted in one bar at the end,
    whose label says where it begins. The count axis is logarithmic when one class would be too low to see beside the
    other.

    Parameters
    ----------
    evaluation : Evaluation
        Of :func:`vae_anomaly.metrics.evaluate`.
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
    ax = _new_axes() if ax is None else ax
    edges = _score_edges(evaluation, bins)
    width = edges[1] - edges[0]
    beyond = {"below": 0, "above": 0}
    peaks = []
    for label, name, colour in ((0, "normal", NORMAL), (1, "anomalies", ANOMALY)):
        below, counts, above = _binned(evaluation.scores[evaluation.y == label], edges)
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
    _legend(ax)
    return ax


def plot_training(history: Mapping[str, ArrayLike], ax: Axes | None = None, *, quantity: str = "elbo") -> Axes:
    """Training and validation curve over the epochs.

    The vertical axis fits the later epochs, so that a steep start doesn't flatten the rest.

    Parameters
    ----------
    history : mapping of str to array of shape (n_epochs,)
        ``epoch``, and ``train_`` and ``val_`` followed by the name of the quantity, in nats.
    ax : matplotlib Axes, optional
        Where to draw; a figure of its own is made when left out.
    quantity : {"elbo", "reconstruction", "kl"}
        What to draw.

    Returns
    -------
    matplotlib.axes.Axes

    Examples
    --------
    >>> history = {"epoch": [1, 2, 3], "train_elbo": [-90.0, -12.0, -11.0], "val_elbo": [-80.0, -13.0, -12.0]}
    >>> plot_training(history).get_ylabel()
    'ELBO (nats)'
    """
    labels = {"elbo": "ELBO (nats)", "reconstruction": "reconstruction (nats)", "kl": "KL (nats)"}
    if quantity not in labels:
        raise ValueError(f"Unknown quantity {quantity!r}. Choose from {', '.join(map(repr, labels))}.")
    names = [name for name in (f"train_{quantity}", f"val_{quantity}") if name in history]
    if not names:
        raise ValueError(f"The history has neither 'train_{quantity}' nor 'val_{quantity}', only {sorted(history)}.")
    ax = _new_axes((3.7, 2.9)) if ax is None else ax
    epoch = np.asarray(history["epoch"], dtype=np.float64)
    drawn = []
    for name in names:
        values = np.asarray(history[name], dtype=np.float64)
        known = np.isfinite(values)
        if not known.any():
            continue
        drawn.append(values[known])
        train = name.startswith("train")
        ax.plot(
            *_thin(epoch[known], values[known], tolerance=0),
            color=NORMAL if train else ANOMALY,
            linewidth=1.6,
            linestyle="-" if train else (0, (5, 1.5)),
            marker="o" if known.sum() == 1 else None,
            label="training rows" if train else "held-out rows",
        )
    if drawn:
        low, high = _later_range(drawn)
        # A KL of zero means that the codes tell nothing, so its axis starts there.
        ax.set_ylim(0 if quantity == "kl" and low > 0 else low, high)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set(xlabel="epoch", ylabel=labels[quantity])
    if drawn:
        _legend(ax)
    return ax


def plot_intervals(figures: Mapping[str, Interval], what: str, ax: Axes | None = None) -> Axes:
    """One figure for each of several detectors, with its interval; the first one is what the others compare with.

    Parameters
    ----------
    figures : mapping of str to Interval
        From top to bottom; none without a value.
    what : str
        Name of the figure.
    ax : matplotlib Axes, optional
        Where to draw; a figure of its own is made when left out.

    Returns
    -------
    matplotlib.axes.Axes

    Examples
    --------
    >>> ax = plot_intervals({"vae": Interval(0.9, 0.8, 0.95, ""), "knn": Interval(0.7, 0.6, 0.8, "")}, "ROC-AUC")
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['vae', 'knn']
    """
    ax = _new_axes((4.6, 0.7 + 0.3 * len(figures))) if ax is None else ax
    for place, interval in enumerate(figures.values()):
        assert interval.value is not None
        colour = ANOMALY if place == 0 else NORMAL
        if interval.low is not None and interval.high is not None:
            ax.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
        if place == 0:
            ax.axvline(interval.value, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        # clip_on: half of a mark at 1 would be cut off otherwise.
        ax.plot([interval.value], [place], "o", color=colour, markersize=6, clip_on=False)
    ax.set_yticks(range(len(figures)), list(figures))
    ax.set_ylim(len(figures) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(what)
    return ax


def to_svg(figure: Figure, title: str | None = None) -> str:
    """SVG element to paste into a web page: equal figures give equal text.

    Text stays text, and colours of this module are custom properties of CSS (``--chart-ink``, ``--chart-muted``,
    ``--chart-grid``, ``--chart-normal``, ``--chart-anomaly``) that fall back to the printed ones.

    Parameters
    ----------
    figure : matplotlib Figure
        What to write.
    title : str, optional
        What a screen reader says; the labels of the axes when left out.

    Returns
    -------
    str

    Examples
    --------
    >>> from vae_anomaly.metrics import evaluate
    >>> svg = to_svg(plot_roc(evaluate([0, 1], [0.1, 0.8], threshold=0.5)).figure, "ROC curve")
    >>> svg[:4], svg[-6:], 'role="img" aria-label="ROC curve"' in svg
    ('<svg', '</svg>', True)
    """
    if title is None:
        title = "; ".join(f"{ax.get_ylabel()} against {ax.get_xlabel()}" for ax in figure.axes)
    text = io.StringIO()
    # The salt makes the ids of clip paths and markers, which must differ between the charts of one page.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"vae_anomaly {title}"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue(), title)


def _new_axes(size: tuple[float, float] = (4.6, 3.5)) -> Axes:
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


def _legend(ax: Axes) -> None:
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


def _mark(ax: Axes, x: float | None, y: float | None) -> None:
    """Point where the threshold lies; none where a coordinate is not defined."""
    if x is not None and y is not None:
        # clip_on: half of a mark at (0, 1) would be cut off otherwise.
        ax.plot([x], [y], "o", color=ANOMALY, markersize=7, zorder=5, clip_on=False, label="threshold")


def _steps(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Corners of a staircase whose height over ``(x[i - 1], x[i]]`` is ``y[i]``."""
    return np.repeat(x, 2)[:-1], np.repeat(y, 2)[1:]


def _thin(x: Floats, y: Floats, tolerance: float = TOLERANCE, max_points: int = MAX_POINTS) -> tuple[Floats, Floats]:
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


def _score_edges(evaluation: Evaluation, bins: int) -> Floats:
    """Evenly spaced edges over the scores worth showing; the threshold is one of them if it lies among them."""
    finite = np.isfinite(evaluation.scores)
    scores = np.clip(evaluation.scores[finite], -1e100, 1e100)
    if not len(scores):
        return np.linspace(-1, 1, bins + 1)
    labels = evaluation.y[finite]
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


def _later_range(curves: list[Floats]) -> tuple[float, float]:
    """Limits that hold the last four fifths of each curve, and the whole of it if that takes little more room."""
    later = np.concatenate([values[len(values) // 5 :] for values in curves])
    everything = np.concatenate(curves)
    low, high = later.min(), later.max()
    room = max(high - low, 1e-6 * max(abs(high), abs(low)), 1e-12)
    if everything.min() > low - room:
        low = everything.min()
    if everything.max() < high + room:
        high = everything.max()
    return float(low - 0.08 * room), float(high + 0.08 * room)


def _inline(svg: str, title: str) -> str:
    """SVG text without what a page has no use for, with a text alternative and colours that follow the page."""
    svg = re.sub(r"^.*?(?=<svg\b)|<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href=", "href=").replace(' xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    # A hundredth of a point is finer than any screen. Coordinates only: text holds numbers too.
    svg = re.sub(
        r'(?<= )(?:d|x|y|transform|viewBox)="[^"]*"',
        lambda attribute: re.sub(r"-?\d+\.\d+", lambda n: f"{float(n[0]):.2f}".rstrip("0").rstrip("."), attribute[0]),
        svg,
    )
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    for colour, name in CSS_COLOURS.items():
        svg = svg.replace(colour, f"var(--chart-{name}, {colour})")
    svg = re.sub(r"\s*\n\s*", "\n", svg).strip()
    text = html.escape(title)
    # Without width and height the page's style sheet sets the size; the proportions are those of viewBox.
    opening = re.match(r"<svg\b[^>]*>", svg)
    assert opening is not None
    start = re.sub(r' (?:width|height|version)="[^"]*"', "", opening[0])
    return f'{start[:-1]} role="img" aria-label="{text}">\n<title>{text}</title>{svg[opening.end() :]}'
