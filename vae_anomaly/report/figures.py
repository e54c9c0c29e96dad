"""The charts of a report: for the page, and as files for a paper."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae_anomaly.atomic import replacing
from vae_anomaly.metrics import Evaluation
from vae_anomaly.report.charts import plot_intervals, plot_precision_recall, plot_roc, plot_training
from vae_anomaly.report.contents import Contents
from vae_anomaly.report.diagnostics import plot_latent, plot_p_values, plot_promise
from vae_anomaly.report.formats import as_figure, as_percent, as_text, confidence_of
from vae_anomaly.report.histogram import plot_score_histogram
from vae_anomaly.report.localisation import plot_overlap
from vae_anomaly.report.pictures import MAX_PICTURES, plot_grid, plot_pictures

__all__ = ["Chart", "draw", "save_plots"]

DPI = 200
MAX_NAME = 24


class Chart(NamedTuple):
    """One chart, and what is said about it."""

    name: str
    title: str
    hint: str
    alt: str
    """What a screen reader says."""
    ax: Axes

    @property
    def figure(self) -> Figure:
        """The figure that the chart has to itself."""
        figure = self.ax.get_figure(root=True)
        assert figure is not None
        return figure


def draw(contents: Contents) -> dict[str, Chart]:
    """All charts for which there are data, by name."""
    # A style of the user's own must not change the page.
    with style.context("default"):
        return {chart.name: chart for part in PARTS for chart in part(contents)}


def save_plots(contents: Contents, folder: str | os.PathLike[str]) -> list[Path]:
    """Write each chart as SVG and as PNG (200 dots an inch) into ``folder``, which is made if need be.

    Equal contents give equal files.

    Returns
    -------
    list of Path
        The files, in the order of the page.

    Examples
    --------
    >>> import tempfile
    >>> from vae_anomaly.metrics import evaluate
    >>> contents = Contents(evaluate([0, 0, 1, 1], [1.0, 2.0, 1.5, 9.0], threshold=3.0), title="Pump 7")
    >>> [path.name for path in save_plots(contents, tempfile.mkdtemp())][:2]
    ['roc.svg', 'roc.png']
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for chart in draw(contents).values():
        for kind, metadata in (("svg", {"Date": None, "Title": chart.alt}), ("png", {"Software": None})):
            path = target / f"{chart.name}.{kind}"
            with (
                replacing(path) as temporary,
                mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"vae_anomaly {chart.name}"}),
            ):
                chart.figure.savefig(temporary, format=kind, dpi=DPI, metadata=metadata)
            written.append(path)
    return written


def _curves(contents: Contents) -> Iterator[Chart]:
    """The charts of the scores, with what a reader should look for in each."""
    given = contents.evaluation
    if isinstance(given, Evaluation):
        band = "" if given.roc_band is None else f" The band is the {confidence_of(given.roc_auc)} interval."
        roc_auc, precision = as_figure(given.roc_auc.value), as_figure(given.average_precision.value)
        at = f"{as_percent(given.recall.value)} recall at {as_percent(given.false_alarm_rate.value)} false alarms"
        yield Chart(
            "roc",
            "ROC curve",
            f"Anomalies caught against false alarms, over all thresholds.{band}",
            f"ROC curve, area {roc_auc}; the threshold gives {at}",
            plot_roc(given),
        )
        band = "" if given.pr_band is None else f" The band is the {confidence_of(given.roc_auc)} interval."
        yield Chart(
            "precision_recall",
            "Precision and recall",
            f"Share of alarms that are right against anomalies caught, over all thresholds.{band}",
            f"Precision-recall curve, area {precision}",
            plot_precision_recall(given),
        )
    histogram = plot_score_histogram(given)
    apart = any(tick.get_text()[:1] in ("<", ">") for tick in histogram.get_xticklabels())
    yield Chart(
        "scores",
        "Scores",
        "Rows to the right of the threshold are flagged."
        + (" A bar set apart counts all rows beyond." if apart else ""),
        "Histogram of the scores" + (" of normal rows and anomalies" if isinstance(given, Evaluation) else ""),
        histogram,
    )


