"""From scores of rows that were not learned from to a threshold: for all rows, or for each group of them."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vae_anomaly.errors import CalibrationWarning, look_up
from vae_anomaly.groups import Groups, RowGroups
from vae_anomaly.label_thresholds import LABEL_THRESHOLDS
from vae_anomaly.splitting import Split, rows_to_fit, split_rows
from vae_anomaly.tails import excess_rows_needed
from vae_anomaly.thresholds import THRESHOLDS, check_fpr, or_extrapolate

__all__ = ["Calibration", "calibrated", "chosen_on_labels", "first_calibration", "groups_of", "split_to_calibrate"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it comes from."""

    scores: Floats
    """Those of the calibration rows that can be scored, in order."""
    threshold: float
    """Infinite where there are too few of them."""
    groups: Groups | None
    group_thresholds: dict[str, float]
    rule: dict[str, Any]
    """Plain data: its name and rate, and how firm it is."""


def split_to_calibrate(threshold: str, fpr: float, n_rows: int, generators: list[torch.Generator]) -> Split:
    """Which rows each member trains on, and which ones the threshold is computed from; a warning if they are too few.

    ``generators`` are those of :func:`~vae_anomaly.splitting.split_rows`.
    """
    needed = THRESHOLDS[threshold].rows_needed(fpr)
    split = split_rows(n_rows, needed, generators)
    if not split.enough:
        n_estimators = len(generators) - 1
        extrapolates = threshold == "conformal" and rows_to_fit(excess_rows_needed(fpr), n_estimators) <= n_rows
        warnings.warn(
            f"fpr={fpr} needs at least {needed} calibration rows, and these {n_rows} rows can't give them. "
            f"No row will be flagged until calibrate() gets {needed} normal rows. Or fit on at least "
            f"{rows_to_fit(needed, n_estimators)} rows, or raise fpr"
            f"{or_extrapolate(n_rows, fpr) if extrapolates else ''}.",
            CalibrationWarning,
            stacklevel=3,
        )
    return split


def groups_of(rows: RowGroups, threshold: str, fpr: float) -> Groups:
    """Groups of the calibration rows.

    Raises
    ------
    ValueError
        If a rule can't give each of them a threshold.
    """
    rule = look_up("threshold", threshold, THRESHOLDS)
    if rule.extrapolation is not None:
        raise ValueError(f"The threshold {threshold!r} does not go by group. Use 'conformal' or 'quantile'.")
    groups = Groups.of(rows)
    groups.check_enough(rule.rows_needed(fpr), fpr)
    return groups


def calibrated(
    scores: Floats,
    threshold: str,
    fpr: float,
    rows: RowGroups | None,
    *,
    enough: bool = True,
    out_of_fold: bool = False,
) -> Calibration:
    """Threshold by one of ``THRESHOLDS``; an infinite one where there are not ``enough`` rows for its promise.

    Parameters
    ----------
    scores : ndarray of shape (n_samples,)
        NaN for a row that can't be scored.
    threshold : str
    fpr : float
        Share of new normal rows that may be flagged.
    rows : RowGroups, optional
        Group of each row.
    enough : bool, default=True
    out_of_fold : bool, default=False
        Whether each score is that of the members that did not learn from the row, where others did.

    Examples
    --------
    >>> calibrated(np.arange(19.0), "conformal", 0.1, None).threshold
    17.0
    """
    order = np.argsort(scores, kind="stable")[: np.count_nonzero(~np.isnan(scores))]
    scores = scores[order]
    rule, fpr = look_up("threshold", threshold, THRESHOLDS), check_fpr(fpr)
    beyond = rule.extrapolation(scores, fpr) if enough and rule.extrapolation else None
    value = beyond.threshold if beyond else rule.function(scores, fpr) if enough else math.inf
    groups = None if rows is None else groups_of(rows.take(order), threshold, fpr)
    by_group = {} if groups is None or not enough else groups.thresholds(scores, lambda own: rule.function(own, fpr))
    extrapolation = asdict(beyond) if beyond else None
    said = _rule(threshold, fpr, out_of_fold=out_of_fold, extrapolation=extrapolation)
    return Calibration(scores, value, groups, by_group, said)


def first_calibration(scores: Floats, threshold: str, fpr: float, rows: RowGroups | None, split: Split) -> Calibration:
    """The same of the rows that came with a fit. A rule that refuses them costs the threshold, not the fit."""
    out_of_fold = split.aside is None
    try:
        return calibrated(scores, threshold, fpr, rows, enough=split.enough, out_of_fold=out_of_fold)
    except ValueError as error:
        warnings.warn(f"{error} No row will be flagged until calibrate().", CalibrationWarning, stacklevel=3)
        return calibrated(scores, threshold, fpr, None, enough=False, out_of_fold=out_of_fold)


def chosen_on_labels(
    labels: NDArray[Any], scores: Floats, name: str, parameters: Mapping[str, float], *, out_of_fold: bool
) -> tuple[float, dict[str, Any]]:
    """Threshold by one of ``LABEL_THRESHOLDS`` and its complete parameters; and what is said of it, as plain data.

    Raises
    ------
    DataError
        If the rows that can be scored are of one class only, or all have one score.
    """
    labels, scores, parameters = labels[~np.isnan(scores)], scores[~np.isnan(scores)], dict(parameters)
    value = LABEL_THRESHOLDS[name].function(labels, scores, **parameters)
    flagged = scores > value
    counts = {
        "n_normal": int((labels == 0).sum()),
        "n_anomalies": int((labels == 1).sum()),
        "normal_flagged": int(flagged[labels == 0].sum()),
        "anomalies_flagged": int(flagged[labels == 1].sum()),
    }
    fpr = parameters.pop("fpr", None)
    return value, _rule(name, fpr, out_of_fold=out_of_fold, parameters=parameters, labels=counts)


def _rule(
    name: str,
    fpr: float | None,
    *,
    out_of_fold: bool,
    parameters: dict[str, float] | None = None,
    extrapolation: dict[str, Any] | None = None,
    labels: dict[str, int] | None = None,
) -> dict[str, Any]:
    return {
        "name": name,
        "fpr": fpr,
        "out_of_fold": out_of_fold,
        "parameters": parameters or {},
        "extrapolation": extrapolation,
        "labels": labels,
    }
