"""What latent units mean, and what lies between two images: grids of what the decoder makes of codes."""

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vae_anomaly.errors import DataError

if TYPE_CHECKING:
    from vae_anomaly.detector import VAEDetector

__all__ = ["Traversal", "between", "traverse"]

Floats = NDArray[np.float64]

# A unit carries information if its posterior mean varies by more than this (Burda et al. 2016).
ACTIVE_VARIANCE = 0.01
MAX_UNITS = 10
N_STEPS = 7
REACH = 3.0


class Traversal(NamedTuple):
    """What one member makes of the prior's mean when one latent unit at a time is moved."""

    units: NDArray[np.intp]
    """Active units, that with the largest variance first; one row of images each."""
    variances: Floats
    """Of the posterior mean of each unit over training images."""
    steps: Floats
    """How far each column is from the prior's mean, in the prior's scales."""
    images: NDArray[np.float32]
    """Shape (n_units, n_steps, channels, height, width), in [0, 1]."""


def traverse(
    detector: "VAEDetector", *, member: int = 0, max_units: int = MAX_UNITS, n_steps: int = N_STEPS
) -> Traversal:
    """Images decoded along each active latent unit of one member, from -3 to 3 scales of the prior.

    The other units stay at the prior's mean. Members have latent spaces of their own.

    Parameters
    ----------
    detector : VAEDetector
        Fitted on images.
    member : int
    max_units : int
        So many units with the largest variance of their posterior mean are shown.
    n_steps : int
        Images for each unit.

    Raises
    ------
    DataError
        If the detector was fitted on a table, or no unit is active.
    ValueError
        If the detector models features, from which there is no way back to images.

    Examples
    --------
    >>> from vae_anomaly import VAEDetector
    >>> images = np.random.default_rng(0).random((60, 1, 8, 8)) * np.linspace(0, 1, 60)[:, None, None, None]
    >>> detector = VAEDetector(max_steps=60, n_estimators=2, latent_dim=3, hidden=(16,)).fit(images)
    >>> found = traverse(detector)
    >>> found.images.shape == (len(found.units), 7, 1, 8, 8), found.steps.tolist()
    (True, [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0])
    """
    _check_images(detector)
    variances = detector.training_codes(member=member).var(axis=0)
    order = np.argsort(-variances, kind="stable")
    units = order[variances[order] > ACTIVE_VARIANCE][:max_units]
    if not len(units):
        raise DataError(f"No latent unit of member {member} is active, so there is nothing to move. Lower beta.")
    mean, scale = _prior(detector, member)
    steps = np.linspace(-REACH, REACH, n_steps)
    codes = np.tile(mean, (len(units), n_steps, 1))
    for row, unit in enumerate(units):
        codes[row, :, unit] += steps * scale[unit]
    images = np.asarray(detector.decode(codes.reshape(-1, codes.shape[-1]), member=member))
    return Traversal(units, variances[units], steps, images.reshape(*codes.shape[:2], *images.shape[1:]))


def between(detector: "VAEDetector", first: NDArray[Any], second: NDArray[Any], *, n_images: int = 10) -> Any:
    """Images decoded along the line between the codes of two images, both ends included; mean over the members.

    Parameters
    ----------
    detector : VAEDetector
        Fitted on images.
    first, second : ndarray of shape (channels, height, width)
        In [0, 1], in the shape that the detector knows.
    n_images : int
        At least 2.

    Returns
    -------
    ndarray of shape (n_images, channels, height, width)
        The first and the last are what :meth:`VAEDetector.reconstruct` gives.

    Raises
    ------
    DataError
        If the detector was fitted on a table or on images of another shape, or an image holds NaN.
    """
    _check_images(detector)
    if n_images < 2:
        raise ValueError(f"n_images={n_images} must be at least 2, the two ends.")
    ends = np.stack([first, second])
    if ends.dtype.kind == "f" and np.isnan(ends).any():
        raise DataError("An image holds NaN, so it has no code.")
    shares = np.linspace(0.0, 1.0, n_images)[:, None]
    decoded = []
    for member in range(detector.ensemble_.n_estimators):
        start, end = detector.latent(ends, member=member)
        decoded.append(detector.decode((1.0 - shares) * start + shares * end, member=member))
    return np.mean(decoded, axis=0)


def _check_images(detector: "VAEDetector") -> None:
    if not detector.holds_images:
        raise DataError("The model was fitted on a table, and only images can be looked at.")


def _prior(detector: "VAEDetector", member: int) -> tuple[Floats, Floats]:
    """Mean and scale of each latent unit under the prior of one member."""
    with torch.no_grad():
        prior = next(itertools.islice(detector.ensemble_.members(), member, None)).pz()
        return prior.mean.double().cpu().numpy(), prior.variance.sqrt().double().cpu().numpy()
