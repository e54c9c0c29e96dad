"""A table of any size -> predictions file: reading, scoring and writing overlap, in the memory of a few batches."""

import functools
import gzip
import io
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from vae_anomaly.atomic import replacing
from vae_anomaly.csv_text import csv_header, csv_rows
from vae_anomaly.data.batches import START, Batch, Batches, Place
from vae_anomaly.discoveries import check_fdr
from vae_anomaly.drift import LowScores
from vae_anomaly.errors import DataError
from vae_anomaly.partial import Partial
from vae_anomaly.predictions import Known, flagged_together, groups_of, has_group, known_columns, predicted
from vae_anomaly.tallies import Tally
from vae_anomaly.workers import stream

if TYPE_CHECKING:
    from vae_anomaly.detector import VAEDetector

__all__ = ["ScoreRun", "new_tally"]

# A GPU is through with a batch before Python has said what to do with it, so it gets larger ones.
TIMES_ON_GPU = 8
# Rows of a row group of a Parquet file.
ROW_GROUP = 1 << 17

OnRows = Callable[[int], None]
Encoder = Callable[[pd.DataFrame], bytes]


class _Scored(NamedTuple):
    """Predictions of a batch, as they are written, too, and the place after it."""

    table: pd.DataFrame
    content: bytes
    without_group: int
    after: Place


@dataclass(frozen=True)
class ScoreRun:
    """Scoring of one table, to a file or to a stream.

    Parameters
    ----------
    detector : VAEDetector
    batches : Batches
    score_names, n_top, fdr : optional
        As for :func:`~vae_anomaly.predictions.predict_table`, which gives the same table.
    on_rows : callable, optional
        Told how many rows have been scored so far.

    Examples
    --------
    >>> import os
    >>> import numpy as np
    >>> from vae_anomaly.data.batches import open_batches
    >>> from vae_anomaly.detector import VAEDetector
    >>> rng = np.random.default_rng(0)
    >>> frame = pd.DataFrame(rng.normal(size=(100, 3)), columns=["flow", "heat", "load"])
    >>> folder = tempfile.mkdtemp()
    >>> source, output = os.path.join(folder, "new.csv"), os.path.join(folder, "scores.csv")
    >>> frame.to_csv(source, index=False)
    >>> detector = VAEDetector(max_steps=20, n_estimators=1).fit(frame)
    >>> run = ScoreRun(detector, open_batches(source))
    >>> run.to_file(output, ".csv", task={}).rows
    100
    >>> sorted(os.listdir(folder))
    ['new.csv', 'scores.csv']
    """

    detector: "VAEDetector"
    batches: Batches
    score_names: Sequence[str] = ()
    n_top: int = 3
    fdr: float | None = None
    on_rows: OnRows | None = None

    def __post_init__(self) -> None:
        # Before any row is read.
        if self.fdr is not None:
            check_fdr(self.fdr)

    @property
    def ignored_columns(self) -> tuple[str, ...]:
        """Columns that the model does not know."""
        return self._known.extra

    @functools.cached_property
    def _known(self) -> Known:
        with self.batches.rows_first():
            return known_columns(self.detector, self.batches.header())

    def to_file(self, path: str, format: str, *, task: dict[str, Any], resume: bool = False) -> Tally:
        """Write the predictions to ``path``, which appears whole: until then they grow in ``PATH.partial``.

        Parameters
        ----------
        path : str
        format : str
            ``".csv"``, ``".csv.gz"`` or ``".parquet"``.
        task : dict
            What the predictions hang on, as plain data; a partial file of another task is not gone on with.
        resume : bool
            Go on with the partial file of a run that was cut off, if there is one. The finished file is, byte for byte,
            that of a run that was not.

        Raises
        ------
        DataError
            If the data can't be used, or the partial file can't. In the first case it is removed.
        """
        partial, tally = Partial(path, task), new_tally(self.detector, self.fdr)
        start = START
        if resume and partial.exists:
            notes, arrays = partial.resume()
            start = Place(*notes.pop("place"))
            tally.restore(notes, arrays)
        # Rows that are judged together have to wait for the last one, and a Parquet file can't be gone on with.
        drafted = self.fdr is not None or format == ".parquet"
        text = _DRAFT if drafted else _TEXTS[format]
        try:
            with closing(self._scored(start, text.rows)) as scored:
                for batch in scored:
                    content = batch.content if tally.rows else text.header(batch.table) + batch.content
                    tally.add(batch.table, batch.without_group)
                    plain, counts = tally.state()
                    partial.append(content, {**plain, "place": batch.after}, counts)
                    self._tell(tally.rows)
        except DataError:
            # Whoever corrects the data has other data then.
            partial.discard()
            raise
        except BaseException:
            partial.close()
            raise
        if not drafted:
            partial.finish()
            return tally
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                _WRITERS[format](self._final(partial.content(), tally), file)
        except BaseException:
            partial.close()
            raise
        partial.discard()
        return tally

    def to_stream(self, stream: IO[bytes]) -> Tally:
        """Write the predictions to a stream, as CSV, batch by batch; with ``fdr`` after the last one."""
        tally, text = new_tally(self.detector, self.fdr), _TEXTS[".csv"] if self.fdr is None else _DRAFT
        with closing(self._scored(START, text.rows)) as scored, _drafting(self.fdr is not None) as draft:
            for batch in scored:
                content = batch.content if tally.rows else text.header(batch.table) + batch.content
                tally.add(batch.table, batch.without_group)
                if draft is None:
                    stream.write(content)
                    stream.flush()
                else:
                    draft.write(content)
                self._tell(tally.rows)
            if draft is not None:
                draft.seek(0)
                _TEXTS[".csv"].write(self._final(draft, tally), stream)
        return tally

    def _tell(self, n_rows: int) -> None:
        if self.on_rows is not None:
            self.on_rows(n_rows)

    def _scored(self, start: Place, encode: Encoder) -> Generator[_Scored, None, None]:
        times = TIMES_ON_GPU if self.detector.ensemble_.device.type == "cuda" else 1
        batches = self.batches.read(self._known.columns, numbers=self._known.numbers, start=start, times=times)
        # Each batch by a thread of its own, so that no processor waits while another one encodes or writes texts.
        return stream(functools.partial(self._score, encode), batches)

    def _score(self, encode: Encoder, batch: Batch) -> _Scored:
        detector, (data, after) = self.detector, batch
        table, _ = predicted(
            detector, data, score_names=self.score_names, n_top=self.n_top, together=self.fdr is not None
        )
        groups = groups_of(detector, data)
        without_group = 0 if groups is None else int((~has_group(detector, groups)).sum())
        return _Scored(table, encode(table), without_group, after)

    def _final(self, draft: IO[bytes], tally: Tally) -> Iterator[pd.DataFrame]:
        """Finished predictions from drafts."""
        for table in _drafts(draft):
            if not tally.whole_ids:
                # Some ids are text, so all of them are.
                name = table.columns[0]
                table[name] = table[name].astype("str")
            yield table if self.fdr is None else flagged_together(table, tally.p_values, self.fdr)


