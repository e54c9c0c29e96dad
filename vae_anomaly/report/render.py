"""An evaluation as one HTML file that needs nothing else: no network, no other files."""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib import style
from numpy.typing import ArrayLike

from vae_anomaly.atomic import replacing
from vae_anomaly.metrics import Evaluation, Interval
from vae_anomaly.report.charts import plot_precision_recall, plot_roc, plot_training
from vae_anomaly.report.formats import as_figure, as_number, as_numbers, as_percent, as_text, as_value, is_finite
from vae_anomaly.report.histogram import plot_score_histogram
from vae_anomaly.report.svg import to_svg

__all__ = ["render_page", "render_report", "write_report"]

# Together they keep the page under 2 MB whatever the data hold.
MAX_ROWS = 50
MAX_FEATURES = 6
MAX_NAME = 120


def render_report(
    evaluation: Evaluation,
    *,
    title: str,
    model: Mapping[str, object] | None = None,
    data: Mapping[str, object] | None = None,
    asked_fpr: float | None = None,
    history: Mapping[str, ArrayLike] | None = None,
    worst_flagged: Sequence[Mapping[str, Any]] = (),
    worst_missed: Sequence[Mapping[str, Any]] = (),
    provenance: Mapping[str, object] | None = None,
) -> str:
    """HTML page of an evaluation; equal arguments give equal text.

    Parameters
    ----------
    evaluation : Evaluation
        Of :func:`vae_anomaly.metrics.evaluate`.
    title : str
        Heading of the page.
    model, data, provenance : mapping of str to object, optional
        Shown as tables of two columns, in their order.
    asked_fpr : float, optional
        False-alarm rate that the threshold was made for; the page sets it beside the realised one.
    history : mapping of str to array of shape (n_epochs,), optional
        ``epoch``, ``train_elbo``, ``val_elbo``, and the same of ``reconstruction`` and ``kl`` where recorded.
    worst_flagged, worst_missed : sequence of mapping
        Flagged rows with the highest scores, and missed anomalies with the lowest; the first 50 of either are shown.
        Keys: ``row``, ``anomaly_score``, ``p_value``, ``label`` (0 or 1), ``is_anomaly`` (0 or 1) and ``features``, a
        list of (name, contribution, seen value as text). All but ``row`` and ``anomaly_score`` can be left out.

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
    # A style of the user's own must not change the page.
    with style.context("default"):
        charts, training = _charts(evaluation), _training(history)
    return render_page(
        "template.html",
        title=as_text(title, MAX_NAME),
        verdict=_verdict(evaluation, asked_fpr),
        notes=evaluation.notes,
        cards=_cards(evaluation, asked_fpr),
        charts=charts,
        confusion=_confusion(evaluation),
        worst_flagged=_rows(worst_flagged, flagged=True),
        worst_missed=_rows(worst_missed, flagged=False),
        training=training,
        model=_facts(model),
        data=_facts(data),
        methods=[
            ("ROC-AUC, average precision", evaluation.roc_auc.method),
            ("Recall, precision, false-alarm rate", evaluation.recall.method),
        ],
        provenance=_facts(provenance),
    )


def render_page(template: str, **values: Any) -> str:
    """Page of a template in this folder, with the style and the script of the report inside."""
    folder = files("vae_anomaly.report")
    css, script, text = ((folder / name).read_text("utf-8") for name in ("report.css", "report.js", template))
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.from_string(text).render(
        # The policy lets this one script run and no other.
        script_hash=Markup("sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
        style=Markup(css),
        script=Markup(script),
        **values,
    )


def write_report(target_html: str | os.PathLike[str], evaluation: Evaluation, **arguments: Any) -> None:
    """Write the page of :func:`render_report`, whole or not at all; missing folders are made.

    Parameters
    ----------
    target_html : path
        File to write; an old one is replaced.
    evaluation : Evaluation
        Of :func:`vae_anomaly.metrics.evaluate`.
    **arguments
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
    page = render_report(evaluation, **arguments)
    target = Path(target_html)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        temporary.write_bytes(page.encode("utf-8"))


