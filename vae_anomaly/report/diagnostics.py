"""Charts that show whether a detector can be trusted: p-values, the promise, and where rows lie in the latent space."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA

from vae_anomaly.metrics import Interval
from vae_anomaly.report.axes import ANOMALY, GRID, INK, MUTED, NORMAL, Floats, legend, new_axes, thin

__all__ = ["LatentMap", "latent_map", "plot_latent", "plot_p_values", "plot_promise"]

# More points than this are drawn as a picture inside the chart, whose size does not grow with them.
MAX_VECTOR_POINTS = 300
MAX_LATENT_POINTS = 3000


class LatentMap(NamedTuple):
    """Codes of rows on the two directions in which the codes of the training rows vary most."""

    training: Floats
    """Shape (n_training, 2)."""
    rows: Floats
    """Shape (n_rows, 2)."""
    explained: tuple[float, float]
    """Share of the training codes' variance along either direction."""
    y: NDArray[np.int8] | None = None
    """1 for an anomaly, 0 for normal; None without labels."""
    flagged: NDArray[np.bool_] | None = None


def latent_map(
    training: ArrayLike,
    rows: ArrayLike,
    *,
    y: ArrayLike | None = None,
    flagged: ArrayLike | None = None,
    max_rows: int = MAX_LATENT_POINTS,
) -> LatentMap:
    """Principal components of the training codes, and the rows on them; of many rows, an even choice.

    Parameters
    ----------
    training : array-like of shape (n_training, latent_dim)
        Codes of training rows.
    rows : array-like of shape (n_rows, latent_dim)
        Codes of the rows to show.
    y : array-like of shape (n_rows,), optional
        1 for an anomaly, 0 for normal.
    flagged : array-like of shape (n_rows,), optional
        Whether each row is flagged.
    max_rows : int

    Examples
    --------
    >>> codes = np.random.default_rng(0).normal(size=(50, 4)) * [5.0, 1.0, 0.1, 0.1]
    >>> shown = latent_map(codes, codes[:10])
    >>> shown.training.shape, shown.rows.shape, round(shown.explained[0], 1)
    ((50, 2), (10, 2), 1.0)
    """
    known, shown = np.asarray(training, dtype=float), np.asarray(rows, dtype=float)
    few, some = (np.linspace(0, len(x) - 1, min(len(x), max_rows)).astype(int) for x in (known, shown))
    n_components = min(2, *known.shape)
    pca = PCA(n_components, svd_solver="full").fit(known)

    def placed(codes: Floats) -> Floats:
        flat = np.zeros((len(codes), 2))
        flat[:, :n_components] = pca.transform(codes)
        return flat

    explained = [*np.nan_to_num(pca.explained_variance_ratio_), 0.0]
    return LatentMap(
        placed(known[few]),
        placed(shown[some]),
        (float(explained[0]), float(explained[1])),
        None if y is None else np.asarray(y, dtype=np.int8)[some],
        None if flagged is None else np.asarray(flagged, dtype=bool)[some],
    )


def plot_latent(latent: LatentMap, ax: Axes | None = None) -> Axes:
    """Codes of the rows on top of those of the training rows.

    Parameters
    ----------
    latent : LatentMap
        Of :func:`latent_map`.
    ax : matplotlib Axes, optional
        Where to draw; a figure of its own is made when left out.

    Examples
    --------
    >>> codes = np.random.default_rng(0).normal(size=(50, 4))
    >>> plot_latent(latent_map(codes, codes[:10])).get_xlabel()[:23]
    'first component (36 % o'
    """
    ax = new_axes() if ax is None else ax
    _scatter(ax, latent.training, MUTED, "training rows", alpha=0.35)
    if latent.y is not None:
        groups = {"normal": (latent.y == 0, NORMAL), "anomalies": (latent.y == 1, ANOMALY)}
    elif latent.flagged is not None:
        groups = {"passed": (~latent.flagged, NORMAL), "flagged": (latent.flagged, ANOMALY)}
    else:
        groups = {"rows": (np.ones(len(latent.rows), dtype=bool), NORMAL)}
    for name, (chosen, colour) in groups.items():
        _scatter(ax, latent.rows[chosen], colour, name, alpha=0.7)
    first, second = latent.explained
    ax.set(xlabel=f"first component ({100 * first:.0f} % of the variance)", ylabel=f"second ({100 * second:.0f} %)")
    _robust_limits(ax, np.concatenate([latent.training, latent.rows]))
    legend(ax)
    return ax


