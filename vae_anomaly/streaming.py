"""Rows that stay on disk, or in memory that a GPU does not have, until training asks for them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["RowsOnDisk"]


class RowsOnDisk:
    """Rows of a table that come to a device when they are asked for, where training takes a tensor.

    Examples
    --------
    >>> rows = RowsOnDisk(np.arange(6, dtype=np.float32).reshape(3, 2), torch.device("cpu"))
    >>> rows[torch.tensor([[2, 0]])].tolist(), rows.shape
    ([[[4.0, 5.0], [0.0, 1.0]]], torch.Size([3, 2]))
    """

    def __init__(self, rows: NDArray[np.float32], device: torch.device) -> None:
        self.rows, self.device = torch.from_numpy(rows), device

    @property
    def shape(self) -> torch.Size:
        return self.rows.shape

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, chosen: Tensor) -> Tensor:
        """Rows that the device can fetch by itself, in memory."""
        rows = self.rows[chosen.to(self.rows.device)]
        return rows.pin_memory() if self.device.type == "cuda" else rows

    def __getitem__(self, chosen: Tensor | slice) -> Tensor:
        here = chosen if isinstance(chosen, slice) else chosen.to(self.rows.device)
        return self.rows[here].to(self.device)
