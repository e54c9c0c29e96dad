import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vae_anomaly.delong import area_difference, area_interval
from vae_anomaly.metrics import area_difference as resampled_difference
from vae_anomaly.metrics import evaluate


def draw(rng, n_normal=150, n_anomalies=50, shift=1.2, decimals=None):
    y = np.repeat([0, 1], [n_normal, n_anomalies])
    scores = rng.normal(size=len(y)) + shift * y
    return y, scores if decimals is None else scores.round(decimals)


def covariance_by_hand(y, first, second):
    """DeLong's structural components, pair by pair."""

    def wins(scores):
        a, b = scores[y == 1][:, None], scores[y == 0][None]
        return (a > b) + 0.5 * (a == b)

    one, other = wins(first), wins(second)
    n_anomalies, n_normal = one.shape
    return (
        np.cov(one.mean(axis=1), other.mean(axis=1))[0, 1] / n_anomalies
        + np.cov(one.mean(axis=0), other.mean(axis=0))[0, 1] / n_normal
    )


@pytest.mark.parametrize("decimals", [None, 0])
def test_difference_is_that_of_the_pairwise_formula(decimals):
    rng = np.random.default_rng(0)
    y, first = draw(rng, decimals=decimals)
    second = (first + rng.normal(size=len(y))).round(decimals if decimals is not None else 9)
    found = area_difference(y, first, second)
    assert found.value == pytest.approx(roc_auc_score(y, first) - roc_auc_score(y, second))
    variance = sum(
        sign * covariance_by_hand(y, *pair)
        for sign, pair in ((1, (first, first)), (1, (second, second)), (-2, (first, second)))
    )
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-6)


def test_the_interval_holds_the_true_area_as_often_as_it_says():
    rng = np.random.default_rng(1)
    # P(N(1.2, 1) > N(0, 1)).
    true, held = 0.8019, 0
    for _ in range(600):
        _, low, high = area_interval(*draw(rng))
        held += low <= true <= high
    assert held / 600 == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 600))


def test_p_values_of_equally_good_scores_are_uniform():
    rng = np.random.default_rng(2)
    p = []
    for _ in range(400):
        y, signal = draw(rng)
        noise = rng.normal(size=(2, len(y)))
        p.append(area_difference(y, signal + noise[0], signal + noise[1]).p_value)
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 400))


def test_delong_and_the_bootstrap_agree():
    rng = np.random.default_rng(3)
    y, first = draw(rng, 400, 200)
    second = first + rng.normal(size=len(y))
    evaluation = evaluate(y, first, threshold=1.0)
    _, low, high = area_interval(y, first)
    assert (evaluation.roc_auc.low, evaluation.roc_auc.high) == pytest.approx((low, high), abs=0.01)
    resampled, found = resampled_difference(y, first, second).roc_auc, area_difference(y, first, second)
    assert (resampled.low, resampled.high) == pytest.approx((found.low, found.high), abs=0.01)


def test_degenerate_areas():
    assert area_interval([0, 0, 1], [0.0, 1.0, 2.0]) == (1.0, 1.0, 1.0)
    assert area_interval([0, 0, 1, 1], [3.0, 3.0, 3.0, 3.0])[0] == 0.5
    same = area_difference([0, 1, 0, 1], [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0])
    assert same.value == 0.0
    assert np.isnan(same.p_value)
    with pytest.raises(ValueError, match="at least one anomaly and one normal row"):
        area_interval([1, 1], [0.0, 1.0])
