"""Charts of an evaluation, and the report that holds them: one HTML file that needs no network."""

from vae_anomaly.report.charts import plot_intervals, plot_precision_recall, plot_roc, plot_training
from vae_anomaly.report.comparison import render_comparison
from vae_anomaly.report.contents import Contents
from vae_anomaly.report.diagnostics import latent_map, plot_latent, plot_p_values, plot_promise
from vae_anomaly.report.figures import save_plots
from vae_anomaly.report.histogram import plot_score_histogram
from vae_anomaly.report.render import render_contents, render_report, write_report
from vae_anomaly.report.svg import to_svg

__all__ = [
    "Contents",
    "latent_map",
    "plot_intervals",
    "plot_latent",
    "plot_p_values",
    "plot_precision_recall",
    "plot_promise",
    "plot_roc",
    "plot_score_histogram",
    "plot_training",
    "render_comparison",
    "render_contents",
    "render_report",
    "save_plots",
    "to_svg",
    "write_report",
]
