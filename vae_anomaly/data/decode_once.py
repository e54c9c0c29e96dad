"""All images decoded once: into memory, or onto disk where there are too many."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vae_anomaly.data.image_set import ImageSet
from vae_anomaly.scratch import ENTRIES_AT_ONCE, scratch_array

__all__ = ["Decoded", "decode_once"]

MAX_IMAGES_AT_ONCE = 256


class Decoded(NamedTuple):
    """Images that could be decoded, and why the others could not."""

    x: NDArray[np.float32]
    """Shape (n_decoded, channels, height, width), in [0, 1]."""
    reasons: NDArray[np.object_]
    """One for each image that was asked for; empty where it could be decoded."""


def decode_once(images: ImageSet, *, cache_gb: float, on_part: Callable[[int], None] | None = None) -> Decoded:
    """Decode all images, a few at a time.

    Parameters
    ----------
    images : ImageSet
    cache_gb : float
        Gigabytes that the images may take in memory, as 4-byte numbers. Of more, all lie in a temporary file, which is
        gone when nothing refers to the array any more.
    on_part : callable, optional
        Told how many images more have been seen.

    Examples
    --------
    >>> images = ImageSet.from_array(np.zeros((5, 8, 8), np.uint8))
    >>> decode_once(images, cache_gb=1).x.shape
    (5, 1, 8, 8)
    """
    n_entries = math.prod(images.shape[1:])
    too_many = 4 * math.prod(images.shape) > cache_gb * 1e9
    x = scratch_array(images.shape) if too_many else np.empty(images.shape, dtype=np.float32)
    reasons, n_decoded = np.full(len(images), "", dtype=object), 0
    for positions, part, why in images.batches(max(1, min(MAX_IMAGES_AT_ONCE, ENTRIES_AT_ONCE // n_entries))):
        found, reasons[positions] = part[why == ""], why
        x[n_decoded : n_decoded + len(found)] = found
        n_decoded += len(found)
        if on_part is not None:
            on_part(len(positions))
    return Decoded(x[:n_decoded], reasons)
