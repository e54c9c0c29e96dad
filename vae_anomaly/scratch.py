"""Arrays that are too large for memory: in temporary files that vanish by themselves, and walked through in parts."""

import math
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["blocks", "empty_like_source", "on_disk", "scratch_array"]

# Numbers worked on at a time: enough to keep the processor busy, few enough for any memory.
ENTRIES_AT_ONCE = 8_000_000


def scratch_array(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Array of float32 in a file without a name, which is gone as soon as nothing refers to the array.

    The file lies where temporary files do: ``TMPDIR`` says where, on most systems.

    Raises
    ------
    OSError
        If there is no room for it.

    Examples
    --------
    >>> array = scratch_array((3, 4))
    >>> array.shape, on_disk(array), on_disk(array[1:]), on_disk(array[[0, 2]])
    ((3, 4), True, True, False)
    """
    n_bytes = max(1, 4 * math.prod(shape))
    with tempfile.TemporaryFile(prefix="vae-anomaly-") as file:
        _reserve(file, n_bytes)
        # The mapping keeps the file, and only the mapping.
        return np.memmap(file, dtype=np.float32, mode="r+", shape=shape)


def _reserve(file: Any, n_bytes: int) -> None:
    """Make the file so large, on the disk, too: a page that can't be written to ends the process without a word."""
    try:
        file.truncate(n_bytes)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)
    except OSError as error:
        where = tempfile.gettempdir()
        what = f"{n_bytes / 1e9:.3g} GB do not fit into {where}; set TMPDIR to another folder"
        raise OSError(error.errno, what) from None


def on_disk(array: Any) -> bool:
    """Whether an array is mapped from a file."""
    return isinstance(array, np.memmap)


def empty_like_source(source: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Array for what is made of ``source``: on disk if it is there, too, else in memory."""
    return scratch_array(shape) if on_disk(source) else np.empty(shape, dtype=np.float32)


def blocks(n_rows: int, n_entries: int, multiple: int = 1, at_once: int | None = None) -> Iterator[slice]:
    """Slices of rows of ``n_entries`` numbers each, small enough to be worked on at once.

    All but the last one have a multiple of ``multiple`` rows. ``at_once`` says how many numbers these are, in place of
    as many as memory has room for.

    Examples
    --------
    >>> list(blocks(5, ENTRIES_AT_ONCE // 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    most = ENTRIES_AT_ONCE if at_once is None else at_once
    size = multiple * max(1, most // (multiple * max(1, n_entries)))
    for start in range(0, n_rows, size):
        yield slice(start, min(start + size, n_rows))
