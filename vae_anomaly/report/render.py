"""An evaluation as one HTML file that needs nothing else: no network, no other files."""

import os
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vae_anomaly.atomic import replacing
from vae_anomaly.metrics import Evaluation, Unlabelled
from vae_anomaly.report.contents import Contents
from vae_anomaly.report.figures import Chart, draw
from vae_anomaly.report.formats import as_number, as_text
from vae_anomaly.report.operating_points import operating_points
from vae_anomaly.report.page import render_page
from vae_anomaly.report.svg import to_svg
from vae_anomaly.report.tables import (
    MAX_NAME,
    compared_table,
    confusion,
    facts,
    sample_tables,
    type_table,
    worst_rows,
)
from vae_anomaly.report.verdict import cards, pixel_cards, verdict

__all__ = ["render_contents", "render_report", "write_report"]

# Charts on which the slider moves a mark.
MOVING = ("roc", "precision_recall", "scores")


def render_report(evaluation: Evaluation | Unlabelled, **fields: Any) -> str:
    """HTML page of an evaluation; equal arguments give equal text.

    Parameters
    ----------
    evaluation : Evaluation or Unlabelled
        Of :func:`vae_anomaly.metrics.evaluate`.
    **fields
        The other fields of :class:`vae_anomaly.report.contents.Contents`; ``title`` must be there.

    Returns
    -------
    str

    Examples
    --------
    >>> from vae_anomaly.metrics import evaluate
    >>> page = render_report(evaluate([0, 0, 1, 1], [1.0, 2.0, 1.5, 9.0], threshold=3.0), title="Pump <7>")
    >>> "<h1>Pump &lt;7&gt;</h1>" in page
    True
    """
    return render_contents(Contents(evaluation, **fields))


def render_contents(contents: Contents) -> str:
    """HTML page of the contents of a report; equal contents give equal text."""
    evaluation = contents.evaluation
    charts = {name: _shown(chart) for name, chart in draw(contents).items()}
    return render_page(
        "report.html",
        title=as_text(contents.title, MAX_NAME),
        cautions=[as_text(caution) for caution in contents.cautions],
        verdict=verdict(contents),
        notes=evaluation.notes,
        cards=cards(contents),
        curves=[charts[name] for name in MOVING if name in charts],
        decisions=_decisions(evaluation, contents),
        diagnostics=[charts[name] for name in ("p_values", "latent", "promise") if name in charts],
        training=[chart for name, chart in charts.items() if name.startswith("training_")],
        localised=charts.get("overlap"),
        localised_cards=pixel_cards(contents),
        localised_notes=[as_text(note) for note in contents.localised_notes],
        pictures=[chart for name, chart in charts.items() if name.startswith("pictures_")],
        types=type_table(contents.types),
        compared=compared_table(contents.compared),
        compared_notes=[as_text(note) for note in contents.compared_notes],
        compared_chart=charts.get("compared"),
        worst_flagged=worst_rows(contents.worst_flagged, flagged=True),
        worst_missed=worst_rows(contents.worst_missed, flagged=False),
        samples=sample_tables(contents.samples),
        model=facts(contents.model),
        data=facts(contents.data),
        methods=_methods(evaluation, contents),
        provenance=facts(contents.provenance),
    )


def write_report(target_html: str | os.PathLike[str], evaluation: Evaluation | Unlabelled, **fields: Any) -> None:
    """Write the page of :func:`render_report`, whole or not at all; missing folders are made.

    Parameters
    ----------
    target_html : path
        File to write; an old one is replaced.
    evaluation : Evaluation or Unlabelled
        Of :func:`vae_anomaly.metrics.evaluate`.
    **fields
        As of :func:`render_report`.

    Examples
    --------
    >>> import tempfile
    >>> from vae_anomaly.metrics import evaluate
    >>> target = Path(tempfile.mkdtemp()) / "reports" / "pump.html"
    >>> write_report(target, evaluate([0, 1], [1.0, 2.0], threshold=1.5), title="Pump 7")
    >>> target.read_text(encoding="utf-8")[:15]
    '<!DOCTYPE html>'
    """
    page = render_report(evaluation, **fields)
    target = Path(target_html)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        temporary.write_bytes(page.encode("utf-8"))


def _shown(chart: Chart) -> dict[str, Any]:
    """A chart as the template wants it."""
    return {
        "name": chart.name,
        "title": chart.title,
        "hint": chart.hint,
        "svg": Markup(to_svg(chart.figure, chart.alt, frame=chart.name in MOVING)),
    }


def _decisions(evaluation: Evaluation | Unlabelled, contents: Contents) -> dict[str, Any] | None:
    """The confusion table, and what the slider needs."""
    if isinstance(evaluation, Unlabelled):
        return None
    return {
        "lines": confusion(evaluation),
        # One threshold can't be moved where each group has its own.
        "points": operating_points(evaluation).to_json(evaluation) if evaluation.is_anomaly is None else None,
        "threshold": as_number(evaluation.threshold),
        "cost_miss": f"{contents.cost_miss:g}",
        "cost_alarm": f"{contents.cost_alarm:g}",
    }


def _methods(evaluation: Evaluation | Unlabelled, contents: Contents) -> list[tuple[str, str]]:
    if isinstance(evaluation, Unlabelled):
        return []
    delong = evaluation.roc_auc_delong
    methods = [
        ("ROC-AUC, average precision", evaluation.roc_auc.method),
        ("Recall, precision, false-alarm rate", evaluation.recall.method),
    ]
    if delong.value is not None and delong.low is not None and delong.high is not None:
        methods.append(("ROC-AUC by another way", f"{delong.low:.3f} to {delong.high:.3f} ({delong.method})"))
    if contents.localised is not None:
        within = max(contents.localised.roc_auc_tolerance, contents.localised.aupro_tolerance)
        methods.append(("Pixel ROC-AUC, AUPRO", f"off by at most {within:.1g}, as values are counted in bins"))
    if contents.promise is not None:
        methods.append(("Promised false-alarm rate", "Beta law of conformal thresholds (Vovk 2012), 90 %"))
    return methods
