"""Calibration rows by group, such as a machine: thresholds and p-values that hold within each of them (Mondrian)."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vae_anomaly.errors import DataError
from vae_anomaly.spellings import merged, places
from vae_anomaly.thresholds import p_values

__all__ = ["Groups", "RowGroups", "row_groups"]

Floats = NDArray[np.float64]


class RowGroups(NamedTuple):
    """The group of each row."""

    column: str
    names: NDArray[np.object_]
    """Text, None where it is missing."""

    def take(self, rows: ArrayLike) -> "RowGroups":
        """Those of some rows."""
        return self._replace(names=self.names[np.asarray(rows)])


def row_groups(groups: Any, n_samples: int) -> RowGroups:
    """The group of each row as text, whole numbers without a decimal point; ``column`` is the name of a Series.

    Examples
    --------
    >>> row_groups(pd.Series([7.0, None, 8.0], name="machine"), 3)
    RowGroups(column='machine', names=array(['7', None, '8'], dtype=object))
    """
    given = groups if isinstance(groups, pd.Series) else np.asarray(groups, dtype=object)
    if given.ndim != 1:
        raise ValueError(f"groups has shape {given.shape}, expected one entry for each of the {n_samples} rows.")
    values = pd.Series(given)
    if len(values) != n_samples:
        raise ValueError(f"groups has {len(values)} entries, expected one for each of the {n_samples} rows.")
    codes, found = pd.factorize(values)
    names = np.array([*(_text(value) for value in found), None], dtype=object)
    return RowGroups("group" if values.name is None else str(values.name), names[codes])


def _text(value: Any) -> str | None:
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return (str(int(value)) if whole else str(value)) or None


@dataclass(frozen=True)
class Groups:
    """Groups of the calibration scores.

    Examples
    --------
    >>> rows = row_groups(["a", "b", "b", None], 4)
    >>> groups = Groups.of(rows)
    >>> groups.names, groups.codes.tolist()
    (('a', 'b'), [0, 1, 1, -1])
    >>> groups.thresholds([1.0, 2.0, 4.0, 9.0], lambda scores: float(max(scores)))
    {'a': 1.0, 'b': 4.0}
    """

    column: str
    names: tuple[str, ...]
    codes: NDArray[np.int64]
    """Place of each calibration score's group in ``names``, -1 where it has none."""

    @classmethod
    def of(cls, rows: RowGroups) -> "Groups":
        """Groups of calibration rows, names in order."""
        names = tuple(sorted(merged(Counter(name for name in rows.names if name is not None))))
        if not names:
            raise DataError(f"No calibration row has a {rows.column!r}: there are no groups. Leave the groups out.")
        return cls(rows.column, names, _places(names, rows.names))

    def codes_of(self, rows: RowGroups) -> NDArray[np.int64]:
        """Place of each row's group, -1 where it is missing or was not calibrated."""
        return _places(self.names, rows.names)

    def counts(self) -> NDArray[np.int64]:
        """Calibration rows of each group."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.names)).astype(np.int64)

    def check_enough(self, needed: int, fpr: float) -> None:
        """Refuse groups with fewer calibration rows than a rule needs."""
        counts = self.counts()
        least = int(counts.argmin())
        if counts[least] < needed:
            raise DataError(
                f"Group {self.names[least]!r} of {self.column!r} has {counts[least]} calibration rows, and fpr={fpr} "
                f"needs at least {needed}. Give more normal rows of it, raise fpr, leave the group out, or judge all "
                "rows by one threshold, without groups."
            )

    def thresholds(self, scores: ArrayLike, rule: Callable[[Floats], float]) -> dict[str, float]:
        """Threshold of each group from its own calibration scores."""
        ordered = np.asarray(scores, dtype=float)
        return {name: rule(ordered[self.codes == code]) for code, name in enumerate(self.names)}

    def p_values(self, calibration_scores: ArrayLike, scores: ArrayLike, rows: RowGroups) -> Floats:
        """Conformal p-value of each row within its own group; by all calibration scores where it has none."""
        calibration, new = np.asarray(calibration_scores, dtype=float), np.asarray(scores, dtype=float)
        codes = self.codes_of(rows)
        found = p_values(calibration, new)
        for code in np.unique(codes[codes >= 0]):
            found[codes == code] = p_values(calibration[self.codes == code], new[codes == code])
        return found


def _places(names: tuple[str, ...], wanted: NDArray[np.object_]) -> NDArray[np.int64]:
    codes, known = pd.factorize(wanted)
    return np.asarray(np.append(places(names, known), -1)[codes], dtype=np.int64)
