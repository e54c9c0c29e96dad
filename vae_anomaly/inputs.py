"""What users hand to a detector -> tables or images that can be encoded, or an error that says what is wrong."""

import functools
import math
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils.validation import validate_data

from vae_anomaly.errors import DataError
from vae_anomaly.in_parts import TableInParts
from vae_anomaly.pixels import ImageSchema, is_images, pixels
from vae_anomaly.preprocessing import Schema

if TYPE_CHECKING:
    from vae_anomaly.detector import VAEDetector

__all__ = ["Table", "to_fit", "to_score"]

Table: TypeAlias = pd.DataFrame | TableInParts | NDArray[np.float32]
"""A table, or images."""


def to_fit(detector: "VAEDetector", X: Any) -> Table:
    """What to fit on; a table in parts as it is."""
    if not isinstance(X, TableInParts):
        return _frame(detector, X, reset=True)
    _frame(detector, X.sample, reset=True)
    return X


def to_score(detector: "VAEDetector", X: Any) -> pd.DataFrame | NDArray[np.float64] | NDArray[np.float32]:
    """What to score: a data frame with the columns seen in ``fit``, or a plain array with as many, or images."""
    nameless = isinstance(detector.schema_, Schema) and not hasattr(detector, "feature_names_in_")
    if nameless and _is_plain(X, detector.n_features_in_):
        return X
    return _frame(detector, X, reset=False)


def _frame(detector: "VAEDetector", X: Any, *, reset: bool) -> pd.DataFrame | NDArray[np.float32]:
    """``X`` as a data frame with the columns seen in ``fit``, or as images."""
    if isinstance(X, np.ma.MaskedArray):
        X = _unmasked(X)
    if is_images(X):
        return _images(detector, X, reset=reset)
    if not reset and isinstance(detector.schema_, ImageSchema):
        raise DataError(f"The model was fitted on images of shape {detector.schema_.shape}, and X holds none.")
    if isinstance(X, pd.DataFrame):
        if not X.columns.is_unique:
            raise DataError(f"Duplicated column names: {sorted(set(X.columns[X.columns.duplicated()].map(str)))}.")
        # Names that are those of the training rows need no check, which takes long for a row.
        names = getattr(detector, "feature_names_in_", None)
        if reset or names is None or list(X.columns) != list(names):
            validate_data(detector, X, skip_check_array=True, reset=reset)
        _check_rows(X, 2 if reset else 1)
        return X.reset_index(drop=True)
    array = validate_data(
        detector,
        X,
        dtype="numeric",
        ensure_all_finite="allow-nan",
        ensure_min_samples=2 if reset else 1,
        reset=reset,
    )
    return pd.DataFrame(array, columns=_nameless(array.shape[1]), copy=False)


def _images(detector: "VAEDetector", X: Any, *, reset: bool) -> NDArray[np.float32]:
    images = pixels(X)
    if reset:
        detector.n_features_in_ = math.prod(images.shape[1:])
        if hasattr(detector, "feature_names_in_"):
            # Of a table that it was fitted on before.
            del detector.feature_names_in_
    elif not isinstance(detector.schema_, ImageSchema):
        raise DataError("The model was fitted on a table, and X holds images.")
    at_least = 2 if reset else 1
    if len(images) < at_least:
        raise DataError(f"Found {len(images)} image(s), and at least {at_least} are needed.")
    return images


@functools.lru_cache(maxsize=8)
def _nameless(n_columns: int) -> pd.Index:
    """Names of the columns of an array, made once: for a row it takes longer than to encode it."""
    return pd.Index([f"x{index}" for index in range(n_columns)])


def _is_plain(X: Any, n_columns: int) -> TypeGuard[NDArray[np.float64]]:
    """Whether a table is an array that scikit-learn would find nothing to check or to change in.

    To find that out in this way, and to spare a data frame, has a row scored in four fifths of the time.
    """
    plain = type(X) is np.ndarray and X.dtype == np.float64 and X.ndim == 2
    return plain and len(X) > 0 and X.shape[1] == n_columns and not _holds_infinite(X)


def _holds_infinite(numbers: NDArray[np.float64]) -> bool:
    """Whether some number is infinite, without a flag for each where that is not needed."""
    # A sum is finite only if all of them are. It is not where a number is missing, or so large. BLAS, which is faster,
    # would wake threads of its own beside those that compute scores.
    with np.errstate(invalid="ignore", over="ignore"):
        return not math.isfinite(numbers.sum()) and bool(np.isinf(numbers).any())


def _unmasked(X: "np.ma.MaskedArray[Any, Any]") -> NDArray[Any]:
    """What is masked in a table is missing; of an image nothing can be."""
    if not np.ma.is_masked(X):
        return np.asarray(X.data)
    if is_images(X):
        raise DataError("X holds masked pixels, and an image has no holes. Fill them, or leave these images out.")
    # The others can say that a value is missing, or are refused for what they are.
    kind = np.float64 if X.dtype.kind in "biu" else X.dtype
    return np.asarray(np.ma.filled(X.astype(kind), np.nan))


def _check_rows(frame: pd.DataFrame, at_least: int) -> None:
    if len(frame) < at_least:
        raise DataError(f"Found {len(frame)} sample(s), and at least {at_least} are needed.")
