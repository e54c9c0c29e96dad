"""Images -> features of their patches: what a schema of columns is for tables, and of pixels for images."""

import hashlib
import itertools
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from torch import Tensor

from vae_anomaly.backbones import Extractor, restore_extractor
from vae_anomaly.errors import DataError
from vae_anomaly.patch_grid import on_pixels, place_codes, summarised
from vae_anomaly.pixels import ImageSchema, Shape, check_shape
from vae_anomaly.products import multiplied
from vae_anomaly.scratch import empty_like_source

__all__ = ["FeatureSchema", "Usual"]

# How far two corners of an image are from each other, beside features with a standard deviation of one.
PLACE_WEIGHT = 1.0
N_PLACE = 4
# What is usual at a place is learned from so many places a side around it: parts never lie in the very same place.
NEIGHBOURHOOD = 3
# Share of the variance of features that their place explains, on average: up to the first, places are taken as alike,
# from the second on, each has its own mean and spread. Drawn surfaces have 0.01 to 0.02, screws in all directions 0.16,
# parts in about the same place 0.8.
PLACED = (0.2, 0.5)
# The least that a feature may vary at a place, as a share of its variance over all places.
LEAST_VARIANCE = 0.4
# Images from which that is learned, and numbers of them that are held at a time; never fewer than the last.
MAX_USUAL_IMAGES, MAX_USUAL_ENTRIES, MIN_USUAL_IMAGES = 300, 64_000_000, 20
# Features of images that are kept for the next question about them: they cost more than all that follows.
MAX_KEPT_BYTES = 256_000_000
_KEEPING = threading.Lock()

RowFunction = Callable[..., Tensor]


class Usual(NamedTuple):
    """Where each feature lies at each place of normal images, and how far it strays.

    Both have shape (rows, columns, n_features).
    """

    center: NDArray[np.float32]
    scale: NDArray[np.float32]


