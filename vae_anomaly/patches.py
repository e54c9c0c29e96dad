"""Patches of images beside those of training images: which of them no training image has there, or nearly there."""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vae_anomaly.neighbours import nearest, taken
from vae_anomaly.picture import Picture, View
from vae_anomaly.scratch import blocks
from vae_anomaly.usual import middle_and_excess
from vae_anomaly.vae import VAE

__all__ = ["patch_distances", "patch_entries", "patch_novelty", "usual_contrast", "usual_patches", "usual_views"]

# Training images that patches are compared with; more of them find little more, at a price that grows with them.
MAX_COMPARED = 1000
# Patches with less contrast than this share of what is usual are not stretched to full contrast: they are mostly noise.
LEAST_CONTRAST = 0.4
# A place where normal images differ far less than elsewhere is taken to vary by this share of what places do on
# average: else its noise would decide.
LEAST_SPREAD = 0.3
# Grain in excess of the usual by this share of the deviation of pixels counts as one unit at most: else images without
# any would make an alarm of a change that no one sees.
LEAST_GRAIN = 0.01
# Floor under the mean excess of a view, in spreads of its places.
LEAST_EXCESS = 1e-3
# A GPU is not busy with the patches of one place; so many distances it looks for at once, of each member.
SEVERAL_PLACES_ON, MAX_AT_ONCE = ("cuda",), 32_000_000

Place = tuple[int, int]
"""Row and column of the first cell of a patch."""


