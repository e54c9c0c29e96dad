"""Words for yes and no in columns of numbers, which a batch may hold alone and a whole file with other numbers."""

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from vae_anomaly.errors import DataError

__all__ = ["Words"]


class Words:
    """What the batches of a CSV file hold of each column: words such as ``true``, or numbers besides 0 and 1.

    The words stand for 1 and 0 where all cells of a column are such; beside another number they are slips.

    Examples
    --------
    >>> words = Words("pump.csv")
    >>> words.check(pa.table({"on": [True, None]}), ["on"], 0, lambda texts, only: pa.table({"on": ["true", None]}))
    >>> words.check(pa.table({"on": [2.5]}), ["on"], 2, lambda texts, only: pa.table({"on": ["2.5"]}))
    Traceback (most recent call last):
    vae_anomaly.errors.DataError: pump.csv, row 1, column 'on': 'true' is not a number.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._words: dict[str, str] = {}
        self._numbers: set[str] = set()

    def check(self, table: pa.Table, columns: Sequence[str], first_row: int, again: Callable[..., pa.Table]) -> None:
        """Look at a batch that ``first_row`` rows stand before; ``again(texts, only=...)`` reads columns as text."""
        for column in columns:
            values = table.column(column)
            if pa.types.is_boolean(values.type):
                if column not in self._words:
                    self._note(column, again([column], only=[column]).column(column), first_row)
            elif column not in self._numbers and not pa.types.is_string(values.type) and _has_others(values):
                self._numbers.add(column)
        for column, where in self._words.items():
            if column in self._numbers:
                raise DataError(f"{self.name}, {where} is not a number.")

    def _note(self, column: str, cells: pa.ChunkedArray, first_row: int) -> None:
        for row, cell in enumerate(cells.to_pylist(), start=first_row + 1):
            if cell not in (None, "0", "1"):
                self._words[column] = f"row {row}, column {column!r}: {cell!r}"
                return


def _has_others(values: pa.ChunkedArray) -> bool:
    """Whether there are numbers besides 0 and 1."""
    plain = pc.is_in(values, pa.array([0, 1], pa.int64()).cast(values.type)) if values.type != pa.null() else None
    return plain is not None and not pc.all(pc.or_(plain, pc.is_null(values, nan_is_null=True))).as_py()
