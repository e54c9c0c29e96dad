"""Images of one shape, decoded when they are asked for."""

import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_anomaly.data.decoding import Header, UndecodableError, decoded, event, header, unit
from vae_anomaly.errors import DataError

__all__ = ["ImageSet", "automatic_size", "image_size", "positions_of", "spread"]

_N_SAMPLED = 64
_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A sequence of images of one shape, held as paths or as an array, and decoded when they are asked for.

    Made by :meth:`from_files` or :meth:`from_array`. It does not change; :meth:`take` makes a new one, which shares the
    decoded images that are kept in memory.

    Examples
    --------
    >>> images = ImageSet.from_array(np.array([[[0, 255], [51, 0]]] * 3, np.uint8), size=(2, 2))
    >>> images.shape
    (3, 1, 2, 2)
    >>> x, reasons = images.load([2])
    >>> x[0, 0]
    array([[0. , 1. ],
           [0.2, 0. ]], dtype=float32)
    """

    source: "_Files | _Pixels"
    size: tuple[int, int]
    channels: int
    rows: NDArray[np.intp]
    """Position of each image in ``source``."""
    n_workers: int
    cache: "_Cache" = field(repr=False)

    @classmethod
    def from_files(
        cls,
        paths: Sequence[str | os.PathLike[str]],
        *,
        names: Sequence[str] | None = None,
        size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        n_workers: int | None = None,
        cache_gb: float = 0.0,
    ) -> "ImageSet":
        """Images in files, of which nothing but the paths is held.

        Parameters
        ----------
        paths : sequence of str or path
            PNG, JPEG, BMP, TIFF or WebP files.
        names : sequence of str, optional
            What to call the images. Their paths, unless given.
        size : int or (int, int), optional
            Height and width that all images are resized to. Found by :func:`automatic_size` in the headers of 64 files
            spread over all, unless given.
        channels : {1, 3}, optional
            1 unless one of these 64 has colour (a palette counts as colour).
        n_workers : int, optional
            Threads that decode. One for each processor, at most 8, unless given.
        cache_gb : float
            Gigabytes of decoded images to keep in memory.

        Raises
        ------
        DataError
            If size or channels are to be found and no image can be decoded.
        """
        source = _Files(tuple(os.fspath(path) for path in paths), None if names is None else tuple(names))
        if size is None or channels is None:
            headers = _sampled_headers(source.paths)
            size = automatic_size([found.size for found in headers]) if size is None else size
            channels = (1 if all(found.is_grey for found in headers) else 3) if channels is None else channels
        return cls._of(source, size, channels, n_workers, cache_gb)

    @classmethod
    def from_array(
        cls,
        array: NDArray[Any],
        *,
        size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        n_workers: int | None = None,
        cache_gb: float = 0.0,
        where: str = "The array",
    ) -> "ImageSet":
        """Images in an array of shape (n, h, w) or (n, h, w, c), which is not copied.

        Parameters
        ----------
        array : ndarray of uint8, uint16, bool or float
            c is 1 or 3. Floats lie in [0, 1]; an image with NaN in it counts as undecodable.
        where : str
            What messages call the array.

        Raises
        ------
        DataError
            If the shape, the type or the range of the values is another.
        """
        source = _Pixels(_checked_images(array, where))
        shape = source.array.shape
        size = automatic_size([(shape[1], shape[2])]) if size is None else size
        return cls._of(source, size, shape[3] if channels is None else channels, n_workers, cache_gb)

    @classmethod
    def _of(
        cls,
        source: "_Files | _Pixels",
        size: int | tuple[int, int],
        channels: int,
        n_workers: int | None,
        cache_gb: float,
    ) -> "ImageSet":
        if channels not in (1, 3):
            raise ValueError(f"channels={channels!r} is neither 1 (grey) nor 3 (colour).")
        n_workers = min(8, os.cpu_count() or 1) if n_workers is None else n_workers
        if n_workers < 1:
            raise ValueError(f"n_workers={n_workers} is less than one.")
        if not cache_gb >= 0:
            raise ValueError(f"cache_gb={cache_gb} is less than zero.")
        cache = _Cache(int(cache_gb * 1e9))
        return cls(source, image_size(size), channels, np.arange(len(source)), n_workers, cache)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, channels, height, width."""
        return (len(self), self.channels, *self.size)

    @property
    def names(self) -> NDArray[Any]:
        """What the images are called: text for files, numbers from 1 for an array."""
        return self.source.names[self.rows]

    @property
    def paths(self) -> list[str] | None:
        """Path of each image, or None for an array."""
        if isinstance(self.source, _Pixels):
            return None
        return [self.source.paths[row] for row in self.rows]

    def path(self, i: int) -> str | None:
        """Path of image ``i``, or None for an array."""
        return None if isinstance(self.source, _Pixels) else self.source.paths[self.rows[i]]

    def own_sizes(self, *, most: int = _N_SAMPLED) -> list[tuple[int, int]]:
        """Heights and widths that the images have before they are resized, of ``most`` files spread over all; sorted.

        Examples
        --------
        >>> ImageSet.from_array(np.zeros((5, 8, 9), np.uint8), size=4).own_sizes()
        [(8, 9)]
        """
        if isinstance(self.source, _Pixels):
            height, width = self.source.array.shape[1:3]
            return [(height, width)]
        found = _headers([self.source.paths[row] for row in self.rows[spread(len(self), most)]])[0]
        return sorted({one.size for one in found})

    def resized(self, size: int | tuple[int, int], *, channels: int | None = None) -> "ImageSet":
        """The same images at another height and width; of those decoded before, none is kept.

        Examples
        --------
        >>> ImageSet.from_array(np.zeros((5, 8, 9), np.uint8)).resized((4, 6)).shape
        (5, 1, 4, 6)
        """
        channels = self.channels if channels is None else channels
        return replace(self, size=image_size(size), channels=channels, cache=_Cache(self.cache.n_bytes))

    def take(self, chosen: ArrayLike) -> "ImageSet":
        """The images that a boolean mask or an array of positions names."""
        return replace(self, rows=self.rows[positions_of(chosen, len(self))])

    def load(self, positions: ArrayLike | None = None) -> tuple[NDArray[np.float32], NDArray[np.object_]]:
        """Images as an array, and why some of them could not be decoded.

        Parameters
        ----------
        positions : array of int or mask, optional
            Images to load. All of them, unless given.

        Returns
        -------
        x : ndarray of float32, shape (n, c, h, w)
            In [0, 1]; NaN throughout an image that could not be decoded.
        reasons : ndarray of text
            Empty where an image could be decoded.
        """
        chosen = self if positions is None else self.take(positions)
        if chosen._is_ready():
            return chosen._ready(chosen.rows)
        with ThreadPoolExecutor(self.n_workers) as pool:
            return chosen._filled(pool.map(chosen._image, chosen.rows), len(chosen))

    def batches(self, size: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.object_]]]:
        """Positions, images and reasons, ``size`` at a time and in order; two batches are decoded ahead in threads.

        Examples
        --------
        >>> images = ImageSet.from_array(np.zeros((5, 8, 8), np.uint8))
        >>> [x.shape for positions, x, reasons in images.batches(2)]
        [(2, 1, 8, 8), (2, 1, 8, 8), (1, 1, 8, 8)]
        """
        if size < 1:
            raise ValueError(f"A batch of {size} images is empty. Ask for one or more.")
        blocks = (np.arange(start, min(start + size, len(self))) for start in range(0, len(self), size))
        if self._is_ready():
            yield from ((block, *self._ready(self.rows[block])) for block in blocks)
            return
        pool = ThreadPoolExecutor(self.n_workers)
        pending: deque[tuple[NDArray[np.intp], list[Future[_Image]]]] = deque()
        try:
            for block in blocks:
                pending.append((block, [pool.submit(self._image, row) for row in self.rows[block]]))
                if len(pending) > 2:
                    yield self._collected(*pending.popleft())
            while pending:
                yield self._collected(*pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def fingerprint(self) -> str:
        """SHA-256 in hex over the shape of an image and the bytes of the files, or of the array's images.

        The order of the images counts; their names do not.
        """
        digest = hashlib.sha256(repr(self.shape[1:]).encode())
        with ThreadPoolExecutor(self.n_workers) as pool:
            for part in pool.map(self.source.digest, self.rows):
                digest.update(part)
        return digest.hexdigest()

    def _image(self, row: np.intp) -> "_Image":
        found = self.cache.get(int(row))
        if found is None:
            try:
                found = event(self.source.pixels(row), self.size, self.channels)
            except UndecodableError as error:
                return str(error)
            self.cache.put(int(row), found)
        return found

    def _is_ready(self) -> bool:
        """Whether the images lie in memory as they are asked for, so that many are turned into floats at once."""
        return isinstance(self.source, _Pixels) and self.source.array.shape[1:] == (*self.size, self.channels)

    def _ready(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.float32], NDArray[np.object_]]:
        assert isinstance(self.source, _Pixels)
        x = np.ascontiguousarray(np.moveaxis(unit(self.source.array[rows]), -1, 1))
        holes = np.isnan(x).any(axis=(1, 2, 3))
        x[holes] = np.nan
        return x, np.where(holes, _HOLES, "").astype(object)

    def _filled(self, images: "Iterator[_Image]", n: int) -> tuple[NDArray[np.float32], NDArray[np.object_]]:
        x = np.full((n, *self.shape[1:]), np.nan, dtype=np.float32)
        reasons = np.full(n, "", dtype=object)
        for i, image in enumerate(images):
            if isinstance(image, str):
                reasons[i] = image
            else:
                x[i] = image
        return x, reasons

    def _collected(
        self, block: NDArray[np.intp], futures: "list[Future[_Image]]"
    ) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.object_]]:
        return block, *self._filled((future.result() for future in futures), len(block))


