"""Training images, slightly changed in ways that leave them normal."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["FLIPS", "augment"]

FLIPS = {"h": "left-right", "v": "upside-down"}


def augment(
    x: Tensor, generator: torch.Generator, *, flips: Sequence[str] = (), shift: int = 0, brightness: float = 0.0
) -> Tensor:
    r"""Images, each flipped, shifted and made brighter or darker at random; ``x`` itself if nothing is asked for.

    Parameters
    ----------
    x : Tensor of shape (n, c, h, w)
        Images in [0, 1].
    generator : torch.Generator
        Source of what is drawn, on any device.
    flips : sequence of {"h", "v"}
        Left-right and upside-down, each for half of the images.
    shift : int
        Largest shift along each side, in pixels. What moves in is the nearest pixel of the edge.
    brightness : float in [0, 1]
        Each image is multiplied by a factor in :math:`[1 - b, 1 + b]`, and clipped to [0, 1].

    Examples
    --------
    >>> x = torch.tensor([[[[0.0, 0.5, 1.0]]]])
    >>> augment(x, torch.Generator().manual_seed(0), shift=1)
    tensor([[[[0.0000, 0.0000, 0.5000]]]])
    """
    _check(flips, shift, brightness)
    if flips or shift:
        x = _moved(x, generator, flips, shift)
    if brightness:
        factors = 1 + brightness * (2 * torch.rand(len(x), 1, 1, 1, generator=generator, device=generator.device) - 1)
        x = (x * factors.to(x)).clamp(0, 1)
    return x


def _check(flips: Sequence[str], shift: int, brightness: float) -> None:
    for flip in flips:
        if flip not in FLIPS:
            raise ValueError(f"flips={flips!r} holds {flip!r}. Choose from 'h' (left-right) and 'v' (upside-down).")
    if shift < 0:
        raise ValueError(f"shift={shift} is less than zero.")
    if not 0 <= brightness <= 1:
        raise ValueError(f"brightness={brightness} lies outside of [0, 1].")


def _moved(x: Tensor, generator: torch.Generator, flips: Sequence[str], shift: int) -> Tensor:
    # Flips and shifts only choose which pixel stands where, so that one gather does both. A position beyond the edge is
    # taken to the edge.
    n, c, _, _ = x.shape
    rows, columns = (
        _sources(x.shape[dim], n, generator, flip in flips, shift).to(x.device) for dim, flip in ((-2, "v"), (-1, "h"))
    )
    images = torch.arange(n, device=x.device)[:, None, None, None]
    channels = torch.arange(c, device=x.device)[:, None, None]
    return x[images, channels, rows[:, None, :, None], columns[:, None, None, :]]


def _sources(side: int, n: int, generator: torch.Generator, flip: bool, shift: int) -> Tensor:
    """For each image and each place along a side, the place that its pixel comes from: (n, side)."""
    device = generator.device
    places = torch.arange(side, device=device).expand(n, side)
    if flip:
        flipped = torch.rand(n, 1, generator=generator, device=device) < 0.5
        places = torch.where(flipped, side - 1 - places, places)
    if shift:
        places = places + torch.randint(-shift, shift + 1, (n, 1), generator=generator, device=device)
    return places.clamp(0, side - 1)
