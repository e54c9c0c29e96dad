import math

import naive
import numpy as np
import pytest
from scipy.stats import binomtest

from vae_anomaly.thresholds import (
    THRESHOLDS,
    check_fpr,
    conformal,
    conformal_rows_needed,
    p_values,
    peaks_over_threshold,
    quantile,
    realised_rate,
)

RATES = (0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.06, 0.05, 0.03, 0.025, 0.02, 0.01, 0.7, 0.9, 0.95)


# -- every threshold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
@pytest.mark.parametrize("name", THRESHOLDS)
def test_rate_outside_zero_and_one_is_refused(name, fpr, rng):
    with pytest.raises(ValueError, match=rf"fpr={fpr} must lie between 0 and 1, both excluded"):
        THRESHOLDS[name].function(rng.normal(size=1000), fpr)


@pytest.mark.parametrize("name", THRESHOLDS)
def test_order_of_the_scores_does_not_matter(name, rng):
    scores = rng.normal(size=500)
    before = scores.copy()
    assert THRESHOLDS[name].function(scores, 0.1) == THRESHOLDS[name].function(np.sort(scores)[::-1], 0.1)
    np.testing.assert_array_equal(scores, before)


@pytest.mark.parametrize("name", THRESHOLDS)
def test_lower_rate_gives_a_higher_threshold(name, rng):
    """Strictly, over rates that are far enough apart."""
    scores = rng.normal(size=2000)
    thresholds = [THRESHOLDS[name].function(scores, fpr) for fpr in (0.2, 0.1, 0.05, 0.02, 0.01)]
    assert thresholds == sorted(thresholds)
    assert len(set(thresholds)) == 5


@pytest.mark.parametrize("name", THRESHOLDS)
def test_threshold_moves_and_stretches_with_the_scores(name, rng):
    scores, function = rng.exponential(size=500), THRESHOLDS[name].function
    expected = 7.0 + 4.0 * function(scores, 0.05)
    # The Pareto fit searches for its maximum, to a relative 1e-4 of the parameters by default.
    tolerance = 1e-3 if name == "peaks_over_threshold" else 1e-12
    assert function(7.0 + 4.0 * scores, 0.05) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("scores", [[], np.zeros((3, 2)), 1.0])
@pytest.mark.parametrize("name", THRESHOLDS)
def test_scores_must_be_a_vector(name, scores):
    with pytest.raises(ValueError, match="must be a non-empty vector, got an array of shape"):
        THRESHOLDS[name].function(scores, 0.5)


@pytest.mark.parametrize("name", THRESHOLDS)
def test_calibration_scores_must_not_be_nan(name):
    with pytest.raises(ValueError, match="Calibration scores contain NaN; leave out the rows"):
        THRESHOLDS[name].function([*range(500), math.nan], 0.1)


@pytest.mark.parametrize("fpr", RATES)
@pytest.mark.parametrize("name", THRESHOLDS)
def test_rows_needed_are_enough(name, fpr, rng):
    threshold = THRESHOLDS[name]
    scores = rng.exponential(size=threshold.rows_needed(fpr))
    assert math.isfinite(threshold.function(scores, fpr))


@pytest.mark.parametrize("fpr", [rate for rate in RATES if rate < 0.5])
def test_one_row_fewer_is_not_enough_for_conformal(fpr):
    needed = THRESHOLDS["conformal"].rows_needed(fpr)
    assert needed == math.ceil(1 / naive.Fraction(repr(fpr))) - 1
    expected = (
        f"fpr={fpr} needs at least {needed} calibration samples, got {needed - 1}. Raise fpr or calibrate on more"
    )
    with pytest.raises(ValueError, match=expected):
        conformal(np.arange(needed - 1.0), fpr)


def test_check_fpr_returns_a_float():
    assert check_fpr(np.float32(0.25)) == 0.25
    assert isinstance(check_fpr(np.float32(0.25)), float)


# -- conformal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fpr", RATES)
def test_conformal_is_the_counted_one(fpr, rng):
    for n in [*range(1, 121), 199, 299, 399, 999]:
        scores = rng.normal(size=n)
        expected = naive.conformal(scores.tolist(), fpr)
        if expected is None:
            with pytest.raises(ValueError, match=f"needs at least {conformal_rows_needed(fpr)} calibration samples"):
                conformal(scores, fpr)
        else:
            assert conformal(scores, fpr) == expected


@pytest.mark.parametrize(("n", "fpr"), [(29, 0.1), (9, 0.1), (19, 0.05), (99, 0.07), (999, 0.001), (9999, 0.0001)])
def test_conformal_undoes_the_rounding_of_rates(n, fpr):
    """0.07 * 100 is 7.000000000000001 and 0.1 * 3 is not 0.3: the rank is that of the written decimal number."""
    n_above = round(fpr * (n + 1))
    assert conformal(np.arange(float(n)), fpr) == n - n_above


def test_conformal_undoes_the_rounding_of_one_minus_a_level():
    """1 - 0.9 is 0.09999999999999998, of which 9 samples would not be enough."""
    for n in (9, 29, 99):
        assert conformal(np.arange(float(n)), 1 - 0.9) == conformal(np.arange(float(n)), 0.1)


def heavy_tailed(rng, shape):
    return rng.standard_t(df=1.5, size=shape)


def alarms(rule, n, fpr, rng, n_refits=20_000):
    """How many of as many fresh calibrations flag the one new normal score that comes with each."""
    scores = heavy_tailed(rng, (n_refits, n + 1))
    return sum(float(row[-1] > rule(row[:-1], fpr)) for row in scores)