def new_tally(detector: "VAEDetector", fdr: float | None) -> Tally:
    """Counts of no rows yet."""
    return Tally(LowScores(detector.calibration_scores_), fdr)


def _packed(content: bytes) -> bytes:
    """A whole gzip file; such files may follow each other in one."""
    packed = io.BytesIO()
    # Without a name and a time in its header the file depends on the rows alone.
    with gzip.GzipFile("", "wb", fileobj=packed, mtime=0) as file:
        file.write(content)
    return packed.getvalue()


def _draft(table: pd.DataFrame) -> bytes:
    """A whole Arrow stream; :func:`_drafts` reads one after the other."""
    rows = pa.Table.from_pandas(table, preserve_index=False)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return bytes(sink.getvalue())


class _Text(NamedTuple):
    """What stands before the rows of the first table, and those of each."""

    header: Encoder
    rows: Encoder

    def write(self, tables: Iterator[pd.DataFrame], file: IO[bytes]) -> None:
        """All of the tables as one."""
        for index, table in enumerate(tables):
            file.write(b"" if index else self.header(table))
            file.write(self.rows(table))


_DRAFT = _Text(lambda table: b"", _draft)
_TEXTS = {
    ".csv": _Text(csv_header, csv_rows),
    ".csv.gz": _Text(lambda table: _packed(csv_header(table)), lambda table: _packed(csv_rows(table))),
}


def _drafts(file: IO[bytes]) -> Iterator[pd.DataFrame]:
    while True:
        try:
            stream = pa.ipc.open_stream(file)
        except pa.ArrowInvalid:
            # Nothing follows.
            return
        yield stream.read_all().to_pandas()


@contextmanager
def _drafting(needed: bool) -> Iterator[IO[bytes] | None]:
    if not needed:
        yield None
        return
    with tempfile.TemporaryFile(prefix="vae-anomaly-") as file:
        yield file


def _write_parquet(tables: Iterator[pd.DataFrame], file: IO[bytes]) -> None:
    writer = None
    try:
        for table in _row_groups(tables):
            rows = pa.Table.from_pandas(table, schema=writer and writer.schema, preserve_index=False)
            writer = writer or pyarrow.parquet.ParquetWriter(file, rows.schema)
            writer.write_table(rows, row_group_size=ROW_GROUP)
    finally:
        if writer is not None:
            writer.close()


def _row_groups(tables: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """The same rows, ``ROW_GROUP`` of them together."""
    waiting: list[pd.DataFrame] = []
    for table in tables:
        waiting.append(table)
        while sum(map(len, waiting)) >= ROW_GROUP:
            joined = pd.concat(waiting, ignore_index=True)
            yield joined.iloc[:ROW_GROUP]
            waiting = [joined.iloc[ROW_GROUP:]]
    if sum(map(len, waiting)):
        yield pd.concat(waiting, ignore_index=True)


_WRITERS: dict[str, Callable[[Iterator[pd.DataFrame], IO[bytes]], None]] = {
    **{format: text.write for format, text in _TEXTS.items()},
    ".parquet": _write_parquet,
}
