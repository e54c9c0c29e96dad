"""Charts of an evaluation, and the report that holds them: one HTML file that needs no network."""

from vae_anomaly.report.charts import (
    plot_intervals,
    plot_precision_recall,
    plot_roc,
    plot_training,
)
from vae_anomaly.report.comparison import render_comparison
from vae_anomaly.report.histogram import plot_score_histogram
from vae_anomaly.report.render import render_report, write_report
from vae_anomaly.report.svg import to_svg

__all__ = [
    "plot_intervals",
    "plot_precision_recall",
    "plot_roc",
    "plot_score_histogram",
    "plot_training",
    "render_comparison",
    "render_report",
    "to_svg",
    "write_report",
]
