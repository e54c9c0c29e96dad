"""How well scores separate labelled anomalies from normal rows, each figure with its interval."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from vae_anomaly.areas import areas, areas_of, precision_at, recall_at, resamples, whole_areas_of
from vae_anomaly.delong import area_interval
from vae_anomaly.errors import DataError

__all__ = [
    "Band",
    "Confusion",
    "Difference",
    "Evaluation",
    "Interval",
    "PrecisionRecallCurve",
    "RocCurve",
    "Unlabelled",
    "area_difference",
    "evaluate",
    "pr_table",
    "roc_table",
    "share_interval",
    "to_json",
]

Floats = NDArray[np.float64]

# With fewer rows of a class than this, an interval says little and the evaluation has a note about it.
FEW_ROWS = 10
# False-alarm rate up to which the partial area looks, unless asked otherwise: beyond it, nobody would read the alarms.
MAX_FPR = 0.1


@dataclass(frozen=True)
class Interval:
    """A figure with the interval that its sampling error leaves open.

    Attributes
    ----------
    value : float or None
        The figure; None where it is not defined, as precision is when no row is flagged.
    low, high : float or None
        Ends of the interval; None where none was computed.
    method : str
        How the interval came about, and its confidence.

    Examples
    --------
    >>> Interval(0.9, 0.8, 0.95, "Wilson, 95 %").low
    0.8
    """

    value: float | None
    low: float | None
    high: float | None
    method: str


class Difference(NamedTuple):
    """By how much the areas of some scores exceed those of others on the same rows."""

    roc_auc: Interval
    average_precision: Interval


class RocCurve(NamedTuple):
    """False-alarm rate and recall at falling thresholds; the first threshold is infinite and flags nothing."""

    fpr: Floats
    tpr: Floats
    thresholds: Floats


class PrecisionRecallCurve(NamedTuple):
    """Recall and precision at rising thresholds; the last pair, (0, 1), belongs to no threshold."""

    recall: Floats
    precision: Floats
    thresholds: Floats


class Band(NamedTuple):
    """Pointwise bootstrap interval around a curve: recall at each false-alarm rate, or precision at each recall."""

    at: Floats
    low: Floats
    high: Floats


class Confusion(NamedTuple):
    """Numbers of normal rows passed and flagged, and of anomalies missed and caught."""

    tn: int
    fp: int
    fn: int
    tp: int


# eq=False: arrays have no truth value, so a generated __eq__ would raise.
@dataclass(frozen=True, eq=False)
class Evaluation:
    """Everything that labels say about scores and a threshold; made by :func:`evaluate`.

    Attributes
    ----------
    y : ndarray of shape (n_samples,)
        1 for an anomaly, 0 for normal.
    scores : ndarray of shape (n_samples,)
        Anomaly scores. Higher is more anomalous.
    threshold : float
        Rows with a score above it are flagged.
    n_normal, n_anomalies : int
        Rows of each class.
    roc : RocCurve
        ``fpr``, ``tpr`` and ``thresholds``, as of :func:`sklearn.metrics.roc_curve`.
    pr : PrecisionRecallCurve
        ``recall``, ``precision`` and ``thresholds``, as of :func:`sklearn.metrics.precision_recall_curve`.
    roc_band, pr_band : Band or None
        Pointwise intervals around the curves; None without resamples.
    roc_auc, average_precision : Interval
        Areas, which don't depend on the threshold, with percentile intervals of a stratified bootstrap.
    roc_auc_delong : Interval
        The same area with DeLong's interval.
    partial_roc_auc : Interval
        Area under the ROC curve up to ``max_fpr``, standardised: 0.5 by chance, 1 at best (McClish 1989).
    max_fpr : float
        Where the partial area ends.
    confusion : Confusion
        ``tn``, ``fp``, ``fn``, ``tp`` at the threshold.
    false_alarm_rate, recall, precision : Interval
        Shares at the threshold, with Wilson intervals.
    f1 : float
        Harmonic mean of recall and precision at the threshold.
    notes : tuple of str
        Sentences about what these rows can't tell.
    is_anomaly : ndarray of shape (n_samples,) or None
        Which rows are flagged, where another rule than the one threshold decided.
    """

    y: NDArray[np.int8]
    scores: Floats
    threshold: float
    n_normal: int
    n_anomalies: int
    roc: RocCurve
    pr: PrecisionRecallCurve
    roc_band: Band | None
    pr_band: Band | None
    roc_auc: Interval
    average_precision: Interval
    roc_auc_delong: Interval
    partial_roc_auc: Interval
    max_fpr: float
    confusion: Confusion
    false_alarm_rate: Interval
    recall: Interval
    precision: Interval
    f1: float
    notes: tuple[str, ...] = ()
    is_anomaly: NDArray[np.bool_] | None = None

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Whether each row is flagged."""
        return self.scores > self.threshold if self.is_anomaly is None else self.is_anomaly

    @property
    def n_rows(self) -> int:
        """Number of evaluated rows."""
        return len(self.y)

    @property
    def prevalence(self) -> float:
        """Share of anomalies among the rows, which is the precision of flagging at random."""
        return self.n_anomalies / self.n_rows


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Scores and a threshold without labels.

    Attributes
    ----------
    scores : ndarray of shape (n_samples,)
        Anomaly scores. Higher is more anomalous.
    threshold : float
        Rows with a score above it are flagged.
    is_anomaly : ndarray of shape (n_samples,), optional
        Which rows are flagged, where another rule than the threshold decided.
    notes : tuple of str

    Examples
    --------
    >>> Unlabelled(np.array([1.0, 2.0, 9.0]), 3.0).n_flagged
    1
    """

    scores: Floats
    threshold: float
    is_anomaly: NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.scores)

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Whether each row is flagged."""
        return self.scores > self.threshold if self.is_anomaly is None else self.is_anomaly

    @property
    def n_flagged(self) -> int:
        """Number of flagged rows."""
        return int(self.flagged.sum())