def _verdict(evaluation: Evaluation, asked_fpr: float | None) -> list[str]:
    """What a reader in a hurry should know."""
    auc, alarms = evaluation.roc_auc, evaluation.false_alarm_rate
    tn, fp, fn, tp = evaluation.confusion
    interval = "" if auc.low is None else f", {_confidence(auc)} interval {as_figure(auc.low)} to {as_figure(auc.high)}"
    sentences = [
        f"An anomaly scores higher than a normal row in {as_percent(auc.value)} of all pairs"
        f" (ROC-AUC {as_figure(auc.value)}{interval}).",
        f"At the threshold, {tp:,} of {tp + fn:,} anomalies are caught ({as_percent(evaluation.recall.value)}), and"
        f" {fp:,} of {tn + fp:,} normal rows raise a false alarm.",
    ]
    assert alarms.low is not None
    assert alarms.high is not None
    realised = f"{as_percent(alarms.value)} ({_confidence(alarms)} interval {_range(alarms)})"
    if asked_fpr is None:
        sentences.append(f"The false-alarm rate is {realised}.")
    else:
        if asked_fpr < alarms.low:
            meaning = "more than chance explains: these normal rows may differ from those the threshold was made on"
        elif asked_fpr > alarms.high:
            meaning = "fewer than asked"
        else:
            meaning = "in line with what was asked"
        sentences.append(
            f"A false-alarm rate of {as_percent(asked_fpr)} was asked for and {realised} came out: {meaning}."
        )
    return sentences


def _cards(evaluation: Evaluation, asked_fpr: float | None) -> list[dict[str, str]]:
    """The figures of merit, each with its interval or what to compare it with."""

    def within(figure: Interval, ends: str) -> str:
        return "" if figure.low is None else f"{_confidence(figure)} interval {ends}"

    def areas(figure: Interval, *also: str) -> str:
        ends = within(figure, f"{as_figure(figure.low)}–\u2060{as_figure(figure.high)}")
        return "; ".join(text for text in (ends, *also) if text)

    def shares(figure: Interval, *also: str) -> str:
        return "; ".join([within(figure, _range(figure)) or figure.method, *also])

    asked = [] if asked_fpr is None else [f"asked {as_percent(asked_fpr)}"]
    of = evaluation
    chance = f"by chance {as_figure(of.prevalence)}"
    cards = [
        ("ROC-AUC", as_figure(of.roc_auc.value), areas(of.roc_auc, "by chance 0.5")),
        ("Average precision", as_figure(of.average_precision.value), areas(of.average_precision, chance)),
        ("False-alarm rate", as_percent(of.false_alarm_rate.value), shares(of.false_alarm_rate, *asked)),
        ("Recall: anomalies caught", as_percent(of.recall.value), shares(of.recall)),
        ("Precision: alarms that are right", as_percent(of.precision.value), shares(of.precision)),
        ("F1", as_figure(of.f1), f"at threshold {as_number(of.threshold)}"),
    ]
    return [{"name": name, "value": value, "hint": hint} for name, value, hint in cards]


