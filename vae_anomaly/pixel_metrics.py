"""How well anomaly maps find defects, by pixels and by regions, in memory that no number of images changes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["MAX_FALSE_POSITIVES", "PixelEvaluation", "evaluate_pixels", "stretched", "to_json"]

MAX_FALSE_POSITIVES = 0.3
"""Where the area under the per-region overlap ends (Bergmann et al. 2019)."""

# Values are counted by the upper bits of their float32 pattern: sign, exponent and 11 bits of the mantissa, so that a
# bin is 0.05 % wide wherever it lies, and no range has to be known before the first image.
_BITS = 20
# Pixels that touch at a corner belong to one region, as in the benchmark of MVTec AD.
_NEIGHBOURS = np.ones((3, 3), dtype=int)
# False-positive rates at which the curves are kept, closer where they are steep.
_GRID = np.linspace(0.0, 1.0, 201) ** 2

Floats = NDArray[np.float64]


# eq=False: arrays have no truth value, so a generated __eq__ would raise.
@dataclass(frozen=True, eq=False)
class PixelEvaluation:
    """Areas under two curves over all thresholds of the pixels, and how far counting in bins may have moved them."""

    roc_auc: float
    """Area under the ROC curve of the pixels."""
    roc_auc_tolerance: float
    """By how much the exact area may differ at most."""
    aupro: float
    """Mean share of each defect that is found, over false-positive rates up to ``max_fpr``, divided by ``max_fpr``."""
    aupro_tolerance: float
    max_fpr: float
    n_images: int
    n_regions: int
    n_pixels: int
    n_defect_pixels: int
    fpr: Floats
    """False-positive rates at which ``recall`` (of pixels) and ``overlap`` (mean over the regions) are given."""
    recall: Floats
    overlap: Floats


def evaluate_pixels(
    pairs: Iterable[tuple[NDArray[Any], NDArray[np.bool_]]], *, max_fpr: float = MAX_FALSE_POSITIVES
) -> PixelEvaluation | None:
    r"""Pixel ROC-AUC and AUPRO of anomaly maps, each image looked at once.

    The per-region overlap at a threshold is the mean over all connected defects of the share of their pixels above it
    [1]_, so that a small defect counts as much as a large one; it is drawn over the share of normal pixels above the
    threshold, of all images together. AUPRO is the area below it up to ``max_fpr``, divided by ``max_fpr``.

    Values are counted in bins that are 0.05 % wide; within a bin both curves are straight. The tolerances bound what
    that can change: half of :math:`\sum_i \Delta x_i \, \Delta y_i` over the bins with more than one value.

    Parameters
    ----------
    pairs : iterable of (ndarray of shape (h, w), ndarray of bool of shape (h, w))
        A map, higher for worse, and where the defects are; nowhere in a normal image.
    max_fpr : float in (0, 1]

    Returns
    -------
    PixelEvaluation or None
        None if no pixel is defect, or none is normal.

    References
    ----------
    .. [1] Bergmann, Fauser, Sattlegger and Steger, "MVTec AD: a comprehensive real-world dataset for unsupervised
       anomaly detection", CVPR 2019, https://doi.org/10.1109/CVPR.2019.00982

    Examples
    --------
    >>> anomaly_map = np.array([[9.0, 8.0, 1.0, 0.0], [0.0, 0.0, 0.0, 4.0]])
    >>> found = evaluate_pixels([(anomaly_map, anomaly_map > 3.0)])
    >>> found.roc_auc, found.aupro, found.n_regions
    (1.0, 1.0, 2)
    """
    if not 0.0 < max_fpr <= 1.0:
        raise ValueError(f"max_fpr={max_fpr} must lie above 0 and be at most 1.")
    counts = _Counts()
    for anomaly_map, mask in pairs:
        counts.add(anomaly_map, mask)
    return counts.evaluate(max_fpr)


class _Counts:
    """Pixels by the value of the map, summed up over the images."""

    def __init__(self) -> None:
        n = 2**_BITS
        self.normal, self.defect = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.regions = np.zeros(n)
        """Of each region, the share of its pixels."""
        self.low, self.high = np.full(n, np.inf, np.float32), np.full(n, -np.inf, np.float32)
        self.n_images = self.n_regions = 0

    def add(self, anomaly_map: NDArray[Any], mask: NDArray[np.bool_]) -> None:
        if anomaly_map.shape != mask.shape:
            raise ValueError(f"A map has shape {anomaly_map.shape} and its mask {mask.shape}; both must have one.")
        # Of 0 and -0, one.
        values = anomaly_map.astype(np.float32) + np.float32(0.0)
        if np.isnan(values).any():
            raise ValueError("A map holds NaN, which is neither above nor below a threshold.")
        bins = _bins(values)
        np.add.at(self.normal, bins[~mask], 1)
        np.minimum.at(self.low, bins.ravel(), values.ravel())
        np.maximum.at(self.high, bins.ravel(), values.ravel())
        self.n_images += 1
        if mask.any():
            labels, n_regions = ndimage.label(mask, structure=_NEIGHBOURS)
            sizes = np.bincount(labels.ravel())
            np.add.at(self.defect, bins[mask], 1)
            np.add.at(self.regions, bins[mask], 1.0 / sizes[labels[mask]])
            self.n_regions += int(n_regions)

    def evaluate(self, max_fpr: float) -> PixelEvaluation | None:
        n_normal, n_defect = int(self.normal.sum()), int(self.defect.sum())
        if not (n_normal and n_defect):
            return None
        # From the strictest threshold on; bins without a pixel say nothing.
        filled = np.flatnonzero(self.normal + self.defect)[::-1]
        several = self.low[filled] < self.high[filled]
        fpr = _cumulated(self.normal[filled] / n_normal)
        recall = _cumulated(self.defect[filled] / n_defect)
        overlap = _cumulated(self.regions[filled] / self.n_regions)
        roc_auc, roc_auc_tolerance = _area(fpr, recall, several, 1.0)
        aupro, aupro_tolerance = _area(fpr, overlap, several, max_fpr)
        return PixelEvaluation(
            roc_auc=roc_auc,
            roc_auc_tolerance=roc_auc_tolerance,
            aupro=aupro,
            aupro_tolerance=aupro_tolerance,
            max_fpr=max_fpr,
            n_images=self.n_images,
            n_regions=self.n_regions,
            n_pixels=n_normal + n_defect,
            n_defect_pixels=n_defect,
            fpr=_GRID,
            recall=_at(_GRID, fpr, recall),
            overlap=_at(_GRID, fpr, overlap),
        )


def _bins(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Number of the bin of each value; a higher value has the same or a higher one."""
    bits = values.view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    bins: NDArray[np.uint32] = ordered >> np.uint32(32 - _BITS)
    return bins


