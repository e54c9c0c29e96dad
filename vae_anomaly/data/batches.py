"""Tables of any size, a batch of rows at a time: what :func:`~vae_anomaly.data.read` reads whole."""

import functools
import gzip
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from vae_anomaly.data.arrow import Options, check_size, column_names, frame_of
from vae_anomaly.data.csv_blocks import RowEnds, blocks_of_rows, first_rows, n_line_ends
from vae_anomaly.data.delimited import (
    DAMAGED_GZIP,
    check_utf8,
    csv_layout,
    csv_table,
    damaged_gzip,
    find_delimiter,
)
from vae_anomaly.data.table import Data, known_suffix
from vae_anomaly.data.tabular import (
    DAMAGED_PARQUET,
    READERS,
    check_alike,
    check_delimiter,
    damaged_parquet,
    feature_columns,
    is_index,
    names_of,
    opening,
    read_frame,
    row_ids,
    tables_in,
)
from vae_anomaly.data.words import Words
from vae_anomaly.errors import DataError

__all__ = ["START", "Batch", "Batches", "Place", "open_batches"]

# Bytes of text in a batch, or numbers and rows of another file: enough to keep the processor busy, few enough for any
# memory.
BLOCK_SIZE = 1 << 22
MAX_CELLS = 1 << 21
MAX_ROWS = 1 << 13
# Bytes of a column of a Parquet file that are read at once.
PARQUET_BUFFER = 1 << 16


class Place(NamedTuple):
    """How far a table was read."""

    part: int = 0
    """File, in their order."""
    rows: int = 0
    """Rows of that file."""
    offset: int = 0
    """Bytes of its text, header included; 0 at the start, and in files that are no text."""
    lines: int = 0
    """Line ends in that text."""
    total: int = 0
    """Rows of all files."""


START = Place()


class Batch(NamedTuple):
    """Some rows, and the place after them."""

    data: Data
    after: Place


class _Wanted(NamedTuple):
    """Columns to read, and which of them are to be text, or numbers wherever they can be."""

    columns: tuple[str, ...]
    texts: tuple[str, ...]
    numbers: tuple[str, ...]


class _Part(Protocol):
    """One file."""

    name: str
    columns: list[str]

    def frames(self, wanted: _Wanted, start: Place, times: int) -> Iterator[tuple[pd.DataFrame, int, int]]:
        """Rows from a place in the file on, with the bytes and lines up to the end of each batch.

        A batch is so many times as large as usual.
        """


@dataclass(frozen=True)
class Batches:
    """A table in a file, a folder of files, or standard input, whose columns are known and whose rows are not read yet.

    Parameters
    ----------
    name : str
        What messages call the data.
    features : tuple of str
        Columns that are features.
    id : str or None
        Column that identifies the samples; row numbers do without.
    dropped, kept, texts : tuple of str
        As in :func:`~vae_anomaly.data.read`.
    parts : sequence
        The files.
    """

    name: str
    features: tuple[str, ...]
    id: str | None
    dropped: tuple[str, ...]
    kept: tuple[str, ...]
    texts: tuple[str, ...]
    parts: Sequence[Any]

    def header(self) -> Data:
        """The table without its rows: columns of no values."""
        return self._data(pd.DataFrame(columns=list(dict.fromkeys((*self.features, *self.dropped)))), self.features)

    @contextmanager
    def rows_first(self) -> Iterator[None]:
        """What is wrong with the columns is said after what is wrong with the first rows, which may be its cause."""
        try:
            yield
        except DataError:
            next(self.read(), None)
            raise

    def read(
        self,
        columns: Sequence[str] | None = None,
        *,
        numbers: Sequence[str] = (),
        start: Place = START,
        times: int = 1,
    ) -> Iterator[Batch]:
        """The rows, batch by batch.

        Parameters
        ----------
        columns : sequence of str, optional
            Features to read, in this order; all of them unless given.
        numbers : sequence of str
            Features that should hold numbers: a CSV file is read faster, and where they hold none, as without.
        start : Place
            Where an earlier batch ended. The batches from there on are those that would have followed it.
        times : int, default=1
            How many times as large as usual a batch is, for who has the memory.
        """
        features = self.features if columns is None else tuple(columns)
        needed = (*features, *self.kept, *(() if self.id is None else (self.id,)))
        sure = tuple(name for name in numbers if name in features and name not in self.texts)
        wanted = _Wanted(tuple(dict.fromkeys(needed)), self.texts, sure)
        total = start.total
        for index in range(start.part, len(self.parts)):
            part, here = self.parts[index], start if index == start.part else START
            rows = here.rows
            for frame, offset, lines in part.frames(wanted, here, times):
                data = self._data(frame, features, part.name, rows, total)
                rows, total = rows + len(frame), total + len(frame)
                yield Batch(data, Place(index, rows, offset, lines, total))

    def _data(
        self, frame: pd.DataFrame, features: Sequence[str], part: str = "", rows: int = 0, total: int = 0
    ) -> Data:
        numbers = np.arange(total + 1, total + len(frame) + 1)
        return Data(
            X=frame[list(features)],
            y=None,
            ids=numbers if self.id is None or frame.empty else row_ids(frame[self.id]),
            id_name="row" if self.id is None else self.id,
            name=self.name,
            sources=((part or self.name, rows + len(frame)),),
            dropped=self.dropped,
            rows=np.arange(rows, rows + len(frame)),
            kept=frame[list(self.kept)],
        )


