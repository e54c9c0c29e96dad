"""From scores of labelled rows to a threshold: the best cut by some measure, which promises no false-alarm rate."""

import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_anomaly.errors import DataError

__all__ = ["LABEL_THRESHOLDS", "LabelThreshold", "cost", "f_beta", "recall_at_fpr", "youden"]


class Cuts(NamedTuple):
    """Every way to cut a set of labelled scores in two, from flagging all rows to flagging none."""

    thresholds: NDArray[np.float64]
    """Rising; a row is flagged when its score is greater."""
    caught: NDArray[np.int64]
    """Anomalies flagged at each of them."""
    alarms: NDArray[np.int64]
    """Normal rows flagged at each of them."""
    n_anomalies: int
    n_normal: int


def youden(y: ArrayLike, scores: ArrayLike) -> float:
    """Threshold with the largest difference of the rates of flagged anomalies and flagged normal rows.

    As every rule here, it lies half-way between two neighbouring scores (or at the largest one, to flag no row of
    these), and is the highest of those that are equally good.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        1 for an anomaly, 0 for a normal row.
    scores : array-like of shape (n_samples,)
        Higher is more anomalous; a row is flagged when its score is greater than the threshold.

    Raises
    ------
    DataError
        If there are no anomalies or no normal rows, or all scores are the same.

    Examples
    --------
    >>> youden([0, 0, 0, 1, 1], [1.0, 2.0, 3.0, 4.0, 5.0])
    3.5
    """
    cuts = _cuts(y, scores)
    # In whole numbers, where equal is equal.
    return _best(cuts, cuts.caught * cuts.n_normal - cuts.alarms * cuts.n_anomalies)


def f_beta(y: ArrayLike, scores: ArrayLike, beta: float = 1.0) -> float:
    """Threshold with the best F-beta, the harmonic mean of precision and recall that counts recall ``beta`` times.

    Examples
    --------
    >>> y, scores = [0, 1, 0, 0, 1], [1.0, 2.0, 3.0, 4.0, 5.0]
    >>> f_beta(y, scores), f_beta(y, scores, beta=3.0)
    (4.5, 1.5)
    """
    _check_positive("beta", beta)
    cuts = _cuts(y, scores)
    # Of the mean of 1 / precision and 1 / recall, the share of the first: the square of beta may be beyond floats.
    share = 1.0 / (1.0 + beta * beta)
    mean = share * (cuts.caught + cuts.alarms) + (1.0 - share) * cuts.n_anomalies
    # Where no row is flagged and recall counts for nothing, both are 0.
    return _best(cuts, cuts.caught / np.maximum(mean, sys.float_info.min))


def cost(y: ArrayLike, scores: ArrayLike, cost_miss: float = 1.0, cost_alarm: float = 1.0) -> float:
    """Threshold with the least cost, so much for each missed anomaly and so much for each false alarm.

    The costs are those of these rows: where anomalies are rarer in use, scale ``cost_miss`` down by as much.

    Examples
    --------
    >>> y, scores = [0, 1, 0, 0, 1], [1.0, 2.0, 3.0, 4.0, 5.0]
    >>> cost(y, scores), cost(y, scores, cost_miss=10.0)
    (4.5, 1.5)
    """
    _check_positive("cost_miss", cost_miss)
    _check_positive("cost_alarm", cost_alarm)
    cuts = _cuts(y, scores)
    return _best(cuts, -(cost_miss * (cuts.n_anomalies - cuts.caught) + cost_alarm * cuts.alarms))


def recall_at_fpr(y: ArrayLike, scores: ArrayLike, fpr: float = 0.05) -> float:
    """Threshold that catches most anomalies with at most a share ``fpr`` of the normal rows flagged.

    Examples
    --------
    >>> recall_at_fpr([0, 0, 0, 1, 1], [1.0, 2.0, 4.0, 3.0, 5.0], fpr=0.4)
    2.5
    """
    if not 0.0 < fpr < 1.0:
        raise ValueError(f"fpr={fpr} must lie between 0 and 1, both excluded: it is the share of normal rows to flag.")
    cuts = _cuts(y, scores)
    # The tolerance undoes the rounding of products such as 0.07 * 100.
    allowed = cuts.alarms <= fpr * cuts.n_normal * (1.0 + 1e-9)
    return _best(cuts, np.where(allowed, cuts.caught, -1))


