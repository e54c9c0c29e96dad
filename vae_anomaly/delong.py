"""DeLong's law of the area under the ROC curve: intervals and paired comparisons without resampling."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = ["AreaDifference", "area_difference", "area_interval"]

Floats = NDArray[np.float64]


class AreaDifference(NamedTuple):
    """Area of a first score less that of a second one on the same rows."""

    value: float
    low: float
    high: float
    p_value: float
    """Two-sided, of the hypothesis that both areas are the same; NaN if both rank all rows alike."""


def area_interval(y: ArrayLike, scores: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Area under the ROC curve with DeLong's interval [1]_, symmetric on the logit scale: it stays within [0, 1].

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        1 for an anomaly, 0 for normal; at least one of each.
    scores : array-like of shape (n_samples,)
        Higher is more anomalous.
    confidence : float, default=0.95

    Returns
    -------
    area, low, high : float
        An area of 0 or 1 has no spread to estimate; its interval has length 0.

    References
    ----------
    .. [1] DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
       characteristic curves", Biometrics 44(3), 1988

    Examples
    --------
    >>> area, low, high = area_interval([0, 0, 0, 1, 1], [0.1, 0.4, 0.3, 0.35, 0.8])
    >>> round(area, 3), 0 < low < area < high < 1
    (0.833, True)
    """
    areas, covariance = _areas(y, np.asarray(scores, dtype=float)[None])
    area, deviation = float(areas[0]), float(np.sqrt(covariance[0, 0]))
    if not 0.0 < area < 1.0 or deviation == 0.0:
        return area, area, area
    logit, reach = np.log(area / (1.0 - area)), stats.norm.ppf(0.5 + confidence / 2) * deviation / (area * (1.0 - area))
    low, high = 1.0 / (1.0 + np.exp(-(logit - reach))), 1.0 / (1.0 + np.exp(-(logit + reach)))
    return area, float(low), float(high)


def area_difference(y: ArrayLike, first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> AreaDifference:
    """DeLong's comparison of two scores of the same rows.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], 200)
    >>> good, poor = (y * shift + rng.normal(size=400) for shift in (2.0, 0.2))
    >>> area_difference(y, good, poor).p_value < 0.001
    True
    """
    stacked = np.stack([np.asarray(first, dtype=float), np.asarray(second, dtype=float)])
    areas, covariance = _areas(y, stacked)
    value = float(areas[0] - areas[1])
    deviation = float(np.sqrt(max(covariance[0, 0] + covariance[1, 1] - 2.0 * covariance[0, 1], 0.0)))
    if deviation == 0.0:
        return AreaDifference(value, value, value, np.nan if value == 0.0 else 0.0)
    reach = float(stats.norm.ppf(0.5 + confidence / 2)) * deviation
    return AreaDifference(value, value - reach, value + reach, float(2.0 * stats.norm.sf(abs(value) / deviation)))


def _areas(y: ArrayLike, scores: Floats) -> tuple[Floats, Floats]:
    """Areas of ``scores`` of shape (n_scores, n_samples), and their covariance matrix.

    Midranks give the share of the other class that each row outranks, a tie counting half (Sun and Xu 2014).
    """
    anomalous = np.asarray(y) == 1
    n_anomalies, n_normal = int(anomalous.sum()), int((~anomalous).sum())
    if not (n_anomalies and n_normal):
        raise ValueError("An area under the ROC curve takes at least one anomaly and one normal row.")
    ranks = stats.rankdata(scores, axis=1)
    over_normal = (ranks[:, anomalous] - stats.rankdata(scores[:, anomalous], axis=1)) / n_normal
    under_anomalies = 1.0 - (ranks[:, ~anomalous] - stats.rankdata(scores[:, ~anomalous], axis=1)) / n_anomalies
    covariance = np.zeros((len(scores), len(scores)))
    for shares, n_rows in ((over_normal, n_anomalies), (under_anomalies, n_normal)):
        if n_rows > 1:
            covariance += np.atleast_2d(np.cov(shares)) / n_rows
    return over_normal.mean(axis=1), covariance
