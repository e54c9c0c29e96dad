"""From the p-values of a batch to the rows to flag, and how many of the flagged ones may be false alarms."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from vae_anomaly.thresholds import check_share

__all__ = ["adjusted_p_values", "check_fdr", "false_alarm_share"]

# Ranks at which the bound on the number of false alarms is kept at once; between two of them the higher one counts.
N_RANKS = 100
N_DRAWS = 10_000

Floats = NDArray[np.float64]


def check_fdr(fdr: Any) -> float:
    """``fdr`` as a float, or ValueError if it does not lie strictly between 0 and 1."""
    return check_share("fdr", fdr, "flagged rows that are normal")


def adjusted_p_values(p_values: ArrayLike) -> Floats:
    """Benjamini-Hochberg's adjusted p-values; flag those of at most ``fdr``.

    Then the share of false alarms among the flagged rows is at most ``fdr`` on average. Conformal p-values share their
    calibration rows, and the rule holds for them all the same [1]_. A NaN stays NaN and counts for nothing.

    References
    ----------
    .. [1] Bates et al., "Testing for outliers with conformal p-values", Annals of Statistics 51(1), 2023,
       https://arxiv.org/abs/2104.08279

    Examples
    --------
    >>> adjusted_p_values([0.01, 0.04, 0.03, 0.9]).round(3)
    array([0.04 , 0.053, 0.053, 0.9  ])
    """
    p = np.asarray(p_values, dtype=float)
    known = ~np.isnan(p)
    adjusted = np.full(p.shape, np.nan)
    if known.any():
        adjusted[known] = stats.false_discovery_control(p[known], method="bh")
    return adjusted


def false_alarm_share(p_values: ArrayLike, n_calibration: int, n_flagged: int, confidence: float = 0.95) -> float:
    """Upper bound on the share of false alarms among the ``n_flagged`` rows with the lowest p-values.

    Holds with probability ``confidence`` over calibration rows and new rows, for every number of flagged rows at once,
    so that the number may have been chosen by looking at the p-values. Were all m new rows normal, the number of those
    with a p-value of at most k / (n + 1) would follow a beta-binomial law; the bounds at all k are widened together, by
    simulation, until all of them hold at once [1]_.

    Parameters
    ----------
    p_values : array-like of shape (n_samples,)
        Conformal p-values of the whole batch, NaN where a row has none.
    n_calibration : int
        Calibration rows behind them.
    n_flagged : int
        At least 1.
    confidence : float, default=0.95

    Returns
    -------
    float
        From 0 to 1.

    References
    ----------
    .. [1] Gazin, Blanchard and Roquain, "Transductive conformal inference with adaptive scores", AISTATS 2024,
       https://arxiv.org/abs/2310.18108

    Examples
    --------
    >>> p_values = np.concatenate([np.full(50, 0.001), np.linspace(0.002, 1, 450)])
    >>> false_alarm_share(p_values, n_calibration=999, n_flagged=50) < 0.2
    True
    """
    p = np.sort(np.asarray(p_values, dtype=float))
    p = p[~np.isnan(p)]
    if not 1 <= n_flagged <= len(p):
        raise ValueError(f"n_flagged={n_flagged} must be at least 1 and at most the {len(p)} rows with a p-value.")
    ranks, bounds = _joint_bounds(n_calibration, len(p), confidence)
    rank = round(p[n_flagged - 1] * (n_calibration + 1))
    at = np.searchsorted(ranks, rank)
    if at == len(ranks):
        return 1.0
    return float(min(1.0, bounds[at] / n_flagged))


@lru_cache(maxsize=16)
def _joint_bounds(n_calibration: int, n_new: int, confidence: float) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Some ranks, and bounds that the numbers of normal rows with a p-value of at most each keep, all at once."""
    ranks = np.unique(np.geomspace(1, n_calibration, N_RANKS).round().astype(int))
    rng = np.random.default_rng(0)
    # The share of normal rows above the k-th largest calibration score is a sum of k gaps out of n + 1, and the gaps of
    # ordered draws are as exponential variables over their sum.
    widths = np.diff(np.concatenate([[0], ranks, [n_calibration + 1]]))
    gaps = rng.gamma(widths, size=(N_DRAWS, len(widths)))
    counts = rng.multinomial(n_new, gaps / gaps.sum(axis=1, keepdims=True))[:, :-1].cumsum(axis=1)
    ordered = np.sort(counts, axis=0)
    below = np.stack(
        [np.searchsorted(column, count) for column, count in zip(ordered.T, counts.T, strict=True)], axis=1
    )
    # In how many draws the most extreme count of a draw is reached: the bounds leave out the least of these.
    reached = N_DRAWS - below.max(axis=1)
    allowed = int(np.sort(reached)[int((1.0 - confidence) * N_DRAWS)])
    return ranks, ordered[N_DRAWS - allowed]
