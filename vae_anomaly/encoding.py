"""Large tables encoded side by side, a piece by each thread."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vae_anomaly.errors import CellError
from vae_anomaly.preprocessing import Schema
from vae_anomaly.workers import side_by_side

if TYPE_CHECKING:
    from vae_anomaly.pixels import ImageSchema

__all__ = ["encode_rows"]

# Rows of a piece: a thread encodes them in some milliseconds.
PIECE = 8_192


def encode_rows(schema: "Schema | ImageSchema", rows: Any) -> NDArray[np.float32]:
    """``schema.encode`` of a data frame or of images: the same numbers, and the same errors.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"flow": [1.5, 2.5, 6.5], "valve": ["open", "open", "shut"]})
    >>> encode_rows(Schema.infer(frame), frame).shape
    (3, 2)
    """
    if not isinstance(schema, Schema) or len(rows) < 2 * PIECE:
        return schema.encode(rows)
    encoded = np.empty((len(rows), len(schema.owner)), dtype=np.float32)

    def encode(start: int) -> None:
        piece = slice(start, start + PIECE)
        encoded[piece] = schema.encode(rows.iloc[piece])

    try:
        for _ in side_by_side(encode, range(0, len(rows), PIECE)):
            pass
    except CellError:
        # A piece counts rows from its own beginning, and of several errors all rows together name the one in the first
        # column.
        return schema.encode(rows)
    return encoded
