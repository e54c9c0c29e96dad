"""Hashes of encoded rows: whether a row was seen before, without keeping it."""

import numpy as np
from numpy.typing import NDArray

from vae_anomaly.scratch import blocks

__all__ = ["MAX_KEPT", "all_hashes", "check_sketch", "overlap", "row_hashes", "sketch"]

# Of more distinct rows, those with the smallest hashes stand for all: a random sample that is the same one every time.
MAX_KEPT = 100_000

# Numbers that are hashed at a time, so that their copies with 64 bits stay in the cache.
_AT_ONCE = 50_000

# Of the factors of the hash: the same ones on every machine, as hashes are part of model files.
_KEY = 20

Hashes = NDArray[np.uint64]


def row_hashes(encoded: NDArray[np.float32]) -> Hashes:
    """64-bit hash of each row that has a value, equal for rows that are encoded alike.

    Two rows that differ have the same hash with probability 5e-20.

    Parameters
    ----------
    encoded : ndarray of float32, shape (n_samples, n_entries)
        NaN where a value is missing.

    Examples
    --------
    >>> one, other, again = row_hashes(np.array([[1.0, 0.0], [1.0, np.nan], [1.0, -0.0]], np.float32))
    >>> bool(one == again), bool(one == other)
    (True, False)
    """
    hashes, known = all_hashes(encoded)
    return hashes[known]


def all_hashes(encoded: NDArray[np.float32]) -> tuple[Hashes, NDArray[np.bool_]]:
    """Hash of each row, and whether it has a value: without one, all rows are alike."""
    # Of 0 and -0, and of the many NaN, one.
    plain, missing = encoded + np.float32(0.0), np.isnan(encoded)
    known: NDArray[np.bool_] = np.ones(len(plain), dtype=bool)
    if missing.any():
        plain[missing] = np.nan
        known = np.logical_not(missing.all(axis=1))
    return _multilinear(plain.view(np.uint32)), known


def _multilinear(words: NDArray[np.uint32]) -> Hashes:
    """Two strongly universal hashes of 32 bits side by side, then mixed, as sketches keep the smallest.

    The sums of Lemire and Kaser (2014, "Strongly universal string hashing is fast"), which need no call a row.
    """
    n_rows, n_words = words.shape
    factors = np.random.Philox(key=_KEY).random_raw(2 * (n_words + 1)).reshape(2, -1)
    sums = np.repeat(factors[:, -1:], n_rows, axis=1)
    for part in blocks(n_rows, n_words, at_once=_AT_ONCE):
        wide = words[part].astype(np.uint64)
        for own, factor in zip(sums, factors, strict=True):
            own[part] += np.einsum("ij,j->i", wide, factor[:n_words])
    high, low = sums >> np.uint64(32)
    return _mixed((high << np.uint64(32)) | low)


def _mixed(hashes: Hashes) -> Hashes:
    """Each bit by all bits, one to one: what SplitMix64 ends with."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31))


def sketch(hashes: Hashes, max_kept: int = MAX_KEPT) -> Hashes:
    """The distinct hashes, sorted; of more than ``max_kept``, so many of the smallest, and the next one as a bound.

    Examples
    --------
    >>> sketch(np.array([5, 3, 3, 9], np.uint64)).tolist(), sketch(np.array([5, 3, 3, 9], np.uint64), 2).tolist()
    ([3, 5, 9], [3, 5, 9])
    >>> sketch(np.array([5, 3, 3, 9], np.uint64), 1).tolist()
    [3, 5]
    """
    return np.unique(np.asarray(hashes, dtype=np.uint64))[: max_kept + 1]


def overlap(kept: Hashes, hashes: Hashes, max_kept: int = MAX_KEPT) -> int:
    """How many rows are among those that a sketch was made of.

    Exact where the sketch holds all of them. Else an estimate: rows whose hash lies below the sketch's bound are a
    sample, and what is found among them is scaled up by its share.

    Parameters
    ----------
    kept : ndarray of uint64
        Made by :func:`sketch`.
    hashes : ndarray of uint64, shape (n_samples,)
        One for each row, repeated where a row is.

    Examples
    --------
    >>> overlap(sketch(np.array([5, 3, 9], np.uint64)), np.array([3, 3, 4, 9], np.uint64))
    3
    """
    share = 1.0
    if len(kept) > max_kept:
        bound = kept[-1]
        kept, hashes = kept[:-1], hashes[hashes < bound]
        share = float(bound) / 2.0**64
    return round(int(np.isin(hashes, kept).sum()) / share)


def check_sketch(kept: Hashes) -> Hashes:
    """``kept``, or ValueError if it is no sketch."""
    if kept.dtype != np.uint64 or kept.ndim != 1 or len(kept) > MAX_KEPT + 1 or (kept[1:] <= kept[:-1]).any():
        raise ValueError("its hashes of rows are not sorted, or are none")
    return kept
