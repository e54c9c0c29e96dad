"""From scores of normal data to decisions: thresholds with a false-alarm promise, and conformal p-values."""

import math
import sys
from collections.abc import Callable
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from vae_anomaly.tails import Extrapolation, excess_rows_needed, extrapolation

__all__ = [
    "THRESHOLDS",
    "Threshold",
    "check_fpr",
    "check_share",
    "conformal",
    "conformal_rows_needed",
    "or_extrapolate",
    "p_values",
    "peaks_over_threshold",
    "quantile",
    "realised_rate",
]


def check_share(name: str, value: Any, meaning: str) -> float:
    """``value`` as a float, or ValueError if it does not lie strictly between 0 and 1."""
    # The inverse of a smaller number than the first is none.
    if not (isinstance(value, Real) and sys.float_info.min <= float(value) < 1.0):
        raise ValueError(f"{name}={value} must lie between 0 and 1, both excluded: it is the share of {meaning}.")
    return float(value)


def check_fpr(fpr: Any) -> float:
    """``fpr`` as a float, or ValueError if it does not lie strictly between 0 and 1."""
    return check_share("fpr", fpr, "normal rows to flag")


def conformal_rows_needed(fpr: float) -> int:
    """Smallest number of calibration samples with which :func:`conformal` can keep ``fpr``, 1 / fpr - 1.

    Examples
    --------
    >>> conformal_rows_needed(0.05)
    19
    """
    return math.ceil(1.0 / fpr - 1e-9) - 1


def conformal(scores: ArrayLike, fpr: float) -> float:
    r"""Threshold that a new normal sample exceeds with probability at most ``fpr``.

    Holds for any score distribution, as long as the new sample is exchangeable with the calibration samples [1]_, which
    must not have been trained on. The probability is over the draw of the calibration samples, too.

    Parameters
    ----------
    scores : array-like of shape (n_samples,)
        Anomaly scores of held-out normal samples. Higher is more anomalous.
    fpr : float in (0, 1)
        Allowed false-positive rate.

    Returns
    -------
    float
        The k-th smallest score, :math:`k = \lceil (n + 1)(1 - \mathrm{fpr}) \rceil`.

    Raises
    ------
    ValueError
        If ``n_samples < 1 / fpr - 1``, when no finite threshold keeps the promise.

    References
    ----------
    .. [1] Bates et al., "Testing for outliers with conformal p-values", Annals of Statistics 51(1), 2023,
       https://arxiv.org/abs/2104.08279

    Examples
    --------
    >>> conformal(np.arange(19.0), fpr=0.1)
    17.0
    """
    ordered = _sorted(scores)
    check_fpr(fpr)
    n_samples, needed = len(ordered), conformal_rows_needed(fpr)
    if n_samples < needed:
        raise ValueError(
            f"fpr={fpr} needs at least {needed} calibration samples, got {n_samples}. "
            f"Raise fpr or calibrate on more normal data{or_extrapolate(n_samples, fpr)}."
        )
    # The tolerance undoes the rounding of products such as 0.1 * 30.
    n_above = math.floor((n_samples + 1) * fpr + 1e-9)
    return float(ordered[n_samples - n_above])


def or_extrapolate(n_samples: int, fpr: float) -> str:
    """End of a sentence on too few samples: the way out that :func:`peaks_over_threshold` may be."""
    if n_samples < excess_rows_needed(fpr):
        return ""
    return ", or extrapolate, which promises nothing, with --threshold peaks_over_threshold"