_Image = NDArray[np.float32] | str
"""A decoded image, or why there is none."""


def positions_of(chosen: ArrayLike, n: int) -> NDArray[np.intp]:
    """Positions among ``n`` that a boolean mask or an array of positions, also from the end, names."""
    index = np.asarray(chosen)
    # An empty list has no type that could index.
    positions: NDArray[np.intp] = np.arange(n)[index if index.size or index.dtype == bool else index.astype(np.intp)]
    return positions


def image_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width, from both or from one for both.

    Examples
    --------
    >>> image_size(64), image_size((48, 64))
    ((64, 64), (48, 64))
    """
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int | np.integer) and side >= 1 for side in sides):
        raise ValueError(f"size={size!r} is neither a number of pixels nor (height, width).")
    return int(sides[0]), int(sides[1])


def automatic_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Height and width to resize images to.

    Their own, if all have the same and both sides have 8 to 256 pixels. Else 256 for the longer side of the median
    aspect, and the nearest multiple of 8 for the shorter one.

    Examples
    --------
    >>> automatic_size([(28, 28), (28, 28)])
    (28, 28)
    >>> automatic_size([(1024, 1024)])
    (256, 256)
    >>> automatic_size([(600, 800), (1200, 1600), (500, 500)])
    (192, 256)
    """
    height, width = sizes[0]
    if all(size == (height, width) for size in sizes) and 8 <= height <= 256 and 8 <= width <= 256:
        return height, width
    aspect = float(np.median([height / width for height, width in sizes]))
    shorter = max(8, 8 * round(256 * min(aspect, 1 / aspect) / 8))
    return (shorter, 256) if aspect < 1 else (256, shorter)