def _scatter(ax: Axes, points: Floats, colour: str, name: str, *, alpha: float) -> None:
    dots = ax.scatter(points[:, 0], points[:, 1], s=9, color=colour, alpha=alpha, linewidths=0, label=name)
    dots.set_rasterized(len(points) > MAX_VECTOR_POINTS)


def _robust_limits(ax: Axes, points: Floats) -> None:
    """Limits that one code far out does not stretch; dots beyond them are not shown."""
    limits = []
    for values in points.T:
        low, middle, high = np.quantile(values, [0.005, 0.5, 0.995])
        reach = max(high - middle, middle - low, 1e-9)
        low, high = max(values.min(), middle - 3 * reach), min(values.max(), middle + 3 * reach)
        room = 0.05 * (high - low) or 1.0
        limits.append((float(low - room), float(high + room)))
    ax.set(xlim=limits[0], ylim=limits[1])


def plot_p_values(p_values: ArrayLike, y: ArrayLike | None = None, ax: Axes | None = None) -> Axes:
    """Share of the rows with a p-value of at most p, for all p; normal rows should follow the diagonal.

    Parameters
    ----------
    p_values : array-like of shape (n_samples,)
        Conformal p-values; NaN is left out.
    y : array-like of shape (n_samples,), optional
        1 for an anomaly, 0 for normal.
    ax : matplotlib Axes, optional
        Where to draw; a figure of its own is made when left out.

    Examples
    --------
    >>> plot_p_values([0.2, 0.4, 0.9]).get_xlabel()
    'p-value'
    """
    ax = new_axes() if ax is None else ax
    p = np.asarray(p_values, dtype=float)
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 3)), label="uniform")
    labels = None if y is None else np.asarray(y)
    groups: Mapping[str, tuple[Floats, str]] = (
        {"all rows": (p, NORMAL)}
        if labels is None
        else {"normal rows": (p[labels == 0], NORMAL), "anomalies": (p[labels == 1], ANOMALY)}
    )
    for name, (values, colour) in groups.items():
        known = np.sort(values[~np.isnan(values)])
        if len(known):
            distinct, counts = np.unique(known, return_counts=True)
            x = np.concatenate([[0.0], np.repeat(distinct, 2), [1.0]])
            height = np.concatenate([[0.0], np.cumsum(counts) / len(known)])
            ax.plot(*thin(x, np.repeat(height, 2)), color=colour, linewidth=1.6, label=name)
    ax.set(xlabel="p-value", ylabel="share of rows below", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    legend(ax)
    return ax


def plot_promise(
    asked: float, promised: tuple[float, float], realised: Interval | None = None, ax: Axes | None = None
) -> Axes:
    """The false-alarm rate that was asked for, the range that calibration leaves it, and what came out.

    Parameters
    ----------
    asked : float
        Rate that the threshold was made for.
    promised : (float, float)
        Ends of the interval of the true rate, as of :func:`vae_anomaly.thresholds.realised_rate`.
    realised : Interval, optional
        Rate among the evaluated normal rows.
    ax : matplotlib Axes, optional
        Where to draw; a figure of its own is made when left out.

    Examples
    --------
    >>> ax = plot_promise(0.05, (0.03, 0.07), Interval(0.06, 0.04, 0.09, "Wilson, 95 %"))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['promised', 'came out']
    """
    ax = new_axes((4.6, 1.9)) if ax is None else ax
    lines = [("promised", asked, *promised, NORMAL)]
    if realised is not None and realised.value is not None and realised.low is not None and realised.high is not None:
        lines.append(("came out", realised.value, realised.low, realised.high, ANOMALY))
    for place, (_, value, low, high, colour) in enumerate(lines):
        ax.plot([100 * low, 100 * high], [place, place], color=colour, linewidth=3, solid_capstyle="butt")
        ax.plot([100 * value], [place], "o", color=colour, markersize=7, clip_on=False)
        ax.annotate(
            f"{100 * low:.2g} to {100 * high:.2g} %",
            (100 * high, place),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=9,
            annotation_clip=False,
        )
    ax.axvline(100 * asked, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
    ax.set_yticks(range(len(lines)), [line[0] for line in lines])
    ax.set_ylim(len(lines) - 0.4, -0.6)
    highest = max(high for *_, high, _ in lines)
    ax.set_xlim(0, 125 * highest)
    ax.set_xlabel("false-alarm rate, %")
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_color(GRID)
    return ax
