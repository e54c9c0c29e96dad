"""What the summary of a predictions table needs of its rows: counts, however many rows there are."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vae_anomaly.discoveries import PValueCounts, at_most, false_alarm_share
from vae_anomaly.drift import LowScores

__all__ = ["Tally"]


@dataclass
class Tally:
    """Running counts over the parts of a predictions table.

    Parameters
    ----------
    low : LowScores
        Counts against the calibration scores.
    fdr : float, optional
        Where rows are flagged together.

    Examples
    --------
    >>> tally = Tally(LowScores([1.0, 2.0, 3.0]))
    >>> table = pd.DataFrame({"row": [1, 2], "anomaly_score": [0.5, None], "p_value": [1.0, None]})
    >>> tally.add(table.assign(is_anomaly=[0, None], reason=[None, "column 'flow' is infinite"]))
    >>> tally.rows, tally.scored, tally.flagged, tally.first_reason
    (2, 1, 0, "column 'flow' is infinite")
    """

    low: LowScores
    fdr: float | None = None
    rows: int = 0
    scored: int = 0
    above: int = 0
    """Rows above their threshold."""
    first_reason: str = ""
    """Why the first of the rows that can't be scored can't be."""
    without_group: int = 0
    whole_ids: bool = True
    """Whether all ids are whole numbers."""
    p_values: PValueCounts = field(default_factory=PValueCounts)

    def add(self, table: pd.DataFrame, without_group: int = 0) -> None:
        """Count the rows of a part."""
        n_reasons = int(table["reason"].count())
        self.rows += len(table)
        self.scored += len(table) - n_reasons
        if n_reasons and not self.first_reason:
            self.first_reason = table["reason"].dropna().iloc[0]
        self.without_group += without_group
        self.whole_ids &= pd.api.types.is_integer_dtype(table.iloc[:, 0].dtype)
        self.p_values.add(table["p_value"])
        self.low.add(table["anomaly_score"])
        if self.fdr is None:
            self.above += int(table["is_anomaly"].sum())

    @property
    def flagged(self) -> int:
        """Rows that are flagged."""
        if self.fdr is None:
            return self.above
        found = self.p_values
        return int(found.counts[at_most(found.adjusted(found.values), self.fdr)].sum())

    @property
    def flagged_share(self) -> float:
        """Share of the rows with a score that are flagged."""
        return self.flagged / self.scored if self.scored else 0.0

    def false_alarm_share(self, n_calibration: int) -> float | None:
        """Upper bound on the share of false alarms among the flagged rows, with 95 % confidence."""
        return false_alarm_share(self.p_values, n_calibration, self.flagged) if self.flagged else None

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Plain data and arrays from which :meth:`restore` makes the same counts."""
        plain = ("rows", "scored", "above", "first_reason", "without_group", "whole_ids")
        counts = {"p_values": self.p_values.values, "p_value_counts": self.p_values.counts, "low": self.low.counts}
        # The counts of low scores go on in place.
        return (
            {**{name: getattr(self, name) for name in plain}, "low_rows": self.low.n_new},
            {name: np.array(value) for name, value in counts.items()},
        )

    def restore(self, plain: dict[str, Any], counts: dict[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`state`."""
        for name, value in plain.items():
            if name == "low_rows":
                self.low.n_new = value
            else:
                setattr(self, name, value)
        self.p_values = PValueCounts(counts["p_values"], counts["p_value_counts"])
        self.low.counts = counts["low"]