def patch_novelty(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    r"""How much the patches of an image differ from those that training images have at, or next to, the same place.

    An image is cut into overlapping patches in several ways (:func:`~vae_anomaly.picture.views_of`). Each patch is
    taken relative to the median of its image and to its own contrast, and its distance :math:`d_i` is that to the
    nearest patch of a training image. By how much that exceeds what is usual at this place for held-out normal images,
    in units of its spread there, is joined over the patches as a root mean square:

    .. math:: \sqrt{\frac{1}{n} \sum_{i=1}^n \max\left(0, \frac{d_i - m_i}{s_i}\right)^2}

    The score is the highest over the ways to cut, each centred on its median over held-out normal images and divided by
    the mean excess over it. No patch is judged by how much ink it has, so a simple image is not normal for being
    simple. What cells leave out of sight, noise between neighbouring pixels, is one more term where there is more of it
    than usual: the median difference of a pixel from the mean of its block of two by two.
    """
    _check(vae)
    parts = [_joined(z) for z, _ in _compared(vae, x)]
    return _standardised(vae, torch.stack([*parts, _grain(vae, x)[0]], dim=-1)).amax(dim=-1)


def patch_entries(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """What each pixel adds to :func:`patch_novelty`: its patches' parts, by where these differ from their nearest."""
    picture = _check(vae)
    joined, maps = [], []
    for view, (z, squares) in zip(picture.views, _compared(vae, x), strict=True):
        total = _joined(z)
        joined.append(total)
        of_places = z.square() / (z.shape[1] * total.clamp(min=1e-12))[:, None]
        within = _portions(squares, dim=(2, 3, 4))
        maps.append(_on_pixels(of_places[:, :, None, None, None] * within, view, picture))
    grain, differences = _grain(vae, x)
    joined.append(grain)
    maps.append(grain[:, None] * _portions(differences, dim=(1,)))
    scores = _standardised(vae, torch.stack(joined, dim=-1))
    best = scores.argmax(dim=-1)
    chosen = torch.stack(maps, dim=1).gather(1, best[:, None, None].expand(-1, 1, maps[0].shape[1])).squeeze(1)
    middle, excess = (part[best][:, None] for part in vae.usual_views.unbind(dim=-1))
    return ((chosen - middle / chosen.shape[1]) / excess).reshape(x.shape)


def _portions(values: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Each value as a share of their sum; alike where all are 0."""
    # The constant keeps the quotient defined.
    values = values + 1e-12
    return values / values.sum(dim=dim, keepdim=True)


def _check(vae: VAE) -> Picture:
    if vae.picture is None:
        raise ValueError("patch_novelty is for images on pixels, of shape (n_samples, channels, height, width).")
    return vae.picture


def _standardised(vae: VAE, joined: Tensor) -> Tensor:
    middle, excess = vae.usual_views.unbind(dim=-1)
    views, grain = ((joined - middle) / excess).tensor_split([-1], dim=-1)
    # Many kinds of images have no grain at all: that constant must not stand above scores below the median.
    return torch.cat([views, torch.where(grain > 0.0, grain, -torch.inf)], dim=-1)


def _grain(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Median difference of the pixels of each image from the mean of their block of two by two, and all of them."""
    images = torch.nan_to_num(x).reshape(-1, *_check(vae).shape)
    height, width = (2 * (side // 2) for side in images.shape[2:])
    if not (height and width):
        return x.new_zeros(len(x)), torch.zeros_like(x.flatten(1))
    means = F.avg_pool2d(images, 2).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    differences = (images[:, :, :height, :width] - means).abs()
    # torch.quantile has no rule for vmap.
    middle = differences.flatten(1).sort(dim=1).values[:, differences[0].numel() // 2]
    padded = F.pad(differences, (0, images.shape[3] - width, 0, images.shape[2] - height))
    return middle, padded.flatten(1)


def _joined(z: Tensor) -> Tensor:
    return z.square().mean(dim=-1).sqrt()


def _compared(vae: VAE, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each view: excess at each place, in units of its spread, and squared differences (:func:`_squares`)."""
    first = 0
    for view in _check(vae).views:
        squares = _squares(vae, x, view)
        yield _excess(vae, _distances(squares), first), squares
        first += view.n_places


def _excess(vae: VAE, distances: Tensor, first: int) -> Tensor:
    """What the distances of one view, whose places begin with the ``first``, are beyond the usual."""
    mean, spread = vae.usual_patches[:, first : first + distances.shape[1]]
    excess: Tensor = ((distances - mean) / spread).clamp(min=0.0)
    return excess


def _distances(squares: Tensor) -> Tensor:
    return squares.flatten(2).sum(dim=-1).sqrt()


def _squares(vae: VAE, x: Tensor, view: View) -> Tensor:
    """Squared differences of patches from their nearest, shape (n, n_places, channels, patch, patch)."""
    assert vae.picture is not None
    here = _cells(x, vae.picture, view)
    window, channels = view.window, here.shape[1]
    there = F.pad(_cells(vae.exemplars[:MAX_COMPARED], vae.picture, view), (window,) * 4, mode="replicate")
    found = []
    for places in _places_at_once(view, here, len(there)):
        patches = _scaled(vae, _windows(here, places, view.patch, 0))
        others = _scaled(vae, _windows(there, places, view.patch, window))
        # The search says which one is nearest, one difference a patch how far it is: nothing cancels.
        found.append((patches - _closest(patches, others)).square())
    return torch.cat(found).movedim(1, 0).reshape(len(here), view.n_places, channels, view.patch, view.patch)


def _places_at_once(view: View, here: Tensor, n_others: int) -> list[list[Place]]:
    """First cells of the patches of a view, those of some places at a time."""
    places = list(itertools.product(view.tops, view.lefts))
    n_distances = len(here) * n_others * (1 + 2 * view.window) ** 2
    several = here.device.type in SEVERAL_PLACES_ON
    return [places[part] for part in blocks(len(places), n_distances, at_once=MAX_AT_ONCE if several else 1)]


def _closest(patches: Tensor, others: Tensor) -> Tensor:
    """Of the others at the same place, the one nearest to each, shape (n_places, n, n_entries)."""
    if len(patches) == 1:
        return taken(others[0], nearest(patches[0], others[0]))[None]
    lengths = 0.5 * others.square().sum(dim=-1)[:, None]
    return taken(others, nearest(patches, others, torch.ones_like(patches[:, :1]), lengths))


def _cells(x: Tensor, picture: Picture, view: View) -> Tensor:
    """Images on the grid of a view, less the median of each channel: what is background in one, is so in all."""
    images = torch.nan_to_num(x).reshape(-1, *picture.shape)
    cells = F.adaptive_avg_pool2d(images, (view.rows, view.columns))
    middle = cells.flatten(2).sort(dim=-1).values[:, :, view.rows * view.columns // 2]
    return cells - middle[:, :, None, None]


def _windows(cells: Tensor, places: Sequence[Place], size: int, window: int) -> Tensor:
    """Patches of each image that start at each place, or up to twice ``window`` cells after it, one below the other."""
    reach = size + 2 * window
    near = [cells[:, :, top : top + reach, left : left + reach] for top, left in places]
    patches = [own.unfold(2, size, 1).unfold(3, size, 1).permute(2, 3, 0, 1, 4, 5) for own in near]
    return torch.stack(patches).flatten(1, 3).flatten(2)


def _scaled(vae: VAE, patches: Tensor) -> Tensor:
    """Patches by their contrast."""
    least = LEAST_CONTRAST * math.sqrt(patches.shape[-1]) * vae.patch_contrast
    scaled: Tensor = patches / (patches.norm(dim=-1, keepdim=True) + least)
    return scaled


def _on_pixels(parts: Tensor, view: View, picture: Picture) -> Tensor:
    """Shape (n, n_pixels), of what falls to each cell of each patch."""
    rows, columns, size = view.rows, view.columns, view.patch
    places = [(top, left) for top in view.tops for left in view.lefts]
    on_cells = sum(
        F.pad(part, (left, columns - left - size, top, rows - top - size))
        for part, (top, left) in zip(parts.unbind(dim=1), places, strict=True)
    )
    height, width = picture.shape[1:]
    spread = _spread(rows, height).to(parts) @ on_cells @ _spread(columns, width).to(parts).T
    return spread.flatten(1)


@functools.cache
def _spread(n_cells: int, n_pixels: int) -> Tensor:
    """Share of each cell that falls to each pixel along one side, shape (n_pixels, n_cells); columns sum to one."""
    cells, pixels = torch.arange(n_cells), torch.arange(n_pixels)[:, None]
    # The pixels that the pooling takes the mean of.
    first, last = cells * n_pixels // n_cells, -(-(cells + 1) * n_pixels // n_cells)
    covered = ((first <= pixels) & (pixels < last)).double()
    return covered / covered.sum(dim=0)


def usual_contrast(vae: VAE, train: Tensor, held_out: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """Root mean square of what training images show, relative to their medians."""
    picture = _check(vae)
    contrast = _cells(vae.exemplars[:MAX_COMPARED], picture, picture.views[0]).square().mean().sqrt()
    return {"patch_contrast": contrast.clamp(min=1e-6)}


def patch_distances(vae: VAE, held_out: Tensor) -> tuple[Tensor, ...]:
    """Of each view: distance of each patch of held-out normal images from the nearest, shape (n, n_places)."""
    return tuple(_distances(_squares(vae, held_out, view)) for view in _check(vae).views)


def usual_patches(vae: VAE, held_out: Tensor, *distances: Tensor) -> dict[str, Tensor]:
    """Mean and spread of the distance at each place, over held-out normal images."""
    means, spreads = [], []
    for own in distances:
        spread = own.std(dim=0, correction=0)
        means.append(own.mean(dim=0))
        spreads.append((spread + LEAST_SPREAD * spread.mean()).clamp(min=1e-3))
    return {"usual_patches": torch.stack([torch.cat(means), torch.cat(spreads)])}


def usual_views(vae: VAE, held_out: Tensor, *distances: Tensor) -> dict[str, Tensor]:
    """Where the views and the grain of held-out normal images lie: median, and mean excess over it."""
    firsts = itertools.accumulate((own.shape[1] for own in distances), initial=0)
    excesses = [_excess(vae, own, first) for own, first in zip(distances, firsts, strict=False)]
    views = [middle_and_excess(_joined(z), least=LEAST_EXCESS) for z in excesses]
    return {"usual_views": torch.stack([*views, middle_and_excess(_grain(vae, held_out)[0], least=LEAST_GRAIN)])}
