"""Data frames that came apart and belong together."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

__all__ = ["holds_text", "joined"]


def holds_text(values: "pd.Series[Any]") -> bool:
    """Whether a column holds something else than numbers and truth values.

    Examples
    --------
    >>> holds_text(pd.Series(["open", None])), holds_text(pd.Series([True, False]))
    (True, False)
    """
    return not bool(pd.api.types.is_numeric_dtype(values.dtype))


def joined(frames: Sequence[pd.DataFrame], *, ignore_index: bool = False) -> pd.DataFrame:
    """Rows of frames with the same columns, each column of one type: text if any part of it is, else numbers.

    Examples
    --------
    >>> parts = pd.DataFrame({"valve": [1]}), pd.DataFrame({"valve": ["shut"]})
    >>> joined(parts, ignore_index=True)["valve"].tolist()
    [1, 'shut']
    """
    columns = {}
    for name in frames[0]:
        values = [frame[name] for frame in frames]
        if any(map(holds_text, values)):
            values = [own.astype(object) for own in values]
        elif len({own.dtype.kind for own in values}) > 1:
            values = [own.astype("int64") if own.dtype == bool else own for own in values]
        columns[name] = pd.concat(values, ignore_index=ignore_index)
    return pd.DataFrame(columns).infer_objects()