def evaluate(
    y: ArrayLike,
    scores: ArrayLike,
    threshold: float,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    n_resamples: int | None = None,
    max_fpr: float = MAX_FPR,
    is_anomaly: ArrayLike | None = None,
) -> Evaluation:
    """Areas, rates and curves of scores against labels, with their intervals.

    The bootstrap draws normal rows and anomalies separately, so each resample has as many of either as the data.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        1 for an anomaly, 0 for normal.
    scores : array-like of shape (n_samples,)
        Anomaly scores. Higher is more anomalous; infinite is allowed.
    threshold : float
        Rows with a score above it are flagged.
    seed : int
        Seed of the bootstrap.
    confidence : float in (0, 1)
        Confidence of every interval.
    n_resamples : int, optional
        Bootstrap resamples: 1000 for up to 20,000 rows and 200 above, unless given. With 0 the areas have no interval.
    max_fpr : float in (0, 1]
        False-alarm rate up to which the partial area looks.
    is_anomaly : array-like of shape (n_samples,), optional
        True or 1 for each row that is flagged, else False or 0, where another rule decided, such as a threshold for
        each group: ``predict(X) == -1``.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        If a score is NaN, a label or a flag is neither 0 nor 1, or the lengths differ.
    DataError
        If all rows are of one class.

    Examples
    --------
    >>> evaluation = evaluate([0, 0, 0, 1, 1], [0.1, 0.4, 0.3, 0.35, 0.9], threshold=0.5)
    >>> round(evaluation.roc_auc.value, 4)
    0.8333
    >>> evaluation.confusion
    Confusion(tn=3, fp=0, fn=1, tp=1)
    >>> evaluation.recall
    Interval(value=0.5, low=0.09453120573423074, high=0.9054687942657693, method='Wilson, 95 %')
    """
    labels, values = _checked(y, scores)
    threshold = float(threshold)
    if np.isnan(threshold):
        raise ValueError("The threshold is NaN. Give a number; rows with a score above it are flagged.")
    flagged = values > threshold if is_anomaly is None else _checked_flags(is_anomaly, len(labels))
    n_resamples = _checked_resamples(n_resamples, confidence, len(labels))
    if not 0 < max_fpr <= 1:
        raise ValueError(f"max_fpr={max_fpr!r} must lie above 0, and be 1 at most.")

    # The figures depend on the order of the scores alone; their ranks keep ties and are finite where a score is not.
    distinct, ranks = np.unique(values, return_inverse=True)
    (roc_auc, average_precision, partial), (roc_band, pr_band) = _bootstrap(
        labels, ranks, np.random.default_rng(seed), n_resamples, confidence, max_fpr
    )

    fpr, tpr, at = roc_curve(labels, ranks)
    roc = RocCurve(fpr, tpr, np.concatenate([[np.inf], distinct[at[1:].astype(int)]]))
    precision, recall, at = precision_recall_curve(labels, ranks, drop_intermediate=True)
    pr = PrecisionRecallCurve(recall, precision, distinct[at.astype(int)])

    tn, fp, fn, tp = (int(n) for n in confusion_matrix(labels, flagged, labels=[0, 1]).ravel())
    return Evaluation(
        y=labels,
        scores=values,
        threshold=threshold,
        n_normal=tn + fp,
        n_anomalies=fn + tp,
        roc=roc,
        pr=pr,
        roc_band=roc_band,
        pr_band=pr_band,
        roc_auc=roc_auc,
        average_precision=average_precision,
        roc_auc_delong=Interval(*area_interval(labels, ranks, confidence), f"DeLong, {100 * confidence:g} %"),
        partial_roc_auc=partial,
        max_fpr=max_fpr,
        confusion=Confusion(tn, fp, fn, tp),
        false_alarm_rate=share_interval(fp, tn + fp, confidence),
        recall=share_interval(tp, fn + tp, confidence),
        precision=share_interval(tp, tp + fp, confidence)
        if tp + fp
        else Interval(None, None, None, "no row is flagged"),
        f1=2 * tp / (2 * tp + fp + fn),
        notes=_notes(len(distinct), tn + fp, fn + tp, roc_auc.value, threshold, n_resamples),
        is_anomaly=None if is_anomaly is None else flagged,
    )


