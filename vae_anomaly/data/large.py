"""The normal rows of a table of any size: in batches, read anew each time they are asked for, or a sample of them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
from numpy.typing import NDArray

from vae_anomaly.data.batches import Batches, open_batches
from vae_anomaly.data.table import Data, labels
from vae_anomaly.data.tabular import READERS, tables_in
from vae_anomaly.in_parts import survey

__all__ = ["Counts", "LargeTable", "memory_needed"]

# A cell takes eight bytes as it is read, as many in a frame, and some more on the way to encoded rows: measured with a
# Parquet file of a million rows and 20 columns.
BYTES_PER_CELL = 35
# Bytes of memory for one of a CSV file, whose cells have some eight characters, and for one of a packed file.
PER_BYTE = {".csv": 4, ".tsv": 4, ".csv.gz": 20, ".npy": 4, ".npz": 4}


@dataclass
class Counts:
    """Rows of a table by label."""

    rows: int = 0
    normal: int = 0
    anomalies: int = 0
    unlabelled: int = 0


class LargeTable:
    """The normal rows of a table in a file or a folder, batch by batch.

    Parameters
    ----------
    path : str or path
    label, normal_value, id, drop, keep, text_columns, delimiter
        As in :func:`~vae_anomaly.data.read`.

    Raises
    ------
    DataError
        If the table can't be read, or it is unclear which rows are normal.

    Examples
    --------
    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "pump.csv")
    >>> with open(path, "w") as file:
    ...     _ = file.write("flow,state\\n1.5,0\\n2.5,1\\n3.5,0\\n")
    >>> table = LargeTable(path, label="state")
    >>> [frame["flow"].tolist() for frame in table.parts()], table.counts.anomalies
    ([[1.5, 3.5]], 1)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        label: str | None = None,
        normal_value: Sequence[str] = (),
        id: str | None = None,
        drop: Sequence[str] = (),
        keep: Sequence[str] = (),
        text_columns: Sequence[str] = (),
        delimiter: str | None = None,
    ) -> None:
        kept = tuple(dict.fromkeys(name for name in (label, *keep) if name is not None))
        self._open = partial(open_batches, path, id=id, drop=drop, keep=kept, delimiter=delimiter)
        self.label, self.keep, self._texts = label, tuple(keep), tuple(text_columns)
        batches = self._batches(())
        self.name, self.dropped, self.id_name = batches.name, batches.dropped, batches.id or "row"
        self._codes = None if label is None else self._label_codes(batches, label, normal_value)
        self.counts = Counts()
        self.sources: tuple[tuple[str, int], ...] = ()

    def _batches(self, texts: Sequence[str]) -> Batches:
        return self._open(text_columns=tuple(dict.fromkeys((*self._texts, *texts))))

    def _label_codes(self, batches: Batches, label: str, normal_value: Sequence[str]) -> dict[Any, int]:
        """What each label says: all of them, as none alone tells that a normal value never occurs."""
        found: dict[Any, None] = {}
        for batch in batches.read(()):
            found.update(dict.fromkeys(batch.data.kept[label].dropna().unique().tolist()))
        values = pd.Series(list(found), dtype=object, name=label)
        return dict(zip(found, labels(values, normal_value, self.name).tolist(), strict=True))

    def parts(self, texts: Sequence[str] = (), *, kept: bool = False) -> Iterator[pd.DataFrame]:
        """Features of the normal rows; the index says which rows of the table they are.

        Parameters
        ----------
        texts : sequence of str
            Columns to read as text.
        kept : bool, default=False
            Give the columns that travel along, too.
        """
        counts, sources = Counts(), dict[str, int]()
        for batch in self._batches(texts).read():
            data = batch.data
            sources |= data.sources
            normal = self._normal(data, counts)
            frame = pd.concat([data.X, data.kept[list(self.keep)]], axis=1) if kept else data.X
            yield frame.set_axis(np.arange(batch.after.total - len(frame), batch.after.total))[normal]
        self.counts, self.sources = counts, tuple(sources.items())

    def _normal(self, data: Data, counts: Counts) -> NDArray[np.bool_]:
        """Which rows are normal; all rows are counted."""
        if self._codes is None:
            codes = np.zeros(len(data), dtype=np.int8)
        else:
            codes = data.kept[self.label].map(self._codes).fillna(-1).to_numpy(dtype=np.int8)
        counts.rows += len(codes)
        counts.normal += int((codes == 0).sum())
        counts.anomalies += int((codes == 1).sum())
        counts.unlabelled += int((codes == -1).sum())
        return np.asarray(codes == 0)

    def sample(self, n_rows: int, seed: int) -> Data:
        """``n_rows`` of the normal rows, drawn uniformly from the whole table, in their order; all if there are fewer.

        Memory holds these rows and one batch.
        """
        found = survey(partial(self.parts, kept=True), n_rows, seed)
        rows = found.sample.index.to_numpy()
        frame = found.sample.reset_index(drop=True)
        return Data(
            X=frame.drop(columns=list(self.keep)),
            y=None,
            ids=rows + 1,
            id_name="row",
            name=self.name,
            sources=self.sources,
            dropped=self.dropped,
            rows=rows,
            kept=frame[list(self.keep)],
        )

    @property
    def kept(self) -> pd.DataFrame:
        """Columns that travel along with the normal rows."""
        return pd.concat([frame[list(self.keep)] for frame in self.parts(kept=True)], ignore_index=True)

    def locate(self, i: int) -> str:
        """File and 1-based row of the normal row ``i``; the table is gone through to find it."""
        start, row = 0, None
        for frame in self.parts():
            if row is None and i < start + len(frame):
                row = int(frame.index[i - start])
            start += len(frame)
        if row is None:
            raise IndexError(f"{self.name} has {start} normal rows, there is no sample {i}.")
        for name, n_rows in self.sources:
            if row < n_rows:
                return f"{name}, row {row + 1}"
            row -= n_rows
        raise AssertionError("every row is in a file")


def memory_needed(path: str | os.PathLike[str]) -> int:
    """About how many bytes it takes to fit on a table that is read whole, from the sizes of its files.

    Examples
    --------
    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "pump.csv")
    >>> with open(path, "w") as file:
    ...     _ = file.write("1.5,2\\n" * 1000)
    >>> memory_needed(path)
    24000
    """
    name = os.fspath(path)
    files = tables_in(name) if os.path.isdir(name) else [name]
    return sum(map(_file_needs, files))


def _file_needs(path: str) -> int:
    suffix = next((suffix for suffix in READERS if path.lower().endswith(suffix)), "")
    try:
        if suffix == ".parquet":
            metadata = pyarrow.parquet.read_metadata(path)
            return int(metadata.num_rows * metadata.num_columns * BYTES_PER_CELL)
        return int(os.path.getsize(path) * PER_BYTE.get(suffix, 0))
    except (OSError, pyarrow.ArrowException):
        # What is wrong with it says whoever reads it.
        return 0
