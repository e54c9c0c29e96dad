"""Numbers as Python writes them, whole columns at once."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

__all__ = ["exact_texts", "short_texts"]

DIGITS = 4
# Of so many numbers at the beginning of a column, so many different ones at most tell that the column holds few.
FIRST, FEW = 64, 8


def exact_texts(numbers: ArrayLike) -> pa.StringArray:
    """The shortest text that is read back as each number, as ``repr`` gives it; null for NaN.

    Examples
    --------
    >>> exact_texts([0.1 + 0.2, 1e-7, np.nan, 2.0]).to_pylist()
    ['0.30000000000000004', '1e-07', None, '2.0']
    """
    values = np.ascontiguousarray(numbers, dtype=np.float64)
    if len(values) > FIRST and len(np.unique(values[:FIRST])) <= FEW:
        # By their bits, as 0.0 equals -0.0.
        coded = pa.array(values.view(np.int64)).dictionary_encode()
        return _exact_texts(coded.dictionary.to_numpy().view(np.float64)).take(coded.indices)
    return _exact_texts(values)


def _exact_texts(values: NDArray[np.float64]) -> pa.StringArray:
    sizes = np.abs(values)
    # Within these bounds Arrow writes what Python writes, but for the point of a whole number.
    plain = (sizes >= 1e-4) & (sizes < 1e9) & (values != np.floor(values))
    return _texts(values, plain, repr)


def short_texts(numbers: ArrayLike) -> pa.StringArray:
    """Each number with four digits that count, as ``format(number, ".4g")`` gives it; null for NaN.

    Examples
    --------
    >>> short_texts([1.23456, 0.5, 123456.0, np.nan]).to_pylist()
    ['1.235', '0.5', '1.235e+05', None]
    """
    values = np.asarray(numbers, dtype=np.float64)
    sizes = np.abs(values)
    plain = (sizes >= 1e-4) & (sizes < 9999.0)
    power = 10.0 ** (DIGITS - 1 - np.floor(np.log10(np.where(plain, sizes, 1.0))))
    scaled = np.where(plain, values, 0.0) * power
    # What lies as good as in the middle of two roundings is left to Python, which looks at all binary digits.
    plain &= np.abs(np.abs(scaled - np.trunc(scaled)) - 0.5) > 1e-6
    return _texts(np.where(plain, np.rint(scaled) / power, values), plain, lambda number: format(number, ".4g"))


def _texts(values: NDArray[np.float64], plain: NDArray[np.bool_], write: Callable[[float], str]) -> pa.StringArray:
    """Texts by Arrow of the plain numbers, and by Python of the others."""
    texts = pc.cast(pa.array(values, mask=~plain), pa.string())
    others = ~plain & ~np.isnan(values)
    if not others.any():
        return texts
    # Such numbers are few, or few different ones; by their bits, as 0.0 equals -0.0.
    distinct, places = np.unique(values[others].view(np.int64), return_inverse=True)
    written = np.array([write(number) for number in distinct.view(np.float64).tolist()], dtype=object)
    return pc.replace_with_mask(texts, pa.array(others), pa.array(written[places], pa.string()))
