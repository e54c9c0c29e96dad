"""Images -> rows of numbers, and back: what a schema of columns is for tables."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vae_anomaly.errors import DataError
from vae_anomaly.scratch import blocks, empty_like_source

__all__ = ["ImageSchema", "PixelSchema", "Shape", "check_shape", "is_images", "pixels"]

Shape = tuple[int, int, int]

# Numbers of another type that become floats at a time, by each of so many threads.
CONVERTED, N_CONVERTING = 250_000, 4


def is_images(X: Any) -> bool:
    """Whether ``X`` is a stack of images: an array, or something that loads one, of shape (n, channels, h, w)."""
    return len(getattr(X, "shape", ())) == 4


def pixels(X: Any) -> NDArray[np.float32]:
    """Images as an array of shape (n, channels, height, width) with values in [0, 1].

    Parameters
    ----------
    X : ndarray or ImageSet
        Unsigned integers count from 0 to the largest of their type; other numbers must lie in [0, 1]. An image that
        can't be decoded is NaN throughout.

    Raises
    ------
    DataError
        If a value lies outside of [0, 1].

    Examples
    --------
    >>> pixels(np.array([[[[0, 51], [102, 255]]]], np.uint8)).ravel()
    array([0. , 0.2, 0.4, 1. ], dtype=float32)
    """
    if hasattr(X, "load"):
        loaded: NDArray[np.float32] = X.load()[0]
        return loaded
    array = np.asanyarray(X)
    if array.shape[-1] in (1, 3, 4) and array.shape[1] > 4:
        raise DataError(
            f"Images of shape {array.shape[1:]} have {array.shape[1]} channels, as channels come first. If they come "
            "last here, give numpy.moveaxis(X, -1, 1)."
        )
    if array.dtype.kind == "u":
        return _as_floats(array, np.float32(np.iinfo(array.dtype).max))
    array = array if array.dtype == np.float32 else _as_floats(array, None)
    parts = [array[block] for block in blocks(len(array), math.prod(array.shape[1:]))]
    low = float(min((np.nanmin(part, initial=0.0) for part in parts), default=0.0))
    high = float(max((np.nanmax(part, initial=0.0) for part in parts), default=0.0))
    if low < 0.0 or high > 1.0:
        raise DataError(
            f"Pixels must lie between 0 and 1, and these go from {low:g} to {high:g}. Divide by their largest value."
        )
    return array


def _as_floats(array: NDArray[Any], white: np.float32 | None) -> NDArray[np.float32]:
    """Numbers of another type as float32, where the array is; whole ones divided by that of white."""
    floats = empty_like_source(array, array.shape)

    def convert(block: slice) -> None:
        floats[block] = array[block]
        if white is not None:
            floats[block] /= white

    # Each time what is still in the cache.
    parts = list(blocks(len(array), math.prod(array.shape[1:]), at_once=CONVERTED))
    if len(parts) == 1:
        # Threads would take longer to begin than an image takes.
        convert(parts[0])
        return floats
    with ThreadPoolExecutor(N_CONVERTING) as threads:
        list(threads.map(convert, parts))
    return floats


def check_shape(shape: tuple[Any, ...]) -> None:
    """ValueError for what is no shape of images."""
    if len(shape) != 3 or not all(isinstance(side, int) and 0 < side <= 1 << 16 for side in shape):
        raise ValueError(f"images have no shape {shape}")


@dataclass(frozen=True)
class ImageSchema(ABC):
    """What all schemas of images know: the shape that the images have."""

    shape: Shape
    """Channels, height and width."""

    columns: ClassVar[tuple[Any, ...]] = ()
    """A pixel is no column: it has no name of its own in the data."""

    @property
    def n_features(self) -> int:
        """Number of pixels, all channels counted."""
        return math.prod(self.shape)

    @property
    def feature_names(self) -> list[str]:
        """Where each pixel is: row and column from 1, and the channel where there are several."""
        channels, height, width = self.shape
        spots = [f"row {y + 1}, column {x + 1}" for y in range(height) for x in range(width)]
        return spots if channels == 1 else [f"{spot}, channel {c + 1}" for c in range(channels) for spot in spots]

    @property
    def core(self) -> "ImageSchema":
        """Schema of the images that the networks see, or see patches of."""
        return self

    @property
    def n_parts(self) -> int:
        """Samples that the networks see of an image."""
        return 1

    def notes(self) -> list[str]:
        """Nothing is unexpected about a pixel."""
        return []

    def tensors(self) -> dict[str, Any]:
        """Tensors that :meth:`to_json` does not hold."""
        return {}

    @abstractmethod
    def encode(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of numbers; NaN throughout for an image that could not be decoded."""

    @abstractmethod
    def decode(self, encoded: NDArray[Any]) -> NDArray[np.float32]:
        """Images of shape (n, channels, height, width), clipped to [0, 1]."""

    @abstractmethod
    def fold(self, entries: NDArray[Any]) -> NDArray[np.float64]:
        """What falls to each pixel, shape (n, n_features), of what falls to each entry of a row; sums stay the same."""

    @abstractmethod
    def block_sizes(self) -> tuple[int, int, tuple[int, ...]]:
        """Numbers of real and of binary entries of what the networks see, and of values of each categorical one."""

    @abstractmethod
    def resolutions(self) -> NDArray[np.float64]:
        """Usual step between two values of each real entry, in scaled units; 0 where there is none."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain data from which the same schema can be made."""


