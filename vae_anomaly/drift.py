"""Whether a batch of new scores can be normal data with some anomalies among them."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

__all__ = ["DRIFT_LEVEL", "MIN_ROWS", "drift_p_value"]

# A batch is scored often, so the alarm has to be rare where nothing has changed.
DRIFT_LEVEL = 0.001
# With fewer rows below the median on either side the test finds next to nothing.
MIN_ROWS = 20


def drift_p_value(calibration_scores: ArrayLike, scores: ArrayLike) -> float | None:
    """p-value of the hypothesis that the normal rows of a batch score as the calibration rows do.

    Anomalies score high, and how many there are is not known. So only scores up to the median of the calibration scores
    are compared, by the two-sample Kolmogorov-Smirnov test: whatever share of the batch is anomalous, the normal rows
    among those follow the law of the calibration scores below their median. What moves all normal scores, up or down,
    bends that law.

    Parameters
    ----------
    calibration_scores : array-like of shape (n_calibration,)
    scores : array-like of shape (n_samples,)
        NaN where a row could not be scored.

    Returns
    -------
    float or None
        None if fewer than 20 scores on either side are left to compare.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> calibration = rng.normal(size=500)
    >>> with_anomalies = np.concatenate([rng.normal(size=500), np.full(100, 9.0)])
    >>> drift_p_value(calibration, with_anomalies) > DRIFT_LEVEL > drift_p_value(calibration, with_anomalies + 1)
    True
    """
    known, new = np.asarray(calibration_scores, dtype=float), np.asarray(scores, dtype=float)
    middle = np.median(known)
    low_known, low_new = known[known <= middle], new[new <= middle]
    if min(len(low_known), len(low_new)) < MIN_ROWS:
        return None
    return float(stats.ks_2samp(low_known, low_new).pvalue)
