"""What other thresholds would do with the rows: the points that the slider of a report walks through."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vae_anomaly.metrics import Evaluation
from vae_anomaly.report.formats import as_numbers

__all__ = ["OperatingPoints", "operating_points"]

MAX_POINTS = 400


class OperatingPoints(NamedTuple):
    """Thresholds in rising order, and how many rows of either class each of them flags."""

    thresholds: NDArray[np.float64]
    false_positives: NDArray[np.int64]
    true_positives: NDArray[np.int64]
    start: int
    """Place of the threshold of the evaluation."""

    def to_json(self, evaluation: Evaluation) -> dict[str, object]:
        """What the script of the page reads. Thresholds are exact as text, as JSON has no infinity."""
        return {
            "threshold": [repr(float(value)).replace("inf", "Infinity") for value in self.thresholds],
            "shown": as_numbers(self.thresholds.tolist()),
            "fp": self.false_positives.tolist(),
            "tp": self.true_positives.tolist(),
            "start": self.start,
            "normal": evaluation.n_normal,
            "anomalies": evaluation.n_anomalies,
        }


def operating_points(evaluation: Evaluation, max_points: int = MAX_POINTS) -> OperatingPoints:
    """Thresholds worth trying: all distinct scores if they are few, else an even choice that is denser at the top.

    The threshold of the evaluation is one of them, and so is one below all scores. A row is flagged above a threshold.

    Examples
    --------
    >>> from vae_anomaly.metrics import evaluate
    >>> points = operating_points(evaluate([0, 0, 1], [1.0, 2.0, 3.0], threshold=2.5))
    >>> points.thresholds[1:].tolist(), points.true_positives.tolist(), points.start
    ([1.0, 2.0, 2.5, 3.0], [1, 1, 1, 1, 0], 3)
    """
    distinct = np.unique(evaluation.scores)
    n = len(distinct)
    if n > max_points:
        half = max_points // 2
        even = np.linspace(0, n - 1, half)
        # Few rows are flagged near the top, where each step counts most.
        top = n - np.geomspace(1, n, half)
        distinct = distinct[np.unique(np.concatenate([even, top]).round().astype(int).clip(0, n - 1))]
    below = np.nextafter(distinct[0], -np.inf)
    thresholds = np.unique(np.concatenate([[below], distinct, [evaluation.threshold]]))
    normal, anomalous = (np.sort(evaluation.scores[evaluation.y == label]) for label in (0, 1))
    false, true = (len(scores) - np.searchsorted(scores, thresholds, side="right") for scores in (normal, anomalous))
    return OperatingPoints(thresholds, false, true, int(np.searchsorted(thresholds, evaluation.threshold)))
