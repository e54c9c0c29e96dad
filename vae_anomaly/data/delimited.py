"""Readers of CSV and its relatives."""

import csv
import gzip
import io
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from vae_anomaly.data.arrow import Options, column_names, has_calendar, is_string
from vae_anomaly.errors import DataError, DataWarning

__all__ = [
    "DAMAGED_GZIP",
    "DELIMITERS",
    "MISSING",
    "Layout",
    "check_utf8",
    "csv_layout",
    "csv_table",
    "damaged_gzip",
    "find_delimiter",
    "read_csv",
    "read_csv_gz",
    "read_tsv",
]

MISSING = ("", "NA", "NaN", "nan", "-nan", "-NaN", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NULL", "null", "None")

DAMAGED_GZIP = (OSError, EOFError, zlib.error)

DELIMITERS = ",;\t|"
# What of a file decides on its delimiter: bytes, and rows with the header.
SAMPLE_SIZE = 1 << 16
SAMPLE_ROWS = 100

# What files of other kinds begin with.
_NO_TEXT = {
    b"\x1f\x8b": "is compressed with gzip. Unpack it, or give it a name that ends in .csv.gz.",
    b"PAR1": "is a Parquet file. Give it a name that ends in .parquet.",
}
_BOM = b"\xef\xbb\xbf"
# With a point or a comma, and with either between thousands.
_NUMBER = re.compile(r"[-+]?[\d.,]*\d[\d.,]*(?:[eE][-+]?\d+)?")
_EMPTY_LINE = re.compile(rb"(?:\A|\n|\r(?!\n))[\r\n]")
# Blocks are parsed side by side, but a row has to fit into one: if it does not, into a larger one.
_BLOCK_SIZES = (1 << 22, 1 << 24)


def read_csv(content: bytes, name: str, options: Options) -> pa.Table:
    """The table in a CSV file, its types inferred from all rows."""
    check_utf8(content, name)
    layout = csv_layout(content, name, options)
    return csv_table(content[layout.length :], layout, name, options.text_columns)


@dataclass(frozen=True)
class Layout:
    """What the header of a CSV file says."""

    names: tuple[str, ...]
    delimiter: str
    length: int
    """Bytes up to the end of the header."""


def csv_layout(content: bytes, name: str, options: Options) -> Layout:
    """Layout of a CSV file from its first rows, or all of them."""
    bare = content.removeprefix(_BOM)
    if bare.isspace() or not bare:
        raise DataError(f"{name} is empty.")
    delimiter = options.delimiter or find_delimiter(content, name)
    header, length = _header(bare, delimiter, name)
    _check_header(header, name)
    names = column_names([cell.strip() for cell in header], name)
    body = bare[length:]
    if body.isspace() or not body:
        raise DataError(f"{name} has a header and no rows.")
    return Layout(tuple(names), delimiter, length + len(content) - len(bare))


def csv_table(
    body: bytes,
    layout: Layout,
    name: str,
    text_columns: Sequence[str],
    *,
    numbers: Sequence[str] = (),
    only: Sequence[str] | None = None,
    first_row: int = 0,
) -> pa.Table:
    """The table in some rows of a CSV file, ``first_row`` of which stand before them.

    Types are inferred from these rows, where they are not known: columns in ``text_columns`` are text, and those in
    ``numbers`` are floats if all their cells can be. ``only`` names the columns to read.
    """
    # Looking for the first one takes a tenth of the time of counting none.
    if b'"' in body and body.count(b'"') % 2:
        _check_quotes(body, layout.delimiter, name, first_row)
    if len(layout.names) == 1 and _has_empty_lines(body):
        warnings.warn(
            f'{name} has empty lines, which are skipped, and its rows are numbered without them. Write "" where its '
            "only column has no value.",
            DataWarning,
            stacklevel=2,
        )

    def parse(types: Mapping[str, pa.DataType], columns: Sequence[str] | None) -> pa.Table:
        return _parse(body, layout, types, columns)

    texts = dict.fromkeys(text_columns, pa.string())
    if numbers:
        try:
            return parse({**dict.fromkeys(numbers, pa.float64()), **texts}, only)
        except pa.ArrowException:
            # Cells of blanks and of words, which inference tells from each other.
            pass
    try:
        table = _without_calendar(
            parse(texts, only), lambda columns: parse(dict.fromkeys(columns, pa.string()), columns)
        )
    except pa.ArrowException as error:
        _check_widths(body, layout.delimiter, len(layout.names), name, first_row)
        raise DataError(f"{name} can't be read as CSV: {str(error).splitlines()[0]}.") from None
    return _with_late_numbers(table, text_columns)


def read_csv_gz(content: bytes, name: str, options: Options) -> pa.Table:
    """The table in a CSV file compressed with gzip."""
    try:
        plain = gzip.decompress(content)
    except DAMAGED_GZIP:
        raise damaged_gzip(name) from None
    if not plain:
        raise DataError(f"{name} is empty.")
    return read_csv(plain, name, options)


def damaged_gzip(name: str) -> DataError:
    """What to say of a file that raises one of ``DAMAGED_GZIP``."""
    return DataError(f"{name} is damaged, cut short or not compressed with gzip. Make or copy it again.")


def read_tsv(content: bytes, name: str, options: Options) -> pa.Table:
    """The table in a file with tabs between the cells."""
    return read_csv(content, name, replace(options, delimiter=options.delimiter or "\t"))


def check_utf8(content: bytes, name: str, first_line: int = 0) -> None:
    """Refuse what is no text; ``first_line`` lines of the file stand before ``content``."""
    try:
        content.isascii() or content.decode()
    except UnicodeDecodeError as error:
        for magic, advice in _NO_TEXT.items():
            if not first_line and content.startswith(magic):
                raise DataError(f"{name} {advice}") from None
        line = first_line + content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}, line {line} is not UTF-8 text. Save the file again as UTF-8.") from None


