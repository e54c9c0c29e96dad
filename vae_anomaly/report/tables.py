"""The tables of a report, as the template wants them: text, and keys to sort by."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_anomaly.by_type import TypeRecall
from vae_anomaly.metrics import Evaluation
from vae_anomaly.paired import Compared
from vae_anomaly.report.formats import (
    as_figure,
    as_number,
    as_numbers,
    as_percent,
    as_signed,
    as_text,
    as_value,
    is_finite,
    range_of,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MAX_NAME", "compared_table", "confusion", "facts", "sample_tables", "type_table", "worst_rows"]

# Together they keep the page under 2 MB whatever the data hold.
MAX_ROWS = 50
MAX_FEATURES = 6
MAX_NAME = 120
MAX_TYPES = 100
MAX_SAMPLES = 8
MAX_COLUMNS = 8


def facts(pairs: Mapping[str, object] | None) -> list[tuple[str, str]]:
    """Names and values as text."""
    return [(as_text(name), as_value(value)) for name, value in (pairs or {}).items()]


def confusion(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Lines of the confusion table, with the share of each class."""
    tn, fp, fn, tp = evaluation.confusion

    def cell(key: str, kind: str, count: int, of: int, name: str) -> dict[str, str]:
        return {"key": key, "kind": kind, "count": f"{count:,}", "share": as_percent(count / of), "name": name}

    return [
        {
            "name": f"{tp + fn:,} anomalies",
            "cells": [
                cell("tp", "right", tp, tp + fn, "caught"),
                cell("fn", "wrong", fn, tp + fn, "missed"),
            ],
        },
        {
            "name": f"{tn + fp:,} normal rows",
            "cells": [
                cell("fp", "wrong", fp, tn + fp, "false alarms"),
                cell("tn", "right", tn, tn + fp, "rightly passed"),
            ],
        },
    ]


def worst_rows(rows: Sequence[Mapping[str, Any]], *, flagged: bool) -> list[dict[str, Any]]:
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
    features = [(*feature, "")[:4] for feature in list(row.get("features") or ())[:MAX_FEATURES]]
    largest = max((abs(c) for _, c, *_ in features if is_finite(c)), default=0) or 1
    contributions = as_numbers([contribution for _, contribution, *_ in features], digits=3)
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
                "expected": as_text(expected, MAX_NAME),
                "contribution": text,
                "share": f"{abs(contribution) / largest:.3f}" if is_finite(contribution) else "0",
            }
            for (name, contribution, seen, expected), text in zip(features, contributions, strict=True)
        ],
    }


def type_table(types: Sequence[TypeRecall]) -> list[dict[str, Any]]:
    """Lines of the table of kinds of anomaly, the least caught first."""
    return [
        {
            "name": as_text(one.name, MAX_NAME),
            "n": f"{one.n_anomalies:,}",
            "n_key": one.n_anomalies,
            "caught": f"{one.n_caught:,}",
            "caught_key": one.n_caught,
            "recall": as_percent(one.recall.value),
            "recall_key": _sort_key(one.recall.value),
            "range": range_of(one.recall),
            "roc_auc": as_figure(one.roc_auc.value),
            "roc_auc_key": _sort_key(one.roc_auc.value),
        }
        for one in types[:MAX_TYPES]
    ]


def compared_table(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """Lines of the table of other scores or models."""
    return [_compared(one, reference=place == 0) for place, one in enumerate(compared[:MAX_TYPES])]


def _compared(one: Compared, *, reference: bool) -> dict[str, Any]:
    difference = one.difference
    kind = ""
    if not reference and difference.low is not None and difference.high is not None:
        kind = "better" if difference.low > 0 else "worse" if difference.high < 0 else ""
    return {
        "name": as_text(one.name, MAX_NAME),
        "reference": reference,
        "roc_auc": as_figure(one.roc_auc.value),
        "roc_auc_key": _sort_key(one.roc_auc.value),
        "roc_auc_ends": f"{as_figure(one.roc_auc.low)} to {as_figure(one.roc_auc.high)}",
        "average_precision": as_figure(one.average_precision.value),
        "average_precision_key": _sort_key(one.average_precision.value),
        "difference": "" if reference else as_signed(difference.value),
        "difference_key": _sort_key(difference.value),
        "difference_ends": "" if reference else f"{as_signed(difference.low)} to {as_signed(difference.high)}",
        "kind": kind,
        "p_value": "" if reference else as_number(one.p_value, digits=2),
        "p_key": _sort_key(one.p_value),
    }


def sample_tables(samples: "tuple[pd.DataFrame, pd.DataFrame] | None") -> dict[str, Any] | None:
    """Drawn rows and real rows under the same columns, of which the first few are shown."""
    if samples is None:
        return None
    drawn, real = samples
    n_more = max(drawn.shape[1] - MAX_COLUMNS, 0)
    return {
        "columns": [as_text(name, MAX_NAME) for name in drawn.columns[:MAX_COLUMNS]],
        "more": n_more,
        "groups": [(name, _cells(frame)) for name, frame in (("drawn from the model", drawn), ("real", real))],
    }


def _cells(frame: "pd.DataFrame") -> list[list[str]]:
    """First rows and columns of a frame as text, numbers of a column with as many decimals each."""
    part = frame.iloc[:MAX_SAMPLES, :MAX_COLUMNS]
    columns = []
    for _, column in part.items():
        if column.dtype.kind == "f":
            columns.append(as_numbers(column.tolist()))
        else:
            columns.append([as_text(as_value(value), MAX_NAME) for value in column.tolist()])
    return [list(row) for row in zip(*columns, strict=True)]


def _sort_key(value: float | None) -> str:
    """A number as JavaScript reads it; a missing one sorts last."""
    return "-Infinity" if value is None or np.isnan(value) else str(float(value)).replace("inf", "Infinity")
