"""A detector and the baselines on labelled tables as one HTML file that needs nothing else."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup
from matplotlib import style

from vae_anomaly.metrics import Interval
from vae_anomaly.report.charts import plot_intervals
from vae_anomaly.report.formats import as_figure, as_numbers, as_signed, as_text, as_value
from vae_anomaly.report.page import render_page
from vae_anomaly.report.svg import to_svg
from vae_anomaly.report.tables import MAX_NAME

if TYPE_CHECKING:
    from vae_anomaly.comparison import PairedDifference, Result

__all__ = ["Compared", "render_comparison"]

AREAS = {"roc_auc": "ROC-AUC", "average_precision": "Average precision"}


class Compared(NamedTuple):
    """What came out on one table."""

    name: str
    facts: Mapping[str, object]
    results: "Sequence[Result]"
    differences: "Sequence[PairedDifference]"
    verdict: str


def render_comparison(tables: Sequence[Compared], *, title: str, provenance: Mapping[str, object] | None = None) -> str:
    """HTML page of the comparisons on several tables; equal arguments give equal text.

    Parameters
    ----------
    tables : sequence of Compared
        In the order of the page.
    title : str
        Heading of the page.
    provenance : mapping of str to object, optional
        Shown as a table of two columns.
    """
    # A style of the user's own must not change the page.
    with style.context("default"):
        sections = [_section(table, index) for index, table in enumerate(tables)]
    return render_page(
        "compare.html",
        title=as_text(title, MAX_NAME),
        sections=sections,
        provenance=[(as_text(name), as_value(value)) for name, value in (provenance or {}).items()],
    )


def _section(table: Compared, index: int) -> dict[str, Any]:
    differences = {difference.name: difference for difference in table.differences}
    seconds = zip(
        as_numbers([result.fit_seconds for result in table.results], digits=3),
        as_numbers([result.score_seconds for result in table.results], digits=3),
        strict=True,
    )
    return {
        "name": as_text(table.name, MAX_NAME),
        "verdict": as_text(table.verdict),
        "facts": [(as_text(name), as_value(value)) for name, value in table.facts.items()],
        "charts": [
            {
                "name": f"{key}-{index + 1}",
                "title": what,
                "hint": f"Bars are intervals: {method}. Dashed: the VAE."
                if (method := getattr(table.results[0], key).method)
                else "",
                "svg": Markup(to_svg(_chart(table, key, what), f"{what} of each detector on table {index + 1}")),
            }
            for key, what in AREAS.items()
        ],
        "rows": [
            {**_row(result, differences.get(result.name)), "fit": fit, "score": score}
            for result, (fit, score) in zip(table.results, seconds, strict=True)
        ],
        "settings": [(result.name, as_text(result.settings)) for result in table.results],
    }


def _chart(table: Compared, key: str, what: str) -> Any:
    return plot_intervals({result.name: getattr(result, key) for result in table.results}, what).figure


def _row(result: "Result", difference: "PairedDifference | None") -> dict[str, Any]:
    return {
        "name": result.name,
        "reference": difference is None,
        "areas": [
            {
                "label": what,
                "key": getattr(result, key).value,
                "value": as_figure(getattr(result, key).value),
                "interval": _ends(getattr(result, key)),
                **_compared(None if difference is None else getattr(difference, key)),
            }
            for key, what in AREAS.items()
        ],
        "fit_key": result.fit_seconds,
        "score_key": result.score_seconds,
    }


def _compared(difference: Interval | None) -> dict[str, Any]:
    """How an area differs from the VAE's; better or worse only where the interval leaves 0 out."""
    if difference is None or difference.value is None:
        return {"difference": "", "ends": "", "difference_key": 0, "kind": ""}
    kind = ""
    if difference.low is not None and difference.high is not None:
        kind = "better" if difference.low > 0 else "worse" if difference.high < 0 else ""
    return {
        "difference": as_signed(difference.value),
        "ends": "" if difference.low is None else f"{as_signed(difference.low)} to {as_signed(difference.high)}",
        "difference_key": difference.value,
        "kind": kind,
    }


def _ends(interval: Interval) -> str:
    return "" if interval.low is None else f"{as_figure(interval.low)} to {as_figure(interval.high)}"
