"""Arrays of images, and their labels, in NumPy and IDX files."""

import gzip
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vae_anomaly.errors import DataError

__all__ = ["Arrays", "read_idx", "read_npy", "read_npz"]


class Arrays(NamedTuple):
    """Images, and their labels where there are any."""

    images: NDArray[Any]
    labels: NDArray[Any] | None = None
    labels_file: str = ""
    labels_key: str = "labels"


def read_npy(name: str, label: str | None = None) -> Arrays:
    """The array in an .npy file, mapped and not read."""
    with _loading(name):
        # Never with pickles: they run code.
        images = np.load(name, mmap_mode="r", allow_pickle=False)
        if not isinstance(images, np.ndarray):
            raise TypeError("an .npz file under another name")
        return Arrays(images)


def read_npz(name: str, label: str | None = None) -> Arrays:
    """Images from an .npz file: ``X``, ``images``, or the only array that can be; labels: ``y`` or ``labels``."""
    with _loading(name), np.load(name, allow_pickle=False) as arrays:
        keys = list(arrays)
        images = next((key for key in ("X", "images") if key in keys), None) or _only_images(arrays, keys, name)
        if label is not None and label not in keys:
            raise DataError(f"{name} has no array {label!r}. It holds {', '.join(map(repr, keys))}.")
        labels = label or next((key for key in ("y", "labels") if key in keys), None)
        if labels is None:
            return Arrays(arrays[images])
        return Arrays(arrays[images], arrays[labels], name, labels)


def _only_images(arrays: Any, keys: list[str], name: str) -> str:
    shapes = {key: np.shape(arrays[key]) for key in keys}
    fitting = [key for key, shape in shapes.items() if len(shape) in (3, 4)]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(f"{key!r} of shape {shape}" for key, shape in shapes.items()) or "no arrays"
    raise DataError(f"{name} holds {found}. Name the array of images 'X'.")


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Say in our own words what NumPy finds wrong with a file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a damaged header can raise almost anything, a TokenError or a RuntimeError say
        content = _first_bytes(name)
        if not content:
            raise DataError(f"{name} is empty.") from None
        if "object" in str(error).lower() and content.startswith((b"\x93NUMPY", b"PK")):
            problem = "holds Python objects, which are never loaded because they can run code. Save plain numbers."
        else:
            problem = "is damaged or not a NumPy file. Save it again with numpy.save or numpy.savez."
        raise DataError(f"{name} {problem}") from None


def _first_bytes(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            return file.read(8)
    except OSError as error:
        raise DataError(f"{name} can't be opened: {error.strerror or error}.") from None


def read_idx(name: str, label: str | None = None) -> Arrays:
    """Images in an IDX file, and labels in the file beside it whose name says labels where this one's says images."""
    images = _idx(name)
    if images.ndim == 1:
        raise DataError(f"{name} holds labels. Read the file with the images; the labels beside it are found.")
    for candidate in _label_files(name):
        if os.path.isfile(candidate):
            return Arrays(images, _idx(candidate), candidate)
    return Arrays(images)


def _label_files(name: str) -> list[str]:
    """The usual names, packed or not.

    Examples
    --------
    >>> _label_files("raw/t10k-images-idx3-ubyte.gz")
    ['raw/t10k-labels-idx1-ubyte', 'raw/t10k-labels-idx1-ubyte.gz']
    """
    folder, file = os.path.split(name)
    renamed = (
        re.sub(r"\.gz$", "", file, flags=re.IGNORECASE)
        .replace("images", "labels")
        .replace("idx3", "idx1")
        .replace("idx4", "idx1")
    )
    if "images" not in file:
        return []
    return [os.path.join(folder, renamed + packed) for packed in ("", ".gz")]


def _idx(name: str) -> NDArray[np.uint8]:
    """The array of bytes in an IDX file: two zeros, the type, the number of sides, the sides, the values."""
    content = _idx_content(name)
    if content[:2] != b"\0\0" or len(content) < 4 or len(content) < 4 + 4 * content[3] or content[3] == 0:
        raise DataError(f"{name} is damaged or not an IDX file. Make or copy it again.")
    if content[2] != 8:
        raise DataError(f"{name} holds values of type {content[2]:#04x}, expected bytes (0x08).")
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    values = np.frombuffer(content, np.uint8)[start:]
    # Sides are multiplied as Python's numbers, which do not overflow.
    n_values = int(np.prod(np.array(shape, dtype=object)))
    if len(values) != n_values:
        raise DataError(f"{name} has {len(values)} values, and its header says {n_values}. Make or copy it again.")
    return values.reshape(shape)


def _idx_content(name: str) -> bytes:
    try:
        with gzip.open(name) if name.lower().endswith(".gz") else open(name, "rb") as file:
            return file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{name} is damaged, cut short or not compressed with gzip. Make or copy it again.") from None
    except OSError as error:
        raise DataError(f"{name} can't be opened: {error.strerror or error}.") from None