def open_batches(
    path: str | os.PathLike[str],
    *,
    id: str | None = None,
    drop: Sequence[str] = (),
    keep: Sequence[str] = (),
    text_columns: Sequence[str] = (),
    delimiter: str | None = None,
) -> Batches:
    """The table that :func:`~vae_anomaly.data.read` would read, with the same options, to be read in batches.

    Raises
    ------
    DataError
        If the file can't be read as a table, as far as its beginning shows.

    Examples
    --------
    >>> path = os.path.join(tempfile.mkdtemp(), "pump.csv")
    >>> with open(path, "w") as file:
    ...     _ = file.write("flow,valve\\n1.5,open\\n,shut\\n")
    >>> batches = open_batches(path)
    >>> batches.features
    ('flow', 'valve')
    >>> [(batch.data.X.shape, batch.after.total) for batch in batches.read(["flow"])]
    [((2, 1), 2)]
    """
    drop, keep, text_columns = map(names_of, (drop, keep, text_columns))
    check_delimiter(delimiter)
    named = tuple(dict.fromkeys(name for name in (id, *keep, *drop) if name is not None))
    texts = text_columns if id is None else (*text_columns, id)
    left_out = tuple(column for column in drop if column not in (id, *keep))
    name, parts = _parts(path, Options(texts, delimiter, named, left_out))
    check_alike([(part.name, part.columns) for part in parts])
    batches = Batches(name, tuple(parts[0].columns), None, (), (), tuple(set(texts) & set(parts[0].columns)), parts)
    with batches.rows_first():
        features = feature_columns(parts[0].columns, named, text_columns, name)
    return Batches(name, tuple(features), id, named, tuple(dict.fromkeys(keep)), texts, parts)


def _parts(path: str | os.PathLike[str], options: Options) -> tuple[str, list[_Part]]:
    name = os.fspath(path)
    if name == "-":
        return "standard input", [_standard_input(options)]
    if not os.path.isdir(name):
        return name, [_part(name, options)]
    return name, [_part(file, options) for file in tables_in(name)]


def _part(name: str, options: Options) -> _Part:
    suffix = known_suffix(name, READERS)
    # A folder of that name can't be opened, either.
    with opening(name), open(name, "rb") as file:
        empty = not file.read(1)
    if empty:
        raise DataError(f"{name} is empty.")
    if suffix == ".parquet":
        return _Parquet(name, lambda: name, options)
    if suffix in (".npy", ".npz"):
        return _Whole(name, options)
    if suffix == ".tsv":
        options = replace(options, delimiter=options.delimiter or "\t")
    return _Csv(name, gzip.open if suffix == ".csv.gz" else open, options)


def _standard_input(options: Options) -> _Part:
    name, stream = "standard input", sys.stdin.buffer
    text, _ = first_rows(stream, name)
    if not text:
        raise DataError(f"{name} is empty.")
    if not text.startswith(b"PAR1"):
        return _Csv(name, lambda *_: _Prefixed(text, stream), options)
    # The columns of a Parquet file stand at its end.
    spooled = tempfile.TemporaryFile(prefix="vae-anomaly-")  # noqa: SIM115  (it lives as long as the part)
    spooled.write(text)
    shutil.copyfileobj(stream, spooled)

    def rewound() -> Any:
        spooled.seek(0)
        return spooled

    return _Parquet(name, rewound, options)


class _Prefixed:
    """A stream that can't go back, with what was read of it already. It may be read twice up to there."""

    def __init__(self, prefix: bytes, stream: Any) -> None:
        self.prefix, self.stream = prefix, stream

    def read(self, size: int) -> bytes:
        found, self.prefix = self.prefix[:size], self.prefix[size:]
        return found or bytes(self.stream.read(size))

    def close(self) -> None:
        """Standard input stays open."""


