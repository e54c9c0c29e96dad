import numpy as np
import pytest

from vae_anomaly.drift import DRIFT_LEVEL, MIN_ROWS, drift_p_value


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_p_values_of_unchanged_data_are_uniform_whatever_the_anomalies(share):
    rng = np.random.default_rng(0)
    p = []
    for _ in range(400):
        new = rng.normal(size=300)
        new[: int(300 * share)] = 5.0
        p.append(drift_p_value(rng.normal(size=200), new))
    for level in (0.01, 0.05, 0.2):
        assert np.mean(np.array(p) <= level) <= level + 4 * np.sqrt(level * (1 - level) / 400)


@pytest.mark.parametrize("change", [lambda x: x + 0.7, lambda x: x - 0.7, lambda x: 0.4 * x])
def test_changed_data_are_noticed(change):
    rng = np.random.default_rng(0)
    assert drift_p_value(rng.normal(size=2000), change(rng.normal(size=2000))) < DRIFT_LEVEL


def test_scores_that_left_the_lower_half_are_noticed():
    """None of these is remarkable, and next to none is below the median: no row is left to compare with."""
    rng = np.random.default_rng(0)
    calibration = rng.uniform(size=500)
    assert drift_p_value(calibration, rng.uniform(0.55, 0.9, size=300)) < DRIFT_LEVEL
    # With as many normal rows beside them, they may be anomalies that are hard to tell from normal.
    assert drift_p_value(calibration, np.append(rng.uniform(0.55, 0.9, size=300), rng.uniform(size=300))) > DRIFT_LEVEL


def test_few_rows_tell_nothing():
    scores = np.arange(100.0)
    assert drift_p_value(scores, scores[: MIN_ROWS - 1]) is None
    assert drift_p_value(scores[: MIN_ROWS - 1], scores) is None
    assert drift_p_value(scores, np.full(1000, 1e9)) is None
    assert drift_p_value(scores, np.concatenate([scores, [np.nan]])) == 1.0
