"""The curves behind the figures of anomaly maps."""

from matplotlib.axes import Axes

from vae_anomaly.pixel_metrics import PixelEvaluation
from vae_anomaly.report.axes import ANOMALY, GRID, MUTED, NORMAL, legend, new_axes

__all__ = ["plot_overlap"]


def plot_overlap(evaluation: PixelEvaluation) -> Axes:
    """Mean share of each defect that is found, and of all defect pixels, over the share of normal pixels above.

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly.pixel_metrics import evaluate_pixels
    >>> ax = plot_overlap(evaluate_pixels([(np.eye(4), np.eye(4) > 0)]))
    >>> ax.get_xlabel()
    'False-positive pixels'
    """
    ax = new_axes()
    shaded = evaluation.fpr <= evaluation.max_fpr
    ax.fill_between(evaluation.fpr[shaded], evaluation.overlap[shaded], color=GRID, linewidth=0.0)
    ax.plot(evaluation.fpr, evaluation.overlap, color=ANOMALY, linewidth=1.6, label="each defect alike")
    ax.plot(evaluation.fpr, evaluation.recall, color=NORMAL, linewidth=1.2, label="all pixels")
    ax.plot([0.0, 1.0], [0.0, 1.0], color=MUTED, linewidth=0.8, linestyle=(0, (4, 4)))
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="False-positive pixels", ylabel="Defect found")
    legend(ax)
    return ax
