"""Recall for each kind of anomaly: an average hides the kind that a detector never catches."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from vae_anomaly.delong import area_interval
from vae_anomaly.metrics import Evaluation, Interval, share_interval

__all__ = ["TypeRecall", "recall_by_type", "recall_by_type_json"]


class TypeRecall(NamedTuple):
    """What becomes of the anomalies of one kind."""

    name: str
    n_anomalies: int
    n_caught: int
    recall: Interval
    roc_auc: Interval
    """Of the anomalies of this kind against all normal rows."""


def recall_by_type(evaluation: Evaluation, types: ArrayLike, *, confidence: float = 0.95) -> list[TypeRecall]:
    """Recall at the threshold and ROC-AUC of each kind of anomaly, the least caught first.

    Parameters
    ----------
    evaluation : Evaluation
        Of :func:`vae_anomaly.metrics.evaluate`.
    types : array-like of shape (n_samples,)
        Kind of each row, as text; what normal rows have is not looked at. A missing one counts as "(no type)".
    confidence : float, default=0.95

    Examples
    --------
    >>> from vae_anomaly.metrics import evaluate
    >>> evaluation = evaluate([0, 0, 0, 1, 1, 1], [1.0, 2.0, 3.0, 2.5, 8.0, 9.0], threshold=4.0)
    >>> rows = recall_by_type(evaluation, ["", "", "", "leak", "jam", "jam"])
    >>> [(row.name, row.n_caught, row.n_anomalies) for row in rows]
    [('leak', 0, 1), ('jam', 2, 2)]
    """
    given = np.asarray(types, dtype=object)
    if given.shape != evaluation.y.shape:
        raise ValueError(f"types has shape {given.shape}, and the evaluation has {evaluation.n_rows} rows.")
    names = np.array([_name(value) for value in given], dtype=object)
    ranks = np.unique(evaluation.scores, return_inverse=True)[1].astype(float)
    anomalous = evaluation.y == 1
    rows = []
    for name in sorted(set(names[anomalous])):
        of_kind = anomalous & (names == name)
        n_caught, n = int(evaluation.flagged[of_kind].sum()), int(of_kind.sum())
        some = of_kind | ~anomalous
        area = Interval(*area_interval(evaluation.y[some], ranks[some], confidence), f"DeLong, {100 * confidence:g} %")
        rows.append(TypeRecall(name, n, n_caught, share_interval(n_caught, n, confidence), area))
    return sorted(rows, key=lambda row: (row.n_caught / row.n_anomalies, row.name))


def recall_by_type_json(rows: list[TypeRecall]) -> list[dict[str, Any]]:
    """The rows as plain numbers."""
    return [
        {
            "name": row.name,
            "n_anomalies": row.n_anomalies,
            "n_caught": row.n_caught,
            "recall": row.recall.__dict__,
            "roc_auc": row.roc_auc.__dict__,
        }
        for row in rows
    ]


def _name(value: object) -> str:
    return "(no type)" if pd.isna(value) or value == "" else str(value)