def find_delimiter(content: bytes, name: str) -> str:
    """The character that splits the header and the first rows of a CSV file into equally many cells.

    Of several, the one that leaves more numbers, decimal commas included, and then texts, whole. If there is none, the
    one that does so with most rows, or occurs most often in the header; a comma by default.

    Raises
    ------
    DataError
        If two are as likely.
    """
    header, tables = _beginning(content)
    fits = {delimiter: _share_that_fits(rows) for delimiter, rows in tables.items()}
    fitting = [delimiter for delimiter, share in fits.items() if share == 1.0]
    if not fitting:
        bare = re.sub('"[^"]*"', "", header)
        return max(DELIMITERS, key=lambda delimiter: (fits[delimiter], bare.count(delimiter)))
    numbers = {delimiter: _numbers(tables[delimiter][1:], fitting) for delimiter in fitting}
    best = [delimiter for delimiter in fitting if numbers[delimiter] == max(numbers.values())]
    if len(best) > 1:
        either = " or ".join(map(repr, best))
        raise DataError(f"{name}: {either} may stand between its cells. Name the right one with --delimiter.")
    return best[0]


def _beginning(content: bytes) -> tuple[str, dict[str, list[list[str]]]]:
    """The header, and the rows that a file begins with as each delimiter splits them; the same however much is given.

    A file that is read in batches is known as far as ``SAMPLE_SIZE`` at least.
    """
    sample = content[:SAMPLE_SIZE]
    cut = len(sample) == SAMPLE_SIZE
    if cut:
        sample = sample[: max(sample.rfind(b"\n"), sample.rfind(b"\r")) + 1]
    if not sample.removeprefix(_BOM).strip():
        # The header alone is longer.
        sample = next((line.encode() for line in _lines(content) if line.strip()), b"")
    lines = [*io.StringIO(sample.removeprefix(_BOM).decode(errors="replace"), newline="")]
    header = next((line for line in lines if line.strip()), "")
    return header, {delimiter: _split(lines, delimiter, cut) for delimiter in DELIMITERS}


def _split(lines: Sequence[str], delimiter: str, cut: bool) -> list[list[str]]:
    """The first rows, the header among them; a quoted cell may be cut in the last one."""
    try:
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if len(row) > 1 or any(map(str.strip, row))]
    except csv.Error:  # a cell of more than 128 KiB, say
        return []
    return (rows[:-1] if cut else rows)[:SAMPLE_ROWS]


def _share_that_fits(rows: Sequence[Sequence[str]]) -> float:
    """Share of the rows below the header that have as many cells as it; 0 if it has but one."""
    if len(rows) < 2 or len(rows[0]) < 2:
        return 0.0
    return sum(len(row) == len(rows[0]) for row in rows[1:]) / (len(rows) - 1)


