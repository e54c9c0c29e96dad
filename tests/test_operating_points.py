import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from vae_anomaly.metrics import evaluate
from vae_anomaly.report.operating_points import MAX_POINTS, operating_points


@pytest.mark.parametrize("n", [40, 5000])
@pytest.mark.parametrize("decimals", [1, 8])
def test_counts_are_those_of_scikit_learn(rng, n, decimals):
    y = (rng.random(n) < 0.2).astype(int)
    evaluation = evaluate(y, (rng.normal(size=n) + y).round(decimals), 1.3, n_resamples=0)
    points = operating_points(evaluation)
    assert len(points.thresholds) <= MAX_POINTS + 2
    for i in range(0, len(points.thresholds), 7):
        _, fp, _, tp = confusion_matrix(y, evaluation.scores > points.thresholds[i], labels=[0, 1]).ravel()
        assert (points.false_positives[i], points.true_positives[i]) == (fp, tp)


def test_the_walk_goes_from_all_rows_to_none_and_starts_at_the_threshold(rng):
    y = (rng.random(3000) < 0.2).astype(int)
    evaluation = evaluate(y, rng.normal(size=3000) + y, 1.3, n_resamples=0)
    points = operating_points(evaluation)
    assert (points.false_positives[0], points.true_positives[0]) == (evaluation.n_normal, evaluation.n_anomalies)
    assert (points.false_positives[-1], points.true_positives[-1]) == (0, 0)
    assert points.thresholds[points.start] == 1.3
    assert points.true_positives[points.start] == evaluation.confusion.tp
    assert (np.diff(points.false_positives) <= 0).all()


def test_steps_are_finer_where_few_rows_are_flagged(rng):
    y = (rng.random(50_000) < 0.01).astype(int)
    points = operating_points(evaluate(y, rng.normal(size=50_000) + 3 * y, 3.0, n_resamples=0))
    flagged = points.false_positives + points.true_positives
    # An even choice of 400 thresholds would have four there.
    assert (flagged < 500).sum() > 60
