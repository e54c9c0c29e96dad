"""Tables in files, folders of files, and standard input."""

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from vae_anomaly.data.arrow import Options, column_names, frame_of
from vae_anomaly.data.delimited import read_csv, read_csv_gz, read_tsv
from vae_anomaly.data.table import Data, known_suffix, labels, no_such_column
from vae_anomaly.errors import DataError
from vae_anomaly.frames import holds_text, joined

__all__ = [
    "DAMAGED_PARQUET",
    "READERS",
    "check_alike",
    "check_delimiter",
    "damaged_parquet",
    "feature_columns",
    "is_index",
    "names_of",
    "opening",
    "read",
    "read_frame",
    "row_ids",
    "tables_in",
]

DAMAGED_PARQUET = (pa.ArrowException, OSError)


def read(
    path: str | os.PathLike[str],
    *,
    label: str | None = None,
    normal_value: Sequence[str] = (),
    id: str | None = None,
    drop: Sequence[str] = (),
    keep: Sequence[str] = (),
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
    keep : sequence of str
        Columns that are no features either and travel along in ``Data.kept``: a machine, or a kind of anomaly. The
        label may be one of them.
    text_columns : sequence of str
        Columns that are text even where they look like numbers, so that ``007`` stays ``007``.
    delimiter : str, optional
        One character between the cells of a CSV file. Found in the header and the first rows unless given.

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
    >>> read(path, keep=["state"]).kept["state"].tolist()
    ['ok', 'leak']
    """
    normal_value, drop, keep, text_columns = map(names_of, (normal_value, drop, keep, text_columns))
    if normal_value and label is None:
        raise DataError("A normal value was given without a label column. Name the column with --label.")
    check_delimiter(delimiter)
    named = tuple(dict.fromkeys(name for name in (label, id, *keep, *drop) if name is not None))
    # Ids are read as text, so that they come out as they stand in the file.
    left_out = tuple(name for name in drop if name not in (label, id, *keep))
    options = Options(text_columns if id is None else (*text_columns, id), delimiter, named, left_out)
    name, parts = _parts(path, options)
    frame = _joined(parts)
    features = feature_columns(list(frame.columns), named, text_columns, name)
    return Data(
        X=frame[features],
        y=None if label is None else labels(frame[label], normal_value, name),
        ids=np.arange(1, len(frame) + 1) if id is None else row_ids(frame[id]),
        id_name="row" if id is None else id,
        name=name,
        sources=tuple((part.name, len(part.frame)) for part in parts),
        dropped=named,
        kept=frame[list(dict.fromkeys(keep))],
    )


def names_of(names: Sequence[str]) -> tuple[str, ...]:
    """Names of columns, of which one may come alone."""
    return (names,) if isinstance(names, str) else tuple(map(str, names))


def check_delimiter(delimiter: str | None) -> None:
    """Refuse a delimiter that is not one character."""
    if delimiter is not None and len(delimiter) != 1:
        raise DataError(f"The delimiter {delimiter!r} is not one character.")


def feature_columns(columns: Sequence[str], named: Sequence[str], texts: Sequence[str], where: str) -> list[str]:
    """The columns besides those that were asked for by name, all of which have to be there."""
    for column in dict.fromkeys((*named, *texts)):
        if column not in columns:
            raise no_such_column(where, column, columns)
    features = [column for column in columns if column not in named]
    if not features:
        raise DataError(f"{where} has no column left besides {', '.join(map(repr, named))}: there are no features.")
    return features


def row_ids(values: "pd.Series[Any]") -> NDArray[Any]:
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
        return name, [_part(name, known_suffix(name, READERS), Path(name).read_bytes, options)]
    return name, [_part(path, known_suffix(path, READERS), Path(path).read_bytes, options) for path in tables_in(name)]


def tables_in(folder: str) -> list[str]:
    """Paths of the tables in a folder, by name."""
    # Hidden files are left out: some systems leave one beside each file, under the same suffix.
    files = sorted(f for f in os.listdir(folder) if f.lower().endswith(tuple(READERS)) and not f.startswith("."))
    if not files:
        raise DataError(f"{folder} is a folder without a table. Known suffixes are {', '.join(READERS)}.")
    return [os.path.join(folder, file) for file in files]


def _part(name: str, suffix: str, content: Callable[[], bytes], options: Options) -> _Part:
    def frame(more_text: Sequence[str]) -> pd.DataFrame:
        text_columns = (*options.text_columns, *more_text)
        table = READERS[suffix](_bytes(name, content), name, replace(options, text_columns=text_columns))
        return frame_of(table, name, text_columns, options.left_out)

    return _Part(name, frame(()), frame)


def read_frame(name: str, options: Options) -> pd.DataFrame:
    """The table in one file, whole."""
    return _part(name, known_suffix(name, READERS), Path(name).read_bytes, options).frame


@contextmanager
def opening(name: str) -> Iterator[None]:
    """Say in our own words that a file can't be opened."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{name} does not exist.") from None
    except OSError as error:
        raise DataError(f"{name} can't be opened: {error.strerror or error}.") from None


def _bytes(name: str, content: Callable[[], bytes]) -> bytes:
    with opening(name):
        found = content()
    if not found:
        raise DataError(f"{name} is empty.")
    return found


def _joined(parts: list[_Part]) -> pd.DataFrame:
    """The rows of all parts, columns matched by name."""
    first, *others = parts
    if not others:
        return first.frame
    check_alike([(part.name, list(part.frame.columns)) for part in parts])
    frames = [part.frame[list(first.frame.columns)] for part in parts]
    # A column that is text in one file is text in all, read anew so that 007 does not come back as 7.
    mixed = [name for name in first.frame if len({holds_text(f[name]) for f in frames if f[name].notna().any()}) > 1]
    if mixed:
        frames = [part.read(mixed)[list(first.frame.columns)] for part in parts]
    return joined(frames, ignore_index=True)


def check_alike(parts: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Refuse files, given by name and columns, whose columns are not the same."""
    first, *others = parts
    for other in others:
        for (one, its), (two, columns) in ((first, other), (other, first)):
            for column in [column for column in columns if column not in set(its)]:
                raise DataError(f"{one} has no column {column!r}, and {two} has. Give all files the same.")


# Parquet and NumPy ---------------------------------------------------------------------------------------------------


def read_parquet(content: bytes, name: str, options: Options) -> pa.Table:
    """The table in a Parquet file, without the unnamed index that pandas may have left in it."""
    try:
        names = pyarrow.parquet.read_schema(pa.BufferReader(content)).names
        # The table can't be read if names repeat, which is no damage.
        column_names([column for column in names if not is_index(column)], name)
        table = pyarrow.parquet.read_table(pa.BufferReader(content))
    except DAMAGED_PARQUET:
        raise damaged_parquet(name) from None
    return table.drop_columns([column for column in table.column_names if is_index(column)])


def damaged_parquet(name: str) -> DataError:
    """What to say of a file that raises one of ``DAMAGED_PARQUET``."""
    return DataError(f"{name} is damaged or not a Parquet file. Make or copy it again.")


def is_index(column: str) -> bool:
    """Whether a column is the unnamed index of a frame."""
    return bool(re.fullmatch(r"__index_level_\d+__", column))


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