def _cuts(y: ArrayLike, scores: ArrayLike) -> Cuts:
    labels, vector = np.asarray(y), np.asarray(scores, dtype=float)
    if labels.shape != vector.shape or vector.ndim != 1:
        raise ValueError(f"y and scores must be vectors of one length, got shapes {labels.shape} and {vector.shape}.")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("y must hold 0 for a normal row and 1 for an anomaly, and nothing else.")
    if np.isnan(vector).any():
        raise ValueError("Scores contain NaN; leave out the rows that could not be scored.")
    n_anomalies = int((labels == 1).sum())
    n_normal = len(labels) - n_anomalies
    _check_classes(n_normal, n_anomalies)
    values, place = np.unique(vector, return_inverse=True)
    if len(values) == 1:
        raise DataError(
            f"All {len(vector)} labelled rows have the score {values[0]:g}, so no threshold tells them apart."
        )
    return Cuts(
        thresholds=np.concatenate([[-np.inf], _midpoints(values), values[-1:]]),
        caught=_at_least(place[labels == 1], len(values)),
        alarms=_at_least(place[labels == 0], len(values)),
        n_anomalies=n_anomalies,
        n_normal=n_normal,
    )


def _check_classes(n_normal: int, n_anomalies: int) -> None:
    if not (n_normal and n_anomalies):
        missing, found = ("normal rows", n_anomalies) if n_anomalies else ("anomalies", n_normal)
        raise DataError(
            f"A threshold chosen on labels needs anomalies and normal rows, and there are no {missing} among the "
            f"{found} labelled rows that can be scored. Add some, or calibrate on normal rows alone (conformal)."
        )


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name}={value} must be a finite number greater than 0.")


def _midpoints(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half-way between neighbours; the lower one where there is no number between, or one of them is infinite."""
    low, high = values[:-1], values[1:]
    with np.errstate(invalid="ignore"):
        middle = low / 2.0 + high / 2.0
    between = np.isfinite(middle) & (low <= middle) & (middle < high)
    return np.where(between, middle, low)


def _at_least(places: NDArray[np.intp], n_values: int) -> NDArray[np.int64]:
    """How many lie at each place or above, and none beyond the last."""
    counts = np.bincount(places, minlength=n_values)
    return np.append(np.cumsum(counts[::-1])[::-1], 0).astype(np.int64)


def _best(cuts: Cuts, merit: NDArray[np.int64] | NDArray[np.float64]) -> float:
    """The highest threshold of those with the greatest merit, which may differ by rounding."""
    greatest = merit.max()
    best = np.flatnonzero(merit >= greatest - 1e-12 * abs(greatest))
    return float(cuts.thresholds[best[-1]])


class LabelThreshold(NamedTuple):
    """A rule from labels and scores to a threshold, and its parameters with their defaults."""

    function: Callable[..., float]
    parameters: Mapping[str, float] = MappingProxyType({})

    def complete(self, name: str, given: Mapping[str, float]) -> dict[str, float]:
        """The parameters, those not given by default.

        Examples
        --------
        >>> LABEL_THRESHOLDS["cost"].complete("cost", {"cost_miss": 10.0})
        {'cost_miss': 10.0, 'cost_alarm': 1.0}
        """
        unknown = sorted(set(given) - set(self.parameters))
        if unknown:
            takes = f"takes {' and '.join(self.parameters)}" if self.parameters else "takes no parameter"
            raise ValueError(f"The threshold {name!r} has no parameter {unknown[0]!r}: it {takes}.")
        return {key: float(given.get(key, default)) for key, default in self.parameters.items()}


LABEL_THRESHOLDS: dict[str, LabelThreshold] = {
    "youden": LabelThreshold(youden),
    "f_beta": LabelThreshold(f_beta, {"beta": 1.0}),
    "cost": LabelThreshold(cost, {"cost_miss": 1.0, "cost_alarm": 1.0}),
    "recall_at_fpr": LabelThreshold(recall_at_fpr, {"fpr": 0.05}),
}
