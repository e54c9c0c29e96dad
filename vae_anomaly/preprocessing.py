"""From a table to the numbers that a VAE sees, and back.

Every column gets a kind from the training rows. ``real``: centred and scaled, then bent towards its ranks, so that
values that lie close together in a dense part of a skewed column are told apart. ``binary``: two values (or one), coded
0 and 1. ``categorical``: one-hot over the categories seen, with a last place for all others. ``ignored``: nothing to
learn from. Encoded rows hold the reals first, then the binaries, then the one-hot blocks; a missing value is NaN.
"""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vae_anomaly.bends import PiecewiseLinear
from vae_anomaly.errors import CellError, DataError
from vae_anomaly.spellings import merged, places

__all__ = ["Column", "Reals", "Schema"]

MAX_CATEGORIES = 64
# A value of a binary column that was not seen in training: far enough outside [0, 1] for the Bernoulli likelihood to
# rate it under every value that was.
UNSEEN = -2.0
# Knots of the piecewise linear map from values to ranks.
MAX_KNOTS = 100
# float32 squares of larger numbers, divided by a squared scale, would overflow.
MAX_SCALED = 1e6
# Values, and columns, that are encoded while they are in the cache, and so is what was learned of these columns.
VALUES_AT_ONCE = 1 << 15
COLUMNS_AT_ONCE = 64
# Up to so many rows, a call for each part of the columns takes longer than what it does.
FEW_ROWS = 8

REMARKS = {
    "empty": "no value in the training rows: ignored",
    "constant": "one and the same value in all training rows: any other value will count as unusual",
    "free text": "text that hardly repeats: ignored",
}

DECIMAL_COMMA = re.compile(r"\s*[-+]?\d+,\d+\s*")
# What is as likely to part thousands.
THOUSANDS = re.compile(r"\s*[-+]?[1-9]\d{0,2},\d{3}\s*")

Encoded = NDArray[np.float32]