def _diagnostics(contents: Contents) -> Iterator[Chart]:
    given = contents.evaluation
    y = given.y if isinstance(given, Evaluation) else None
    if contents.p_values is not None:
        who = "Normal rows" if y is not None else "Rows"
        yield Chart(
            "p_values",
            "p-values",
            f"{who} like the calibration rows follow the diagonal; anomalies pile up at the left."
            + (" Above the diagonal, there are more false alarms than promised." if y is not None else ""),
            "Distribution of the conformal p-values against the uniform one",
            plot_p_values(contents.p_values, y),
        )
    if contents.promise is not None and contents.asked_fpr is not None:
        realised = given.false_alarm_rate if isinstance(given, Evaluation) else None
        yield Chart(
            "promise",
            "Promise and outcome",
            f"Asked for {as_percent(contents.asked_fpr)} false alarms. So many calibration rows leave the true rate in"
            " the upper range, 90\u00a0% of the time"
            + ("; the lower one is what these normal rows say." if realised is not None else "."),
            "False-alarm rate promised" + (" and realised" if realised is not None else ""),
            plot_promise(contents.asked_fpr, contents.promise, realised),
        )
    if contents.latent is not None:
        yield Chart(
            "latent",
            "Latent map",
            "Where one member places the rows: its posterior means, on the two directions in which those of the"
            " training rows vary most. A row far from all grey dots is like none of them.",
            "Scatter of the codes of the rows over those of the training rows",
            plot_latent(contents.latent),
        )


def _training(contents: Contents) -> Iterator[Chart]:
    """A chart for each quantity that was recorded."""
    kinds = {
        "elbo": ("ELBO", "Lower bound of the log-likelihood; higher is better."),
        "reconstruction": ("Reconstruction", "Log-likelihood of a row given its code; higher is better."),
        "kl": ("KL", "What the codes tell beyond the prior; near zero they tell nothing."),
    }
    history = contents.history
    if history is None:
        return
    for quantity, (title, hint) in kinds.items():
        recorded = [np.asarray(history.get(f"{part}_{quantity}", ()), dtype=float) for part in ("train", "val")]
        if any(np.isfinite(values).any() for values in recorded):
            ax = plot_training(history, quantity=quantity)
            yield Chart(f"training_{quantity}", title, hint, f"{title} over the epochs of training", ax)


def _localised(contents: Contents) -> Iterator[Chart]:
    found = contents.localised
    if found is not None:
        yield Chart(
            "overlap",
            "Pixels and defects found",
            f"Over all thresholds of the maps. AUPRO is the shaded area, up to {as_percent(found.max_fpr)} of the"
            " normal pixels, as a share of what it could be; each defect counts alike, whatever its size.",
            f"Defects found against false-positive pixels, AUPRO {as_figure(found.aupro)}, "
            f"pixel ROC-AUC {as_figure(found.roc_auc)}",
            plot_overlap(found),
        )


def _pictures(contents: Contents) -> Iterator[Chart]:
    for place, (heading, pictures) in enumerate(contents.pictures.items()):
        if not len(pictures.images):
            continue
        listed = ", ".join(filter(None, (as_text(name, 60) for name in pictures.names[:MAX_PICTURES])))
        yield Chart(
            f"pictures_{place + 1}",
            heading,
            "" if pictures.maps is None else "Below, what the model makes of each, and which pixels raise its score.",
            f"{heading}{f': {listed}' if listed else ''}",
            plot_pictures(pictures),
        )


def _traversal(contents: Contents) -> Iterator[Chart]:
    if contents.traversal is not None:
        yield Chart(
            "pictures_traversal",
            "What latent units mean",
            "Each row moves one active unit of the first member, from -3 to 3 scales of the prior around its mean; the"
            " most active unit comes first.",
            f"Images decoded along latent units: {', '.join(contents.traversal.rows)}",
            plot_grid(contents.traversal),
        )


def _compared(contents: Contents) -> Iterator[Chart]:
    if len(contents.compared) > 1:
        figures = {as_text(one.name, MAX_NAME): one.roc_auc for one in contents.compared}
        yield Chart(
            "compared",
            "ROC-AUC of each",
            f"Bars are intervals: {contents.compared[0].roc_auc.method}. Dashed: {contents.compared[0].name}.",
            "ROC-AUC of each score with its interval",
            plot_intervals(figures, "ROC-AUC"),
        )


PARTS = (_curves, _diagnostics, _localised, _pictures, _traversal, _training, _compared)
