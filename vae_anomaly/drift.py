"""Whether a batch of new scores can be normal data with some anomalies among them."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

__all__ = ["DRIFT_LEVEL", "MIN_ROWS", "LowScores", "drift_p_value"]

# A batch is scored often, so the alarm has to be rare where nothing has changed.
DRIFT_LEVEL = 0.001
# With fewer rows below the median on either side the test finds next to nothing.
MIN_ROWS = 20
# Scores up to this share of the calibration scores are those of rows that nothing is remarkable about.
UNREMARKABLE = 0.95
# How many of these may be anomalies all the same.
MAX_MISSED = 0.5
# SciPy computes the law of the statistic exactly up to so many scores on either side.
MAX_EXACT = 10_000


def drift_p_value(calibration_scores: ArrayLike, scores: ArrayLike) -> float | None:
    """p-value of the hypothesis that the normal rows of a batch score as the calibration rows do.

    Anomalies score high, and how many there are is not known. So scores up to the median of the calibration scores are
    compared, by the two-sample Kolmogorov-Smirnov test: whatever share of the batch is anomalous, the normal rows
    among those follow the law of the calibration scores below their median. What moves all normal scores, up or down,
    bends that law. What moves them far up leaves next to none there. So these are counted, too: of rows that score no
    higher than 95 % of the calibration rows, and of which at most half are taken to be anomalies, as many lie below the
    median as the beta-binomial law says. The smaller of the two p-values is doubled, as there are two.

    Parameters
    ----------
    calibration_scores : array-like of shape (n_calibration,)
        Of rows that no member was trained on. Scores out of fold, as below 2,000 training rows, follow another law than
        those of new rows: there the test alarms without cause.
    scores : array-like of shape (n_samples,)
        NaN where a row could not be scored.

    Returns
    -------
    float or None
        None if there are too few scores on either side for both tests: 20 below the median for the first, 40 for the
        second.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> calibration = rng.normal(size=500)
    >>> with_anomalies = np.concatenate([rng.normal(size=500), np.full(100, 9.0)])
    >>> drift_p_value(calibration, with_anomalies) > DRIFT_LEVEL > drift_p_value(calibration, with_anomalies + 1)
    True
    """
    return LowScores(calibration_scores).add(scores).p_value()


class LowScores:
    """Scores up to the median of the calibration scores, counted between those: enough for :func:`drift_p_value`.

    The first test looks at the order of the scores alone, so however many there are, their places are all that is kept.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> calibration, scores = rng.normal(size=500), rng.normal(size=600)
    >>> low = LowScores(calibration).add(scores[:200]).add(scores[200:])
    >>> low.p_value() == drift_p_value(calibration, scores)
    True
    """

    def __init__(self, calibration_scores: ArrayLike) -> None:
        known = np.asarray(calibration_scores, dtype=np.float64)
        self.upper = float(np.quantile(known, UNREMARKABLE, method="higher"))
        self.n_known, self.n_new = int(np.count_nonzero(known <= self.upper)), 0
        self.middle = float(np.median(known))
        self.known, self.times = np.unique(known[known <= self.middle], return_counts=True)
        self.counts = np.zeros(2 * len(self.known) + 1, dtype=np.int64)
        """New scores below the first calibration score, equal to it, between it and the next, and so on."""

    def add(self, scores: ArrayLike) -> "LowScores":
        """Count further scores; NaN counts for nothing."""
        new = np.asarray(scores, dtype=np.float64)
        self.n_new += int(np.count_nonzero(new <= self.upper))
        new = new[new <= self.middle]
        places = np.searchsorted(self.known, new, side="left")
        met = self.known[places.clip(max=len(self.known) - 1)] == new if len(self.known) else np.zeros(0, bool)
        self.counts += np.bincount(2 * places + met, minlength=len(self.counts))
        return self

    def p_value(self) -> float | None:
        """p-value of both tests together, or None of too few scores."""
        found = [p for p in (self._unlike(), self._too_few()) if p is not None]
        return min(1.0, len(found) * min(found)) if found else None

    def _too_few(self) -> float | None:
        """Chance of so few scores below the median among those that are not remarkable, if half of these are normal."""
        n_known, n_low = int(self.times.sum()), int(self.counts.sum())
        if min(self.n_known, self.n_new) < 2 * MIN_ROWS:
            return None
        n_normal = math.ceil((1.0 - MAX_MISSED) * self.n_new)
        return float(stats.betabinom.cdf(n_low, n_normal, n_known, self.n_known - n_known + 1))

    def _unlike(self) -> float | None:
        """p-value of the two-sample Kolmogorov-Smirnov test."""
        n_known, n_new = int(self.times.sum()), int(self.counts.sum())
        if min(n_known, n_new) < MIN_ROWS:
            return None
        if max(n_known, n_new) <= MAX_EXACT:
            ranks = np.arange(len(self.counts))
            return float(stats.ks_2samp(ranks[1::2].repeat(self.times), ranks.repeat(self.counts)).pvalue)
        # What SciPy does with more, without the scores themselves.
        here = np.zeros(len(self.counts), dtype=np.int64)
        here[1::2] = self.times
        largest = float(np.abs(here.cumsum() / n_known - self.counts.cumsum() / n_new).max())
        return float(stats.kstwo.sf(largest, np.round(float(n_known) * n_new / (n_known + n_new))).clip(0.0, 1.0))
