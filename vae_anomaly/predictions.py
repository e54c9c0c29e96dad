"""From a detector and a table to the predictions table: one line a row, in order, whatever happened to it."""

import difflib
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vae_anomaly.data import Data
from vae_anomaly.discoveries import PValueCounts, at_most, check_fdr
from vae_anomaly.errors import CellError, DataError
from vae_anomaly.groups import RowGroups, row_groups
from vae_anomaly.number_texts import short_texts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vae_anomaly.data.images import Images
    from vae_anomaly.detector import VAEDetector

__all__ = [
    "Aligned",
    "Known",
    "align",
    "as_fitted",
    "by_parts",
    "flagged_together",
    "groups_of",
    "has_group",
    "images_at_once",
    "known_columns",
    "located",
    "parts",
    "predict_table",
    "predicted",
    "rule_text",
    "top_features",
]

SEPARATOR = "; "
# Images decoded and scored together: enough to keep the processor busy, few enough for any memory.
MAX_IMAGES_AT_ONCE = 256
MAX_PIXELS_AT_ONCE = 8_000_000
# What hangs on the other rows, where rows are flagged together.
TOGETHER = ("adjusted_p_value", "is_anomaly", "rule")
# To find more features than this, sorting them is faster than one pass for each.
MAX_PASSES = 16


class Aligned(NamedTuple):
    """Columns that a model knows, in its order, or images, with the rows that it can't score marked."""

    X: Any
    reasons: NDArray[np.object_]
    """Why a row can't be scored; an empty text where it can."""
    extra: tuple[str, ...]
    """Columns of the data that the model does not know, and that were not left out when it was fitted either."""


@contextmanager
def located(data: "Data | Images") -> "Iterator[None]":
    """Say in which file and row a cell is that can't be used."""
    try:
        yield
    except CellError as error:
        raise DataError(f"{data.locate(error.row)}, {error.detail}") from None


def align(detector: "VAEDetector", data: "Data | Images") -> Aligned:
    """Columns of ``data`` as the detector wants them, or its images, decoded.

    Raises
    ------
    DataError
        If a column is missing, or a text stands where a number was learned.
    """
    if not isinstance(data, Data):
        return _decoded(data)
    X, extra = _select(detector, data)
    reasons = np.full(len(X), "", dtype=object)
    if _all_finite(X):
        return Aligned(X, reasons, extra)
    used = [column for column in detector.schema_.columns if column.kind != "ignored"]
    X = X.copy()
    for name in _infinite(X, [column.name for column in used if column.dtype != "text"]):
        infinite = np.isinf(X[name].to_numpy(dtype=np.float64, na_value=np.nan))
        reasons[infinite] = f"column {name!r} is infinite"
        X[name] = X[name].where(~infinite)
    empty = X[[column.name for column in used]].isna().to_numpy().all(axis=1)
    reasons[empty & (reasons == "")] = "no value in any column that the model uses"
    return Aligned(X, reasons, extra)


def _all_finite(X: pd.DataFrame) -> bool:
    """Whether the table holds a finite number in each cell, as most do: found in a fraction of the time of a search."""
    if not all(dtype == np.float64 for dtype in X.dtypes):
        return False
    return bool(np.isfinite(X.to_numpy()).all())


def _infinite(X: pd.DataFrame, numbers: Sequence[str]) -> list[str]:
    """Those of the columns that hold an infinite value."""
    floats = [name for name in numbers if pd.api.types.is_float_dtype(X[name].dtype)]
    # All at once, in a fraction of the time that one after the other takes.
    found = np.isinf(X[floats].to_numpy(dtype=np.float64, na_value=np.nan)).any(axis=0)
    return [name for name, infinite in zip(floats, found, strict=True) if infinite]


class Known(NamedTuple):
    """Columns of a table, as a model sees them."""

    columns: tuple[str, ...]
    """Those that it uses, in its order."""
    numbers: tuple[str, ...]
    """Those of them that hold numbers."""
    extra: tuple[str, ...]
    """Those that it does not know."""


