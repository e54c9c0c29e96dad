"""Areas under the curves of a ranking, from counts of the two classes at each distinct score, and resamples of them."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["areas", "areas_of", "counts", "partial_roc_auc", "precision_at", "recall_at", "resamples", "whole_areas_of"]

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def counts(ranks: NDArray[np.intp], n_distinct: int) -> Counts:
    """How often each distinct score occurs."""
    return np.bincount(ranks, minlength=n_distinct).astype(np.int64)


def _roc_auc(normals: Counts, anomalies: Counts) -> float:
    """Area under the ROC curve, of counts at each distinct score in rising order; a tie counts half."""
    # Twice the area in whole numbers, so that it is exact.
    below = np.cumsum(normals) - normals
    return int((anomalies * (2 * below + normals)).sum()) / (2 * int(normals.sum()) * int(anomalies.sum()))


def _average_precision(normals: Counts, anomalies: Counts) -> float:
    """Precision averaged over the anomalies, of counts at each distinct score in rising order."""
    caught = anomalies[::-1]
    flagged = np.cumsum((normals + anomalies)[::-1])
    # A resample may lack the highest scores: nothing is flagged there, and no anomaly has such a score.
    precision = np.cumsum(caught) / np.maximum(flagged, 1)
    return float((caught * precision).sum() / caught.sum())


def whole_areas_of(normals: Counts, anomalies: Counts) -> tuple[float, float]:
    """ROC-AUC and average precision, of counts at each distinct score in rising order."""
    return _roc_auc(normals, anomalies), _average_precision(normals, anomalies)


def areas_of(normals: Counts, anomalies: Counts, max_fpr: float) -> tuple[float, float, float]:
    """ROC-AUC, average precision and partial ROC-AUC, of counts at each distinct score in rising order."""
    return *whole_areas_of(normals, anomalies), partial_roc_auc(normals, anomalies, max_fpr)


def areas(labels: NDArray[np.int8], ranks: NDArray[np.intp], max_fpr: float) -> Floats:
    """ROC-AUC, average precision and partial ROC-AUC."""
    n_distinct = int(ranks.max()) + 1
    return np.array(areas_of(counts(ranks[labels == 0], n_distinct), counts(ranks[labels == 1], n_distinct), max_fpr))


def resamples(
    labels: NDArray[np.int8], ranks: NDArray[np.intp], rng: np.random.Generator, n_resamples: int
) -> Iterator[tuple[Counts, Counts]]:
    """Counts at each distinct score of the rows drawn, by class. Which rows depends on labels and seed alone."""
    n_distinct = int(ranks.max()) + 1
    normal, anomalous = ranks[labels == 0], ranks[labels == 1]
    for _ in range(n_resamples):
        normals = counts(normal[rng.integers(len(normal), size=len(normal))], n_distinct)
        anomalies = counts(anomalous[rng.integers(len(anomalous), size=len(anomalous))], n_distinct)
        yield normals, anomalies


def recall_at(normals: Counts, anomalies: Counts, grid: Floats) -> Floats:
    """Height of the ROC curve at each false-alarm rate in ``grid``; the upper end where the curve is vertical."""
    fp, tp = np.cumsum(normals[::-1]), np.cumsum(anomalies[::-1])
    fpr, tpr = np.append(0.0, fp / fp[-1]), np.append(0.0, tp / tp[-1])
    return np.asarray(np.interp(grid, fpr, tpr))


def precision_at(normals: Counts, anomalies: Counts, grid: Floats) -> Floats:
    """Precision at the highest threshold that catches each share in ``grid`` of the anomalies, and one at least."""
    fp, tp = np.cumsum(normals[::-1]), np.cumsum(anomalies[::-1])
    # Shares such as 0.3 and 3 / 10 differ by rounding.
    wanted = np.maximum(np.ceil(grid * tp[-1] - 1e-9), 1)
    at = np.searchsorted(tp, wanted)
    return np.asarray(tp[at] / (tp[at] + fp[at]))


def partial_roc_auc(normals: Counts, anomalies: Counts, max_fpr: float) -> float:
    """Area under the ROC curve up to ``max_fpr``, standardised: 0.5 by chance, 1 at best (McClish 1989)."""
    fp, tp = np.cumsum(normals[::-1]), np.cumsum(anomalies[::-1])
    fpr, tpr = np.append(0.0, fp / fp[-1]), np.append(0.0, tp / tp[-1])
    stop = int(np.searchsorted(fpr, max_fpr, side="right"))
    end = np.interp(max_fpr, fpr[stop - 1 : stop + 1], tpr[stop - 1 : stop + 1])
    area = np.trapezoid(np.append(tpr[:stop], end), np.append(fpr[:stop], max_fpr))
    chance = 0.5 * max_fpr**2
    return float(0.5 * (1.0 + (area - chance) / (max_fpr - chance)))
