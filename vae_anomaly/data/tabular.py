"""Readers and writers of tables: CSV, TSV, Parquet and NumPy arrays."""

import csv
import gzip
import io
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from vae_anomaly.data.table import Data, labels, no_such_column
from vae_anomaly.errors import DataError

__all__ = ["READERS", "WRITERS", "read", "table_format", "write_table"]

MISSING = ("", "NA", "NaN", "nan", "-nan", "-NaN", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NULL", "null", "None")

_BOM = b"\xef\xbb\xbf"
# A row has to fit into one block; the default of 1 MiB is too little for a hundred thousand columns.
_BLOCK_SIZE = 1 << 24


@dataclass(frozen=True)
class Options:
    """What a reader of tables may be asked for."""

    text_columns: tuple[str, ...] = ()
    delimiter: str | None = None
    # Columns asked for by name: an .npz file keeps labels and ids in arrays of their own.
    named: tuple[str, ...] = ()


def read(
    path: str | os.PathLike[str],
    *,
    label: str | None = None,
    normal_value: Sequence[str] = (),
    id: str | None = None,
    drop: Sequence[str] = (),
    text_columns: Sequence[str] = (),
    delimiter: str | None = None,
) -> Data:
    """Samples of a table in a file, a folder of files, or standard input.

    Parameters
    ----------
    path : str or path
        A file whose suffix is in ``READERS``; a folder, whose files with such suffixes are read as one table, by name;
        or ``"-"`` for standard input, Parquet or CSV.
    label : str, optional
        Column, or array of an .npz file, that tells anomalies from normal samples.
    normal_value : sequence of str
        Labels of normal samples. Without it, 0 or false is normal, 1 or true an anomaly.
    id : str, optional
        Column that identifies the samples. Row numbers do, unless given.
    drop : sequence of str
        Columns that are no features.
    text_columns : sequence of str
        Columns that are text even where they look like numbers, so that ``007`` stays ``007``.
    delimiter : str, optional
        One character between the cells of a CSV file. Found in the header unless given.

    Returns
    -------
    Data
        Numbers as ``int64`` or, with a missing or fractional value, ``float64``; ``bool``; anything else as text.

    Raises
    ------
    DataError
        If the file can't be read as a table; the message says where and what to do.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "pump.csv"
    >>> _ = path.write_text("flow,valve,state\\n1.5,open,ok\\n,shut,leak\\n")
    >>> data = read(path, label="state", normal_value=["ok"])
    >>> data.X
       flow valve
    0   1.5  open
    1   NaN  shut
    >>> data.y
    array([0, 1], dtype=int8)
    """
    normal_value, drop, text_columns = (
        (names,) if isinstance(names, str) else tuple(map(str, names)) for names in (normal_value, drop, text_columns)
    )
    if normal_value and label is None:
        raise DataError("A normal value was given without a label column. Name the column with --label.")
    if delimiter is not None and len(delimiter) != 1:
        raise DataError(f"The delimiter {delimiter!r} is not one character.")
    named = tuple(dict.fromkeys(name for name in (label, id, *drop) if name is not None))
    # Ids are read as text, so that they come out as they stand in the file.
    options = Options(text_columns if id is None else (*text_columns, id), delimiter, named)
    name, parts = _parts(path, options)
    frame = _joined(parts)
    for column in dict.fromkeys((*named, *text_columns)):
        if column not in frame:
            raise no_such_column(name, column, frame.columns)
    X = frame.drop(columns=list(named))
    if X.shape[1] == 0:
        raise DataError(f"{name} has no column left besides {', '.join(map(repr, named))}: there are no features.")
    return Data(
        X=X,
        y=None if label is None else labels(frame[label], normal_value, name),
        ids=np.arange(1, len(frame) + 1) if id is None else _ids(frame[id]),
        id_name="row" if id is None else id,
        name=name,
        sources=tuple((part.name, len(part.frame)) for part in parts),
        dropped=named,
    )


def _ids(values: "pd.Series[Any]") -> NDArray[Any]:
    """Whole numbers where nothing is lost by it, text otherwise; empty text for a missing id."""
    text = values.astype(object).where(values.notna(), "")
    try:
        numbers = text.astype("int64")
    except (ValueError, OverflowError):
        return np.asarray(text)
    return np.asarray(numbers if (numbers.astype(str) == text).all() else text)


# Files and folders ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """The table of one file, and how to read it anew with more columns as text."""

    name: str
    frame: pd.DataFrame
    read: Callable[[Sequence[str]], pd.DataFrame]


def _parts(path: str | os.PathLike[str], options: Options) -> tuple[str, list[_Part]]:
    name = os.fspath(path)
    if name == "-":
        content = sys.stdin.buffer.read()
        suffix = ".parquet" if content.startswith(b"PAR1") else ".csv"
        return "standard input", [_part("standard input", suffix, lambda: content, options)]
    if not os.path.isdir(name):
        return name, [_part(name, _suffix(name, READERS), Path(name).read_bytes, options)]
    # Hidden files are left out: some systems leave one beside each file, under the same suffix.
    files = sorted(f for f in os.listdir(name) if f.lower().endswith(tuple(READERS)) and not f.startswith("."))
    if not files:
        raise DataError(f"{name} is a folder without a table. Known suffixes are {', '.join(READERS)}.")
    paths = [os.path.join(name, file) for file in files]
    return name, [_part(path, _suffix(path, READERS), Path(path).read_bytes, options) for path in paths]


def _part(name: str, suffix: str, content: Callable[[], bytes], options: Options) -> _Part:
    def frame(more_text: Sequence[str]) -> pd.DataFrame:
        text_columns = (*options.text_columns, *more_text)
        table = READERS[suffix](_bytes(name, content), name, replace(options, text_columns=text_columns))
        return _frame(table, name, text_columns)

    return _Part(name, frame(()), frame)


def _bytes(name: str, content: Callable[[], bytes]) -> bytes:
    try:
        found = content()
    except FileNotFoundError:
        raise DataError(f"{name} does not exist.") from None
    except OSError as error:
        raise DataError(f"{name} can't be opened: {error.strerror or error}.") from None
    if not found:
        raise DataError(f"{name} is empty.")
    return found


def _suffix(name: str, known: Iterable[str]) -> str:
    """The longest known suffix of a name."""
    fitting = [suffix for suffix in known if name.lower().endswith(suffix)]
    if not fitting:
        shown = "".join(Path(name).suffixes[-1:])
        problem = f"the suffix {shown!r} is unknown" if shown else "the name has no suffix"
        raise DataError(f"{name}: {problem}. Known suffixes are {', '.join(known)}.")
    return max(fitting, key=len)


def _joined(parts: list[_Part]) -> pd.DataFrame:
    """The rows of all parts, columns matched by name."""
    first, *others = parts
    if not others:
        return first.frame
    for other in others:
        for one, two in ((first, other), (other, first)):
            for column in two.frame.columns.difference(one.frame.columns, sort=False):
                raise DataError(f"{one.name} has no column {column!r}, and {two.name} has. Give all files the same.")
    frames = [part.frame[list(first.frame.columns)] for part in parts]
    # A column that is text in one file is text in all, read anew so that 007 does not come back as 7.
    mixed = [name for name in first.frame if len({_is_text(f[name]) for f in frames if f[name].notna().any()}) > 1]
    if mixed:
        frames = [part.read(mixed)[list(first.frame.columns)] for part in parts]
    return _stacked(frames)


def _stacked(frames: list[pd.DataFrame]) -> pd.DataFrame:
    columns = {}
    for name in frames[0]:
        values = [frame[name] for frame in frames]
        if any(_is_text(value) for value in values):
            values = [value.astype(object) for value in values]
        elif len({value.dtype.kind for value in values}) > 1:
            values = [value.astype("int64") if value.dtype == bool else value for value in values]
        columns[name] = pd.concat(values, ignore_index=True)
    return pd.DataFrame(columns).infer_objects()


def _is_text(values: "pd.Series[Any]") -> bool:
    return not bool(pd.api.types.is_numeric_dtype(values))


# From columnar tables to frames --------------------------------------------------------------------------------------


def _frame(table: pa.Table, name: str, text_columns: Sequence[str]) -> pd.DataFrame:
    columns = {}
    for column, values in zip(_column_names(table.column_names, name), table.columns, strict=True):
        kind = values.type
        if column in text_columns or pa.types.is_dictionary(kind) or _has_calendar(kind):
            values = _text(values, name, column)
        columns[column] = _values(values, name, column)
    if not columns:
        raise DataError(f"{name} has no columns.")
    if not table.num_rows:
        raise DataError(f"{name} has columns and no rows.")
    return pd.DataFrame(columns)


def _column_names(names: Sequence[str], where: str) -> list[str]:
    """The names of the columns; a nameless one, as an index leaves it, is called by its position."""
    full = [name or f"unnamed_{position}" for position, name in enumerate(names)]
    repeated = [name for name in dict.fromkeys(full) if full.count(name) > 1] if len(set(full)) < len(full) else []
    if repeated:
        raise DataError(f"{where} has more than one column named {', '.join(map(repr, repeated))}. Rename them.")
    return full


def _has_calendar(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind))


