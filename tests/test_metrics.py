import json
import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import auc, average_precision_score, f1_score, roc_auc_score

from vae_anomaly import metrics
from vae_anomaly.errors import DataError
from vae_anomaly.metrics import area_difference, evaluate, pr_table, roc_table, to_json


def sample(n_normal=80, n_anomalies=30, *, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    y = np.repeat([0, 1], [n_normal, n_anomalies])
    scores = rng.normal(size=len(y)) + 1.2 * y
    order = rng.permutation(len(y))
    return y[order], np.round(scores[order]) if ties else scores[order]


@pytest.mark.parametrize("ties", [False, True])
def test_areas_are_those_of_scikit_learn(ties):
    y, scores = sample(ties=ties)
    evaluation = evaluate(y, scores, 1.0)
    assert evaluation.roc_auc.value == pytest.approx(roc_auc_score(y, scores), abs=1e-12)
    assert evaluation.average_precision.value == pytest.approx(average_precision_score(y, scores), abs=1e-12)
    assert auc(*evaluation.roc[:2]) == pytest.approx(evaluation.roc_auc.value, abs=1e-12)
    recall, precision, _ = evaluation.pr
    assert -np.sum(np.diff(recall) * precision[:-1]) == pytest.approx(evaluation.average_precision.value, abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("max_fpr", [0.01, 0.1, 0.37, 1.0])
def test_the_partial_area_is_that_of_scikit_learn(ties, max_fpr):
    y, scores = sample(ties=ties)
    given = evaluate(y, scores, 1.0, max_fpr=max_fpr)
    assert given.partial_roc_auc.value == pytest.approx(roc_auc_score(y, scores, max_fpr=max_fpr))
    assert given.partial_roc_auc.low <= given.partial_roc_auc.value <= given.partial_roc_auc.high


@pytest.mark.parametrize("ties", [False, True])
def test_bootstrap_is_that_of_resampled_rows(ties):
    y, scores = sample(ties=ties)
    evaluation = evaluate(y, scores, 1.0, seed=5, n_resamples=60)

    rng = np.random.default_rng(5)
    normal, anomalous = scores[y == 0], scores[y == 1]
    labels = np.repeat([0, 1], [len(normal), len(anomalous)])
    areas = []
    for _ in range(60):
        rows = [values[rng.integers(len(values), size=len(values))] for values in (normal, anomalous)]
        drawn = np.concatenate(rows)
        areas.append([roc_auc_score(labels, drawn), average_precision_score(labels, drawn)])
    low, high = np.quantile(areas, [0.025, 0.975], axis=0)

    for interval, a, b in zip((evaluation.roc_auc, evaluation.average_precision), low, high, strict=True):
        assert (interval.low, interval.high) == (pytest.approx(a, abs=1e-12), pytest.approx(b, abs=1e-12))
        assert interval.method == "stratified bootstrap, 60 resamples, 95 %"


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    # Normal scores with a shift of 1.2: the true area is Phi(1.2 / sqrt(2)).
    truth = 0.5 * (1 + math.erf(1.2 / 2))
    areas = [evaluate(*sample(seed=seed), 1.0, n_resamples=200).roc_auc for seed in range(100)]
    # 95 of 100 expected; a binomial count is under 85 less than once in 10,000 runs.
    assert sum(area.low <= truth <= area.high for area in areas) >= 85


def test_band_holds_the_curve():
    y, scores = sample(400, 300)
    evaluation = evaluate(y, scores, 1.0)
    grid, low, high = evaluation.roc_band
    curve = np.interp(grid, evaluation.roc.fpr, evaluation.roc.tpr)
    assert np.all(low <= high)
    assert np.mean((low <= curve) & (curve <= high)) > 0.98


def test_shares_have_wilson_intervals():
    y, scores = sample()
    evaluation = evaluate(y, scores, 0.8, confidence=0.9)
    tn, fp, fn, tp = evaluation.confusion
    assert (tn + fp, fn + tp) == (80, 30) == (evaluation.n_normal, evaluation.n_anomalies)
    for interval, k, n in (
        (evaluation.false_alarm_rate, fp, 80),
        (evaluation.recall, tp, 30),
        (evaluation.precision, tp, tp + fp),
    ):
        ends = binomtest(k, n).proportion_ci(0.9, method="wilson")
        assert (interval.value, interval.low, interval.high) == (k / n, ends.low, ends.high)
        assert interval.method == "Wilson, 90 %"
    assert evaluation.f1 == pytest.approx(f1_score(y, scores > 0.8))


def test_a_score_at_the_threshold_is_not_flagged():
    assert evaluate([0, 1, 1], [1.0, 2.0, 3.0], threshold=2.0).confusion == (1, 0, 1, 1)


def test_precision_without_alarms_is_not_defined():
    evaluation = evaluate([0, 1], [1.0, 2.0], threshold=9.0)
    assert evaluation.precision == metrics.Interval(None, None, None, "no row is flagged")
    assert evaluation.f1 == 0
    assert to_json(evaluation)["precision"]["value"] is None


def test_order_of_rows_and_monotone_maps_change_no_area():
    y, scores = sample(ties=True)
    evaluation = evaluate(y, scores, 1.0, n_resamples=0)
    turned = evaluate(y[::-1], np.exp(scores[::-1]), 1.0, n_resamples=0)
    assert turned.roc_auc == evaluation.roc_auc
    assert turned.average_precision == evaluation.average_precision


def test_infinite_scores_are_ranked():
    evaluation = evaluate([0, 0, 1, 1], [-np.inf, 1.0, 2.0, np.inf], threshold=1.5)
    assert evaluation.roc_auc.value == 1
    assert evaluation.confusion == (2, 0, 0, 2)


def test_equal_seeds_give_equal_intervals():
    y, scores = sample()
    first, again, other = (evaluate(y, scores, 1.0, seed=seed, n_resamples=50).roc_auc for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_more_rows_take_fewer_resamples():
    y, scores = sample(20_000, 1)
    assert "200 resamples" in evaluate(y, scores, 1.0).roc_auc.method
    assert "1000 resamples" in evaluate(y[:-1], scores[:-1], 1.0).roc_auc.method


def test_without_resamples_there_is_no_interval():
    evaluation = evaluate([0, 1], [1.0, 2.0], 1.5, n_resamples=0)
    assert evaluation.roc_auc == metrics.Interval(1.0, None, None, "no interval")
    assert evaluation.roc_band is None


def test_constant_scores_rank_nothing():
    evaluation = evaluate(*sample()[:1], np.ones(110), 1.0)
    assert evaluation.roc_auc.value == 0.5
    assert evaluation.notes == ("All rows have the same score: the scores can't rank these rows.",)


@pytest.mark.parametrize(
    ("y", "scores", "sentence"),
    [
        ([0] * 30 + [1] * 20, np.arange(50), "no width"),
        ([0] * 30 + [1] * 3, np.arange(33) % 5, "There are only 3 anomalies"),
        ([0] + [1] * 30, np.arange(31) % 5, "There is only one normal row"),
    ],
)
def test_notes_say_what_the_rows_cannot_tell(y, scores, sentence):
    assert any(sentence in note for note in evaluate(y, scores, 1.0).notes)


@pytest.mark.parametrize(
    ("y", "scores", "error", "sentence"),
    [
        ([0] * 57, [1.0] * 57, DataError, "needs normal rows and anomalies; all 57 rows are labelled normal"),
        ([1] * 3, [1.0] * 3, DataError, "all 3 rows are labelled anomalies"),
        ([], [], DataError, "there are no rows"),
        ([0, 1, 1], [1.0, np.nan, np.nan], ValueError, "2 of 3 scores are NaN"),
        ([0, 1], [1.0], ValueError, "y has 2 labels, but scores has 1 values"),
        ([0, -1], [1.0, 2.0], ValueError, r"got -1\."),
        ([0, np.nan], [1.0, 2.0], ValueError, r"got nan\."),
        (["0", "1"], [1.0, 2.0], ValueError, r"got '0'\."),
        ([[0, 1]], [1.0, 2.0], ValueError, "one dimension"),
    ],
)
def test_labels_and_scores_that_cannot_be_used(y, scores, error, sentence):
    with pytest.raises(error, match=sentence):
        evaluate(y, scores, 1.0)


def test_threshold_that_is_nan():
    with pytest.raises(ValueError, match="threshold is NaN"):
        evaluate([0, 1], [1.0, 2.0], float("nan"))


def test_json_is_plain():
    y, scores = sample()
    written = json.loads(json.dumps(to_json(evaluate(y, scores, 1.0, n_resamples=20)), allow_nan=False))
    assert set(written) == {
        *(
            "roc_auc",
            "roc_auc_delong",
            "partial_roc_auc",
            "max_fpr",
            "average_precision",
            "recall",
            "precision",
            "false_alarm_rate",
            "f1",
        ),
        *("threshold", "confusion", "n_rows", "n_normal", "n_anomalies"),
    }
    assert set(written["roc_auc"]) == set(written["f1"]) == {"value", "low", "high", "method"}
    assert json.dumps(to_json(evaluate(y, scores, math.inf, n_resamples=0)), allow_nan=False)


@pytest.mark.parametrize("ties", [False, True])
def test_tables_give_the_rates_at_their_thresholds(ties):
    y, scores = sample(ties=ties)
    evaluation = evaluate(y, scores, 1.0, n_resamples=0)
    roc, pr = roc_table(evaluation), pr_table(evaluation)
    assert roc["threshold"][0] == np.inf
    assert {len(column) for column in roc.values()} == {len(roc["fpr"])}
    assert {len(column) for column in pr.values()} == {len(pr["recall"])}
    for fpr, tpr, threshold in zip(*roc.values(), strict=True):
        assert fpr == pytest.approx(np.mean(scores[y == 0] >= threshold))
        assert tpr == pytest.approx(np.mean(scores[y == 1] >= threshold))
    for recall, precision, threshold in list(zip(*pr.values(), strict=True))[:-1]:
        assert recall == pytest.approx(np.mean(scores[y == 1] >= threshold))
        assert precision == pytest.approx(np.mean(y[scores >= threshold]))


def test_a_difference_has_the_resamples_of_the_evaluations(rng):
    """Scores against ones that rank by chance, and against themselves."""
    y = np.repeat([0, 1], [60, 20])
    scores, others = y + rng.normal(size=80), rng.normal(size=80)
    difference = area_difference(y, scores, others, seed=3)
    first, second = (evaluate(y, some, 0.0, seed=3) for some in (scores, others))
    for name in ("roc_auc", "average_precision"):
        assert getattr(difference, name).value == getattr(first, name).value - getattr(second, name).value
    against_itself = area_difference(y, scores, 2 * scores)
    assert [(interval.low, interval.value, interval.high) for interval in against_itself] == [(0, 0, 0)] * 2
    # All scores equal: an area of 1/2 in every resample, so the difference varies as the area does.
    constant = area_difference(y, scores, np.zeros(80), seed=3).roc_auc
    np.testing.assert_allclose(
        [constant.low + 0.5, constant.high + 0.5], [first.roc_auc.low, first.roc_auc.high], rtol=1e-12
    )


def test_a_difference_turns_its_sign_with_the_scores(rng):
    y = np.repeat([0, 1], [60, 20])
    scores, others = y + rng.normal(size=80), 2 * y + rng.normal(size=80)
    one, other = area_difference(y, scores, others).roc_auc, area_difference(y, others, scores).roc_auc
    np.testing.assert_allclose([one.value, one.low, one.high], [-other.value, -other.high, -other.low], atol=1e-12)
    assert area_difference(y, scores, others, n_resamples=0).roc_auc.low is None


@pytest.mark.parametrize("flags", [[True, False, False, True], [1, 0, 0, 1], [1.0, 0.0, 0.0, 1.0]])
def test_flags_of_another_rule_decide(flags):
    evaluation = evaluate([1, 0, 0, 0], [4.0, 3.0, 2.0, 1.0], 2.5, n_resamples=0, is_anomaly=flags)
    assert evaluation.flagged.tolist() == [True, False, False, True]
    assert (evaluation.confusion.tp, evaluation.confusion.fp) == (1, 1)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([-1, 1, 1, 1], r"True or 1 for a flagged row, .* got -1\. Of what predict\(\) gives, take predict\(X\) == -1"),
        ([1.0, 0.0, 0.0, math.nan], "got nan"),
        ([None, 0, 0, 1], "got None"),
        (["1", "0", "0", "0"], "got '1'"),
        ([[1], [0], [0], [0]], r"is_anomaly has shape \(4, 1\), expected one value for each of the 4 rows"),
        ([1, 0], r"is_anomaly has shape \(2,\)"),
    ],
)
def test_flags_that_say_nothing_are_refused(flags, sentence):
    """What predict() gives, -1 and 1, counted as flagged throughout."""
    with pytest.raises(ValueError, match=sentence):
        evaluate([1, 0, 0, 0], [4.0, 3.0, 2.0, 1.0], 2.5, n_resamples=0, is_anomaly=flags)