@pytest.mark.parametrize(("n", "fpr"), [(99, 0.05), (30, 0.05), (19, 0.05), (50, 0.1)])
def test_conformal_keeps_its_rate_over_many_refits(n, fpr, rng):
    """It is floor((n + 1) fpr) / (n + 1), exactly, whatever the law of the scores."""
    expected = math.floor((n + 1) * fpr + 1e-9) / (n + 1)
    assert expected <= fpr
    interval = binomtest(int(alarms(conformal, n, fpr, rng)), 20_000).proportion_ci(0.9999)
    assert interval.low < expected < interval.high


def test_plain_quantile_exceeds_its_rate_with_few_rows(rng):
    assert binomtest(int(alarms(quantile, 30, 0.05, rng, 4000)), 4000).proportion_ci(0.9999).low > 0.05


@pytest.mark.parametrize("fpr", [0.05, 0.1, 0.25])
def test_plain_quantile_is_exceeded_by_that_share_of_its_own_samples(fpr, rng):
    scores = rng.normal(size=1001)
    assert np.mean(scores > quantile(scores, fpr)) == pytest.approx(fpr, abs=1 / 1001)


# -- p-values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_p_values_are_the_counted_ones(decimals, rng):
    """With ties within the calibration scores, and between these and the new ones, or without."""
    calibration, new = rng.normal(size=57).round(decimals), rng.normal(size=200).round(decimals)
    expected = [naive.p_value(calibration.tolist(), score) for score in new.tolist()]
    np.testing.assert_array_equal(p_values(calibration, new), expected)


def test_p_values_lie_between_one_over_n_plus_one_and_one():
    np.testing.assert_array_equal(p_values([1.0, 2.0, 3.0], [-np.inf, np.inf, 1.0]), [1.0, 0.25, 1.0])


def test_a_missing_score_has_no_p_value():
    np.testing.assert_array_equal(p_values([1.0, 2.0, 3.0], [math.nan, 2.5]), [math.nan, 0.5])
    assert p_values([1.0], []).shape == (0,)


@pytest.mark.parametrize("decimals", [1, 8])
@pytest.mark.parametrize("fpr", RATES)
def test_above_the_conformal_threshold_means_a_p_value_of_at_most_fpr(fpr, decimals, rng):
    for n in (29, 99, 100, 399):
        if n < conformal_rows_needed(fpr):
            continue
        calibration = rng.normal(size=n).round(decimals)
        new = np.concatenate([rng.normal(size=300).round(decimals), calibration])
        np.testing.assert_array_equal(new > conformal(calibration, fpr), p_values(calibration, new) <= fpr)


def test_p_values_of_normal_scores_are_uniform_or_larger(rng):
    """P(p <= a) <= a: here equal to floor((n + 1) a) / (n + 1)."""
    scores = heavy_tailed(rng, (20_000, 40))
    p = np.concatenate([p_values(row[:-1], row[-1:]) for row in scores])
    for a in (0.025, 0.1, 0.33, 0.5, 0.9):
        interval = binomtest(int((p <= a).sum()), len(p)).proportion_ci(0.9999)
        assert interval.low < math.floor(40 * a + 1e-9) / 40 < interval.high


# -- peaks over threshold ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fpr", [0.05, 1e-2, 1e-3, 1e-4])
def test_peaks_over_threshold_find_the_exponential_quantile(fpr, rng):
    """Within five standard errors: delta method on those of the maximum-likelihood fit of a Pareto tail of shape 0."""
    n = 5000
    log_ratio = math.log(0.1 / fpr)
    gradient = np.array([log_ratio, log_ratio**2 / 2.0])
    fit = gradient @ np.array([[2.0, -1.0], [-1.0, 1.0]]) @ gradient / (0.1 * n)
    level = 0.9 / (0.1 * n)
    tolerance = 5.0 * math.sqrt(fit + level)
    threshold = peaks_over_threshold(rng.exponential(size=n), fpr)
    assert threshold == pytest.approx(-math.log(fpr), abs=tolerance)


def test_peaks_over_threshold_go_beyond_the_samples(rng):
    scores = rng.exponential(size=2000)
    assert peaks_over_threshold(scores, 1e-4) > scores.max()


@pytest.mark.parametrize(("n_samples", "fpr"), [(500, 0.001), (998, 0.001)])
def test_too_few_samples_for_conformal_may_be_enough_to_extrapolate(n_samples, fpr, rng):
    with pytest.raises(ValueError, match=r"or extrapolate, .* with --threshold peaks_over_threshold\."):
        conformal(rng.normal(size=n_samples), fpr)
    with pytest.raises(ValueError, match=r"calibrate on more normal data\.$"):
        conformal(rng.normal(size=200), fpr)


@pytest.mark.parametrize(("n_samples", "fpr"), [(19, 0.05), (200, 0.1), (1000, 0.01)])
def test_realised_rate_is_that_of_many_calibrations(n_samples, fpr):
    rng = np.random.default_rng(0)
    # Scores that are uniform on [0, 1]: the rate of a threshold t is 1 - t.
    rates = [1.0 - conformal(rng.random(n_samples), fpr) for _ in range(2000)]
    low, high = realised_rate(n_samples, fpr)
    within = np.mean([low <= rate <= high for rate in rates])
    assert within == pytest.approx(0.9, abs=4 * np.sqrt(0.9 * 0.1 / 2000))
    assert low < fpr < high


def test_realised_rate_needs_as_many_rows_as_the_threshold():
    with pytest.raises(ValueError, match=r"fpr=0\.01 needs at least 99 calibration samples, got 98"):
        realised_rate(98, 0.01)


def test_a_rate_whose_inverse_is_no_number():
    with pytest.raises(ValueError, match="fpr=1e-320 must lie between 0 and 1"):
        check_fpr(1e-320)
