"""Rows of a table as CSV text, written column by column: pandas takes ten times as long for the same bytes."""

import csv
import io
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vae_anomaly.number_texts import exact_texts

__all__ = ["csv_header", "csv_rows"]

# Characters for which a text is put in quotes.
SPECIAL = '",\r\n'
# Arrow joins texts of one type only, and only of this one more than 2 GiB.
NOTHING, COMMA, QUOTE, LINE_END = (pa.scalar(text, pa.large_string()) for text in ("", ",", '"', "\n"))


def csv_header(frame: pd.DataFrame) -> bytes:
    """The line of column names.

    Examples
    --------
    >>> csv_header(pd.DataFrame({"row": [1], "flow, upper": [0.5]}))
    b'row,"flow, upper"\\n'
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(frame.columns)
    return text.getvalue().encode()


def csv_rows(frame: pd.DataFrame) -> bytes:
    """The rows as ``DataFrame.to_csv`` writes them, in UTF-8, of at least two columns of numbers and texts.

    Examples
    --------
    >>> csv_rows(pd.DataFrame({"row": [1, 2], "score": [0.1 + 0.2, None], "reason": [None, "dry, cold"]}))
    b'1,0.30000000000000004,\\n2,,"dry, cold"\\n'
    """
    if frame.empty:
        return b""
    cells = [_cells(values) for _, values in frame.items()]
    cells[-1] = pc.binary_join_element_wise(cells[-1], NOTHING, LINE_END, null_handling="replace", null_replacement="")
    lines = pc.binary_join_element_wise(*cells, COMMA, null_handling="replace", null_replacement="")
    return b"".join(_bytes(chunk) for chunk in (lines.chunks if isinstance(lines, pa.ChunkedArray) else [lines]))


def _bytes(texts: pa.Array) -> bytes:
    """The texts one after the other, which is how Arrow keeps them."""
    offsets = np.frombuffer(texts.buffers()[1], dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return bytes(texts.buffers()[2][int(offsets[0]) : int(offsets[-1])])


def _cells(values: "pd.Series[Any]") -> pa.Array:
    if pd.api.types.is_float_dtype(values.dtype):
        return exact_texts(values.to_numpy(dtype=np.float64, na_value=np.nan)).cast(pa.large_string())
    cells = pa.array(values, from_pandas=True)
    if isinstance(cells, pa.ChunkedArray):
        cells = cells.combine_chunks()
    cells = cells.cast(pa.large_string())
    if pd.api.types.is_numeric_dtype(values.dtype):
        return cells
    if not _has_special(cells):
        return cells
    special = pc.match_substring_regex(cells, f"[{SPECIAL}]").fill_null(False)
    quoted = pc.binary_join_element_wise(QUOTE, pc.replace_substring(cells, '"', '""'), QUOTE, NOTHING)
    return pc.if_else(special, quoted, cells)


def _has_special(texts: pa.Array) -> bool:
    """Whether a quote, a comma or a line end may be in them: of all texts together, in no time."""
    held = texts.buffers()[2]
    joined = b"" if held is None else held.to_pybytes()
    return any(character.encode() in joined for character in SPECIAL)