@dataclass(frozen=True)
class FeatureSchema(ImageSchema):
    """How images of one shape become rows of numbers that describe their patches.

    A row holds all patches of an image, and of each its standardised features and where it is. The networks see
    single patches (:meth:`parts`), and what they say of them becomes what is said of the image
    (:meth:`explained_function`); splits, calibration and hashes know images alone, as the patches of one image are
    alike.

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width.
    center, scale : tuple of float
        Mean and standard deviation of each feature over all places.
    backbone : str
        One of ``BACKBONES``.
    grid : (int, int)
        Rows and columns of patches.
    fingerprint : str
        SHA-256 of the weights of the backbone.
    extractor : Extractor
    usual : Usual
        Where each feature lies at each place, and how far it strays.

    Examples
    --------
    >>> from vae_anomaly.backbones import build_extractor
    >>> images = np.random.default_rng(0).uniform(size=(3, 1, 32, 32)).astype(np.float32)
    >>> schema = FeatureSchema.of(images, "gabor", build_extractor("gabor", 1, seed=0))
    >>> schema.grid, schema.encode(images).shape
    ((8, 8), (3, 3392))
    """

    center: tuple[float, ...]
    scale: tuple[float, ...]
    backbone: str
    grid: tuple[int, int]
    fingerprint: str
    extractor: Extractor = field(repr=False, compare=False)
    usual: "Usual" = field(repr=False, compare=False)
    _kept: dict[bytes, NDArray[np.float32]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        images: NDArray[np.float32],
        backbone: str,
        extractor: Extractor,
        *,
        rows: NDArray[np.intp] | None = None,
    ) -> "FeatureSchema":
        """Schema of training images: of ``rows`` of them, or of all; of many, some are looked at, spread over all."""
        channels, height, width = images.shape[1:]
        rows = np.arange(len(images)) if rows is None else rows
        grid_and_features = _extract(extractor, np.zeros((1, *images.shape[1:]), np.float32)).shape[1:]
        few = max(MIN_USUAL_IMAGES, min(MAX_USUAL_IMAGES, MAX_USUAL_ENTRIES // math.prod(grid_and_features)))
        known = _decodable(images, rows, few)
        if not len(known):
            raise DataError("None of the images can be decoded, so there is nothing to learn from.")
        kept: dict[bytes, NDArray[np.float32]] = {}
        found = np.empty((len(known), *grid_and_features), dtype=np.float32)
        for index, row in enumerate(known):
            found[index] = _recalled(extractor, images[row], kept)
        center, scale, usual = _usual(found)
        return cls(
            (channels, height, width),
            tuple(map(float, center)),
            tuple(map(float, scale)),
            backbone,
            (grid_and_features[0], grid_and_features[1]),
            extractor.fingerprint(),
            extractor,
            usual,
            kept,
        )

    @property
    def n_parts(self) -> int:
        """Number of patches of an image."""
        return self.grid[0] * self.grid[1]

    def notes(self) -> list[str]:
        """What a model of features is, and is not."""
        height, width = self.shape[1:]
        rows, columns = self.grid
        return [
            f"Images of {width} x {height} pixels are known by {columns} x {rows} patches (backbone {self.backbone}); "
            "--backbone pixels makes a model that draws and reconstructs images."
        ]

    def encode(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of all features of all patches, shape (n, n_parts * n_entries); NaN for an undecodable image."""
        if images.shape[1:] != self.shape:
            raise DataError(f"Images of shape {images.shape[1:]} were given, and the model knows {self.shape}.")
        n_features = len(self.center)
        rows = empty_like_source(images, (len(images), self.n_parts * (n_features + N_PLACE)))
        places = PLACE_WEIGHT * place_codes(*self.grid)
        for index, image in enumerate(images):
            if np.isnan(image).any():
                rows[index] = np.nan
                continue
            row = rows[index].reshape(*self.grid, n_features + N_PLACE)
            row[..., :n_features] = (
                _recalled(self.extractor, image, self._kept) - self.usual.center
            ) / self.usual.scale
            row[..., n_features:] = places
        return rows

    def parts(self, rows: Tensor) -> Tensor:
        """Patches, shape (n * n_parts, n_entries), of encoded rows of shape (n, n_parts * n_entries)."""
        return rows.reshape(len(rows) * self.n_parts, -1)

    def explained_function(self, function: RowFunction) -> Callable[..., tuple[Tensor, Tensor]]:
        """From a score of patches, that of images, and what each patch contributes to it, shape (n, n_parts)."""

        def of_images(vae: Any, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
            return summarised(function(vae, self.parts(x), eps).reshape(len(x), -1))

        return of_images

    def score_function(self, function: RowFunction) -> RowFunction:
        """The first of :meth:`explained_function`."""
        both = self.explained_function(function)
        return lambda vae, x, eps: both(vae, x, eps)[0]

    def fold(self, entries: NDArray[Any]) -> NDArray[np.float64]:
        """What falls to each pixel of what patches contribute, shape (n, n_features); channels share it alike."""
        channels, height, width = self.shape
        spread = on_pixels(np.asarray(entries, dtype=np.float64).reshape(-1, *self.grid), height, width)
        return np.repeat(spread[:, None] / channels, channels, axis=1).reshape(len(spread), -1)

    def decode(self, encoded: NDArray[Any]) -> NDArray[np.float32]:
        """ValueError: features are no image."""
        raise ValueError(
            f"The model knows images by features of their patches (backbone {self.backbone!r}), from which no image "
            "can be drawn or reconstructed. Fit with --backbone pixels (backbone='pixels') for a model that can."
        )

    def block_sizes(self) -> tuple[int, int, tuple[int, ...]]:
        """All that describes a patch are real numbers."""
        return len(self.center) + N_PLACE, 0, ()

    def resolutions(self) -> NDArray[np.float64]:
        """Features have no steps."""
        return np.zeros(len(self.center) + N_PLACE)

    def to(self, device: torch.device) -> None:
        """Compute features on this device from now on."""
        self.extractor.to(device)

    def tensors(self) -> dict[str, Tensor]:
        """Weights of the backbone, as far as they are used, the projection, and what is usual at each place."""
        usual = {f"usual.{name}": torch.from_numpy(part) for name, part in self.usual._asdict().items()}
        return {**self.extractor.state_dict(), **usual}

    def to_json(self) -> dict[str, Any]:
        """Plain data from which :meth:`restore` makes the same schema, given :meth:`tensors`."""
        names = ("shape", "center", "scale", "backbone", "grid", "fingerprint")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def restore(cls, given: dict[str, Any], state: Mapping[str, Tensor]) -> "FeatureSchema":
        """Inverse of :meth:`to_json` and :meth:`tensors`; ValueError for what is no schema."""
        shape: Shape = tuple(given["shape"])
        check_shape(shape)
        extractor = restore_extractor(given["backbone"], shape[0], state)
        if extractor.fingerprint() != given["fingerprint"]:
            raise ValueError("the weights of its backbone are not those that it was fitted with")
        found = _extract(extractor, np.zeros((1, *shape), np.float32)).shape[1:]
        center, scale, grid = (tuple(given[name]) for name in ("center", "scale", "grid"))
        if (*grid, len(center), len(scale)) != (*found, found[-1]):
            raise ValueError("its features are not those of its backbone")
        if not (np.isfinite([*center, *scale]).all() and min(scale) > 0):
            raise ValueError("a feature has no usable scale")
        usual = Usual(*(state[f"usual.{name}"].float().numpy() for name in Usual._fields))
        if any(part.shape != found or not np.isfinite(part).all() for part in usual) or usual.scale.min() <= 0:
            raise ValueError("what is usual at its places can't be used")
        return cls(shape, center, scale, given["backbone"], grid, given["fingerprint"], extractor, usual)


def _decodable(images: NDArray[np.float32], rows: NDArray[np.intp], most: int) -> list[int]:
    """At most so many of the rows, spread over all, whose image can be decoded."""
    step = max(1, len(rows) // most)
    order = np.concatenate([rows[start::step] for start in range(step)])
    return list(itertools.islice((int(row) for row in order if not np.isnan(images[row]).any()), most))


def _usual(found: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64], Usual]:
    """Mean and spread of each feature, and the same at each place, of shape (n, rows, columns, n_features).

    Where places explain little of the features, as on a surface or for parts that lie in any direction, all places
    are alike; where they explain much, each has its own. Between the two, variances and means are mixed.
    """
    flat = found.reshape(-1, found.shape[-1])
    center, variance = flat.mean(axis=0, dtype=np.float64), flat.var(axis=0, dtype=np.float64)
    # A feature that no training image has is no measure of anything; the others say what is small.
    variance = np.maximum(variance, 1e-6 * max(float(variance.max()), 1e-6))
    by_place = found.mean(axis=0, dtype=np.float64)
    strays = found.var(axis=0, dtype=np.float64, ddof=1 if len(found) > 1 else 0)
    share = (np.clip(1.0 - strays.mean(axis=(0, 1)) / variance, 0.0, 1.0)).mean() if len(found) > 1 else 0.0
    low, high = PLACED
    weight = float(np.clip((share - low) / (high - low), 0.0, 1.0))
    around = (NEIGHBOURHOOD, NEIGHBOURHOOD, 1)
    middle = uniform_filter(by_place, around, mode="nearest")
    moment = uniform_filter(strays + by_place**2, around, mode="nearest") - middle**2
    own = weight * (moment.clip(min=0.0) + LEAST_VARIANCE * variance) + (1.0 - weight) * variance
    middle = weight * middle + (1.0 - weight) * center
    return center, np.sqrt(variance), Usual(middle.astype(np.float32), np.sqrt(own).astype(np.float32))


def _recalled(
    extractor: Extractor, image: NDArray[np.float32], kept: dict[bytes, NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Raw features of an image that may have been seen before, shape (rows, columns, n_features)."""
    key = hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
    known = kept.get(key)
    if known is None:
        # One at a time: what comes out must not depend on the images beside it.
        known = _extract(extractor, image[None])[0]
        with _KEEPING:
            while kept and (len(kept) + 1) * known.nbytes > MAX_KEPT_BYTES:
                kept.pop(next(iter(kept)))
            kept[key] = known
    return known


def _extract(extractor: Extractor, images: NDArray[np.float32]) -> NDArray[np.float32]:
    tensor = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    device = extractor.projection.device
    with multiplied(device):
        found: NDArray[np.float32] = extractor(tensor.to(device)).cpu().numpy()
    return found