def area_difference(
    y: ArrayLike,
    scores: ArrayLike,
    reference: ArrayLike,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    n_resamples: int | None = None,
) -> Difference:
    """Areas of ``scores`` less those of ``reference``, with intervals from the same resamples of the rows for both.

    Two detectors mostly find the same rows hard, so the interval of a difference is narrower than the intervals of the
    two areas suggest. The resamples are those of :func:`evaluate` with the same seed.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        1 for an anomaly, 0 for normal.
    scores, reference : array-like of shape (n_samples,)
        Anomaly scores of two detectors. Higher is more anomalous.
    seed, confidence, n_resamples
        As of :func:`evaluate`.

    Returns
    -------
    Difference

    Raises
    ------
    ValueError, DataError
        As of :func:`evaluate`.

    Examples
    --------
    >>> y = np.repeat([0, 1], 50)
    >>> noise = np.random.default_rng(0).normal(size=100)
    >>> difference = area_difference(y, 3 * y + noise, y + noise)
    >>> difference.roc_auc.low > 0
    True
    """
    labels, values = _checked(y, scores)
    labels, others = _checked(y, reference)
    n_resamples = _checked_resamples(n_resamples, confidence, len(labels))
    both = [np.unique(some, return_inverse=True)[1] for some in (values, others)]
    value = (areas(labels, both[0], MAX_FPR) - areas(labels, both[1], MAX_FPR))[:2]
    if not n_resamples:
        return Difference(*(Interval(float(one), None, None, "no interval") for one in value))
    first, second = (
        np.array(
            [whole_areas_of(*counts) for counts in resamples(labels, ranks, np.random.default_rng(seed), n_resamples)]
        )
        for ranks in both
    )
    low, high = np.quantile(first - second, _tails(confidence), axis=0)
    method = f"paired {_method(n_resamples, confidence)}"
    return Difference(*(Interval(float(value[i]), float(low[i]), float(high[i]), method) for i in range(2)))


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Figures of an evaluation as plain numbers, ready for ``metrics.json``.

    A threshold that is not finite becomes None, because JSON has no infinity.

    Examples
    --------
    >>> metrics = to_json(evaluate([0, 0, 1], [1.0, 2.0, 3.0], threshold=2.5))
    >>> metrics["recall"]["value"], metrics["n_rows"], metrics["confusion"]
    (1.0, 3, {'tn': 2, 'fp': 0, 'fn': 0, 'tp': 1})
    """
    names = (
        "roc_auc",
        "roc_auc_delong",
        "partial_roc_auc",
        "average_precision",
        "recall",
        "precision",
        "false_alarm_rate",
    )
    intervals: dict[str, Interval] = {name: getattr(evaluation, name) for name in names}
    intervals["f1"] = Interval(evaluation.f1, None, None, "no interval")
    return {
        **{name: asdict(interval) for name, interval in intervals.items()},
        "max_fpr": evaluation.max_fpr,
        "threshold": evaluation.threshold if np.isfinite(evaluation.threshold) else None,
        "confusion": evaluation.confusion._asdict(),
        "n_rows": evaluation.n_rows,
        "n_normal": evaluation.n_normal,
        "n_anomalies": evaluation.n_anomalies,
    }


def roc_table(evaluation: Evaluation) -> Mapping[str, Floats]:
    """Columns ``fpr``, ``tpr``, ``threshold`` of the ROC curve; the first threshold is infinite.

    Examples
    --------
    >>> {name: column.tolist() for name, column in roc_table(evaluate([0, 1], [1.0, 2.0], threshold=1.5)).items()}
    {'fpr': [0.0, 0.0, 1.0], 'tpr': [0.0, 1.0, 1.0], 'threshold': [inf, 2.0, 1.0]}
    """
    return {"fpr": evaluation.roc.fpr, "tpr": evaluation.roc.tpr, "threshold": evaluation.roc.thresholds}


def pr_table(evaluation: Evaluation) -> Mapping[str, Floats]:
    """Columns ``recall``, ``precision``, ``threshold`` of the precision-recall curve; the last threshold is infinite.

    Examples
    --------
    >>> {name: column.tolist() for name, column in pr_table(evaluate([0, 1], [1.0, 2.0], threshold=1.5)).items()}
    {'recall': [1.0, 1.0, 0.0], 'precision': [0.5, 1.0, 1.0], 'threshold': [1.0, 2.0, inf]}
    """
    recall, precision, thresholds = evaluation.pr
    return {"recall": recall, "precision": precision, "threshold": np.append(thresholds, np.inf)}


def _checked(y: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.int8], Floats]:
    """Labels and scores as arrays of one length with both classes."""
    given, values = np.asarray(y), np.asarray(scores, dtype=np.float64)
    if given.ndim != 1 or values.ndim != 1:
        raise ValueError(f"y and scores must have one dimension, got shapes {given.shape} and {values.shape}.")
    if len(given) != len(values):
        raise ValueError(f"y has {len(given)} labels, but scores has {len(values)} values.")
    strange = given[~np.isin(given, [0, 1])]
    if len(strange):
        raise ValueError(f"y must be 0 for a normal row or 1 for an anomaly, got {strange.tolist()[0]!r}.")
    if unscored := int(np.isnan(values).sum()):
        raise ValueError(f"{unscored} of {len(values)} scores are NaN. Leave out rows that could not be scored.")
    labels = given.astype(np.int8)
    if not len(labels):
        raise DataError("ROC-AUC needs normal rows and anomalies; there are no rows.")
    if labels.min() == labels.max():
        kind = "anomalies" if labels[0] else "normal"
        raise DataError(f"ROC-AUC needs normal rows and anomalies; all {len(labels)} rows are labelled {kind}.")
    return labels, values


def _checked_flags(is_anomaly: ArrayLike, n_rows: int) -> NDArray[np.bool_]:
    """Which rows are flagged, as an array of truth values."""
    given = np.asarray(is_anomaly)
    if given.shape != (n_rows,):
        raise ValueError(f"is_anomaly has shape {given.shape}, expected one value for each of the {n_rows} rows.")
    strange = given[~np.isin(given, [0, 1])]
    if len(strange):
        raise ValueError(
            f"is_anomaly must be True or 1 for a flagged row, else False or 0, got {strange.tolist()[0]!r}. "
            "Of what predict() gives, take predict(X) == -1."
        )
    return given.astype(bool)


def _checked_resamples(n_resamples: int | None, confidence: float, n_rows: int) -> int:
    """Number of resamples, once the confidence is known to be one."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r} must lie between 0 and 1, such as 0.95.")
    if n_resamples is None:
        return 1000 if n_rows <= 20_000 else 200
    if n_resamples < 0:
        raise ValueError(f"n_resamples={n_resamples} must be 0 or more.")
    return n_resamples


