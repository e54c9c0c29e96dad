"""Which rows each member trains on, which decide when it stops, and which the threshold is computed from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["MIN_ROWS_TO_SET_ASIDE", "Split", "index_type", "leave_out_entries", "rows_to_fit", "split_rows"]

# From so many rows on, some are set aside for the threshold. Below, no row can be spared: each is scored by the member
# whose fold it is in, which did not train on it.
MIN_ROWS_TO_SET_ASIDE = 2000
MAX_CALIBRATION_ROWS = 10_000
MAX_HELD_OUT_ROWS = 1000
# Of rows that are seen as many samples each, the more there are, the more alike are any two.
MAX_PARTS = 500_000
# Of so many parts of the entries, each member leaves out one where it compares samples.
N_ENTRY_FOLDS = 6

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Split:
    """Rows of the training table by what they are for."""

    train: Tensor
    """Rows that each member trains on, shape (n_estimators, n_train)."""
    held_out: Tensor
    """Rows that each member did not train on and is watched on, shape (n_estimators, n_held_out)."""
    aside: Rows | None
    """Rows that no member saw, for the threshold; None if each member's held-out rows serve for that, too."""
    n_folds: int
    """How many members' held-out rows are distinct; those of further members repeat them."""
    enough: bool = True
    """Whether the calibration rows can keep the false-positive rate that was asked for."""

    @property
    def fitted(self) -> Rows:
        """Rows that some member saw, in order."""
        # Marks in place of sorted indices: those of six members and ten million rows take half a gigabyte.
        seen = np.zeros(1 + int(max(self.train.max(), self.held_out.max())), dtype=bool)
        for rows in (*self.train, *self.held_out):
            seen[rows.numpy()] = True
        return np.flatnonzero(seen)

    @property
    def calibration(self) -> Rows:
        """Rows that the threshold is computed from: those aside, or fold after fold."""
        if self.aside is not None:
            return self.aside
        return np.asarray(self.held_out[: self.n_folds].reshape(-1).numpy())

    def parts(self, n_parts: int, generators: Sequence[torch.Generator]) -> "Split":
        """Samples of the rows to train on and to watch, in random order, where each row is seen as ``n_parts`` samples.

        A row's samples are alike: all of them are on one side.
        """
        if n_parts == 1:
            return self

        def spread(rows: Tensor, most: int) -> Tensor:
            samples = (rows[:, :, None].long() * n_parts + torch.arange(n_parts)).flatten(1)
            orders = [torch.randperm(samples.shape[1], generator=generator)[:most] for generator in generators]
            return samples.gather(1, torch.stack(orders))

        return replace(self, train=spread(self.train, MAX_PARTS), held_out=spread(self.held_out, MAX_PARTS // 10))

    def first(self, n_rows: int) -> "Split":
        """The same split with about ``n_rows`` calibration rows at most."""
        if self.aside is not None:
            return replace(self, aside=self.aside[:n_rows])
        return replace(self, held_out=self.held_out[:, : max(1, n_rows // self.n_folds)])


def split_rows(n_rows: int, n_needed: int, generators: Sequence[torch.Generator]) -> Split:
    """Split ``n_rows`` rows for as many members as there are ``generators``, less one.

    Parameters
    ----------
    n_rows : int
        At least 2.
    n_needed : int
        Calibration rows that the threshold takes.
    generators : sequence of torch.Generator
        One for each member and one for all.
    """
    order = torch.randperm(n_rows, generator=generators[-1])
    if n_rows >= MIN_ROWS_TO_SET_ASIDE:
        return _set_aside(order, n_needed, generators[:-1])
    return _cross(order, n_needed, len(generators) - 1)


def index_type(n_rows: int) -> torch.dtype:
    """The smallest type whose numbers count so many rows: there are as many indices as rows and members.

    Examples
    --------
    >>> index_type(10**7), index_type(2**31)
    (torch.int32, torch.int64)
    """
    return torch.int32 if n_rows < 2**31 else torch.int64


def rows_to_fit(n_needed: int, n_estimators: int) -> int:
    """Fewest rows from which a split gives ``n_needed`` calibration rows."""
    for n_rows in range(2, MIN_ROWS_TO_SET_ASIDE):
        n_folds, size = _folds(n_rows, n_estimators)
        if n_folds * size >= n_needed:
            return n_rows
    return max(MIN_ROWS_TO_SET_ASIDE, 2 * n_needed)


def _set_aside(order: Tensor, n_needed: int, generators: Sequence[torch.Generator]) -> Split:
    """A tenth of the rows (a fifth of few) for the threshold; a tenth of the others, its own, to watch each member."""
    n_rows = len(order)
    enough = n_needed <= n_rows // 2
    usual = min(n_rows // 5, max(1000, n_rows // 10), MAX_CALIBRATION_ROWS)
    n_aside = max(usual, n_needed if enough else 0)
    rest = order[n_aside:]
    n_held_out = min(math.ceil(len(rest) / 10), MAX_HELD_OUT_ROWS)
    orders = torch.empty(len(generators), len(rest), dtype=index_type(n_rows))
    for own, generator in zip(orders, generators, strict=True):
        own.copy_(rest[torch.randperm(len(rest), generator=generator)])
    return Split(
        orders[:, n_held_out:], orders[:, :n_held_out], order[:n_aside].numpy(), n_folds=len(generators), enough=enough
    )


def _folds(n_rows: int, n_estimators: int) -> tuple[int, int]:
    """Number and size of the folds: one for each member, a fifth of the rows at most."""
    size = max(1, min(n_rows // n_estimators, n_rows // 5))
    return min(n_estimators, n_rows // size), size


def _cross(order: Tensor, n_needed: int, n_estimators: int) -> Split:
    """Every member leaves out a fold of its own."""
    n_rows = len(order)
    n_folds, size = _folds(n_rows, n_estimators)
    folds = torch.stack([torch.arange(n_rows)[(member % n_folds) * size :][:size] for member in range(n_estimators)])
    left = torch.ones(n_estimators, n_rows, dtype=torch.bool).scatter(1, folds, False)
    train = torch.arange(n_rows).expand(n_estimators, -1)[left].reshape(n_estimators, -1)
    return Split(order[train], order[folds], None, n_folds, enough=n_needed <= n_folds * size)


def leave_out_entries(n_entries: int, n_estimators: int, generator: torch.Generator) -> Tensor:
    """Which entries each member compares samples by, shape (n_estimators, n_entries): 1, and 0 for a sixth of them.

    Each entry is left out by one of six members. Of fewer than six entries none is, nor by a member alone.
    """
    compared = torch.ones(n_estimators, n_entries)
    if n_estimators > 1 and n_entries >= N_ENTRY_FOLDS:
        fold = torch.randperm(n_entries, generator=generator) % N_ENTRY_FOLDS
        compared[fold == torch.arange(n_estimators)[:, None] % N_ENTRY_FOLDS] = 0.0
    return compared
