"""Whether the anomaly maps of a detector point at the defects, where masks say where these are."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vae_anomaly.data.decoding import UndecodableError, header
from vae_anomaly.data.images import Images
from vae_anomaly.data.masks import read_mask
from vae_anomaly.heat_maps import anomaly_maps
from vae_anomaly.pixel_metrics import PixelEvaluation, evaluate_pixels, stretched
from vae_anomaly.predictions import images_at_once

if TYPE_CHECKING:
    from vae_anomaly.detector import VAEDetector

__all__ = ["Localisation", "localisation"]


class Localisation(NamedTuple):
    """Figures of the maps, and what could not be used for them."""

    evaluation: PixelEvaluation | None
    """None if no mask could be used."""
    notes: list[str]


def localisation(detector: "VAEDetector", images: Images) -> Localisation | None:
    """Pixel ROC-AUC and AUPRO of the detector's maps; None where there are no masks.

    Maps are stretched to the size of each image, where the masks are exact. Normal images count as without a defect,
    and an anomaly whose mask is not there or can't be used is left out. A few images at a time are in memory.

    Parameters
    ----------
    detector : VAEDetector
        Fitted on images.
    images : Images
        With ``masks``.
    """
    if images.y is None or (images.masks is None and not images.stray_masks):
        return None
    left_out = _LeftOut()
    evaluation = evaluate_pixels(_pairs(detector, images, left_out))
    return Localisation(evaluation, left_out.notes(images.stray_masks))


class _LeftOut:
    """What could not be used, as it is found."""

    def __init__(self) -> None:
        self.without_mask = 0
        self.unusable: list[str] = []

    def notes(self, stray: tuple[str, ...]) -> list[str]:
        notes = []
        if self.without_mask:
            notes.append(
                f"{_n(self.without_mask, 'anomaly has', 'anomalies have')} no mask: left out of pixel figures."
            )
        if self.unusable:
            n = _n(len(self.unusable), "mask", "masks")
            notes.append(f"{n} can't be used, such as {self.unusable[0]}: left out of pixel figures.")
        if stray:
            notes.append(f"{_n(len(stray), 'mask has', 'masks have')} no image, such as {stray[0]}.")
        return notes


def _n(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _pairs(
    detector: "VAEDetector", images: Images, left_out: _LeftOut
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Map and mask of each image that has both, at the image's own size."""
    for positions, x, reasons in images.X.batches(images_at_once(detector)):
        maps = anomaly_maps(detector, np.nan_to_num(x))
        for position, anomaly_map, reason in zip(positions, maps, reasons, strict=True):
            mask = None if reason else _mask(images, int(position), left_out)
            if mask is not None:
                yield stretched(anomaly_map, mask.shape), mask


def _mask(images: Images, position: int, left_out: _LeftOut) -> NDArray[np.bool_] | None:
    assert images.y is not None
    path = images.X.path(position)
    if path is None or images.y[position] < 0:
        return None
    mask = None if images.masks is None else images.masks[position]
    try:
        size = header(path).size
        if images.y[position] == 0:
            return np.zeros(size, dtype=bool)
        if mask is None:
            left_out.without_mask += 1
            return None
        return read_mask(mask, size)
    except UndecodableError as error:
        left_out.unusable.append(f"{mask}: {error}")
        return None
