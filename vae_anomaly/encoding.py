"""Large tables encoded side by side, a piece by each thread, or by a GPU."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_anomaly.errors import CellError
from vae_anomaly.memory import as_tensor
from vae_anomaly.preprocessing import MAX_SCALED, Reals, Schema
from vae_anomaly.workers import side_by_side

if TYPE_CHECKING:
    from vae_anomaly.pixels import ImageSchema

__all__ = ["encode_rows"]

# Rows of a piece: a thread encodes them in some milliseconds. A GPU would hardly be faster with fewer.
PIECE = 8_192
# Numbers that a GPU has at work: some hundred MiB with what is made of them.
VALUES_THERE = 1 << 23

# Real columns as a device has them.
_THERE: WeakKeyDictionary[Reals, dict[torch.device, "_RealsThere"]] = WeakKeyDictionary()


def encode_rows(schema: "Schema | ImageSchema", rows: Any, device: torch.device | str = "cpu") -> NDArray[np.float32]:
    """``schema.encode`` of a table or of images: the same numbers, and the same errors.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"flow": [1.5, 2.5, 6.5], "valve": ["open", "open", "shut"]})
    >>> encode_rows(Schema.infer(frame), frame).shape
    (3, 2)
    """
    if not isinstance(schema, Schema) or len(rows) < PIECE:
        return schema.encode(rows)
    device = torch.device(device)
    if device.type == "cuda" and schema.reals.bends.plain:
        try:
            return schema.encode(rows, _reals_on(device, schema.reals))
        except _InfiniteError:
            # Which cell it is, or that it is in a column that does not count, is said where one can look.
            return schema.encode(rows)
    if len(rows) < 2 * PIECE:
        return schema.encode(rows)
    encoded = np.empty((len(rows), len(schema.owner)), dtype=np.float32)

    def encode(start: int) -> None:
        piece = slice(start, start + PIECE)
        encoded[piece] = schema.encode(rows[piece] if isinstance(rows, np.ndarray) else rows.iloc[piece])

    try:
        for _ in side_by_side(encode, range(0, len(rows), PIECE)):
            pass
    except CellError:
        # A piece counts rows from its own beginning, and of several errors all rows together name the one in the first
        # column.
        return schema.encode(rows)
    return encoded


def _reals_on(device: torch.device, reals: Reals) -> "_RealsThere":
    known = _THERE.setdefault(reals, {})
    if device not in known:
        known[device] = _RealsThere(reals, device)
    return known[device]


class _InfiniteError(Exception):
    """Some number of a table is infinite."""


class _RealsThere:
    """Real columns that a device encodes, operation by operation as a processor does: bits are the same."""

    def __init__(self, reals: Reals, device: torch.device) -> None:
        self.device = device
        self.knots, self.slope, self.left, self.below = (
            torch.tensor(table, device=device) for table in reals.bends.tables
        )
        self.center, self.scale = (
            torch.tensor(values, device=device)[:, None] for values in (reals.center, reals.scale)
        )
        # Work of other threads need not be waited for.
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def encode_rows(self, floats: NDArray[np.float64], places: Sequence[int], out: NDArray[np.float32]) -> None:
        """What :meth:`Reals.encode_rows` puts into ``out``, if no number is infinite."""
        size = max(1, VALUES_THERE // max(1, floats.shape[1]))
        chosen = torch.tensor(places, dtype=torch.long, device=self.device)
        with torch.cuda.stream(self.stream):
            for start in range(0, len(floats), size):
                there = as_tensor(floats[start : start + size]).to(self.device)
                if bool(torch.isinf(there).any()):
                    raise _InfiniteError
                # In one go from there to its place.
                torch.from_numpy(out[start : start + size]).copy_(self._encoded(there.T[chosen]).T)

    def _encoded(self, numbers: Tensor) -> Tensor:
        """Encoded values of shape (n_columns, n_rows)."""
        place = torch.searchsorted(self.knots, numbers, right=True)
        bends = (numbers - self.left.gather(1, place)) * self.slope.gather(1, place)
        scaled = (numbers - self.center) / self.scale + (bends + self.below.gather(1, place))
        return scaled.clamp(-MAX_SCALED, MAX_SCALED).float()