def known_columns(detector: "VAEDetector", header: Data) -> Known:
    """Which columns of a table have to be read, from its header alone.

    Raises
    ------
    DataError
        If a column is missing.
    """
    _, extra = _select(detector, header)
    schema, present = list(detector.schema_.columns), list(header.X.columns)
    if detector.holds_images:
        return Known(tuple(present), (), extra)
    if not _by_position(detector, present):
        schema = [column for column in schema if column.kind != "ignored"]
        present = [column.name for column in schema]
    numbers = [name for name, column in zip(present, schema, strict=True) if column.dtype != "text"]
    return Known(tuple(present), tuple(numbers), extra)


def _by_position(detector: "VAEDetector", present: Sequence[str]) -> bool:
    """Whether columns count by position: the model was fitted on an array, which has no names."""
    return not hasattr(detector, "feature_names_in_") and len(present) == len(detector.schema_.columns)


def _decoded(images: "Images") -> Aligned:
    x, reasons = images.X.load()
    # An image that can't be decoded gets no score, and needs some numbers until then.
    return Aligned(np.where(np.isnan(x), 0.0, x).astype(np.float32), reasons, ())


def _select(detector: "VAEDetector", data: Data) -> tuple[pd.DataFrame, tuple[str, ...]]:
    known = [column.name for column in detector.schema_.columns]
    present = list(data.X.columns)
    if _by_position(detector, present):
        return data.X.set_axis(known, axis=1), ()
    ignored = [column.name for column in detector.schema_.columns if column.kind == "ignored"]
    absent = dict.fromkeys((name for name in ignored if name not in present), np.nan)
    X = data.X.assign(**absent) if absent else data.X
    missing = [name for name in known if name not in X.columns]
    if missing:
        close = difflib.get_close_matches(missing[0], present, n=1)
        hint = f" Did {close[0]!r} mean it?" if close else ""
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{data.name} has no column {missing[0]!r}{others}, which the model was fitted on.{hint}")
    expected = {*known, *detector.notes_.get("left_out_columns", ())}
    return X if present == known else X[known], tuple(name for name in present if name not in expected)


def by_parts(detector: "VAEDetector", data: "Data | Images", function: Callable[[Any], NDArray[Any]]) -> NDArray[Any]:
    """``function`` of all rows as the detector takes them, one result each: images a few at a time."""
    return np.concatenate([function(as_fitted(detector, align(detector, part).X)) for part in parts(detector, data)])


def predict_table(
    detector: "VAEDetector",
    data: "Data | Images",
    *,
    score_names: Sequence[str] = (),
    n_top: int = 3,
    fdr: float | None = None,
    on_part: Callable[[int], None] | None = None,
) -> tuple[pd.DataFrame, Aligned]:
    """Predictions table of ``data``, and the aligned columns that it was made from.

    Columns: the row's id, ``anomaly_score``, ``p_value``, ``threshold``, ``is_anomaly``, ``rule`` (what flagged it),
    ``top_features`` and ``top_contributions`` (by how much each exceeds what it contributes on average for normal
    rows), the scores of ``score_names``, and ``reason`` where a row can't be scored.

    With ``fdr``, rows are flagged together, so that the share of false alarms among them is at most ``fdr`` on average:
    there is no threshold then, but an ``adjusted_p_value``.

    A detector that was calibrated by group judges each row by its own, which ``data.kept`` names: p-value, threshold
    and rule are those of the group, and of all calibration rows where the group is missing or was not calibrated.

    ``on_part`` is told how many rows more have been scored: all of a table at once, images a few at a time.
    """
    if fdr is not None:
        check_fdr(fdr)
    found = []
    for part in parts(detector, data):
        found.append(predicted(detector, part, score_names=score_names, n_top=n_top, together=fdr is not None))
        if on_part is not None:
            on_part(len(part))
    table = pd.concat([part for part, _ in found], ignore_index=True)
    if fdr is not None:
        table = flagged_together(table, PValueCounts().add(table["p_value"]), fdr)
    if isinstance(data, Data):
        # The one part of a table is the whole.
        return table, found[0][1]
    # Images of all parts together need not fit into memory.
    return table, Aligned(None, np.concatenate([aligned.reasons for _, aligned in found]), ())


