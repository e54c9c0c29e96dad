import math

import naive
import numpy as np
import pytest

from vae_anomaly.errors import DataError
from vae_anomaly.label_thresholds import LABEL_THRESHOLDS, cost, f_beta, recall_at_fpr, youden

PARAMETERS = {"beta": 2.0, "cost_miss": 5.0, "cost_alarm": 1.0, "fpr": 0.1}
rules = pytest.mark.parametrize("name", LABEL_THRESHOLDS)


def chosen(name, y, scores, **parameters):
    rule = LABEL_THRESHOLDS[name]
    return rule.function(y, scores, **{key: {**PARAMETERS, **parameters}[key] for key in rule.parameters})


@pytest.mark.parametrize("decimals", [0, 1, 8])
@rules
def test_the_best_of_all_cuts(name, decimals, rng):
    """With ties within and between the classes, or without."""
    for _ in range(60):
        n_samples = int(rng.integers(2, 40))
        y = rng.permutation((np.arange(n_samples) < rng.integers(1, n_samples)).astype(int))
        scores = (rng.normal(size=n_samples) + rng.normal() * y).round(decimals)
        if len(np.unique(scores)) > 1:
            assert chosen(name, y, scores) == naive.label_threshold(name, y.tolist(), scores.tolist(), **PARAMETERS)


@pytest.mark.parametrize("fpr", [0.07, 0.1, 0.3])
def test_rates_are_the_written_decimal_numbers(fpr):
    """0.07 * 100 is 7.000000000000001, and 0.1 * 30 is 3.0000000000000004."""
    for n_normal in (10, 30, 100):
        y, scores = [0] * n_normal + [1] * n_normal, [*range(n_normal), *(np.arange(n_normal) - 0.5)]
        flagged = (np.arange(n_normal) > recall_at_fpr(y, scores, fpr)).sum()
        assert flagged == math.floor(naive.Fraction(repr(fpr)) * n_normal)


def test_f_beta_of_any_beta():
    """The square of 1e200 is beyond floats, and that of 1e-200 is 0."""
    y, scores = [0, 1, 0, 0, 1], [1.0, 2.0, 3.0, 4.0, 5.0]
    assert f_beta(y, scores, beta=1e200) == f_beta(y, scores, beta=1e6) == 1.5
    assert f_beta(y, scores, beta=1e-200) == f_beta(y, scores, beta=1e-6) == 4.5


@rules
def test_perfect_scores_are_cut_half_way(name):
    assert chosen(name, [0, 0, 1, 1], [1.0, 2.0, 4.0, 5.0]) == 3.0


@rules
def test_order_of_the_rows_does_not_matter(name, rng):
    y, scores = rng.integers(0, 2, size=100), rng.normal(size=100)
    order = rng.permutation(100)
    assert chosen(name, y, scores) == chosen(name, y[order], scores[order])


@rules
def test_infinite_scores(name):
    """An anomaly infinitely far out is caught by a finite threshold, or one at the largest finite score."""
    threshold = chosen(name, [0, 0, 1], [1.0, 2.0, math.inf])
    assert threshold == 2.0
    assert chosen(name, [0, 0, 1], [-math.inf, -math.inf, math.inf]) == -math.inf


def test_neighbouring_numbers_have_none_between():
    above = np.nextafter(1.0, 2.0)
    assert 1.0 <= youden([0, 1], [1.0, above]) < above
    assert youden([0, 1], [-1.7e308, 1.7e308]) == 0.0


def test_scores_that_tell_nothing_flag_nothing():
    """Of equal merit is the highest threshold, with the fewest alarms."""
    assert youden([1, 1, 0, 0], [1.0, 2.0, 3.0, 4.0]) == 4.0


def test_costs_move_the_threshold(rng):
    y = np.repeat([0, 1], [200, 50])
    scores = rng.normal(size=250) + 1.5 * y
    assert cost(y, scores, cost_miss=20.0) < cost(y, scores, cost_miss=3.0) < cost(y, scores, cost_alarm=20.0)
    assert cost(y, scores, cost_miss=3.0, cost_alarm=0.5) == cost(y, scores, cost_miss=6.0, cost_alarm=1.0)
    assert f_beta(y, scores, beta=4.0) < f_beta(y, scores, beta=0.25)
    assert cost([1, 0], [1.0, 2.0], cost_miss=5.0) == -math.inf


@rules
def test_no_more_than_one_class_or_one_score_is_refused(name):
    with pytest.raises(DataError, match="there are no anomalies among the 3 labelled rows"):
        chosen(name, [0, 0, 0], [1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="there are no normal rows among the 2 labelled rows"):
        chosen(name, [1, 1], [1.0, 2.0])
    with pytest.raises(DataError, match="All 3 labelled rows have the score 2, so no threshold tells them apart"):
        chosen(name, [0, 1, 1], [2.0, 2.0, 2.0])


@rules
def test_rows_that_cannot_be_judged_are_refused(name):
    with pytest.raises(ValueError, match="Scores contain NaN"):
        chosen(name, [0, 1], [1.0, math.nan])
    with pytest.raises(ValueError, match="y must hold 0 for a normal row and 1 for an anomaly"):
        chosen(name, [0, -1], [1.0, 2.0])
    with pytest.raises(ValueError, match="vectors of one length"):
        chosen(name, [0, 1, 1], [1.0, 2.0])


@pytest.mark.parametrize(
    ("name", "parameter"), [(name, key) for name, rule in LABEL_THRESHOLDS.items() for key in rule.parameters]
)
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_parameters_out_of_range(name, parameter, value):
    with pytest.raises(ValueError, match=f"{parameter}={value} must"):
        chosen(name, [0, 1], [1.0, 2.0], **{parameter: value})