def _charts(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The charts of the scores, with what a reader should look for in each."""
    band = "" if evaluation.roc_band is None else f" The band is the {_confidence(evaluation.roc_auc)} interval."
    roc_auc, average_precision = as_figure(evaluation.roc_auc.value), as_figure(evaluation.average_precision.value)
    at = f"{as_percent(evaluation.recall.value)} recall at {as_percent(evaluation.false_alarm_rate.value)} false alarms"
    histogram = plot_score_histogram(evaluation)
    apart = any(tick.get_text()[:1] in ("<", ">") for tick in histogram.get_xticklabels())
    return [
        {
            "title": "ROC curve",
            "hint": f"Anomalies caught against false alarms, over all thresholds.{band}",
            "svg": _svg(plot_roc(evaluation), f"ROC curve, area {roc_auc}; the threshold gives {at}"),
        },
        {
            "title": "Precision and recall",
            "hint": "Share of alarms that are right against anomalies caught, over all thresholds.",
            "svg": _svg(plot_precision_recall(evaluation), f"Precision-recall curve, area {average_precision}"),
        },
        {
            "title": "Scores",
            "hint": "Rows to the right of the threshold are flagged."
            + (" A bar set apart counts all rows beyond." if apart else ""),
            "svg": _svg(histogram, "Histogram of the scores of normal rows and anomalies"),
        },
    ]


def _training(history: Mapping[str, ArrayLike] | None) -> list[dict[str, Any]]:
    """A chart for each quantity that was recorded."""
    kinds = {
        "elbo": ("ELBO", "Lower bound of the log-likelihood; higher is better."),
        "reconstruction": ("Reconstruction", "Log-likelihood of a row given its code; higher is better."),
        "kl": ("KL", "What the codes tell beyond the prior; near zero they tell nothing."),
    }
    charts = []
    for quantity, (title, hint) in kinds.items():
        recorded = [np.asarray((history or {}).get(f"{part}_{quantity}", ()), dtype=float) for part in ("train", "val")]
        if history is not None and any(np.isfinite(values).any() for values in recorded):
            ax = plot_training(history, quantity=quantity)
            charts.append({"title": title, "hint": hint, "svg": _svg(ax, f"{title} over the epochs of training")})
    return charts


def _svg(ax: Any, title: str) -> Markup:
    """SVG of the figure that ``ax`` belongs to."""
    return Markup(to_svg(ax.figure, title))


def _confusion(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Lines of the confusion table, with the share of each class."""
    tn, fp, fn, tp = evaluation.confusion

    def cell(kind: str, count: int, of: int, name: str) -> dict[str, str]:
        return {"kind": kind, "count": f"{count:,}", "hint": f"{name}, {as_percent(count / of)}"}

    return [
        {
            "name": f"{tp + fn:,} anomalies",
            "cells": [cell("right", tp, tp + fn, "caught"), cell("wrong", fn, tp + fn, "missed")],
        },
        {
            "name": f"{tn + fp:,} normal rows",
            "cells": [cell("wrong", fp, tn + fp, "false alarms"), cell("right", tn, tn + fp, "rightly passed")],
        },
    ]


def _rows(rows: Sequence[Mapping[str, Any]], *, flagged: bool) -> list[dict[str, Any]]:
    """Lines of a table of rows; ``flagged`` says what they are where they don't say it themselves."""
    rows = rows[:MAX_ROWS]
    scores = as_numbers([row["anomaly_score"] for row in rows])
    return [{**_row(row, flagged=flagged), "score": score} for row, score in zip(rows, scores, strict=True)]


def _row(row: Mapping[str, Any], *, flagged: bool) -> dict[str, Any]:
    """One line of a table of rows, without the score."""
    label, flag = row.get("label"), row.get("is_anomaly", int(flagged))
    if label is None:
        kind, result = "", "flagged" if flag else "passed"
    else:
        kind, result = {
            (1, 1): ("caught", "caught"),
            (0, 1): ("false", "false alarm"),
            (1, 0): ("missed", "missed"),
            (0, 0): ("", "rightly passed"),
        }[int(label), int(flag)]
    features = list(row.get("features") or ())[:MAX_FEATURES]
    largest = max((abs(c) for _, c, _ in features if is_finite(c)), default=0) or 1
    contributions = as_numbers([contribution for _, contribution, _ in features], digits=3)
    return {
        "row": as_text(row["row"], MAX_NAME),
        "score_key": _sort_key(row["anomaly_score"]),
        "p_value": as_number(row.get("p_value"), digits=3),
        "p_key": _sort_key(row.get("p_value")),
        "kind": kind,
        "result": result,
        "features": [
            {
                "name": as_text(name, MAX_NAME),
                "seen": as_text(seen, MAX_NAME),
                "contribution": text,
                "share": f"{abs(contribution) / largest:.3f}" if is_finite(contribution) else "0",
            }
            for (name, contribution, seen), text in zip(features, contributions, strict=True)
        ],
    }


def _sort_key(value: float | None) -> str:
    """A number as JavaScript reads it; a missing one sorts last."""
    return "-Infinity" if value is None or np.isnan(value) else str(float(value)).replace("inf", "Infinity")


def _facts(pairs: Mapping[str, object] | None) -> list[tuple[str, str]]:
    """Names and values as text."""
    return [(as_text(name), as_value(value)) for name, value in (pairs or {}).items()]


def _range(figure: Interval) -> str:
    """Ends of an interval of a share, in percent."""
    return "" if figure.low is None else f"{as_percent(figure.low)[:-2]}–\u2060{as_percent(figure.high)}"


def _confidence(figure: Interval) -> str:
    """The confidence that the method of an interval ends with."""
    return figure.method.rpartition(", ")[2].replace(" ", "\u00a0")
