"""A detector and the baselines on the same labelled rows: areas, differences with intervals, and a plain verdict."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from vae_anomaly.baselines import BASELINES, describe, make_baseline
from vae_anomaly.errors import DataError
from vae_anomaly.metrics import Interval, area_difference, evaluate

__all__ = ["Detector", "PairedDifference", "Result", "compare", "paired_differences", "split_rows", "verdict"]

# The name of the detector that the baselines are compared with.
VAE = "vae"

Floats = NDArray[np.float64]


class Detector(Protocol):
    """What is compared with the baselines, such as a ``VAEDetector``; a ``schema_`` makes numbers of other columns."""

    def fit(self, X: Any, /) -> Any: ...
    def anomaly_score(self, X: Any, /) -> Floats: ...


# eq=False: arrays have no truth value, so a generated __eq__ would raise.
@dataclass(frozen=True, eq=False)
class Result:
    """How well one detector separates the test rows.

    Attributes
    ----------
    name : str
        ``"vae"``, or one of ``BASELINES``.
    settings : str
        Everything that is needed to repeat it.
    roc_auc, average_precision : Interval
        Areas with intervals, as of :func:`vae_anomaly.metrics.evaluate`.
    fit_seconds, score_seconds : float
        Wall-clock time.
    scores : ndarray of shape (n_test,)
        Higher is more anomalous. NaN for rows that the VAE can't score, in all results alike.
    """

    name: str
    settings: str
    roc_auc: Interval
    average_precision: Interval
    fit_seconds: float
    score_seconds: float
    scores: Floats


@dataclass(frozen=True)
class PairedDifference:
    """By how much a baseline's areas exceed the VAE's."""

    name: str
    roc_auc: Interval
    average_precision: Interval


def split_rows(y: ArrayLike, seed: int, *, max_rows: int | None = None) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions of the rows to train on and of those to test on.

    The normal rows are shuffled. Their first half trains, the other half and every anomaly tests. Rows with another
    label than 0 or 1 are in neither.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        1 for an anomaly, 0 for normal.
    seed : int
        Seed of the shuffle.
    max_rows : int, optional
        If there are more rows, that many are kept after the shuffle, with the same share of anomalies.

    Raises
    ------
    DataError
        If there are fewer than four normal rows, or no anomaly.

    Examples
    --------
    >>> train, test = split_rows([0, 0, 1, 0, 0, 1], seed=0)
    >>> len(train), len(test), sorted([*train.tolist(), *test.tolist()])
    (2, 4, [0, 1, 2, 3, 4, 5])
    """
    labels, rng = np.asarray(y), np.random.default_rng(seed)
    normal, anomalous = rng.permutation(np.flatnonzero(labels == 0)), np.flatnonzero(labels == 1)
    if len(normal) < 4:
        raise DataError(
            f"A comparison needs at least 4 normal rows, half of them to train on; there are {len(normal)}."
        )
    if not len(anomalous):
        raise DataError("A comparison needs labelled anomalies to test on; there are none.")
    n_rows = len(normal) + len(anomalous)
    if max_rows is not None and n_rows > max_rows:
        share = max_rows / n_rows
        normal = normal[: max(4, round(share * len(normal)))]
        anomalous = np.sort(rng.permutation(anomalous)[: max(1, round(share * len(anomalous)))])
    half = len(normal) // 2
    return normal[:half], np.concatenate([normal[half:], anomalous])


def compare(
    X_train: Any, X_test: Any, y_test: ArrayLike, detector: Detector, names: Iterable[str] = tuple(BASELINES)
) -> list[Result]:
    """Areas and times of the detector, first, and of the baselines, all fitted on the same rows.

    Baselines know numbers only. A table of numbers without holes goes to them as it is; any other one as the
    detector's ``schema_`` encodes it (text one-hot), with 0 for a missing entry, which is the mean of a column of real
    numbers. Both are then standardised on the training rows.

    Parameters
    ----------
    X_train : DataFrame or array-like of shape (n_train, n_features)
        Normal rows.
    X_test : DataFrame or array-like of shape (n_test, n_features)
    y_test : array-like of shape (n_test,)
        1 for an anomaly, 0 for normal.
    detector : Detector
        Is fitted. A row that gets NaN from it is left out of all figures.
    names : iterable of str
        Baselines to fit, of ``BASELINES``.

    Examples
    --------
    >>> from vae_anomaly.baselines import KNN
    >>> class Nearest(KNN):
    ...     def anomaly_score(self, X):
    ...         return -self.score_samples(X)
    >>> rng = np.random.default_rng(0)
    >>> train, test = rng.normal(size=(40, 2)), rng.normal(size=(20, 2))
    >>> results = compare(train, test + 9 * np.eye(20, 2), [1, 1] + 18 * [0], Nearest(), ["lof"])
    >>> [(result.name, result.roc_auc.value) for result in results]
    [('vae', 1.0), ('lof', 1.0)]
    """
    y = np.asarray(y_test)
    started = time.perf_counter()
    detector.fit(X_train)
    fitted = time.perf_counter()
    scores = np.asarray(detector.anomaly_score(X_test), dtype=np.float64)
    times = fitted - started, time.perf_counter() - fitted
    known = ~np.isnan(scores)
    results = [_result(VAE, " ".join(repr(detector).split()), y, scores, *times)]
    names = list(names)
    if not names:
        return results
    train, test = _matrices(detector, X_train, X_test)
    for name in names:
        started = time.perf_counter()
        baseline = make_baseline(name).fit(train)
        fitted = time.perf_counter()
        scores = np.full(len(y), np.nan)
        scores[known] = -baseline.score_samples(test[known])
        times = fitted - started, time.perf_counter() - fitted
        results.append(_result(name, describe(name), y, scores, *times))
    return results