def images_at_once(detector: "VAEDetector") -> int:
    """How many images of the detector's shape are decoded and scored together, so that any number fits into memory."""
    return max(1, min(MAX_IMAGES_AT_ONCE, MAX_PIXELS_AT_ONCE // detector.schema_.n_features))


def parts(detector: "VAEDetector", data: "Data | Images") -> "Iterator[Data | Images]":
    """A table as it is; images a few at a time, so that their number does not matter."""
    if isinstance(data, Data) or not len(data):
        yield data
        return
    size = images_at_once(detector)
    for start in range(0, len(data), size):
        yield data.take(np.arange(start, min(start + size, len(data))))


def predicted(
    detector: "VAEDetector",
    data: "Data | Images",
    *,
    score_names: Sequence[str] = (),
    n_top: int = 3,
    together: bool = False,
) -> tuple[pd.DataFrame, Aligned]:
    """Predictions table of rows that are a part of more; each row's line hangs on that row alone.

    Rows that are to be flagged ``together`` lack what hangs on the others, which :func:`flagged_together` adds.
    """
    aligned = align(detector, data)
    scorable = aligned.reasons == ""
    named = as_fitted(detector, aligned.X)
    with located(data):
        if n_top > 0:
            scores, shares = detector.explained_score(named)
            tops = _top_texts(detector, shares, scorable, n_top)
        else:
            scores, tops = detector.anomaly_score(named), (pa.nulls(len(scorable), pa.string()),) * 2
        others = {name: detector.anomaly_score(named, score_name=name) for name in score_names}
    # Columns that are added to a table one by one cost as much as what stands in them.
    columns = _judged(detector, np.where(scorable, scores, np.nan), scorable, groups_of(detector, data), together)
    columns |= dict(zip(("top_features", "top_contributions"), map(_as_text, tops), strict=True))
    columns |= {name: np.where(scorable, values, np.nan) for name, values in others.items()}
    columns["reason"] = _as_text(_texts_where(~scorable, aligned.reasons))
    if data.id_name in {*columns, *(TOGETHER if together else ())}:
        raise DataError(
            f"{data.name}: the column of ids is called {data.id_name!r}, as is one of the predictions. Rename it."
        )
    table = pd.DataFrame({data.id_name: data.ids, **columns})
    return table, aligned if isinstance(data, Data) else aligned._replace(X=None)


def _judged(
    detector: "VAEDetector",
    scores: NDArray[np.float64],
    scorable: NDArray[np.bool_],
    groups: pd.Series | None,
    together: bool,
) -> dict[str, Any]:
    """Columns of the score and of the verdict."""
    columns = {"anomaly_score": scores, "p_value": detector.p_values_of(scores, groups)}
    if together:
        return columns
    thresholds = detector.thresholds_of(groups, len(scores))
    columns["threshold"] = np.where(scorable, thresholds, np.nan)
    return columns | _flagged(scores > thresholds, scorable, _rule(detector, groups))


def flagged_together(table: pd.DataFrame, counts: PValueCounts, fdr: float) -> pd.DataFrame:
    """``table`` with the verdict on its rows, of those whose p-values were counted."""
    upto = table.columns.get_loc("p_value") + 1
    head, tail = table.iloc[:, :upto], table.iloc[:, upto:]
    adjusted, scorable = counts.adjusted(head["p_value"]), head["p_value"].notna().to_numpy()
    verdict = _flagged(at_most(adjusted, fdr), scorable, f"benjamini_hochberg fdr={fdr:g}")
    return pd.concat([head.assign(adjusted_p_value=adjusted, **verdict), tail], axis=1)


def _flagged(
    flagged: NDArray[np.bool_], scorable: NDArray[np.bool_], rule: str | NDArray[np.object_]
) -> dict[str, Any]:
    """Columns of the verdict."""
    return {
        "is_anomaly": pd.arrays.IntegerArray((scorable & flagged).astype(np.int64), ~scorable),
        "rule": _as_text(_texts_where(scorable & flagged, rule)),
    }


def groups_of(detector: "VAEDetector", data: "Data | Images") -> pd.Series | None:
    """Group of each row, of a detector that was calibrated by group.

    Raises
    ------
    DataError
        If the data were read without the column that names the groups.
    """
    if detector.groups_ is None:
        return None
    column = detector.groups_.column
    if column not in data.kept:
        if not isinstance(data, Data):
            raise DataError(f"{data.name} holds images, and the model judges rows by {column!r}. Fit without groups.")
        raise DataError(f"{data.name} was read without {column!r}, by which the model judges rows. Keep that column.")
    return data.kept[column]


def has_group(detector: "VAEDetector", groups: pd.Series) -> NDArray[np.bool_]:
    """Which rows belong to a group that the detector was calibrated on."""
    assert detector.groups_ is not None
    return detector.groups_.codes_of(row_groups(groups, len(groups))) >= 0


def _rule(detector: "VAEDetector", groups: pd.Series | None) -> NDArray[np.object_] | str:
    """The rule behind the threshold of each row, or of all."""
    if groups is None or not detector.group_thresholds_:
        return rule_text(detector)
    assert detector.groups_ is not None
    column, names = row_groups(groups, len(groups))
    known = detector.groups_.codes_of(RowGroups(column, names)) >= 0
    texts = [f"{column}={name}" if own else "all groups" for name, own in zip(names, known, strict=True)]
    return np.array([f"{rule_text(detector)} {text}" for text in texts], dtype=object)


def rule_text(detector: "VAEDetector") -> str:
    """Name and parameters of the rule behind the threshold."""
    rule = detector.threshold_rule_
    rate = {} if rule["fpr"] is None else {"fpr": rule["fpr"]}
    return " ".join([rule["name"], *(f"{name}={value:g}" for name, value in {**rate, **rule["parameters"]}.items())])


def as_fitted(detector: "VAEDetector", X: Any) -> Any:
    """``X`` as the detector takes it without a word: a detector that was fitted on an array wants no column names."""
    if isinstance(X, np.ndarray) or hasattr(detector, "feature_names_in_"):
        return X
    return X.set_axis(range(X.shape[1]), axis=1)


def top_features(detector: "VAEDetector", X: Any, n_top: int) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
    """The features that add most to each row's score beyond what they add to a normal row's, and how much.

    Both of shape (n_rows, n_top), most first.
    """
    names = np.array(detector.schema_.feature_names, dtype=object)
    top, excess = _most(detector, detector.explain(as_fitted(detector, X)), n_top)
    return names[top], excess


def _most(
    detector: "VAEDetector", shares: NDArray[np.float64], n_top: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Places of the features whose shares most exceed the usual ones, the first of equal ones first, and by how much.

    A few passes over all of them take a tenth of the time of sorting them.
    """
    excess = shares.reshape(len(shares), -1) - detector.usual_shares_
    if n_top > MAX_PASSES:
        top = np.argsort(-excess, axis=1, kind="stable")[:, :n_top]
        return top, np.take_along_axis(excess, top, axis=1)
    n_top, rows = min(n_top, excess.shape[1]), np.arange(len(excess))
    top, most = np.empty((len(rows), n_top), dtype=np.intp), np.empty((len(rows), n_top))
    for place in range(n_top):
        top[:, place] = excess.argmax(axis=1)
        most[:, place] = excess[rows, top[:, place]]
        excess[rows, top[:, place]] = -np.inf
    return top, most


def _top_texts(
    detector: "VAEDetector", shares: NDArray[np.float64], scorable: NDArray[np.bool_], n_top: int
) -> tuple[pa.Array, pa.Array]:
    names = pa.array(detector.schema_.feature_names, pa.string())
    top, most = _most(detector, shares, n_top)
    cells = [names.take(pa.array(places)) for places in top.T], [short_texts(values) for values in most.T]
    known = pa.array(scorable)
    features, contributions = (
        pc.if_else(known, pc.binary_join_element_wise(*texts, SEPARATOR), pa.scalar(None, pa.string()))
        for texts in cells
    )
    return features, contributions


def _texts_where(chosen: NDArray[np.bool_], texts: str | NDArray[np.object_]) -> pa.Array:
    """The text, or that of each row, of the chosen rows; null of the others."""
    if not chosen.any():
        return pa.nulls(len(chosen), pa.large_string())
    if isinstance(texts, str):
        return pc.if_else(pa.array(chosen), pa.scalar(texts, pa.large_string()), pa.scalar(None, pa.large_string()))
    return pa.array(texts, pa.large_string(), mask=~chosen)


def _as_text(texts: pa.Array) -> Any:
    return pd.array(texts, dtype="str")