def _numbers(rows: Sequence[Sequence[str]], delimiters: Sequence[str]) -> tuple[float, bool]:
    """Share of the cells that are numbers, and whether no other cell holds one of the delimiters."""
    cells = [cell.strip() for row in rows for cell in row]
    given = [cell for cell in cells if cell not in MISSING]
    others = [cell for cell in given if not _NUMBER.fullmatch(cell)]
    whole = not any(delimiter in cell for cell in others for delimiter in delimiters)
    return 1 - len(others) / max(1, len(given)), whole


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


def _check_quotes(body: bytes, delimiter: str, name: str, first_row: int) -> None:
    """Refuse a quoted cell without an end, which would swallow all rows that follow."""
    n_rows = 0
    try:
        for row in csv.reader(_lines(body), delimiter=delimiter, strict=True):
            n_rows += bool(row)
    except csv.Error:
        problem = "a quoted cell does not end. Close it, and write a quote inside a quoted cell twice."
        raise DataError(f"{name}, row {first_row + n_rows + 1}: {problem}") from None


def _has_empty_lines(body: bytes) -> bool:
    """Whether lines are empty outside of quotes, but for those at the end."""
    if not _EMPTY_LINE.search(body):
        return False
    try:
        return not all(csv.reader(_lines(body.rstrip())))
    except csv.Error:  # a cell of more than 128 KiB, say
        return False


def _parse(body: bytes, layout: Layout, types: Mapping[str, pa.DataType], columns: Sequence[str] | None) -> pa.Table:
    smaller, larger = _BLOCK_SIZES
    try:
        return _parse_blocks(body, layout, types, columns, smaller)
    except pa.ArrowInvalid as error:
        if "straddling" not in str(error):
            raise
    return _parse_blocks(body, layout, types, columns, larger)


def _parse_blocks(
    body: bytes,
    layout: Layout,
    types: Mapping[str, pa.DataType],
    columns: Sequence[str] | None,
    size: int,
) -> pa.Table:
    return pyarrow.csv.read_csv(
        pa.BufferReader(body),
        pyarrow.csv.ReadOptions(column_names=layout.names, block_size=size),
        # Rows are split much faster where no cell can hold a line end.
        pyarrow.csv.ParseOptions(delimiter=layout.delimiter, newlines_in_values=b'"' in body),
        pyarrow.csv.ConvertOptions(
            null_values=list(MISSING),
            strings_can_be_null=True,
            column_types=types,
            include_columns=None if columns is None else list(columns),
        ),
    )


def _check_widths(body: bytes, delimiter: str, expected: int, name: str, first_row: int) -> None:
    rows = (row for row in csv.reader(_lines(body), delimiter=delimiter) if row)
    try:
        wrong = next(((number, len(row)) for number, row in enumerate(rows, start=1) if len(row) != expected), None)
    except csv.Error:  # a cell of more than 128 KiB, say
        return
    if wrong is not None:
        problem = f"expected {expected} cells, found {wrong[1]}"
        advice = f"Put cells that hold {delimiter!r} in quotes, or name another delimiter with --delimiter."
        raise DataError(f"{name}, row {first_row + wrong[0]}: {problem}. {advice}")


def _without_calendar(table: pa.Table, read_text: Callable[[Sequence[str]], pa.Table]) -> pa.Table:
    """Dates and times as the text that stands in the file."""
    columns = [field.name for field in table.schema if has_calendar(field.type)]
    if not columns:
        return table
    text = read_text(columns)
    for column in columns:
        table = table.set_column(table.column_names.index(column), column, text.column(column))
    return table


def _with_late_numbers(table: pa.Table, text_columns: Sequence[str]) -> pa.Table:
    """Numbers that the parser takes for text: those too large for a float, and those beside cells of blanks."""
    for position, (column, values) in enumerate(zip(table.column_names, table.columns, strict=True)):
        if not is_string(values.type) or column in text_columns:
            continue
        trimmed = pc.utf8_trim_whitespace(values)
        trimmed = pc.if_else(pc.is_in(trimmed, pa.array(MISSING)), pa.scalar(None, pa.string()), trimmed)
        try:
            numbers = pd.to_numeric(trimmed.to_pandas().astype(object)).to_numpy("float64")
        except (ValueError, TypeError):
            continue
        table = table.set_column(position, column, pa.array(numbers))
    return table
