"""Large images -> rows of their overlapping tiles, and back: a schema of images whose parts are images, too."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_anomaly.errors import DataError
from vae_anomaly.features import FeatureSchema
from vae_anomaly.patch_grid import summarised
from vae_anomaly.pixels import ImageSchema, PixelSchema, Shape, check_shape
from vae_anomaly.scoring import block_size
from vae_anomaly.scratch import empty_like_source, scratch_array

__all__ = ["TileSchema", "check_tile", "some_tiles", "starts"]

# Numbers of tiles from which their schema is inferred, and the fewest tiles.
MAX_SHOWN_ENTRIES, MIN_SHOWN_TILES = 64_000_000, 20
# Bytes of encoded images from which on they lie on disk: tiles overlap, so they take four times what the images do.
MAX_BYTES_IN_MEMORY = 1_000_000_000

RowFunction = Callable[..., Tensor]


def starts(side: int, tile: int) -> list[int]:
    """Where tiles begin along one side: half a tile from each to the next, and the last one ends where the side does.

    Examples
    --------
    >>> starts(64, 32), starts(70, 32), starts(32, 32)
    ([0, 16, 32], [0, 16, 32, 38], [0])
    """
    return [*range(0, side - tile, max(1, tile // 2)), side - tile]


def check_tile(shape: tuple[int, ...], tile: int) -> None:
    """ValueError if images of this shape hold no such tile."""
    height, width = shape[1:]
    if tile > min(height, width):
        raise ValueError(
            f"tile={tile} is larger than the images, which have {width} x {height} pixels. Use at most "
            f"{min(height, width)}, or no tiles."
        )


def some_tiles(images: NDArray[np.float32], rows: NDArray[np.intp], tile: int, seed: int) -> NDArray[np.float32]:
    """Tiles of these rows, drawn by the seed, of shape (n, channels, tile, tile): all, or as many as memory holds.

    Raises
    ------
    DataError
        If no tile is whole.
    """
    channels, height, width = images.shape[1:]
    places = [(y, x) for y in starts(height, tile) for x in starts(width, tile)]
    most = max(MIN_SHOWN_TILES, MAX_SHOWN_ENTRIES // (channels * tile**2))
    found: list[NDArray[np.float32]] = []
    for index in np.random.default_rng(seed).permutation(len(rows) * len(places)):
        row, (y, x) = rows[index // len(places)], places[index % len(places)]
        shown = images[row, :, y : y + tile, x : x + tile]
        if not np.isnan(shown).any():
            found.append(np.array(shown))
        if len(found) == most:
            break
    if not found:
        raise DataError("None of the images can be decoded, so there is nothing to learn from.")
    return np.stack(found)


@dataclass(frozen=True)
class TileSchema(ImageSchema):
    """How large images become rows of their overlapping tiles.

    A row holds all tiles of an image, each encoded as an image by itself. The networks see single tiles, or the patches
    of single tiles; splits, calibration and hashes know images alone, as the tiles of one image are alike and overlap.

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width of the whole images.
    inner : PixelSchema or FeatureSchema
        Schema of the tiles, which are square.

    Examples
    --------
    >>> images = np.random.default_rng(0).uniform(size=(3, 1, 40, 50)).astype(np.float32)
    >>> tiles = some_tiles(images, np.arange(3), 16, seed=0)
    >>> schema = TileSchema((1, 40, 50), PixelSchema.infer(tiles, scaling="standard"))
    >>> schema.n_tiles, schema.encode(images).shape
    ((4, 6), (3, 6144))
    """

    inner: PixelSchema | FeatureSchema

    @property
    def core(self) -> ImageSchema:
        """Schema of the tiles."""
        return self.inner

    @property
    def tile(self) -> int:
        """Height and width of a tile."""
        return self.inner.shape[1]

    @property
    def places(self) -> list[tuple[int, int]]:
        """Row and column where each tile begins."""
        return [(y, x) for y in starts(self.shape[1], self.tile) for x in starts(self.shape[2], self.tile)]

    @property
    def n_tiles(self) -> tuple[int, int]:
        """Tiles along the height and along the width."""
        height, width = self.shape[1:]
        return len(starts(height, self.tile)), len(starts(width, self.tile))

    @property
    def n_parts(self) -> int:
        """Samples that the networks see of an image."""
        return math.prod(self.n_tiles) * self.inner.n_parts

    def notes(self) -> list[str]:
        """How images are cut, and what a model of tiles is not."""
        (height, width), (rows, columns), tile = self.shape[1:], self.n_tiles, self.tile
        known = ""
        if isinstance(self.inner, FeatureSchema):
            patches = "{1} x {0}".format(*self.inner.grid)
            known = f", each known by {patches} patches (backbone {self.inner.backbone})"
        return [f"Images of {width} x {height} pixels are cut into {columns} x {rows} tiles of {tile} pixels{known}."]

    def cut(self, image: NDArray[Any]) -> NDArray[Any]:
        """Tiles of an image of shape (channels, height, width), of shape (n, channels, tile, tile)."""
        return np.stack([image[:, y : y + self.tile, x : x + self.tile] for y, x in self.places])

    def encode(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of all encoded tiles; NaN throughout for an undecodable image."""
        if images.shape[1:] != self.shape:
            raise DataError(f"Images of shape {images.shape[1:]} were given, and the model knows {self.shape}.")
        n_entries = math.prod(self.n_tiles) * self.inner.encode(np.zeros((1, *self.inner.shape), np.float32)).shape[1]
        shape = (len(images), n_entries)
        large = 4 * math.prod(shape) > MAX_BYTES_IN_MEMORY
        rows = scratch_array(shape) if large else empty_like_source(images, shape)
        for row, image in zip(rows, images, strict=True):
            row[:] = self.inner.encode(self.cut(image)).reshape(-1)
        return rows

    def score_function(self, function: RowFunction) -> RowFunction:
        """From a score of what the networks see, that of images.

        It is the mean of those of the tiles, weighted by their rank: nearly that of the oddest tile.
        """

        def of_images(vae: Any, x: Tensor, eps: Tensor) -> Tensor:
            return summarised(self._tile_scores(self._by_tiles(function, vae, x, eps)[0]))[0]

        return of_images

    def explained_function(
        self, function: RowFunction, with_shares: Callable[..., tuple[Tensor, Tensor]]
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        """The same, and what :meth:`fold` makes a map of: what falls to parts of the tiles, and in the end the score.

        Parameters
        ----------
        function : callable
            Score of a sample.
        with_shares : callable
            The same, and the share of each entry in it; asked of pixels alone.
        """

        def of_pixels(vae: Any, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
            found, shares = self._by_tiles(with_shares, vae, x, eps)
            scores = summarised(self._tile_scores(found))[0]
            return scores, torch.cat([shares.flatten(1), scores[:, None]], dim=1)

        def of_features(vae: Any, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
            (found,) = self._by_tiles(function, vae, x, eps)
            scores = summarised(self._tile_scores(found))[0]
            # Ranks within the tiles would show the best patch of each; in the image, an odd patch is there as often
            # as it lies in tiles.
            often = self._overlap()
            parts = often * summarised(found.flatten(1), n_whole=often * self.inner.n_parts)[1]
            return scores, torch.cat([parts, scores[:, None]], dim=1)

        return of_features if isinstance(self.inner, FeatureSchema) else of_pixels

    def _overlap(self) -> float:
        """Tiles that a pixel lies in, on average."""
        return math.prod(self.n_tiles) * self.tile**2 / math.prod(self.shape[1:])

    def _tile_scores(self, found: Tensor) -> Tensor:
        """Scores of tiles, shape (n, n_tiles), of those of tiles or of their patches."""
        if isinstance(self.inner, FeatureSchema):
            return summarised(found.flatten(0, 1))[0].reshape(found.shape[:2])
        return found.flatten(1)

    def _by_tiles(self, function: Callable[..., Any], vae: Any, x: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
        """``function`` of all samples of all tiles, a few tiles at a time; each result of shape (n, n_tiles, ...)."""
        n_tiles = math.prod(self.n_tiles)
        tiles = x.reshape(len(x) * n_tiles, -1)
        size = min(block_size(tiles.shape[1], self.inner.n_parts), len(tiles))
        # All blocks have one size, so that the arithmetic of a tile is the same wherever it comes.
        tiles = torch.nn.functional.pad(tiles, (0, 0, 0, -len(tiles) % size))
        found = []
        for start in range(0, len(tiles), size):
            samples = tiles[start : start + size].reshape(size * self.inner.n_parts, -1)
            values = function(vae, samples, eps)
            found.append(values if isinstance(values, tuple) else (values,))
        joined = (torch.cat(parts)[: len(x) * n_tiles * self.inner.n_parts] for parts in zip(*found, strict=True))
        return tuple(part.reshape(len(x), n_tiles, -1) for part in joined)

    def fold(self, entries: NDArray[Any]) -> NDArray[np.float64]:
        """What falls to each pixel of the score of an image, shape (n, n_features).

        Where tiles overlap, the mean of what they say, with weights that fall towards their edges. These means do not
        sum to the score; what is missing falls to all pixels alike.
        """
        entries = np.asarray(entries, dtype=np.float64)
        maps = np.zeros((len(entries), *self.shape))
        window, weights = self._window(), np.zeros(self.shape[1:])
        tiles = entries[:, :-1].reshape(len(entries), len(self.places), -1)
        for number, (y, x) in enumerate(self.places):
            here = (slice(y, y + self.tile), slice(x, x + self.tile))
            weights[here] += window
            maps[:, :, *here] += window * self.inner.fold(tiles[:, number]).reshape(-1, *self.inner.shape)
        maps /= weights
        missing = entries[:, -1] - maps.sum(axis=(1, 2, 3))
        flat: NDArray[np.float64] = maps.reshape(len(entries), -1) + missing[:, None] / self.n_features
        return flat

    def _window(self) -> NDArray[np.float64]:
        """Weight of each pixel of a tile: least at its edges, where a network sees one side alone."""
        distance = np.minimum(np.arange(self.tile) + 1.0, np.arange(self.tile, 0, -1.0))
        return np.outer(distance, distance)

    def decode(self, encoded: NDArray[Any]) -> NDArray[np.float32]:
        """ValueError: the model draws tiles, and nothing fits them to each other."""
        raise ValueError(
            f"The model knows images by tiles of {self.tile} x {self.tile} pixels, from which no image can be drawn or "
            "reconstructed. Fit without --tile (tile=None) for a model that can."
        )

    def block_sizes(self) -> tuple[int, int, tuple[int, ...]]:
        """Those of the tiles."""
        return self.inner.block_sizes()

    def resolutions(self) -> NDArray[np.float64]:
        """Those of the tiles."""
        return self.inner.resolutions()

    def tensors(self) -> dict[str, Any]:
        """Those of the tiles."""
        return self.inner.tensors()

    def to_json(self) -> dict[str, Any]:
        """Plain data from which :meth:`restore` makes the same schema, given :meth:`tensors`."""
        return {"shape": self.shape, "inner": self.inner.to_json()}

    @classmethod
    def restore(cls, given: dict[str, Any], state: Mapping[str, Tensor]) -> "TileSchema":
        """Inverse of :meth:`to_json` and :meth:`tensors`; ValueError for what is no schema."""
        shape: Shape = tuple(given["shape"])
        check_shape(shape)
        found = given["inner"]
        channels, height, width = tile = tuple(found["shape"])
        check_shape(tile)
        if channels != shape[0] or height != width or height > min(shape[1:]):
            raise ValueError(f"images of shape {shape} have no tiles of shape {tile}")
        inner = FeatureSchema.restore(found, state) if "backbone" in found else PixelSchema.from_json(found)
        return cls(shape, inner)
