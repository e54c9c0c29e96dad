"""Writers of tables."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from vae_anomaly.data.table import known_suffix
from vae_anomaly.errors import DataError

__all__ = ["WRITERS", "table_format", "write_table"]


def table_format(path: str | os.PathLike[str]) -> str:
    """The suffix in ``WRITERS`` that a path ends in.

    Examples
    --------
    >>> table_format("out/scores.csv.gz")
    '.csv.gz'
    """
    return known_suffix(os.fspath(path), WRITERS, reading=False)


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
