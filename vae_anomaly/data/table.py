"""A table of samples with labels and row identifiers, as every reader returns it."""

import difflib
import hashlib
import json
import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vae_anomaly.errors import DataError

__all__ = ["Data", "known_suffix", "labels", "no_such_column"]

_MAX_LISTED = 10


@dataclass(frozen=True, eq=False)
class Data:
    """Samples to train on or to score, and where each of them came from.

    Parameters
    ----------
    X : DataFrame
        One row per sample, feature columns only, in the order of the file.
    y : ndarray of int8 or None
        1 for an anomaly, 0 for normal, -1 where the label is missing. None without a label column.
    ids : ndarray
        1-based row numbers, or the values of the id column.
    id_name : str
        ``"row"``, or the name of the id column.
    name : str
        What messages call the data: a path or ``"standard input"``.
    sources : tuple of (str, int)
        Name and number of rows of each file that was read, in order.
    dropped : tuple of str
        Columns that are no features: the label, the id, those kept beside the features and those dropped on request.
    rows : ndarray of int, optional
        Position of each sample in ``sources``. All of them in order, unless given.
    kept : DataFrame, optional
        Columns that are no features and travel along, one row per sample. None of them, unless given.

    Examples
    --------
    >>> X = pd.DataFrame({"flow": [1.0, 2.0, 9.0]})
    >>> data = Data(X, np.array([0, 0, 1], np.int8), np.array([1, 2, 3]), "row", "pump.csv", (("pump.csv", 3),), ("y",))
    >>> data.locate(2)
    'pump.csv, row 3'
    >>> data.normal().ids
    array([1, 2])
    """

    X: pd.DataFrame
    y: NDArray[np.int8] | None
    ids: NDArray[Any]
    id_name: str
    name: str
    sources: tuple[tuple[str, int], ...]
    dropped: tuple[str, ...] = ()
    rows: NDArray[np.intp] | None = None
    kept: pd.DataFrame = None

    def __post_init__(self) -> None:
        if self.kept is None:
            object.__setattr__(self, "kept", pd.DataFrame(index=pd.RangeIndex(len(self.X))))

    def __len__(self) -> int:
        return len(self.X)

    def locate(self, i: int) -> str:
        """File and 1-based row of sample ``i``; the header is not counted."""
        row = int(i) if self.rows is None else int(self.rows[i])
        for name, n_rows in self.sources:
            if row < n_rows:
                return f"{name}, row {row + 1}"
            row -= n_rows
        raise IndexError(f"{self.name} has {sum(n for _, n in self.sources)} rows, there is no sample {i}.")

    def normal(self) -> "Data":
        """The samples labelled normal, or all samples where there are no labels."""
        return self if self.y is None else self.take(self.y == 0)

    def take(self, chosen: ArrayLike) -> "Data":
        """The samples that a boolean mask or an array of positions names; they keep their ids and locations.

        What stands beside the features in ``kept`` travels along.
        """
        index = np.arange(len(self))[np.asarray(chosen)]
        return replace(
            self,
            X=self.X.iloc[index].reset_index(drop=True),
            y=None if self.y is None else self.y[index],
            ids=self.ids[index],
            rows=index if self.rows is None else self.rows[index],
            kept=self.kept.iloc[index].reset_index(drop=True),
        )

    def fingerprint(self) -> str:
        """SHA-256 over the column names and values of ``X``, in hex; the order of the rows counts."""
        digest = hashlib.sha256(json.dumps([str(column) for column in self.X.columns]).encode())
        digest.update(pd.util.hash_pandas_object(self.X, index=False).to_numpy("<u8").tobytes())
        return digest.hexdigest()


def labels(values: "pd.Series[Any]", normal_value: Sequence[str], where: str) -> NDArray[np.int8]:
    """1 for each anomaly, 0 for each normal value, -1 for each missing one.

    Parameters
    ----------
    values : Series
        The label column.
    normal_value : sequence of str
        The labels of normal samples, compared as text and as numbers. If empty, 0 or false is normal, 1 or true an
        anomaly, and no other values are accepted.
    where : str
        File, for messages.

    Raises
    ------
    DataError
        If it is unclear which values are normal, or a normal value does not occur.

    Examples
    --------
    >>> labels(pd.Series(["ok", "leak", None], name="state"), ["ok"], "pump.csv").tolist()
    [0, 1, -1]
    """
    codes, found = pd.factorize(values)
    anomalous = _anomalous(list(found), normal_value, f"{where}, column {str(values.name)!r}")
    # Code -1 means missing and picks the entry appended last.
    y: NDArray[np.int8] = np.array([*anomalous, -1], dtype=np.int8)[codes]
    return y


def _anomalous(found: list[Hashable], normal_value: Sequence[str], where: str) -> list[bool]:
    if not normal_value:
        numbers = [_number(value) for value in found]
        if any(number not in (0.0, 1.0) for number in numbers):
            raise DataError(f"{where} holds {_listed(found)}; say which of them is normal with --normal-value.")
        return [number == 1.0 for number in numbers]
    for wanted in normal_value:
        if not any(_same(value, wanted) for value in found):
            raise DataError(f"{where}: no label is {wanted!r}, it holds {_listed(found) or 'empty cells only'}.")
    return [not any(_same(value, wanted) for wanted in normal_value) for value in found]


def _same(value: Hashable, wanted: str) -> bool:
    number = _number(value)
    return str(value) == wanted or (number is not None and number == _number(wanted))


def _number(value: Hashable) -> float | None:
    """The number that a label stands for; true and false are 1 and 0."""
    text = str(value).strip().lower()
    try:
        return {"true": 1.0, "false": 0.0}[text] if text in ("true", "false") else float(text)
    except ValueError:
        return None


def _listed(values: Iterable[Any]) -> str:
    """The distinct values for a message: text in quotes, whole numbers without a decimal point."""
    shown = sorted(
        {repr(str(v)) if isinstance(v, str) else f"{v:g}" if isinstance(v, float) else str(v) for v in values}
    )
    more = f" and {len(shown) - _MAX_LISTED} more" if len(shown) > _MAX_LISTED else ""
    return ", ".join(shown[:_MAX_LISTED]) + more


def no_such_column(where: str, column: str, columns: Iterable[str]) -> DataError:
    """The error for a column that is not there; it names those that are, similar names first.

    Examples
    --------
    >>> print(no_such_column("pump.csv", "labl", ["flow", "label"]))
    pump.csv has no column 'labl'. Its columns are 'label', 'flow'.
    """
    names = list(columns)
    close = difflib.get_close_matches(column, names, n=_MAX_LISTED)
    ordered = [*close, *(name for name in names if name not in close)]
    more = f" and {len(ordered) - _MAX_LISTED} more" if len(ordered) > _MAX_LISTED else ""
    listed = ", ".join(repr(name) for name in ordered[:_MAX_LISTED])
    return DataError(f"{where} has no column {column!r}. Its columns are {listed}{more}.")


def known_suffix(name: str, known: Iterable[str], *, reading: bool = True) -> str:
    """The longest known suffix of a name: of a file to read, or to write."""
    fitting = [suffix for suffix in known if name.lower().endswith(suffix)]
    if not fitting:
        if reading and not os.path.exists(name):
            raise DataError(f"{name} does not exist.")
        shown = "".join(Path(name).suffixes[-1:])
        problem = f"the suffix {shown!r} is unknown" if shown else "the name has no suffix"
        raise DataError(f"{name}: {problem}. Known suffixes are {', '.join(known)}.")
    return max(fitting, key=len)
