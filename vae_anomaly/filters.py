"""A fixed bank of oriented filters: features of image patches that need no training and no file."""

import math

import torch
from torch import Tensor, nn

__all__ = ["FilterBank"]

N_ORIENTATIONS = 6
# Pixels a side of each filter, and the length of its wave.
SUPPORT, WAVELENGTH = 9, 5.0
# The filters see the image at its own size, at half and at a quarter of it.
SHRINKAGES = (1, 2, 4)
# Strengths that are no more than noise: below it, roots are straight.
LEAST_STRENGTH = 1e-4
# A patch is this many pixels a side; where the shorter side of an image has fewer than SMALL, half as many.
CELL, SMALL = 8, 128


class FilterBank(nn.Module):
    """How much there is of edges and lines of six orientations, and of spots, in each cell of an image.

    The magnitude of Gabor filters says how strong an edge or a line is, whatever its phase; a difference of Gaussians,
    its two signs apart, finds bright and dark spots. Each is taken at three scales, and the square roots of its mean
    and its maximum over a cell are kept, beside the mean of the pixels: 49 numbers. Roots, because where a texture is
    worn smooth, little would be missing beside what is strong in it. In colour images, there are as many of the
    brightness and of two differences of colours.

    Parameters
    ----------
    channels : {1, 3}
        Of the images.

    Examples
    --------
    >>> bank = FilterBank(channels=1)
    >>> bank(torch.zeros(2, 1, 256, 128))[0].shape
    torch.Size([2, 49, 32, 16])
    """

    kernels: Tensor
    planes: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("kernels", torch.cat([_gabor(), _blob()])[:, None])
        opponents = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, -0.5, 0.0], [0.25, 0.25, -0.5]])
        self.register_buffer("planes", opponents if channels == 3 else torch.full((1, channels), 1.0 / channels))

    def forward(self, images: Tensor) -> list[Tensor]:
        """One map of features, shape (n, n_features, rows, columns), for images in [0, 1]."""
        planes = torch.einsum("nchw,pc->nphw", images, self.planes)
        grid = _grid(planes.shape[2], planes.shape[3])
        single = planes.reshape(-1, 1, *planes.shape[2:])
        pooled = []
        for shrinkage in SHRINKAGES:
            found = self._responses(nn.functional.avg_pool2d(single, shrinkage, ceil_mode=True))
            pooled.append(nn.functional.adaptive_avg_pool2d(found, grid))
            pooled.append(nn.functional.adaptive_max_pool2d(found, grid))
        strengths = (torch.cat(pooled, dim=1) + LEAST_STRENGTH).sqrt() - LEAST_STRENGTH**0.5
        brightness = nn.functional.adaptive_avg_pool2d(single, grid)
        return [torch.cat([brightness, strengths], dim=1).reshape(len(images), -1, *grid)]

    def _responses(self, single: Tensor) -> Tensor:
        margin = SUPPORT // 2
        # Replication, unlike reflection, works on images that are smaller than the margin.
        padded = nn.functional.pad(single, (margin,) * 4, mode="replicate")
        found = nn.functional.conv2d(padded, self.kernels)
        even, odd = found[:, :N_ORIENTATIONS], found[:, N_ORIENTATIONS : 2 * N_ORIENTATIONS]
        spots = found[:, 2 * N_ORIENTATIONS :]
        strengths = [(even.square() + odd.square()).sqrt(), spots.clamp(min=0.0), (-spots).clamp(min=0.0)]
        return torch.cat(strengths, dim=1)


def _grid(height: int, width: int) -> tuple[int, int]:
    cell = CELL if min(height, width) >= SMALL else CELL // 2
    return max(1, round(height / cell)), max(1, round(width / cell))


def _places() -> tuple[Tensor, Tensor]:
    side = torch.arange(SUPPORT, dtype=torch.float32) - SUPPORT // 2
    y, x = torch.meshgrid(side, side, indexing="ij")
    return y, x


def _gabor() -> Tensor:
    """Cosine waves of all orientations, then sine waves, under a Gaussian that is longer along the wave's crests."""
    y, x = _places()
    waves = []
    for wave in (torch.cos, torch.sin):
        for index in range(N_ORIENTATIONS):
            angle = math.pi * index / N_ORIENTATIONS
            across, along = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
            window = torch.exp(-0.5 * ((across / 1.5).square() + (along / 2.5).square()))
            kernel = window * wave(2 * math.pi * across / WAVELENGTH)
            # Even light must give nothing.
            kernel = kernel - kernel.mean()
            waves.append(kernel / kernel.norm())
    return torch.stack(waves)


def _blob() -> Tensor:
    y, x = _places()
    narrow, wide = (torch.exp(-0.5 * (x.square() + y.square()) / sigma**2) for sigma in (1.2, 2.4))
    kernel = narrow / narrow.sum() - wide / wide.sum()
    unit: Tensor = kernel / kernel.norm()
    return unit[None]