@dataclass(frozen=True)
class Column:
    """What was learned about one column of the training table."""

    name: str
    kind: str
    """real, binary, categorical or ignored."""
    dtype: str
    """float, int, bool or text: how values look in the table."""
    center: float = 0.0
    scale: float = 1.0
    low: float = -math.inf
    high: float = math.inf
    values: tuple[Any, ...] = ()
    """Values of a binary column, or categories from the most to the least frequent."""
    knots: tuple[float, ...] = ()
    bends: tuple[float, ...] = ()
    """What is added to the scaled value at each of the ``knots``; linear between, constant beyond."""
    resolution: float = 0.0
    """Usual step from one encoded value to the next, if the column is so coarse that most of its values repeat."""
    remark: str = ""
    """Key of ``REMARKS``, where the column is not what one would expect."""

    @property
    def width(self) -> int:
        """Number of entries in an encoded row."""
        return {"ignored": 0, "categorical": len(self.values) + 1}.get(self.kind, 1)

    def scaled(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Encoded values of a real column."""
        with np.errstate(over="ignore"):
            bent: NDArray[np.float64] = (numbers - self.center) / self.scale + self.bend(numbers)
        return bent

    def bend(self, numbers: NDArray[np.float64]) -> NDArray[np.float64] | float:
        """What is added to the scaled values."""
        return np.interp(numbers, self.knots, self.bends) if self.knots else 0.0

    @cached_property
    def alone(self) -> "Reals":
        """The column as the only one of a table."""
        return Reals([self])

    def unscaled(self, encoded: NDArray[np.float64]) -> NDArray[np.float64]:
        """Inverse of :meth:`scaled`."""
        if not self.knots:
            return encoded * self.scale + self.center
        knots = np.array(self.knots)
        images = self.scaled(knots)
        inside = np.interp(encoded, images, knots)
        # The map goes on as a straight line beyond the first and the last knot; the excess is 0 between them.
        excess = encoded - np.clip(encoded, images[0], images[-1])
        straight: NDArray[np.float64] = inside + excess * self.scale
        return straight


def _in_a_row(places: Sequence[int]) -> Sequence[int] | slice:
    """Places of columns; as a slice, of which no copy is made, if they are beside each other."""
    beside = range(places[0], places[0] + len(places)) if places else range(0)
    return slice(beside.start, beside.stop) if list(places) == list(beside) else places


class RealsEncoder(Protocol):
    """Who encodes real columns."""

    def encode_rows(self, floats: NDArray[np.float64], places: Sequence[int], out: Encoded) -> None:
        """As :meth:`Reals.encode_rows` does."""


class Reals:
    """Real columns beside each other: one after the other takes longer."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)
        self.center = np.array([column.center for column in columns])
        self.scale = np.array([column.scale for column in columns])

    @cached_property
    def bends(self) -> PiecewiseLinear:
        """What is added to the scaled values."""
        return PiecewiseLinear([column.knots for column in self.columns], [column.bends for column in self.columns])

    def encode(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Encoded values of finite numbers, of the same shape."""
        with np.errstate(over="ignore"):
            scaled: NDArray[np.float64] = (numbers - self.center) / self.scale
        scaled += self.bends(numbers)
        return np.clip(scaled, -MAX_SCALED, MAX_SCALED, out=scaled)

    def encode_rows(self, floats: NDArray[np.float64], places: Sequence[int], out: Encoded) -> None:
        """Put the encoded values of the columns at these places of a table into ``out``.

        Raises
        ------
        CellError
            If one is infinite.
        """
        if np.isinf(floats).any():
            for column, place in zip(self.columns, places, strict=True):
                _refuse_infinite(column.name, floats[:, place])
        start = 0
        for part in [self] if len(floats) <= FEW_ROWS else self._parts:
            own = slice(start, start + len(part.columns))
            there = _in_a_row(places[own])
            size = max(1, VALUES_AT_ONCE // max(1, len(part.columns)))
            for first in range(0, len(floats), size):
                rows = slice(first, first + size)
                out[rows, own] = part.encode(floats[rows, there])
            start = own.stop

    @cached_property
    def _parts(self) -> list["Reals"]:
        """A few columns each."""
        if len(self.columns) <= COLUMNS_AT_ONCE:
            return [self]
        starts = range(0, len(self.columns), COLUMNS_AT_ONCE)
        return [Reals(self.columns[start : start + COLUMNS_AT_ONCE]) for start in starts]


class Schema:
    """Columns of a table, learned by :meth:`infer`; encodes tables and decodes encoded rows.

    Examples
    --------
    >>> frame = pd.DataFrame({"flow": [1, 2, 6], "valve": ["open", "open", "shut"]})
    >>> schema = Schema.infer(frame)
    >>> [(column.name, column.kind) for column in schema.columns]
    [('flow', 'real'), ('valve', 'binary')]
    >>> schema.decode(schema.encode(frame)).equals(frame)
    True
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)
        order = {"real": 0, "binary": 1, "categorical": 2}
        used = [index for index, column in enumerate(self.columns) if column.kind != "ignored"]
        self._used = sorted(used, key=lambda index: order[self.columns[index].kind])
        self.reals = Reals([self.columns[index] for index in self._used if self.columns[index].kind == "real"])
        self.owner = np.array([index for index in self._used for _ in range(self.columns[index].width)], dtype=np.intp)
        """Column that each entry of an encoded row comes from."""

    n_parts = 1
    """Samples that the networks see of a row."""

    @property
    def core(self) -> "Schema":
        """Schema of what the networks see."""
        return self

    @classmethod
    def infer(
        cls,
        frame: pd.DataFrame,
        *,
        kinds: str = "any",
        scaling: str = "standard",
        categorical: Collection[str] = (),
        rank_share: float = 0.0,
    ) -> "Schema":
        """Schema of the training rows.

        Parameters
        ----------
        frame : DataFrame
        kinds : {"any", "numbers", "categories"}
            What the likelihood can describe: columns of any kind, numbers only (two-valued ones are then real, too),
            or categories only.
        scaling : {"standard", "unit"}
            Reals to mean 0 and deviation 1, or to the interval [0, 1].
        categorical : collection of str
            Columns to take as categories although they hold numbers.
        rank_share : float, default=0.0
            Weight of a value's rank, scaled to deviation 1, beside the standardised value; from 0 to below 1. Only
            with the scaling "standard".

        Raises
        ------
        CellError
            If a column of numbers holds an infinite value or a text.
        DataError
            If no column has two different values, or a column does not suit ``kinds``.
        """
        _refuse_complex(frame)
        columns, categorical = [], set(map(str, categorical))
        for name in frame.columns:
            as_category = kinds == "categories" or str(name) in categorical
            column = _infer_column(str(name), frame[name], as_category, kinds, scaling)
            if column.kind == "real" and _varies(column):
                column = _refined(column, frame[name], rank_share if scaling == "standard" else 0.0)
            columns.append(column)
        if not any(_varies(column) for column in columns):
            raise DataError(_nothing_varies(columns))
        unsuitable = [column.name for column in columns if column.kind == "categorical" or column.dtype == "text"]
        if kinds == "numbers" and unsuitable:
            raise DataError(
                f"Column {unsuitable[0]!r} holds text, and this likelihood describes numbers only. "
                "Use likelihood='auto' or leave the column out."
            )
        return cls(columns)

    def block_sizes(self) -> tuple[int, int, tuple[int, ...]]:
        """Numbers of real and binary entries, and the sizes of the one-hot blocks."""
        kinds = [self.columns[index].kind for index in self._used]
        categories = tuple(
            self.columns[index].width for index in self._used if self.columns[index].kind == "categorical"
        )
        return kinds.count("real"), kinds.count("binary"), categories

    def resolutions(self) -> NDArray[np.float64]:
        """Resolution of the column of each real entry, 0 where its values hardly repeat."""
        return np.array([self.columns[index].resolution for index in self._used if self.columns[index].kind == "real"])

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return len(self.columns)

    @property
    def feature_names(self) -> list[str]:
        """Name of each column."""
        return [column.name for column in self.columns]

    def encode(self, rows: pd.DataFrame | NDArray[np.float64], reals: RealsEncoder | None = None) -> Encoded:
        """Encoded rows, shape (n_rows, n_entries), NaN where a value is missing.

        Of a table of floats alone, which may come as an array, ``reals`` encode the real columns, in place of
        :attr:`reals`.

        Raises
        ------
        CellError
            If a column of numbers holds a text.
        """
        encoded = np.empty((len(rows), len(self.owner)), dtype=np.float32)
        start = 0
        # Columns of a frame come one by one, and slowly; a frame of floats alone is an array already.
        floats = _floats(rows)
        used = self._used
        if floats is not None:
            start = len(self.reals.columns)
            (reals or self.reals).encode_rows(floats, used[:start], encoded[:, :start])
            used = used[start:]
        for index in used:
            column = self.columns[index]
            values = _values(rows if floats is None else floats, index, as_text=column.dtype == "text")
            encoded[:, start : start + column.width] = _encode_column(column, values)
            start += column.width
        return encoded

    def decode(self, encoded: NDArray[Any]) -> pd.DataFrame:
        """Table in the original units and types; a column that was ignored is all missing."""
        decoded: dict[int, Any] = {}
        start = 0
        for index in self._used:
            column = self.columns[index]
            decoded[index] = _decode_column(column, encoded[:, start : start + column.width])
            start += column.width
        missing = np.full(len(encoded), np.nan)
        frame = pd.DataFrame({index: decoded.get(index, missing) for index in range(len(self.columns))})
        frame.columns = pd.Index([column.name for column in self.columns])
        return frame

    def fold(self, entries: NDArray[Any]) -> NDArray[np.float64]:
        """Sum over the entries of each column, shape (n_rows, n_columns)."""
        if np.array_equal(self.owner, np.arange(len(self.columns))):
            # One entry each, in this order: nothing to do.
            return entries.astype(np.float64, copy=False)
        folded = np.zeros((len(entries), len(self.columns)))
        if len(self.owner) == len(self._used):
            # One entry each: nothing to add up.
            folded[:, self.owner] = entries
        else:
            np.add.at(folded.T, self.owner, entries.T)
        return folded

    def notes(self) -> list[str]:
        """Sentences about the columns that are not what one would expect."""
        sentences = []
        for remark, text in REMARKS.items():
            names = [repr(column.name) for column in self.columns if column.remark == remark]
            if len(names) == 1:
                sentences.append(f"Column {names[0]} has {text}.")
            elif names:
                listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                sentences.append(f"{len(names)} columns ({listed}) have {text}.")
        return sentences

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data from which :meth:`from_json` makes the same schema."""
        rows = [asdict(column) for column in self.columns]
        for row in rows:
            row["low"], row["high"] = _finite_or_none(row["low"]), _finite_or_none(row["high"])
        return rows

    @classmethod
    def from_json(cls, rows: Sequence[dict[str, Any]]) -> "Schema":
        """Inverse of :meth:`to_json`."""
        return cls([_column_from_json(row) for row in rows])


def _column_from_json(row: dict[str, Any]) -> Column:
    low = -math.inf if row["low"] is None else row["low"]
    high = math.inf if row["high"] is None else row["high"]
    sequences = {name: tuple(row[name]) for name in ("values", "knots", "bends")}
    return Column(**{**row, **sequences, "low": low, "high": high})


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _varies(column: Column) -> bool:
    if column.kind == "real":
        return column.high > column.low
    return column.kind != "ignored" and len(column.values) > 1


def _nothing_varies(columns: Sequence[Column]) -> str:
    if not any(column.dtype != "text" for column in columns):
        return "No numeric column, and no text column with repeated values: there is nothing to learn from."
    return "No column has two different values in the training rows: there is nothing to learn from."


def _infer_column(name: str, values: "pd.Series[Any]", as_category: bool, kinds: str, scaling: str) -> Column:
    if values.isna().all():
        return Column(name, "ignored", "float", remark="empty")
    numbers = None if as_category else _as_numbers(name, values)
    if numbers is None:
        return _infer_text(name, values, as_category, kinds)
    seen = numbers[~np.isnan(numbers)]
    _refuse_infinite(name, numbers)
    distinct = _few_distinct(seen)
    # Beside a missing value, truth values are objects.
    truth = _is_bool(values) or pd.api.types.infer_dtype(values) == "boolean"
    dtype = "bool" if truth else "int" if _are_whole(seen) else "float"
    if distinct is not None and kinds == "any":
        low, high = float(distinct[0]), float(distinct[-1])
        remark = "" if high > low else "constant"
        return Column(name, "binary", dtype, low=low, high=high, values=tuple(map(float, distinct)), remark=remark)
    low, high = float(seen.min()), float(seen.max())
    center, scale = (low, high - low) if scaling == "unit" else _moments(seen)
    remark = "" if high > low else "constant"
    # A column of one value has no scale of its own; deviations then count in the units of the table.
    return Column(name, "real", dtype, center, scale if high > low and scale > 0 else 1.0, low, high, remark=remark)


def _refined(column: Column, values: "pd.Series[Any]", rank_share: float) -> Column:
    """The real column with its bend towards ranks and its resolution."""
    numbers = _as_numbers(column.name, values)
    assert numbers is not None
    seen = numbers[~np.isnan(numbers)]
    distinct, counts = np.unique(seen, return_counts=True)
    if rank_share > 0:
        column = _bent(column, distinct, counts / len(seen), rank_share)
    if len(distinct) < len(seen) / 2:
        column = replace(column, resolution=float(np.median(np.diff(column.scaled(distinct)))))
    return column


def _bent(column: Column, distinct: NDArray[np.float64], frequencies: NDArray[np.float64], rank_share: float) -> Column:
    """The column with ``rank_share`` of its ranks in its scaled values, which keep mean 0 and deviation 1."""
    # Equal values share the middle of their ranks.
    ranks = frequencies.cumsum() - 0.5 * frequencies - 0.5
    ranks /= math.sqrt(float((frequencies * ranks**2).sum()))
    at = np.arange(len(distinct))
    if len(distinct) > MAX_KNOTS:
        at = np.unique(np.searchsorted(ranks, np.linspace(ranks[0], ranks[-1], MAX_KNOTS)))
    standard = (distinct - column.center) / column.scale
    mixed = (1 - rank_share) * standard + rank_share * np.interp(distinct, distinct[at], ranks[at])
    spread = math.sqrt(float((frequencies * mixed**2).sum()))
    return replace(
        column,
        scale=column.scale * spread / (1 - rank_share),
        knots=tuple(map(float, distinct[at])),
        bends=tuple(map(float, ranks[at] * rank_share / spread)),
    )


def _moments(seen: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation, also of numbers whose squares are too large or too small for a float."""
    unit = float(np.abs(seen).max()) or 1.0
    relative = seen / unit
    return unit * float(relative.mean()), unit * float(relative.std())


def _are_whole(seen: NDArray[np.float64]) -> bool:
    """Whether all values are whole, and small enough for a float to tell them from their neighbours."""
    return bool((seen == np.round(seen)).all() and (np.abs(seen) < 2**53).all())


def _is_bool(values: "pd.Series[Any]") -> bool:
    return bool(pd.api.types.is_bool_dtype(values.dtype))


def _few_distinct(seen: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The distinct values if there are at most two, found without sorting the column."""
    low, high = seen.min(), seen.max()
    return np.unique([low, high]) if bool(((seen == low) | (seen == high)).all()) else None


def _as_numbers(name: str, values: "pd.Series[Any]") -> NDArray[np.float64] | None:
    """Column as float64, or None if it is text; a text among numbers is an error that names the cell."""
    if _is_numeric(values):
        return np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan))
    numbers, bad = _parse(values)
    n_texts, n_values = int(bad.sum()), int(values.notna().sum())
    if n_texts == 0:
        return numbers
    # Mostly numbers: the texts are slips, not categories.
    if n_texts < n_values / 2:
        row = int(np.flatnonzero(bad)[0])
        wrong = f"column {name!r}: {_shown(values.iloc[row])} is not a number."
        raise CellError(row, f"{wrong} Correct it, drop the column, or name it as categorical.")
    _refuse_decimal_commas(name, values)
    return None


def _refuse_decimal_commas(name: str, values: "pd.Series[Any]") -> None:
    """Numbers such as 1,5 would pass as text that hardly repeats, and be ignored."""
    found = np.flatnonzero([isinstance(value, str) and bool(DECIMAL_COMMA.fullmatch(value)) for value in values])
    if len(found) > values.notna().sum() / 2:
        row = int(found[0])
        advice = "Write it with a point."
        if all(THOUSANDS.fullmatch(str(values.iloc[row])) for row in found):
            advice = "Write it with a point, or, if it parts thousands, without it."
        raise CellError(row, f"column {name!r}: {_shown(values.iloc[row])} has a decimal comma. {advice}")


def _parse(values: "pd.Series[Any]") -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Numbers (NaN where there is none), and which values are neither missing nor a number."""
    # Times would pass as numbers (nanoseconds), a missing one as a very large one.
    texts = values.map(str, na_action="ignore") if _has_calendar(values) else values.where(values.notna(), None)
    numbers = np.asarray(pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan))
    return numbers, np.asarray(np.isnan(numbers) & values.notna().to_numpy(), dtype=bool)


def _has_calendar(values: "pd.Series[Any]") -> bool:
    return values.dtype.kind in "mM" or isinstance(values.dtype, pd.PeriodDtype)


def _shown(value: object) -> str:
    text = repr(str(value))
    return text if len(text) <= 60 else f"{text[:56]}...'"


def _refuse_complex(frame: pd.DataFrame) -> None:
    for name, kind in zip(frame.columns, frame.dtypes, strict=True):
        if kind.kind == "c":
            raise DataError(
                f"Column {str(name)!r} holds complex numbers. Give their real and imaginary parts as two columns."
            )


def _refuse_infinite(name: str, numbers: NDArray[np.float64]) -> None:
    infinite = np.flatnonzero(np.isinf(numbers))
    if infinite.size:
        row = int(infinite[0])
        raise CellError(
            row, f"column {name!r}: {numbers[row]:g} is not finite. Leave the cell empty if the value is unknown."
        )


def _is_numeric(values: "pd.Series[Any]") -> bool:
    """Whether the values are stored as numbers; bools count."""
    return _is_bool(values) or bool(pd.api.types.is_numeric_dtype(values.dtype) and values.dtype.kind not in "mM")


def _as_texts(name: str, values: "pd.Series[Any]") -> "pd.Series[Any]":
    """Values as text; a whole number is written alike whether it was read as 1 or as 1.0."""
    if isinstance(values.dtype, pd.StringDtype):
        return values
    if _is_numeric(values):
        _refuse_infinite(name, values.to_numpy(dtype=np.float64, na_value=np.nan))
    return values.map(_as_text, na_action="ignore")


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    # An integer as a float would lose its last digits.
    if isinstance(value, Real) and not isinstance(value, Integral | bool | np.bool_):
        return f"{value:.0f}" if float(value).is_integer() else repr(float(value))
    return str(value)


def _infer_text(name: str, values: "pd.Series[Any]", as_category: bool, kinds: str) -> Column:
    counts = merged(_as_texts(name, values).value_counts().to_dict())
    n_values, n_distinct = sum(counts.values()), len(counts)
    if n_distinct > MAX_CATEGORIES and n_distinct > n_values / 2 and not as_category:
        return Column(name, "ignored", "text", remark="free text")
    # Equally frequent categories in alphabetical order, so that the order of rows does not matter.
    ranked = sorted(counts, key=lambda text: (-counts[text], text))[:MAX_CATEGORIES]
    if n_distinct <= 2 and kinds == "any":
        return Column(
            name, "binary", "text", values=tuple(sorted(ranked)), remark="" if n_distinct == 2 else "constant"
        )
    return Column(name, "categorical", "text", values=tuple(ranked))


def _floats(rows: pd.DataFrame | NDArray[np.float64]) -> NDArray[np.float64] | None:
    """A table of floats alone as an array."""
    if isinstance(rows, np.ndarray):
        return rows
    if all(kind == np.float64 for kind in rows.dtypes):
        floats: NDArray[np.float64] = rows.to_numpy()
        return floats
    _refuse_complex(rows)
    return None


def _values(
    rows: pd.DataFrame | NDArray[np.float64], index: int, *, as_text: bool
) -> "pd.Series[Any] | NDArray[np.float64]":
    """A column of a table; numbers that stand for texts as what texts come as."""
    if not isinstance(rows, np.ndarray):
        return rows.iloc[:, index]
    return pd.Series(rows[:, index]) if as_text else rows[:, index]


def _encode_column(column: Column, values: "pd.Series[Any] | NDArray[np.float64]") -> NDArray[Any]:
    if isinstance(values, np.ndarray):
        numbers = values
    elif column.dtype == "text":
        return _encode_text(column, values)
    elif _is_numeric(values):
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        numbers, bad = _parse(values if column.dtype != "bool" else values.map(_as_bool))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            wrong = "neither true nor false" if column.dtype == "bool" else "not a number"
            raise CellError(row, f"column {column.name!r}: {_shown(values.iloc[row])} is {wrong}.")
    _refuse_infinite(column.name, numbers)
    if column.kind == "binary":
        return _codes(column, numbers)[:, None]
    return column.alone.encode(numbers[:, None])


def _as_bool(value: object) -> object:
    """A truth value in place of a text that says one."""
    return {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value


def _codes(column: Column, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.array(column.values)
    nearest = np.abs(numbers[:, None] - values).argmin(axis=1)
    # A file may hold fewer digits than the training data had.
    tolerance = 1e-6 * (values[-1] - values[0] if len(values) > 1 else abs(values[0]))
    seen = np.abs(numbers - values[nearest]) <= tolerance
    return np.where(np.isnan(numbers), np.nan, np.where(seen, nearest, UNSEEN))


def _encode_text(column: Column, values: "pd.Series[Any]") -> NDArray[np.float64]:
    if _is_numeric(values):
        _refuse_infinite(column.name, values.to_numpy(dtype=np.float64, na_value=np.nan))
    if values.dtype == object:
        # 1 and True are equal, and no one text.
        values = _as_texts(column.name, values)
    # Each value is looked up once, however often it occurs.
    codes, distinct = pd.factorize(values)
    place = np.append(places(column.values, _as_texts(column.name, pd.Series(distinct))), -1)[codes]
    missing, unseen = codes < 0, place < 0
    if column.kind == "binary":
        return np.where(missing, np.nan, np.where(unseen, UNSEEN, place))[:, None]
    onehot = np.zeros((len(place), column.width))
    onehot[np.arange(len(place)), np.where(unseen, len(column.values), place)] = 1.0
    onehot[missing] = np.nan
    return onehot


def _decode_column(column: Column, encoded: NDArray[Any]) -> Any:
    if column.kind == "categorical":
        labels = np.array([*column.values, "other"], dtype=object)
        return _where_known(labels[np.nan_to_num(encoded).argmax(axis=1)], encoded[:, 0])
    numbers = encoded[:, 0].astype(np.float64)
    if column.kind == "binary":
        labels = np.array(column.values, dtype=object if column.dtype == "text" else np.float64)
        numbers_or_texts = labels[np.clip(np.nan_to_num(numbers), 0, len(labels) - 1).round().astype(np.intp)]
        if column.dtype == "text":
            return _where_known(numbers_or_texts, numbers)
        numbers = np.where(np.isnan(numbers), np.nan, numbers_or_texts)
    else:
        numbers = column.unscaled(numbers)
    return _in_dtype(column.dtype, numbers)


def _where_known(labels: NDArray[np.object_], codes: NDArray[Any]) -> "pd.Series[Any]":
    return pd.Series(labels, dtype="str").where(~np.isnan(codes))


def _in_dtype(dtype: str, numbers: NDArray[np.float64]) -> NDArray[Any]:
    if dtype == "float" or np.isnan(numbers).any():
        return numbers
    return numbers.round().astype(np.int64) if dtype == "int" else numbers.round().astype(bool)
