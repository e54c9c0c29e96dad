"""Tables that come in parts because they are larger than memory: what they hold, a sample of it, their encoded rows."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vae_anomaly.errors import CellError, DataError
from vae_anomaly.frames import holds_text, joined
from vae_anomaly.scratch import scratch_array

__all__ = ["Survey", "TableInParts", "survey"]

# Rows from which the columns' scales and categories are learned: so many numbers, within these limits.
SAMPLE_ENTRIES = 16_000_000
MIN_SAMPLE_ROWS, MAX_SAMPLE_ROWS = 20_000, 500_000

Parts = Callable[[Sequence[str]], Iterator[pd.DataFrame]]
"""The parts of a table from its first one on, the columns named as text wherever they could be numbers, too."""


class Survey(NamedTuple):
    """What one pass over a table found."""

    n_rows: int
    sample: pd.DataFrame
    """A uniform sample of the rows, in their order and with their index."""
    positions: NDArray[np.intp]
    """Where they stand in the table."""
    texts: tuple[str, ...]
    """Columns that hold text in one part and numbers alone in another."""


def survey(parts: Parts, n_sample: int, seed: int) -> Survey:
    """Count the rows and draw ``n_sample`` of them, each set equally likely, or all if there are no more.

    Which rows are drawn hangs on the seed and their number, not on where the parts end. A column that is text in one
    part is text in all: the table is then gone through again, so that 007 does not come as 7.

    Examples
    --------
    >>> def parts(texts):
    ...     yield pd.DataFrame({"flow": [1.0, 2.0]})
    ...     yield pd.DataFrame({"flow": [3.0]})
    >>> found = survey(parts, 2, seed=0)
    >>> found.n_rows, len(found.sample)
    (3, 2)
    """
    texts: tuple[str, ...] = ()
    while True:
        drawn, kinds = _Draw(n_sample, seed), _Kinds()
        for frame in parts(texts):
            drawn.add(frame)
            kinds.add(frame)
        mixed = kinds.mixed(texts)
        if not mixed:
            sample, positions = drawn.result()
            return Survey(drawn.n_rows, sample, positions, texts)
        texts += mixed


class _Draw:
    """The rows with the lowest of random numbers, of which each row has one."""

    def __init__(self, n_sample: int, seed: int) -> None:
        self.n_sample, self.rng, self.n_rows = n_sample, np.random.default_rng(seed), 0
        self.frames: list[pd.DataFrame] = []
        self.keys: list[NDArray[np.float64]] = []
        self.positions: list[NDArray[np.intp]] = []
        self.highest = 1.0

    def add(self, frame: pd.DataFrame) -> None:
        keys, positions = self.rng.random(len(frame)), np.arange(self.n_rows, self.n_rows + len(frame))
        self.n_rows += len(frame)
        chosen = keys < self.highest
        self.frames.append(frame[chosen])
        self.keys.append(keys[chosen])
        self.positions.append(positions[chosen])
        if sum(map(len, self.keys)) > 2 * self.n_sample:
            self._prune()

    def _prune(self) -> None:
        keys = np.concatenate(self.keys)
        if len(keys) <= self.n_sample:
            return
        self.highest = float(np.partition(keys, self.n_sample)[self.n_sample])
        kept = [own < self.highest for own in self.keys]
        self.frames = [frame[mask] for frame, mask in zip(self.frames, kept, strict=True)]
        self.positions = [own[mask] for own, mask in zip(self.positions, kept, strict=True)]
        self.keys = [own[mask] for own, mask in zip(self.keys, kept, strict=True)]

    def result(self) -> tuple[pd.DataFrame, NDArray[np.intp]]:
        if not self.frames:
            raise DataError("The table has no rows.")
        self._prune()
        return joined(self.frames), np.concatenate(self.positions)


class _Kinds:
    """Which columns were text, and which were not, in some part."""

    def __init__(self) -> None:
        self.seen: dict[str, set[bool]] = {}

    def add(self, frame: pd.DataFrame) -> None:
        for name, values in frame.items():
            if values.notna().any():
                self.seen.setdefault(str(name), set()).add(holds_text(values))

    def mixed(self, known: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name, kinds in self.seen.items() if len(kinds) > 1 and name not in known)


class TableInParts:
    """A table to fit on that need not fit into memory.

    Its encoded rows go to a temporary file, from which training takes its batches. What its columns hold is learned
    from a uniform sample of the rows: half a million of up to 32 columns, fewer of more, 20,000 at least. A table of no
    more rows is known exactly.

    Parameters
    ----------
    parts : callable
        Called with names of columns to give as text; returns an iterator over data frames, the same each time.
    seed : int
        Of the sample.

    Examples
    --------
    >>> whole = pd.DataFrame({"flow": [1.0, 2.0, 3.0]})
    >>> table = TableInParts(lambda texts: iter([whole[:2], whole[2:]]))
    >>> len(table), table.exact
    (3, True)
    """

    def __init__(self, parts: Parts, seed: int = 0) -> None:
        self._parts = parts
        first = next(parts(()), None)
        if first is None:
            raise DataError("The table has no rows.")
        n_sample = min(MAX_SAMPLE_ROWS, max(MIN_SAMPLE_ROWS, SAMPLE_ENTRIES // max(1, first.shape[1])))
        self._known = survey(parts, n_sample, seed)

    def __len__(self) -> int:
        return self._known.n_rows

    @property
    def columns(self) -> pd.Index:
        """Names of the columns."""
        return self._known.sample.columns

    @property
    def sample(self) -> pd.DataFrame:
        """Rows that the columns are known from."""
        return self._known.sample

    @property
    def exact(self) -> bool:
        """Whether all rows are among these."""
        return len(self.sample) == len(self)

    def known(self, rows: NDArray[np.intp]) -> tuple[pd.DataFrame, NDArray[np.intp]]:
        """Those of the given rows, in ascending order, that are in the sample, and which ones these are."""
        positions = self._known.positions
        places = np.searchsorted(rows, positions)
        chosen = rows[np.minimum(places, len(rows) - 1)] == positions
        return self.sample[chosen].reset_index(drop=True), positions[chosen]

    def encode(self, schema: Any) -> NDArray[np.float32]:
        """Rows that a :class:`~vae_anomaly.preprocessing.Schema` encoded, in a temporary file.

        Raises
        ------
        CellError
            If a value can't be used.
        """
        encoded = scratch_array((len(self), len(schema.owner)))
        start = 0
        for frame in self._parts(self._known.texts):
            end = start + len(frame)
            try:
                encoded[start:end] = schema.encode(frame[list(self.columns)].reset_index(drop=True))
            except CellError as error:
                raise CellError(start + error.row, error.detail) from None
            start = end
        return encoded