def _is_string(kind: pa.DataType) -> bool:
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
        text = values.cast(pa.string())
    except pa.ArrowException:
        raise _unusable(name, column, kind) from None
    if not _has_calendar(kind):
        return text
    return pc.replace_substring_regex(pc.replace_substring(text, " ", "T"), r"\.0+(Z?)$", r"\1")


def _values(values: pa.ChunkedArray, name: str, column: str) -> Any:
    """Values as int64, float64, bool or text."""
    kind = values.type
    if _is_string(kind):
        return values.to_pandas()
    if pa.types.is_boolean(kind) and not values.null_count:
        return values.to_numpy()
    if pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
    elif pa.types.is_integer(kind) and not values.null_count and _fits_int64(values):
        return values.cast(pa.int64()).to_numpy()
    elif not (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or kind == pa.null()
    ):
        raise _unusable(name, column, kind)
    return values.cast(pa.float64(), safe=False).to_numpy()


def _fits_int64(values: pa.ChunkedArray) -> bool:
    return values.type != pa.uint64() or (pc.max(values).as_py() or 0) < 2**63


def _unusable(name: str, column: str, kind: pa.DataType) -> DataError:
    return DataError(f"{name}, column {column!r} is of type {kind}. Turn it into numbers or text, or leave it out.")