def _tails(confidence: float) -> list[float]:
    return [(1 - confidence) / 2, (1 + confidence) / 2]


def _method(n_resamples: int, confidence: float) -> str:
    return f"stratified bootstrap, {n_resamples} resamples, {100 * confidence:g} %"


def _bootstrap(
    labels: NDArray[np.int8],
    ranks: NDArray[np.intp],
    rng: np.random.Generator,
    n_resamples: int,
    confidence: float,
    max_fpr: float,
) -> tuple[list[Interval], tuple[Band | None, Band | None]]:
    """The areas of :func:`areas` with percentile intervals, and the bands around the two curves."""
    values = areas(labels, ranks, max_fpr)
    if not n_resamples:
        return [Interval(float(value), None, None, "no interval") for value in values], (None, None)
    grid = np.linspace(0, 1, 201)
    drawn = np.empty((n_resamples, len(values)))
    recalls, precisions = np.empty((2, n_resamples, len(grid)))
    for i, (normals, anomalies) in enumerate(resamples(labels, ranks, rng, n_resamples)):
        drawn[i] = areas_of(normals, anomalies, max_fpr)
        recalls[i] = recall_at(normals, anomalies, grid)
        precisions[i] = precision_at(normals, anomalies, grid)
    ends = np.quantile(drawn, _tails(confidence), axis=0).T
    method = _method(n_resamples, confidence)
    intervals = [
        Interval(float(value), float(low), float(high), method) for value, (low, high) in zip(values, ends, strict=True)
    ]
    roc_band, pr_band = (Band(grid, *np.quantile(some, _tails(confidence), axis=0)) for some in (recalls, precisions))
    return intervals, (roc_band, pr_band)


