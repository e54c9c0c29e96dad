"""From the p-values of a batch to the rows to flag, and how many of the flagged ones may be false alarms."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_anomaly.thresholds import check_share

__all__ = ["PValueCounts", "adjusted_p_values", "at_most", "check_fdr", "false_alarm_share"]

# Ranks at which the bound on the number of false alarms is kept at once; between two of them the higher one counts.
N_RANKS = 100
N_DRAWS = 10_000

Floats = NDArray[np.float64]


def check_fdr(fdr: Any) -> float:
    """``fdr`` as a float, or ValueError if it does not lie strictly between 0 and 1."""
    return check_share("fdr", fdr, "flagged rows that are normal")


def at_most(adjusted: Floats, fdr: float) -> NDArray[np.bool_]:
    """Which rows to flag together. Conformal p-values are whole numbers over one, so some adjusted ones are ``fdr``.

    Examples
    --------
    >>> adjusted = np.array([17 / 500 * (50 / 34)])
    >>> (adjusted <= 0.05).tolist(), at_most(adjusted, 0.05).tolist()
    ([False], [True])
    """
    # What was computed from whole numbers may lie a rounding error above.
    return adjusted <= fdr * (1.0 + 1e-12)


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
    return PValueCounts().add(p).adjusted(p)


class PValueCounts:
    """How often each p-value occurred: all that has to be kept of a batch of rows to judge them together.

    Conformal p-values are multiples of one over the number of calibration rows, so these are few numbers however many
    rows there are.

    Examples
    --------
    >>> counts = PValueCounts().add([0.5, 0.01]).add([np.nan, 0.5])
    >>> counts.values.tolist(), counts.counts.tolist(), len(counts)
    ([0.01, 0.5], [1, 2], 3)
    >>> counts.adjusted([0.01, np.nan])
    array([0.03,  nan])
    """

    def __init__(self, values: ArrayLike = (), counts: ArrayLike = ()) -> None:
        self.values = np.asarray(values, dtype=np.float64)
        """Distinct p-values in order."""
        self.counts = np.asarray(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def add(self, p_values: ArrayLike) -> "PValueCounts":
        """Count further p-values; NaN counts for nothing."""
        p = np.asarray(p_values, dtype=np.float64)
        found, times = np.unique(p[~np.isnan(p)], return_counts=True)
        self.values, places = np.unique(np.concatenate([self.values, found]), return_inverse=True)
        counts = np.zeros(len(self.values), dtype=np.int64)
        np.add.at(counts, places, np.concatenate([self.counts, times]))
        self.counts = counts
        return self

    def smallest(self, rank: int) -> float:
        """The p-value of this rank, from 1."""
        return float(self.values[np.searchsorted(self.counts.cumsum(), rank)])

    def adjusted(self, p_values: ArrayLike) -> Floats:
        """Benjamini-Hochberg's adjusted value of each of these p-values, all of which were counted."""
        p = np.asarray(p_values, dtype=np.float64)
        found = np.full(p.shape, np.nan)
        if not len(self.values):
            return found
        # Of equal p-values the last rank gives the least adjusted one, which holds for all of them.
        by_rank = self.values * (len(self) / self.counts.cumsum())
        adjusted = np.minimum.accumulate(by_rank[::-1])[::-1].clip(0.0, 1.0)
        known = ~np.isnan(p)
        found[known] = adjusted[np.searchsorted(self.values, p[known])]
        return found


def false_alarm_share(
    p_values: "ArrayLike | PValueCounts", n_calibration: int, n_flagged: int, confidence: float = 0.95
) -> float:
    """Upper bound on the share of false alarms among the ``n_flagged`` rows with the lowest p-values.

    Holds with probability ``confidence`` over calibration rows and new rows, for every number of flagged rows at once,
    so that the number may have been chosen by looking at the p-values. Were all m new rows normal, the number of those
    with a p-value of at most k / (n + 1) would follow a beta-binomial law; the bounds at all k are widened together, by
    simulation, until all of them hold at once [1]_.

    Parameters
    ----------
    p_values : array-like of shape (n_samples,), or PValueCounts
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
    p = p_values if isinstance(p_values, PValueCounts) else PValueCounts().add(p_values)
    if not 1 <= n_flagged <= len(p):
        raise ValueError(f"n_flagged={n_flagged} must be at least 1 and at most the {len(p)} rows with a p-value.")
    if n_calibration < 1:
        raise ValueError(f"n_calibration={n_calibration} must be at least 1, the rows that the p-values come from.")
    confidence = check_share("confidence", confidence, "draws of rows for which the bound holds")
    ranks, bounds = _joint_bounds(n_calibration, len(p), confidence)
    rank = round(p.smallest(n_flagged) * (n_calibration + 1))
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
