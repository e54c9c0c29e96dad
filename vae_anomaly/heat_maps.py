"""Where each image is odd: maps whose pixels sum to the score they explain."""

import os
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vae_anomaly.data.images import Images
from vae_anomaly.data.maps import map_names, write_maps
from vae_anomaly.pixels import ImageSchema
from vae_anomaly.predictions import images_at_once

if TYPE_CHECKING:
    from vae_anomaly.detector import VAEDetector

__all__ = ["anomaly_maps", "colour_scale", "write_anomaly_maps"]

# Pixels with the strongest colour: were so small a share of an image all like that, it would be flagged.
FLAGGING_SHARE = 0.01


def anomaly_maps(detector: "VAEDetector", images: NDArray[np.float32]) -> NDArray[np.float64]:
    """What each pixel adds to the score, all channels together, shape (n, height, width); NaN without a score.

    Parameters
    ----------
    detector : VAEDetector
        Fitted on images.
    images : ndarray of shape (n, channels, height, width)
        In [0, 1].
    """
    shares: NDArray[np.float64] = detector.explain(images).sum(axis=1)
    return shares


def colour_scale(detector: "VAEDetector") -> tuple[float, float]:
    """What a pixel adds where normal ones end, and where the strongest colour begins.

    The first is the largest mean over held-out normal images of any pixel. From there to the second, a hundredth of the
    pixels suffice to bring a usual image to the threshold.
    """
    assert isinstance(detector.schema_, ImageSchema)
    height, width = detector.schema_.shape[1:]
    usual = detector.usual_shares_.reshape(-1, height, width).sum(axis=0)
    middle = float(np.median(detector.calibration_scores_))
    threshold = detector.threshold_ if np.isfinite(detector.threshold_) else float(detector.calibration_scores_.max())
    low = float(usual.max())
    return low, low + max((threshold - middle) / (FLAGGING_SHARE * height * width), 1e-6)


def write_anomaly_maps(detector: "VAEDetector", images: Images, folder: str | os.PathLike[str]) -> None:
    """Write the map of each image as .npy, float32, and laid over it as .png; names are those of the images.

    An image that can't be decoded gets neither. A few images at a time are in memory.
    """
    scale = colour_scale(detector)
    # Of all images at once: two that differ in their suffix may be far apart.
    names = np.array(map_names(images.ids.tolist()), dtype=object)
    for positions, x, reasons in images.X.batches(images_at_once(detector)):
        ok = reasons == ""
        if ok.any():
            write_maps(folder, names[positions[ok]], anomaly_maps(detector, x[ok]), x[ok], scale=scale)
