"""Several scores of the same rows side by side: areas with intervals, and DeLong's test of each difference."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_anomaly import delong
from vae_anomaly.errors import DataError
from vae_anomaly.metrics import Interval, evaluate

__all__ = ["Compared", "compare_scores", "compared_json"]


class Compared(NamedTuple):
    """How well one score ranks the rows, and by how much its ROC-AUC exceeds the first score's."""

    name: str
    roc_auc: Interval
    average_precision: Interval
    difference: Interval
    """ROC-AUC less that of the first score, with DeLong's interval."""
    p_value: float
    """Two-sided, of the hypothesis that both areas are the same; NaN for the first score, and where all rows are ranked
    alike."""


def compare_scores(
    y: ArrayLike, scores: Mapping[str, ArrayLike], *, confidence: float = 0.95, n_resamples: int | None = 200
) -> list[Compared]:
    """Areas of each score, and their differences from the first one on the same rows.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        1 for an anomaly, 0 for normal.
    scores : mapping of str to array-like of shape (n_samples,)
        Higher is more anomalous. The first one is what the others are compared with.
    confidence : float in (0, 1)
    n_resamples : int, optional
        Bootstrap resamples for the average precision, which has no closed form.

    Raises
    ------
    DataError
        If all rows are of one class, or there is no score.

    Examples
    --------
    >>> y = np.repeat([0, 1], 100)
    >>> noise = np.random.default_rng(0).normal(size=200)
    >>> good, poor = compare_scores(y, {"good": 2 * y + noise, "poor": 0.2 * y + noise})
    >>> good.p_value, poor.difference.high < 0, poor.p_value < 0.001
    (nan, True, True)
    """
    if not scores:
        raise DataError("There is no score to compare.")
    first = _ranks(next(iter(scores.values())))
    compared = []
    for place, (name, values) in enumerate(scores.items()):
        evaluation = evaluate(y, values, threshold=np.inf, confidence=confidence, n_resamples=n_resamples)
        difference = delong.area_difference(y, _ranks(values), first, confidence)
        method = f"paired, {evaluation.roc_auc_delong.method}"
        compared.append(
            Compared(
                name,
                evaluation.roc_auc_delong,
                evaluation.average_precision,
                Interval(difference.value, difference.low, difference.high, method),
                np.nan if place == 0 else difference.p_value,
            )
        )
    return compared


def compared_json(compared: list[Compared]) -> list[dict[str, Any]]:
    """The comparison as plain numbers; a p-value that is not defined becomes None."""
    return [
        {
            "name": one.name,
            **{what: getattr(one, what).__dict__ for what in ("roc_auc", "average_precision", "difference")},
            "p_value": None if np.isnan(one.p_value) else one.p_value,
        }
        for one in compared
    ]


def _ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Finite stand-ins in the same order, ties kept."""
    return np.unique(np.asarray(values, dtype=float), return_inverse=True)[1].astype(float)
