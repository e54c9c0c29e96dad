"""From Arrow tables, which every reader makes, to data frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vae_anomaly.errors import DataError

__all__ = ["Options", "check_size", "column_names", "frame_of", "has_calendar", "is_string"]


@dataclass(frozen=True)
class Options:
    """What a reader of tables may be asked for."""

    text_columns: tuple[str, ...] = ()
    delimiter: str | None = None
    # Columns asked for by name: an .npz file keeps labels and ids in arrays of their own.
    named: tuple[str, ...] = ()
    # Those of them that nothing is read from.
    left_out: tuple[str, ...] = ()


def frame_of(table: pa.Table, name: str, text_columns: Sequence[str], left_out: Sequence[str] = ()) -> pd.DataFrame:
    """Columns of int64, float64, bool or text; those to be ``left_out`` may be of any type, and come without values."""
    columns = {}
    for column, values in zip(column_names(table.column_names, name), table.columns, strict=True):
        kind = values.type
        if column in left_out and not _usable(kind):
            values, kind = pa.chunked_array([pa.nulls(len(values))]), pa.null()
        if column in text_columns or pa.types.is_dictionary(kind) or has_calendar(kind):
            values = _text(values, name, column)
        columns[column] = _values(values, name, column)
    check_size(len(columns), table.num_rows, name)
    return pd.DataFrame(columns)


def check_size(n_columns: int, n_rows: int, name: str) -> None:
    """Refuse a table without columns or rows."""
    if not n_columns:
        raise DataError(f"{name} has no columns.")
    if not n_rows:
        raise DataError(f"{name} has columns and no rows.")


def column_names(names: Sequence[str], where: str) -> list[str]:
    """The names of the columns; a nameless one, as an index leaves it, is called by its position."""
    full = [name or f"unnamed_{position}" for position, name in enumerate(names)]
    repeated = [name for name in dict.fromkeys(full) if full.count(name) > 1] if len(set(full)) < len(full) else []
    if repeated:
        raise DataError(f"{where} has more than one column named {', '.join(map(repr, repeated))}. Rename them.")
    return full


def has_calendar(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind))


def is_string(kind: pa.DataType) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def _text(values: pa.ChunkedArray, name: str, column: str) -> pa.ChunkedArray:
    """Values as text; times in ISO 8601, those with a zone in UTC."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _text(values.cast(kind.value_type), name, column)
    if pa.types.is_floating(kind):
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        values = values.cast(pa.timestamp(kind.unit, "UTC"))
    try:
        text = _whole_as_text(values) if pa.types.is_floating(kind) else values.cast(pa.string())
    except pa.ArrowException:
        raise _unusable(name, column, kind) from None
    if not has_calendar(kind):
        return text
    return pc.replace_substring_regex(pc.replace_substring(text, " ", "T"), r"\.0+(Z?)$", r"\1")


def _whole_as_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Floats as text, whole ones as integers: where a cell is missing, a frame holds ids and codes as floats."""
    values = values.cast(pa.float64())
    whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), float(2**53)))
    digits = pc.if_else(whole, values, pa.scalar(None, pa.float64())).cast(pa.int64()).cast(pa.string())
    return pc.coalesce(digits, values.cast(pa.string()))


def _values(values: pa.ChunkedArray, name: str, column: str) -> Any:
    """Values as int64, float64, bool or text."""
    kind = values.type
    if is_string(kind):
        return values.to_pandas()
    if pa.types.is_boolean(kind) and not values.null_count:
        return values.to_numpy()
    if pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
    elif pa.types.is_integer(kind) and not values.null_count and _fits_int64(values):
        return values.cast(pa.int64()).to_numpy()
    elif not _is_number(kind):
        raise _unusable(name, column, kind)
    return values.cast(pa.float64(), safe=False).to_numpy()


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or kind == pa.null())


def _usable(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _usable(kind.value_type)
    return _is_number(kind) or is_string(kind) or has_calendar(kind) or bool(pa.types.is_boolean(kind))


def _fits_int64(values: pa.ChunkedArray) -> bool:
    return values.type != pa.uint64() or (pc.max(values).as_py() or 0) < 2**63


def _unusable(name: str, column: str, kind: pa.DataType) -> DataError:
    return DataError(f"{name}, column {column!r} is of type {kind}. Turn it into numbers or text, or leave it out.")
