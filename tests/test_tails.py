import math

import numpy as np
import pytest
from scipy import stats

from vae_anomaly.tails import extrapolation


def found(law, n_samples, fpr, n_tables, seed=0):
    """Extrapolations of as many tables of a law."""
    draws = law.rvs(size=(n_tables, n_samples), random_state=np.random.default_rng(seed))
    return [extrapolation(scores, fpr) for scores in draws]


@pytest.mark.parametrize(
    ("law", "shape"),
    [(stats.expon(), 0.0), (stats.genpareto(0.3), 0.3), (stats.genpareto(-0.2), -0.2)],
    ids=["exponential", "heavy", "bounded"],
)
def test_intervals_hold_shape_and_threshold_as_often_as_they_say(law, shape):
    """Laws whose tail is a generalised Pareto one exactly, and 200 excesses."""
    n_tables, fpr = 300, 0.01
    tables = found(law, 2000, fpr, n_tables)
    error = 4.0 * math.sqrt(0.95 * 0.05 / n_tables)
    covered = np.mean([table.low <= law.isf(fpr) <= table.high for table in tables])
    assert covered == pytest.approx(0.95, abs=error + 0.02)
    covered = np.mean([table.shape_low <= shape <= table.shape_high for table in tables])
    assert covered == pytest.approx(0.95, abs=error + 0.02)


@pytest.mark.parametrize("df", [2, 4])
def test_intervals_hold_the_threshold_of_heavy_tails(df):
    """The tail of Student's t is a generalised Pareto one only far out: the threshold is held, the shape less often."""
    law = stats.t(df)
    covered = np.mean([table.low <= law.isf(0.01) <= table.high for table in found(law, 2000, 0.01, 300)])
    assert covered == pytest.approx(0.95, abs=4.0 * math.sqrt(0.95 * 0.05 / 300) + 0.02)


@pytest.mark.parametrize("law", [stats.expon(), stats.t(2), stats.genpareto(0.3)], ids=["exponential", "t", "heavy"])
def test_rates_of_extrapolated_thresholds_are_of_the_order_asked_for(law):
    rates = [law.sf(table.threshold) for table in found(law, 2000, 1e-3, 100)]
    assert 0.5e-3 < np.mean(rates) < 2e-3


def test_intervals_narrow_with_the_root_of_the_samples():
    few, many = (np.median([t.high - t.low for t in found(stats.expon(), n, 0.01, 30)]) for n in (1000, 16_000))
    assert few / many == pytest.approx(4.0, rel=0.2)


@pytest.mark.parametrize(("factor", "shift"), [(1e-3, 0.0), (1e4, 7.0)])
def test_units_do_not_matter(factor, shift, rng):
    scores = rng.exponential(size=1000)
    one, other = extrapolation(scores, 0.01), extrapolation(shift + factor * scores, 0.01)
    # The search for the maximum ends at a relative 1e-4.
    assert other.shape == pytest.approx(one.shape, abs=1e-3)
    for name in ("threshold", "low", "high", "level"):
        assert getattr(other, name) == pytest.approx(shift + factor * getattr(one, name), rel=1e-3), name


@pytest.mark.parametrize(
    ("scores", "fpr", "sentence"),
    [
        (stats.uniform(), 0.01, r"the shape of their tail is -\d.*ends so abruptly"),
        (stats.genpareto(1.5), 0.01, r"the shape of their tail is 1\.\d.*so heavy that it has no mean"),
        (stats.expon(), 1e-7, r"fpr=1e-07 lies too far beyond 1000 calibration samples: .*more than 10 times as many"),
        (stats.t(2), 1e-5, r"fpr=1e-05 lies too far beyond 1000 calibration samples: .*more than 10 times as many"),
    ],
    ids=["bounded", "no mean", "too far", "heavy and far"],
)
def test_what_the_samples_cannot_carry_is_refused(scores, fpr, sentence):
    with pytest.raises(ValueError, match=sentence):
        extrapolation(scores.rvs(size=1000, random_state=np.random.default_rng(0)), fpr)


def test_the_largest_sample_must_be_finite(rng):
    with pytest.raises(ValueError, match="Peaks over threshold needs finite calibration scores"):
        extrapolation([*rng.exponential(size=1000), math.inf], 0.01)


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.2])
def test_too_few_excesses_are_refused(fpr, rng):
    with pytest.raises(
        ValueError, match=r"needs at least 50 scores above the \d+% quantile, got \d+ from 50 calibration"
    ):
        extrapolation(rng.normal(size=50), fpr)


def test_ties_that_leave_no_excesses_are_refused():
    with pytest.raises(ValueError, match=r"got 0 from 1000 calibration samples\. Use the conformal threshold"):
        extrapolation(np.ones(1000), 0.01)