# CSV -----------------------------------------------------------------------------------------------------------------


def read_csv(content: bytes, name: str, options: Options) -> pa.Table:
    """The table in a CSV file, its types inferred from all rows."""
    _check_utf8(content, name)
    content = content.removeprefix(_BOM)
    if content.isspace() or not content:
        raise DataError(f"{name} is empty.")
    delimiter = options.delimiter or _delimiter(content)
    header, length = _header(content, delimiter, name)
    _check_header(header, name)
    names = _column_names([cell.strip() for cell in header], name)
    body = content[length:]
    if body.isspace() or not body:
        raise DataError(f"{name} has a header and no rows.")
    if content.count(b'"') % 2:
        _check_quotes(body, delimiter, name)
    table = _parse(body, delimiter, names, name, options.text_columns)
    table = _without_calendar(table, lambda columns: _parse(body, delimiter, names, name, columns, only=True))
    return _with_late_numbers(table, options.text_columns)


def read_csv_gz(content: bytes, name: str, options: Options) -> pa.Table:
    """The table in a CSV file compressed with gzip."""
    try:
        plain = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        raise DataError(f"{name} is damaged, cut short or not compressed with gzip. Make or copy it again.") from None
    if not plain:
        raise DataError(f"{name} is empty.")
    return read_csv(plain, name, options)


def read_tsv(content: bytes, name: str, options: Options) -> pa.Table:
    """The table in a file with tabs between the cells."""
    return read_csv(content, name, replace(options, delimiter=options.delimiter or "\t"))


def _check_utf8(content: bytes, name: str) -> None:
    try:
        content.isascii() or content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, line {line} is not UTF-8 text. Save the file again as UTF-8.") from None


def _delimiter(content: bytes) -> str:
    """The likeliest character between the cells of the header: a comma unless another occurs more often."""
    for line in _lines(content):
        if line.strip():
            bare = re.sub('"[^"]*"', "", line)
            return max(",;\t|", key=bare.count)
    return ","


def _lines(content: bytes) -> Iterator[str]:
    return iter(io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline=""))


def _header(content: bytes, delimiter: str, name: str) -> tuple[list[str], int]:
    """The cells of the first line that is not blank, and the number of bytes up to its end."""
    seen: list[str] = []

    def lines() -> Iterator[str]:
        for line in _lines(content):
            seen.append(line)
            yield line

    try:
        header = next(row for row in csv.reader(lines(), delimiter=delimiter) if row)
    except csv.Error as error:
        raise DataError(f"{name}: the header can't be read, {error}.") from None
    return header, len("".join(seen).encode())