@dataclass(frozen=True)
class PixelSchema(ImageSchema):
    """How images of one shape become rows of numbers.

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width.
    center, scale : tuple of float
        What is taken off the pixels of each channel, and what they are divided by.

    Examples
    --------
    >>> schema = PixelSchema.infer(np.full((3, 1, 2, 2), 0.5), scaling="unit")
    >>> schema.encode(np.full((1, 1, 2, 2), 0.25)).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
    """

    center: tuple[float, ...]
    scale: tuple[float, ...]

    @classmethod
    def infer(cls, images: NDArray[np.float32], *, scaling: str, rows: NDArray[np.intp] | None = None) -> "PixelSchema":
        """Schema of training images: standardised by channel, or left in [0, 1] with ``scaling="unit"``.

        Of these images, ``rows`` are looked at, or all.
        """
        channels, height, width = images.shape[1:]
        shape: Shape = channels, height, width
        rows = np.arange(len(images)) if rows is None else rows
        if not any(_is_decoded(images[row]) for row in rows):
            raise DataError("None of the images can be decoded, so there is nothing to learn from.")
        if scaling == "unit":
            return cls(shape, (0.0,) * channels, (1.0,) * channels)
        center = _channel_means(images, rows, lambda part: part)
        middle = center[:, None, None]
        spread = np.sqrt(_channel_means(images, rows, lambda part: (part - middle) ** 2))
        # Of images of one colour, a step of 8-bit pixels is all there is to measure by.
        scale = np.maximum(spread, 1 / 255)
        return cls(shape, tuple(map(float, center)), tuple(map(float, scale)))

    def encode(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Rows of scaled pixels, shape (n, n_features); NaN throughout for an image that could not be decoded.

        Where pixels stay as they are, in the memory of the images.
        """
        if images.shape[1:] != self.shape:
            raise DataError(f"Images of shape {images.shape[1:]} were given, and the model knows {self.shape}.")
        # What can't be written to would be no array for torch.
        if images.flags.writeable and not any(self.center) and set(self.scale) == {1.0}:
            return images.reshape(len(images), self.n_features).astype(np.float32, copy=False)
        center, scale = (np.array(part, dtype=np.float32)[:, None, None] for part in (self.center, self.scale))
        rows = empty_like_source(images, (len(images), self.n_features))
        for block in blocks(len(images), self.n_features):
            rows[block] = ((images[block] - center) / scale).reshape(-1, self.n_features)
        return rows

    def decode(self, encoded: NDArray[Any]) -> NDArray[np.float32]:
        """Images of shape (n, channels, height, width), clipped to [0, 1]."""
        center, scale = (np.array(part, dtype=np.float32)[:, None, None] for part in (self.center, self.scale))
        images = np.asarray(encoded, dtype=np.float32).reshape(-1, *self.shape) * scale + center
        clipped: NDArray[np.float32] = np.clip(images, 0.0, 1.0)
        return clipped

    def fold(self, entries: NDArray[Any]) -> NDArray[np.float64]:
        """Each pixel stands for itself."""
        return np.asarray(entries, dtype=np.float64)

    def block_sizes(self) -> tuple[int, int, tuple[int, ...]]:
        """All pixels are real numbers."""
        return self.n_features, 0, ()

    def resolutions(self) -> NDArray[np.float64]:
        """Usual step between two values of each entry, in scaled units: one of 255."""
        by_channel = 1.0 / (255.0 * np.array(self.scale))
        return np.repeat(by_channel, math.prod(self.shape[1:]))

    def to_json(self) -> dict[str, Any]:
        """Plain data from which :meth:`from_json` makes the same schema."""
        return asdict(self)

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "PixelSchema":
        """Inverse of :meth:`to_json`; ValueError for what is no schema."""
        shape, center, scale = (tuple(given[name]) for name in ("shape", "center", "scale"))
        check_shape(shape)
        if not len(center) == len(scale) == shape[0]:
            raise ValueError("its channels have other scales than its images")
        if not (np.isfinite([*center, *scale]).all() and min(scale) > 0):
            raise ValueError("a channel has no usable scale")
        return cls(shape, center, scale)


def _is_decoded(image: NDArray[np.float32]) -> bool:
    return not np.isnan(image).any()


def _decoded(images: NDArray[np.float32], rows: NDArray[np.intp]) -> Iterator[NDArray[np.float32]]:
    """Those of the images in these rows that have no hole, some at a time."""
    for block in blocks(len(rows), math.prod(images.shape[1:])):
        part = images[rows[block]]
        yield part[~np.isnan(part).any(axis=(1, 2, 3))]


def _channel_means(
    images: NDArray[np.float32], rows: NDArray[np.intp], function: Callable[[NDArray[Any]], NDArray[Any]]
) -> NDArray[np.float64]:
    """Mean of a function of the pixels of images without a hole, by channel."""
    n, sums = 0, np.zeros(images.shape[1])
    for known in _decoded(images, rows):
        n += len(known)
        sums += function(known).sum(axis=(0, 2, 3), dtype=np.float64)
    return sums / max(1, n * math.prod(images.shape[2:]))
