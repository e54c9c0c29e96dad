from fractions import Fraction

import numpy as np
import pytest

from vae_anomaly.discoveries import adjusted_p_values, at_most, check_fdr, false_alarm_share
from vae_anomaly.thresholds import p_values


def adjusted_by_hand(p):
    """Smallest fdr at which Benjamini and Hochberg's step-up rule rejects each hypothesis."""
    ordered, m = sorted(p), len(p)
    return [min(m * other / (rank + 1) for rank, other in enumerate(ordered) if other >= value) for value in p]


def batch(rng, n_calibration, n_normal, n_anomalies):
    """p-values of new rows, normal ones first; the anomalies lie higher."""
    calibration = rng.normal(size=n_calibration)
    new = np.concatenate([rng.normal(size=n_normal), rng.normal(4.0, 1.0, size=n_anomalies)])
    return p_values(calibration, new)


def test_adjusted_p_values_are_those_of_the_step_up_rule():
    p = np.random.default_rng(0).random(50) ** 3
    np.testing.assert_allclose(adjusted_p_values(p), np.minimum(adjusted_by_hand(p.tolist()), 1.0))


def test_rows_without_a_p_value_count_for_nothing():
    p = np.array([0.01, np.nan, 0.04, np.nan, 0.5])
    adjusted = adjusted_p_values(p)
    assert np.array_equal(np.isnan(adjusted), np.isnan(p))
    np.testing.assert_allclose(adjusted[~np.isnan(p)], adjusted_p_values(p[~np.isnan(p)]))
    assert np.isnan(adjusted_p_values([np.nan, np.nan])).all()


@pytest.mark.parametrize("fdr", [0.1, 0.2])
def test_the_share_of_false_alarms_is_kept_on_average(fdr):
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        flagged = adjusted_p_values(batch(rng, 300, 200, 40)) <= fdr
        shares.append(flagged[:200].sum() / max(flagged.sum(), 1))
    # The expectation is at most fdr * 200 / 240; three standard errors of the mean above it are chance.
    assert np.mean(shares) < fdr * 200 / 240 + 3 * np.std(shares) / np.sqrt(300)
    assert np.mean(shares) > 0.3 * fdr


def test_the_bound_on_false_alarms_holds_for_every_number_of_flagged_rows_at_once():
    rng = np.random.default_rng(1)
    n_normal, broken = 100, 0
    numbers = np.array([1, 2, 5, 10, 20, 40, 80])
    for _ in range(60):
        p = batch(rng, 150, n_normal, 15)
        order = np.argsort(p, kind="stable")
        bounds = [false_alarm_share(p, 150, number, confidence=0.8) for number in numbers]
        shares = [np.mean(order[:number] < n_normal) for number in numbers]
        broken += any(share > bound for share, bound in zip(shares, bounds, strict=True))
    # Broken with probability 0.2 at most: 12 of 60, standard deviation 3.1.
    assert broken <= 12 + 3 * 3.1


def test_the_bound_is_not_idle():
    p = batch(np.random.default_rng(2), 2000, 1000, 100)
    assert false_alarm_share(p, 2000, 60) < 0.3
    assert false_alarm_share(p, 2000, 1100) == 1.0
    bounds = [false_alarm_share(p, 2000, 60, confidence) for confidence in (0.5, 0.9, 0.99)]
    assert bounds == sorted(bounds)


def test_misuse_is_said():
    with pytest.raises(ValueError, match="n_calibration=0 must be at least 1"):
        false_alarm_share([0.1, 0.2, 0.3], 0, 2)
    with pytest.raises(ValueError, match="n_flagged=0 must be at least 1 and at most the 3 rows"):
        false_alarm_share([0.1, np.nan, 0.2, 0.3], 10, 0)
    for fdr in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            check_fdr(fdr)


@pytest.mark.parametrize("n_calibration", [19, 99, 499, 999])
def test_rows_at_the_very_rate_are_flagged(n_calibration):
    """Of k p-values that are all r / (n + 1), k out of m, the adjusted one is a fraction, and often the rate itself."""
    ties = 0
    for fdr in (Fraction(1, 20), Fraction(1, 10), Fraction(1, 5)):
        for m in range(1, 80):
            for rank in range(1, 30):
                wanted = Fraction(rank, n_calibration + 1) * m / fdr
                if wanted.denominator == 1 and wanted <= m:
                    p = np.repeat([rank / (n_calibration + 1), 1.0], [int(wanted), m - int(wanted)])
                    assert at_most(adjusted_p_values(p), float(fdr)).sum() == wanted
                    ties += 1
    assert ties > 20


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1.5, "high"])
def test_a_confidence_that_is_none(confidence):
    with pytest.raises(ValueError, match="confidence="):
        false_alarm_share([0.1, 0.2], 19, 1, confidence=confidence)