def _check_header(header: Sequence[str], name: str) -> None:
    """Refuse a first line of data, which would be lost; 0, 1, 2, ... is how frames without names are saved."""
    cells = [cell.strip() for cell in header if cell.strip()]
    if not cells:
        raise DataError(f"{name}: no column has a name. Add a line of column names.")
    if cells != [str(i) for i in range(len(cells))] and all(map(_is_number, cells)):
        raise DataError(f"{name} has no header: its first line holds only numbers. Add a line of column names.")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _check_quotes(body: bytes, delimiter: str, name: str) -> None:
    """Refuse a quoted cell without an end, which would swallow all rows that follow."""
    n_rows = 0
    try:
        for row in csv.reader(_lines(body), delimiter=delimiter, strict=True):
            n_rows += bool(row)
    except csv.Error:
        problem = "a quoted cell does not end. Close it, and write a quote inside a quoted cell twice."
        raise DataError(f"{name}, row {n_rows + 1}: {problem}") from None


def _parse(
    body: bytes, delimiter: str, names: Sequence[str], name: str, text_columns: Sequence[str], only: bool = False
) -> pa.Table:
    try:
        return pyarrow.csv.read_csv(
            pa.BufferReader(body),
            pyarrow.csv.ReadOptions(column_names=names, block_size=_BLOCK_SIZE),
            # Rows are split much faster where no cell can hold a line end.
            pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=b'"' in body),
            pyarrow.csv.ConvertOptions(
                null_values=list(MISSING),
                strings_can_be_null=True,
                column_types=dict.fromkeys(text_columns, pa.string()),
                include_columns=list(text_columns) if only else None,
            ),
        )
    except pa.ArrowException as error:
        _check_widths(body, delimiter, len(names), name)
        raise DataError(f"{name} can't be read as CSV: {str(error).splitlines()[0]}.") from None


def _check_widths(body: bytes, delimiter: str, expected: int, name: str) -> None:
    rows = (row for row in csv.reader(_lines(body), delimiter=delimiter) if row)
    try:
        wrong = next(((number, len(row)) for number, row in enumerate(rows, start=1) if len(row) != expected), None)
    except csv.Error:  # a cell of more than 128 KiB, say
        return
    if wrong is not None:
        problem = f"expected {expected} cells, found {wrong[1]}. Put cells that hold {delimiter!r} in quotes."
        raise DataError(f"{name}, row {wrong[0]}: {problem}")


def _without_calendar(table: pa.Table, read_text: Callable[[Sequence[str]], pa.Table]) -> pa.Table:
    """Dates and times as the text that stands in the file."""
    columns = [field.name for field in table.schema if _has_calendar(field.type)]
    if not columns:
        return table
    text = read_text(columns)
    for column in columns:
        table = table.set_column(table.column_names.index(column), column, text.column(column))
    return table


def _with_late_numbers(table: pa.Table, text_columns: Sequence[str]) -> pa.Table:
    """Numbers that the parser takes for text: those too large for a float, and those beside cells of blanks."""
    for position, (column, values) in enumerate(zip(table.column_names, table.columns, strict=True)):
        if not _is_string(values.type) or column in text_columns:
            continue
        trimmed = pc.utf8_trim_whitespace(values)
        trimmed = pc.if_else(pc.is_in(trimmed, pa.array(MISSING)), pa.scalar(None, pa.string()), trimmed)
        try:
            numbers = pd.to_numeric(trimmed.to_pandas().astype(object)).to_numpy("float64")
        except (ValueError, TypeError):
            continue
        table = table.set_column(position, column, pa.array(numbers))
    return table


# Parquet and NumPy ---------------------------------------------------------------------------------------------------


def read_parquet(content: bytes, name: str, options: Options) -> pa.Table:
    """The table in a Parquet file, without the unnamed index that pandas may have left in it."""
    try:
        table = pyarrow.parquet.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError):
        raise DataError(f"{name} is damaged or not a Parquet file. Make or copy it again.") from None
    return table.drop_columns([n for n in table.column_names if re.fullmatch(r"__index_level_\d+__", n)])