class _Csv:
    """CSV text in a file, plain or packed, or from a stream."""

    def __init__(self, name: str, open_stream: Callable[..., Any], options: Options) -> None:
        self.name, self._open = name, open_stream
        with self._reading() as stream:
            given = None if options.delimiter is None else RowEnds(options.delimiter)
            self._first, whole = first_rows(stream, name, given)
        ends = given or RowEnds(",")
        some = self._first if whole else self._first[: ends.last(self._first)]
        if not self._first:
            raise DataError(f"{name} is empty.")
        check_utf8(some, name)
        delimiter = options.delimiter or find_delimiter(self._first, name)
        # The rows may go on where the beginning ends.
        self.layout = csv_layout(self._first if whole else some + b".", name, Options(delimiter=delimiter))
        self.columns, self._ends = list(self.layout.names), RowEnds(delimiter)

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        try:
            with closing(self._open(self.name, "rb")) as stream:
                yield stream
        except DAMAGED_GZIP:
            if self._open is gzip.open:
                raise damaged_gzip(self.name) from None
            raise

    def frames(self, wanted: _Wanted, start: Place, times: int) -> Iterator[tuple[pd.DataFrame, int, int]]:
        rows, lines, offset = start.rows, start.lines, start.offset or self.layout.length
        texts, words = [column for column in wanted.texts if column in wanted.columns], Words(self.name)
        with self._reading() as stream:
            if isinstance(stream, _Prefixed):
                stream = _Prefixed(self._first[offset:], stream.stream)
            else:
                stream.seek(offset)
            lines = lines or self._first.count(b"\n", 0, offset)
            for text in blocks_of_rows(stream, self._ends, self.name, times * BLOCK_SIZE):
                check_utf8(text, self.name, lines)
                offset, lines = offset + len(text), lines + n_line_ends(text)
                if text.isspace():
                    continue
                rows_of = functools.partial(csv_table, text, self.layout, self.name, first_row=rows)
                table = rows_of(texts, numbers=wanted.numbers, only=wanted.columns)
                words.check(table, wanted.numbers, rows, rows_of)
                rows += table.num_rows
                yield frame_of(table, self.name, wanted.texts), offset, lines


class _Parquet:
    """A Parquet file, read by runs of its row groups."""

    def __init__(self, name: str, source: Callable[[], Any], options: Options) -> None:
        self.name, self._source = name, source
        with self._reading() as file:
            schema, n_rows = file.schema_arrow, file.metadata.num_rows
        raw = [column for column in schema.names if not is_index(column)]
        self.columns = column_names(raw, name)
        self._raw = dict(zip(self.columns, raw, strict=True))
        check_size(len(raw), n_rows, name)
        # Types that can't be used are refused before any work, in columns that are not read, too.
        types = {full: schema.field(column).type for full, column in self._raw.items()}
        one = pa.table({full: pa.nulls(1, kind) for full, kind in types.items()})
        frame_of(one, name, options.text_columns, options.left_out)

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        try:
            # A whole row group in a buffer would take as much memory as its batches do.
            with pyarrow.parquet.ParquetFile(self._source(), pre_buffer=False, buffer_size=PARQUET_BUFFER) as file:
                yield file
        except DAMAGED_PARQUET:
            raise damaged_parquet(self.name) from None

    def frames(self, wanted: _Wanted, start: Place, times: int) -> Iterator[tuple[pd.DataFrame, int, int]]:
        size = _rows_at_once(wanted, times)
        names = [self._raw[column] for column in wanted.columns]
        rows = 0
        with self._reading() as file:
            for groups, n_rows in _runs(file.metadata, size):
                if rows + n_rows <= start.rows:
                    rows += n_rows
                    continue
                for batch in file.iter_batches(size, row_groups=groups, columns=names):
                    rows += len(batch)
                    if rows <= start.rows or not len(batch):
                        continue
                    columns = [batch.column(batch.schema.get_field_index(name)) for name in names]
                    table = pa.table(columns, names=list(wanted.columns))
                    yield frame_of(table, self.name, wanted.texts), 0, 0


def _rows_at_once(wanted: _Wanted, times: int) -> int:
    return max(1, times * min(MAX_ROWS, MAX_CELLS // max(1, len(wanted.columns))))


def _runs(metadata: Any, size: int) -> Iterator[tuple[list[int], int]]:
    """Row groups that follow each other and have ``size`` rows or more together, and how many."""
    groups, n_rows = [], 0
    for index in range(metadata.num_row_groups):
        groups.append(index)
        n_rows += metadata.row_group(index).num_rows
        if n_rows >= size or index == metadata.num_row_groups - 1:
            yield groups, n_rows
            groups, n_rows = [], 0


class _Whole:
    """A file of another format, which is read whole."""

    def __init__(self, name: str, options: Options) -> None:
        self.name = name
        self._frame = read_frame(name, options)
        self.columns = list(self._frame.columns)

    def frames(self, wanted: _Wanted, start: Place, times: int) -> Iterator[tuple[pd.DataFrame, int, int]]:
        size = _rows_at_once(wanted, times)
        for first in range(start.rows, len(self._frame), size):
            yield self._frame[list(wanted.columns)].iloc[first : first + size].reset_index(drop=True), 0, 0