def realised_rate(n_samples: int, fpr: float, confidence: float = 0.9) -> tuple[float, float]:
    """Interval of the false-positive rate that one conformal threshold really has.

    :func:`conformal` keeps ``fpr`` on average over calibration samples. Given one set of n of them, with scores that
    have a density, the rate follows a Beta(k, n + 1 - k) law, k = floor((n + 1) fpr) (Vovk 2012); the interval leaves
    out as much on either side.

    Parameters
    ----------
    n_samples : int
        Calibration samples; at least ``conformal_rows_needed(fpr)``.
    fpr : float in (0, 1)
    confidence : float, default=0.9

    Returns
    -------
    low, high : float

    References
    ----------
    .. [1] Vovk, "Conditional validity of inductive conformal predictors", ACML 2012, https://arxiv.org/abs/1209.2673

    Examples
    --------
    >>> low, high = realised_rate(1000, 0.01)
    >>> round(100 * low, 2), round(100 * high, 2)
    (0.54, 1.57)
    """
    n_above = math.floor((n_samples + 1) * check_fpr(fpr) + 1e-9)
    if n_above < 1:
        raise ValueError(f"fpr={fpr} needs at least {conformal_rows_needed(fpr)} calibration samples, got {n_samples}.")
    low, high = stats.beta(n_above, n_samples + 1 - n_above).interval(confidence)
    return float(low), float(high)


def quantile(scores: ArrayLike, fpr: float) -> float:
    """Plain empirical quantile: exceeded by a share ``fpr`` of the calibration samples themselves.

    It makes no promise for new samples: with 99 calibration samples and ``fpr=0.05`` about 5.9 % of new normal samples
    exceed it. :func:`conformal` accounts for that.

    Examples
    --------
    >>> quantile(np.arange(101.0), fpr=0.1)
    90.0
    """
    return float(np.quantile(_sorted(scores), 1.0 - check_fpr(fpr)))


def peaks_over_threshold(scores: ArrayLike, fpr: float) -> float:
    """Threshold from a generalised Pareto fit to the largest scores: an extrapolation beyond the calibration samples.

    What is known of its error comes with :func:`~vae_anomaly.tails.extrapolation`, whose threshold it is [1]_.

    Raises
    ------
    ValueError
        If the samples can't carry it; the message says why.

    References
    ----------
    .. [1] Siffer et al., "Anomaly detection in streams with extreme value theory", KDD 2017,
       https://doi.org/10.1145/3097983.3098144

    Examples
    --------
    >>> scores = np.random.default_rng(0).exponential(size=5000)
    >>> threshold = peaks_over_threshold(scores, fpr=1e-4)  # the exact quantile is 9.2
    >>> 7 < threshold < 13
    True
    """
    return _extrapolation(scores, fpr).threshold


def _extrapolation(scores: ArrayLike, fpr: float) -> Extrapolation:
    return extrapolation(_sorted(scores), check_fpr(fpr))


def p_values(calibration_scores: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    r"""Conformal p-value of each score: :math:`(1 + \#\{\text{calibration scores} \ge s\}) / (n + 1)`.

    For a new normal sample, P(p <= a) <= a for every a. A score above ``conformal(calibration_scores, fpr)`` is the
    same as a p-value of at most ``fpr``. A NaN score has a NaN p-value.

    Examples
    --------
    >>> p_values([0.0, 1.0, 2.0], [-1.0, 1.5, 9.0])
    array([1.  , 0.5 , 0.25])
    """
    ordered, new = _sorted(calibration_scores), np.asarray(scores, dtype=float)
    n_at_least = len(ordered) - np.searchsorted(ordered, new, side="left")
    return np.where(np.isnan(new), np.nan, (1.0 + n_at_least) / (len(ordered) + 1.0))


def _sorted(scores: ArrayLike) -> NDArray[np.float64]:
    vector = np.asarray(scores, dtype=float)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"Calibration scores must be a non-empty vector, got an array of shape {vector.shape}.")
    ordered = np.sort(vector)
    if np.isnan(ordered[-1]):
        raise ValueError("Calibration scores contain NaN; leave out the rows that could not be scored.")
    return ordered


class Threshold(NamedTuple):
    """A rule from calibration scores to a threshold, and how many scores it needs for an ``fpr``."""

    function: Callable[[ArrayLike, float], float]
    rows_needed: Callable[[float], int]
    extrapolation: Callable[[ArrayLike, float], Extrapolation] | None = None
    """The same threshold with its error, of a rule that goes beyond the samples."""


THRESHOLDS: dict[str, Threshold] = {
    "conformal": Threshold(conformal, conformal_rows_needed),
    "quantile": Threshold(quantile, lambda fpr: 1),
    "peaks_over_threshold": Threshold(peaks_over_threshold, excess_rows_needed, _extrapolation),
}