def paired_differences(
    y: ArrayLike,
    results: Sequence[Result],
    *,
    seed: int = 0,
    confidence: float = 0.95,
    n_resamples: int | None = None,
) -> list[PairedDifference]:
    """Areas of each baseline less the VAE's, with bootstrap intervals from the same resamples for all.

    Parameters
    ----------
    y : array-like of shape (n_test,)
        As given to :func:`compare`.
    results : sequence of Result
        Of :func:`compare`; the first one is the VAE's.
    seed, confidence, n_resamples
        As of :func:`vae_anomaly.metrics.evaluate`. Each interval is one of its own: with more baselines, chance alone
        puts more of them on one side of 0.
    """
    vae, *others = results
    known, labels = ~np.isnan(vae.scores), np.asarray(y)
    return [
        PairedDifference(
            other.name,
            *area_difference(
                labels[known],
                other.scores[known],
                vae.scores[known],
                seed=seed,
                confidence=confidence,
                n_resamples=n_resamples,
            ),
        )
        for other in others
    ]


def verdict(results: Sequence[Result], differences: Sequence[PairedDifference]) -> str:
    """Whether a baseline is better than the VAE on these rows: where an interval of its differences lies above 0.

    Better by one of the two areas is enough, and the VAE is called better only where it is not worse by the other.
    """
    if not differences:
        return f"The VAE was compared with nothing; its ROC-AUC is {results[0].roc_auc.value:.3f}."
    better = {one.name: said for one in differences if (said := _where(one, _is_above))}
    worse = [one.name for one in differences if _where(one, _is_below) and one.name not in better]
    if better:
        verb = "is" if len(better) == 1 else "are"
        sentence = f"On these rows {_listed(list(better))} {verb} better than the VAE: {'; '.join(better.values())}."
    else:
        sentence = "On these rows no baseline is better than the VAE: no interval of a difference lies above 0."
    return sentence + (f" The VAE is better than {_listed(worse)}." if worse else "")


def _result(
    name: str, settings: str, y: NDArray[Any], scores: Floats, fit_seconds: float, score_seconds: float
) -> Result:
    known = ~np.isnan(scores)
    # The areas need no threshold.
    evaluation = evaluate(y[known], scores[known], threshold=np.inf)
    return Result(name, settings, evaluation.roc_auc, evaluation.average_precision, fit_seconds, score_seconds, scores)


def _matrices(detector: Detector, *tables: Any) -> list[Floats]:
    """The tables as numbers without holes."""
    frames = [table if isinstance(table, pd.DataFrame) else pd.DataFrame(np.asarray(table)) for table in tables]
    numeric = all(pd.api.types.is_numeric_dtype(dtype) for frame in frames for dtype in frame.dtypes)
    if numeric and not any(frame.isna().to_numpy().any() for frame in frames):
        # Sums over a column round by the memory layout, which differs between frames and arrays.
        return [np.ascontiguousarray(frame.to_numpy(dtype=np.float64)) for frame in frames]
    schema = getattr(detector, "schema_", None)
    if schema is None:
        raise DataError("Baselines need numbers without holes, and this detector has no schema_ to make them.")
    return [np.nan_to_num(np.asarray(schema.encode(frame), dtype=np.float64), nan=0.0) for frame in frames]


def _is_above(interval: Interval) -> bool:
    return interval.low is not None and interval.low > 0


def _is_below(interval: Interval) -> bool:
    return interval.high is not None and interval.high < 0


def _where(difference: PairedDifference, holds: Callable[[Interval], bool]) -> str:
    """The areas for which something holds, with their figures; empty if there are none."""
    figures = {"ROC-AUC": difference.roc_auc, "average precision": difference.average_precision}
    said = [
        f"{what} {interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
        for what, interval in figures.items()
        if holds(interval)
    ]
    return f"{difference.name} by {' and '.join(said)}" if said else ""


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
