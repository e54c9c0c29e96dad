"""Images -> features of their patches: what a schema of columns is for tables, and of pixels for images."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_anomaly.backbones import Extractor, restore_extractor
from vae_anomaly.errors import DataError
from vae_anomaly.patch_grid import on_pixels, place_codes, summarised
from vae_anomaly.pixels import ImageSchema, Shape, check_shape

__all__ = ["FeatureSchema"]

# How far two corners of an image are from each other, beside features with a standard deviation of one.
PLACE_WEIGHT = 1.0
N_PLACE = 4
# Features of images that are kept for the next question about them: they cost more than all that follows.
MAX_KEPT_BYTES = 256_000_000

RowFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class FeatureSchema(ImageSchema):
    """How images of one shape become rows of numbers that describe their patches.

    A row holds all patches of an image, and of each its standardised features and where it is. The networks see
    single patches (:meth:`parts`), and what they say of them becomes what is said of the image (:meth:`score_function`,
    :meth:`share_function`); splits, calibration and hashes know images alone, as the patches of one image are alike.

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width.
    center, scale : tuple of float
        What is taken off each feature, and what it is divided by.
    backbone : str
        One of ``BACKBONES``.
    grid : (int, int)
        Rows and columns of patches.
    fingerprint : str
        SHA-256 of the weights of the backbone.
    extractor : Extractor

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
    _kept: dict[bytes, NDArray[np.float32]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, images: NDArray[np.float32], backbone: str, extractor: Extractor) -> "FeatureSchema":
        """Schema of training images."""
        known = images[~np.isnan(images).any(axis=(1, 2, 3))]
        if not len(known):
            raise DataError("None of the images can be decoded, so there is nothing to learn from.")
        channels, height, width = images.shape[1:]
        rows, columns, n_features = _extract(extractor, known[:1]).shape[1:]
        blank = cls(
            (channels, height, width),
            (0.0,) * n_features,
            (1.0,) * n_features,
            backbone,
            (rows, columns),
            extractor.fingerprint(),
            extractor,
        )
        found = blank._features(known).reshape(-1, n_features)
        center, spread = found.mean(axis=0, dtype=np.float64), found.std(axis=0, dtype=np.float64)
        # A feature that no training image has is no measure of anything; the others say what is small.
        scale = np.maximum(spread, 1e-3 * max(float(spread.max()), 1e-6))
        return cls(
            blank.shape,
            tuple(map(float, center)),
            tuple(map(float, scale)),
            backbone,
            blank.grid,
            blank.fingerprint,
            extractor,
            blank._kept,
        )

    @property
    def n_parts(self) -> int:
        """Number of patches of an image."""
        return self.grid[0] * self.grid[1]

    def encode(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of all features of all patches, shape (n, n_parts * n_entries); NaN for an undecodable image."""
        if images.shape[1:] != self.shape:
            raise DataError(f"Images of shape {images.shape[1:]} were given, and the model knows {self.shape}.")
        center, scale = (np.array(part, dtype=np.float32) for part in (self.center, self.scale))
        n_features = len(self.center)
        rows = np.empty((len(images), *self.grid, n_features + N_PLACE), dtype=np.float32)
        rows[..., n_features:] = PLACE_WEIGHT * place_codes(*self.grid)
        rows[..., :n_features] = (self._features(images) - center) / scale
        rows[np.isnan(images).any(axis=(1, 2, 3))] = np.nan
        return rows.reshape(len(images), -1)

    def _features(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw features, shape (n, rows, columns, n_features), of images that may have been seen before."""
        found = np.empty((len(images), *self.grid, len(self.center)), dtype=np.float32)
        for index, image in enumerate(images):
            key = hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
            known = self._kept.get(key)
            if known is None:
                # One at a time: what comes out must not depend on the images beside it.
                known = _extract(self.extractor, np.nan_to_num(image[None]))[0]
                self._keep(key, known)
            found[index] = known
        return found

    def _keep(self, key: bytes, features: NDArray[np.float32]) -> None:
        while self._kept and (len(self._kept) + 1) * features.nbytes > MAX_KEPT_BYTES:
            self._kept.pop(next(iter(self._kept)), None)
        self._kept[key] = features

    def parts(self, rows: Tensor) -> Tensor:
        """Patches, shape (n * n_parts, n_entries), of encoded rows of shape (n, n_parts * n_entries)."""
        return rows.reshape(len(rows) * self.n_parts, -1)

    def score_function(self, function: RowFunction) -> RowFunction:
        """Score of images from a score of patches."""

        def of_images(vae: Any, x: Tensor, eps: Tensor) -> Tensor:
            return summarised(function(vae, self.parts(x), eps).reshape(len(x), -1))[0]

        return of_images

    def share_function(self, function: RowFunction) -> RowFunction:
        """What each patch contributes to the score of its image, shape (n, n_parts)."""

        def of_patches(vae: Any, x: Tensor, eps: Tensor) -> Tensor:
            return summarised(function(vae, self.parts(x), eps).reshape(len(x), -1))[1]

        return of_patches

    def fold(self, entries: NDArray[Any]) -> NDArray[np.float64]:
        """What falls to each pixel of what patches contribute, shape (n, n_features); channels share it alike."""
        channels, height, width = self.shape
        spread = on_pixels(np.asarray(entries, dtype=np.float64).reshape(-1, *self.grid), height, width)
        return np.repeat(spread[:, None] / channels, channels, axis=1).reshape(len(spread), -1)

    def decode(self, encoded: NDArray[Any]) -> NDArray[np.float32]:
        """ValueError: features are no image."""
        raise ValueError(
            f"The model knows images by features of their patches (backbone {self.backbone!r}), from which no image "
            "can be drawn or reconstructed; a model of pixels can."
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
        """Weights of the backbone, as far as they are used, and the projection."""
        return self.extractor.state_dict()

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
        return cls(shape, center, scale, given["backbone"], grid, given["fingerprint"], extractor)


def _extract(extractor: Extractor, images: NDArray[np.float32]) -> NDArray[np.float32]:
    tensor = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    found: NDArray[np.float32] = extractor(tensor.to(extractor.projection.device)).cpu().numpy()
    return found