def _cumulated(shares: Floats) -> Floats:
    # The last sum is 1 but for rounding.
    return np.concatenate([[0.0], np.minimum(np.cumsum(shares), 1.0)])


def _area(x: Floats, y: Floats, several: NDArray[np.bool_], end: float) -> tuple[float, float]:
    """Area under a curve up to ``x = end`` in units of ``end``, and how far it may be off."""
    steps, rises = np.diff(x), np.diff(y)
    inside = np.clip((end - x[:-1]) / np.where(steps > 0, steps, 1.0), 0.0, 1.0)
    area = float((steps * inside * (y[:-1] + 0.5 * inside * rises)).sum())
    # Where a step is cut, the curve may pass on either side of the line; else half a rectangle lies on each.
    share = np.where(inside < 1.0, inside, 0.5)
    return area / end, float((steps * share * rises)[several].sum()) / end


def _at(grid: Floats, x: Floats, y: Floats) -> Floats:
    """Height of the curve at each place; the top of it where it rises straight up."""
    last = np.concatenate([np.diff(x) > 0, [True]])
    found: Floats = np.interp(grid, x[last], y[last])
    return found


def stretched(anomaly_map: NDArray[Any], size: tuple[int, int]) -> NDArray[np.float32]:
    """A map at the size of an image, by bilinear interpolation between the centres of its pixels.

    Parameters
    ----------
    anomaly_map : ndarray of shape (h, w)
    size : (int, int)
        Height and width.

    Examples
    --------
    >>> stretched(np.array([[0.0, 1.0]]), (1, 4)).tolist()
    [[0.0, 0.25, 0.75, 1.0]]
    """
    if anomaly_map.shape == size:
        return anomaly_map.astype(np.float32)
    down, across = (_weights(old, new) for old, new in zip(anomaly_map.shape, size, strict=True))
    larger: NDArray[np.float32] = down @ anomaly_map.astype(np.float32) @ across.T
    return larger


def _weights(old: int, new: int) -> NDArray[np.float32]:
    """Matrix that takes ``old`` values along a line to ``new`` ones between them."""
    places = (np.arange(new) + 0.5) * old / new - 0.5
    rows = [np.interp(places, np.arange(old), unit) for unit in np.eye(old)]
    return np.stack(rows, axis=1).astype(np.float32)


def to_json(evaluation: PixelEvaluation) -> dict[str, Any]:
    """Figures as ``metrics.json`` holds them.

    Examples
    --------
    >>> found = evaluate_pixels([(np.eye(4), np.eye(4) > 0)])
    >>> to_json(found)["aupro"]["value"], to_json(found)["pixels"]["n_regions"]
    (1.0, 1)
    """

    def figure(value: float, tolerance: float, what: str) -> dict[str, Any]:
        method = f"{what}; no interval; off by at most {tolerance:.1g}, as values are counted in bins 0.05 % wide"
        return {"value": value, "low": None, "high": None, "method": method}

    up_to = f"area under the per-region overlap up to {100 * evaluation.max_fpr:g} % false-positive pixels"
    return {
        "pixel_roc_auc": figure(evaluation.roc_auc, evaluation.roc_auc_tolerance, "of all pixels together"),
        "aupro": figure(evaluation.aupro, evaluation.aupro_tolerance, up_to),
        "pixels": {
            "n_images": evaluation.n_images,
            "n_regions": evaluation.n_regions,
            "n_pixels": evaluation.n_pixels,
            "n_defect_pixels": evaluation.n_defect_pixels,
            "max_fpr": evaluation.max_fpr,
        },
    }