def _sampled_headers(paths: Sequence[str]) -> list[Header]:
    """Headers of up to 64 files spread over all; of the first that has one, where none of the 64 can be read."""
    headers, first_reason = _headers([paths[i] for i in spread(len(paths))])
    if headers:
        return headers
    for path in paths:
        try:
            return [header(path)]
        except UndecodableError:
            continue
    if not paths:
        raise DataError("There is no image to take size and channels from. Give both.")
    raise DataError(f"None of {len(paths)} images can be decoded; the first is {first_reason}.")


def spread(n: int, most: int = _N_SAMPLED) -> NDArray[np.intp]:
    """Positions of some of ``n`` files, spread over all."""
    return np.unique(np.linspace(0, n - 1, min(most, n)).astype(np.intp))


def _headers(paths: Sequence[str]) -> tuple[list[Header], str]:
    """Headers of the files that have one, and why the first of the others has none."""
    headers, first_reason = [], ""
    for path in paths:
        try:
            headers.append(header(path))
        except UndecodableError as error:
            first_reason = first_reason or f"{path}: {error}"
    return headers, first_reason


# Where images lie ----------------------------------------------------------------------------------------------------

_HOLES = "some of its pixels are NaN"


@dataclass(frozen=True, eq=False)
class _Files:
    paths: tuple[str, ...] = field(repr=False)
    given_names: tuple[str, ...] | None = field(repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> NDArray[Any]:
        names = np.empty(len(self.paths), dtype=object)
        names[:] = self.paths if self.given_names is None else self.given_names
        return names

    def pixels(self, row: np.intp) -> NDArray[Any]:
        return decoded(self.paths[row])

    def digest(self, row: np.intp) -> bytes:
        """SHA-256 of the file; of nothing, where it can't be read."""
        try:
            if not os.path.isfile(self.paths[row]):
                return hashlib.sha256().digest()
            with open(self.paths[row], "rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError:
            return hashlib.sha256().digest()


@dataclass(frozen=True, eq=False)
class _Pixels:
    array: NDArray[Any] = field(repr=False)

    def __len__(self) -> int:
        return len(self.array)

    @property
    def names(self) -> NDArray[Any]:
        return np.arange(1, len(self.array) + 1)

    def pixels(self, row: np.intp) -> NDArray[Any]:
        pixels: NDArray[Any] = self.array[row]
        if pixels.dtype.kind == "f" and np.isnan(pixels).any():
            raise UndecodableError(_HOLES)
        return pixels

    def digest(self, row: np.intp) -> bytes:
        pixels = np.ascontiguousarray(self.array[row])
        little = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
        return hashlib.sha256(little.dtype.str.encode() + little.tobytes()).digest()


def _checked_images(array: NDArray[Any], where: str) -> NDArray[Any]:
    """A read-only view of shape (n, h, w, c)."""
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise DataError(
            f"{where} has shape {array.shape}, expected (n, height, width) or (n, height, width, channels) with 1 or 3 "
            "channels. numpy.moveaxis moves an axis to the end."
        )
    if 0 in array.shape:
        raise DataError(f"{where} has shape {array.shape}: there are no pixels in it.")
    if array.dtype.kind == "f":
        _check_range(array, where)
    elif array.dtype.kind != "b" and array.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise DataError(f"{where} is of type {array.dtype}, expected uint8, uint16, or floats from 0 to 1.")
    view = (array if array.ndim == 4 else array[..., None]).view()
    view.flags.writeable = False
    return view


def _check_range(array: NDArray[Any], where: str) -> None:
    # In blocks, so that an array that is mapped from a file does not have to fit into memory.
    for start in range(0, len(array), _BLOCK):
        block = array[start : start + _BLOCK]
        outside = block[(block < 0) | (block > 1)]
        if outside.size:
            raise DataError(
                f"{where} holds the value {float(outside[0]):g}, and floats have to lie in [0, 1]. "
                "Divide by the value of white, or save uint8 or uint16."
            )


class _Cache:
    """Decoded images up to a number of bytes, which stay once they are there.

    None is thrown out for another: epochs read all images again and again, and the one that was not needed for longest
    is then the one that is needed next.
    """

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self._images: dict[int, NDArray[np.float32]] = {}
        self._used = 0
        self._lock = threading.Lock()

    def get(self, row: int) -> NDArray[np.float32] | None:
        return self._images.get(row)

    def put(self, row: int, image: NDArray[np.float32]) -> None:
        with self._lock:
            if row not in self._images and self._used + image.nbytes <= self.n_bytes:
                self._images[row] = image
                self._used += image.nbytes

    def __reduce__(self) -> tuple[type["_Cache"], tuple[int]]:
        # Another process starts with an empty cache: neither the lock nor the images travel.
        return _Cache, (self.n_bytes,)