def share_interval(k: int, n: int, confidence: float) -> Interval:
    """The share ``k / n`` with its Wilson interval.

    Examples
    --------
    >>> share_interval(8, 10, 0.95).value
    0.8
    """
    ends = binomtest(k, n).proportion_ci(confidence, method="wilson")
    return Interval(k / n, float(ends.low), float(ends.high), f"Wilson, {100 * confidence:g} %")


def _notes(
    n_distinct: int, n_normal: int, n_anomalies: int, roc_auc: float | None, threshold: float, n_resamples: int
) -> tuple[str, ...]:
    """What a reader of the figures should know about their limits."""
    notes = []
    if n_distinct == 1:
        notes.append("All rows have the same score: the scores can't rank these rows.")
    if roc_auc in (0, 1) and n_resamples:
        notes.append("The two classes don't overlap, so the bootstrap intervals have no width; more rows may overlap.")
    for n, kind in ((n_normal, "normal row"), (n_anomalies, "anomaly")):
        if n < FEW_ROWS:
            plural = {"normal row": "normal rows", "anomaly": "anomalies"}[kind]
            few = f"one {kind}" if n == 1 else f"{n} {plural}"
            notes.append(f"There {'is' if n == 1 else 'are'} only {few}: the intervals of the areas may be too narrow.")
    if threshold == np.inf:
        notes.append("The threshold is infinite: no row can be flagged.")
    return tuple(notes)