def read_numpy(content: bytes, name: str, options: Options) -> pa.Table:
    """The table in an .npy or .npz file, its columns named x0, x1, ...; other arrays of an .npz file on request."""
    with _loading(content, name):
        # Never with pickles: they run code.
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        arrays = {"X": loaded} if isinstance(loaded, np.ndarray) else loaded
        X = _table_of(arrays, name)
        more = {key: arrays[key] for key in options.named if key in arrays and key != "X"}
    if X.ndim != 2:
        raise DataError(f"{name}: expected a table of shape (rows, columns), got shape {X.shape}.")
    columns = {f"x{i}": pa.array(np.ascontiguousarray(values)) for i, values in enumerate(_numbers(X, name).T)}
    return pa.table({key: pa.array(_column(array, key, len(X), name)) for key, array in more.items()} | columns)


@contextmanager
def _loading(content: bytes, name: str) -> Iterator[None]:
    """Say in our own words what NumPy finds wrong with a file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # a damaged header can raise almost anything, a TokenError or a RuntimeError say
        if "object" in str(error).lower() and content.startswith((b"\x93NUMPY", b"PK")):
            problem = "holds Python objects, which are never loaded because they can run code. Save plain numbers."
        else:
            problem = "is damaged or not a NumPy file. Save it again with numpy.save or numpy.savez."
        raise DataError(f"{name} {problem}") from None


def _table_of(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """The array named X, or the only one with rows and columns."""
    if "X" in arrays:
        return arrays["X"]
    shapes = {key: np.shape(array) for key, array in arrays.items()}
    tables = [key for key, shape in shapes.items() if len(shape) == 2]
    if len(tables) == 1:
        return arrays[tables[0]]
    found = ", ".join(f"{key!r} of shape {shape}" for key, shape in shapes.items()) or "no arrays"
    raise DataError(f"{name} holds {found}. Name the table of samples 'X'.")


def _numbers(array: NDArray[Any], name: str) -> NDArray[Any]:
    if array.dtype.kind == "c":
        raise DataError(f"{name} holds complex numbers. Save their real and imaginary parts as columns of their own.")
    if array.dtype.kind not in "biufU":
        raise DataError(f"{name} holds values of type {array.dtype}. Save numbers or text.")
    if array.dtype.kind == "f":
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="))


def _column(array: NDArray[Any], key: str, n_rows: int, name: str) -> NDArray[Any]:
    if array.shape not in ((n_rows,), (n_rows, 1)):
        raise DataError(f"{name}: {key!r} has shape {array.shape}, expected one value for each of the {n_rows} rows.")
    return _numbers(array.reshape(-1), f"{name}, {key!r}")


READERS: dict[str, Callable[[bytes, str, Options], pa.Table]] = {
    ".csv": read_csv,
    ".csv.gz": read_csv_gz,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".npy": read_numpy,
    ".npz": read_numpy,
}


# Writers -------------------------------------------------------------------------------------------------------------


def table_format(path: str | os.PathLike[str]) -> str:
    """The suffix in ``WRITERS`` that a path ends in.

    Examples
    --------
    >>> table_format("out/scores.csv.gz")
    '.csv.gz'
    """
    return _suffix(os.fspath(path), WRITERS)


def write_table(frame: pd.DataFrame, path: str | os.PathLike[str], *, format: str | None = None) -> None:
    """Write a frame without its index; equal frames give equal bytes, and floats are read back as they were.

    Parameters
    ----------
    frame : DataFrame
        What to write.
    path : str or path
        Where to write.
    format : str, optional
        A suffix in ``WRITERS``. Taken from ``path`` unless given.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "scores.part"
    >>> write_table(pd.DataFrame({"row": [1], "anomaly_score": [0.1 + 0.2]}), path, format=".csv")
    >>> path.read_text()
    'row,anomaly_score\\n1,0.30000000000000004\\n'
    """
    format = table_format(path) if format is None else format
    if format not in WRITERS:
        raise DataError(f"The format {format!r} is unknown. Choose from {', '.join(WRITERS)}.")
    WRITERS[format](frame, Path(path))


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a CSV file in UTF-8."""
    frame.to_csv(path, index=False, lineterminator="\n", encoding="utf-8")


def write_csv_gz(frame: pd.DataFrame, path: Path) -> None:
    """Write a CSV file compressed with gzip."""
    # Without a name and a time in its header the file depends on the frame alone.
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
        frame.to_csv(packed, index=False, lineterminator="\n", encoding="utf-8")


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Write a Parquet file."""
    frame.to_parquet(path, index=False, engine="pyarrow")


WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".csv": write_csv,
    ".csv.gz": write_csv_gz,
    ".parquet": write_parquet,
}
