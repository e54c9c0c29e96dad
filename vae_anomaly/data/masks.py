"""Masks: images that are white where the defect of another image is."""

import os

import numpy as np
from numpy.typing import NDArray

from vae_anomaly.data.decoding import UndecodableError, decoded

__all__ = ["read_mask"]


def read_mask(path: str | os.PathLike[str], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Where the defects are: pixels brighter than half of the brightest one, shape (h, w).

    Parameters
    ----------
    path : str or path
        An image in one of the formats that images have.
    size : (int, int)
        Height and width of the image that the mask belongs to.

    Raises
    ------
    UndecodableError
        If the file is damaged, of another size than its image, or marks nothing; the message is the reason.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> path = os.path.join(tempfile.mkdtemp(), "003_mask.png")
    >>> Image.fromarray(np.array([[0, 255, 0]], np.uint8)).save(path)
    >>> read_mask(path, (1, 3))
    array([[False,  True, False]])
    """
    pixels = decoded(path)
    if pixels.shape[:2] != size:
        (height, width), (mask_height, mask_width) = size, pixels.shape[:2]
        raise UndecodableError(f"it has {mask_width} x {mask_height} pixels, and its image has {width} x {height}")
    grey = pixels if pixels.ndim == 2 else pixels.max(axis=-1)
    white = grey.max()
    if not white:
        raise UndecodableError("it is black throughout, so it marks nothing")
    # Some tools write 1 for white, and JPEG files have no clean black.
    mask: NDArray[np.bool_] = grey > 0.5 * float(white)
    return mask
