"""Charts of an evaluation, a training run and a comparison, as matplotlib Axes."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from vae_anomaly.metrics import Evaluation, Interval
from vae_anomaly.report.axes import ANOMALY, MUTED, NORMAL, Floats, legend, mark, new_axes, steps, thin
from vae_anomaly.report.formats import as_figure

__all__ = ["plot_intervals", "plot_precision_recall", "plot_roc", "plot_training"]


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
    ax = new_axes() if ax is None else ax
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 3)), label="at random")
    if evaluation.roc_band is not None:
        at, low, high = evaluation.roc_band
        ax.fill_between(at, low, high, color=NORMAL, alpha=0.15, linewidth=0)
    x, y = thin(evaluation.roc.fpr, evaluation.roc.tpr)
    ax.plot(x, y, color=NORMAL, linewidth=1.8, label=f"area {as_figure(evaluation.roc_auc.value)}")
    mark(ax, evaluation.false_alarm_rate.value, evaluation.recall.value)
    ax.set(xlabel="false-alarm rate", ylabel="recall", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    legend(ax)
    return ax


def plot_precision_recall(evaluation: Evaluation, ax: Axes | None = None) -> Axes:
    """Precision-recall curve with its bootstrap band, the share of anomalies, and a mark where the threshold lies.

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
    ax = new_axes() if ax is None else ax
    ax.axhline(evaluation.prevalence, color=MUTED, linewidth=1, linestyle=(0, (2, 3)), label="at random")
    if evaluation.pr_band is not None:
        at, low, high = evaluation.pr_band
        ax.fill_between(at, low, high, color=NORMAL, alpha=0.15, linewidth=0)
    x, y = thin(*steps(evaluation.pr.recall[::-1], evaluation.pr.precision[::-1]))
    ax.plot(x, y, color=NORMAL, linewidth=1.8, label=f"area {as_figure(evaluation.average_precision.value)}")
    mark(ax, evaluation.recall.value, evaluation.precision.value)
    ax.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    legend(ax)
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
    ax = new_axes((3.7, 2.9)) if ax is None else ax
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
            *thin(epoch[known], values[known], tolerance=0),
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
        legend(ax)
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
    ax = new_axes((4.6, 0.7 + 0.3 * len(figures))) if ax is None else ax
    for place, interval in enumerate(figures.values()):
        assert interval.value is not None
        colour = ANOMALY if place == 0 else NORMAL
        if interval.low is not None and interval.high is not None:
            ax.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
        if place == 0:
            ax.axvline(interval.value, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        # clip_on: half of a mark at 1 would be cut off otherwise.
        ax.plot([interval.value], [place], "o", color=colour, markersize=6, clip_on=False)
    # What stands between dollars is no formula.
    ax.set_yticks(range(len(figures)), list(figures), parse_math=False)
    ax.set_ylim(len(figures) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(what)
    return ax


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
