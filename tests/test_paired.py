import json

import numpy as np
import pytest

from vae_anomaly.errors import DataError
from vae_anomaly.paired import compare_scores, compared_json


def draw(rng, n=400):
    y = np.repeat([0, 1], [n - n // 4, n // 4])
    return y, rng.normal(size=n)


def test_a_score_does_not_differ_from_itself(rng):
    y, noise = draw(rng)
    first, second = compare_scores(y, {"a": y + noise, "b": np.exp(y + noise)})
    assert first.roc_auc.value == second.roc_auc.value
    assert second.difference == first.difference
    assert second.difference.value == 0
    assert np.isnan(second.p_value)


def test_the_sign_of_a_difference_turns_with_the_order(rng):
    y, noise = draw(rng)
    scores = {"a": y + noise, "b": y + rng.normal(size=len(y))}
    forth = compare_scores(y, scores)[1]
    back = compare_scores(y, dict(reversed(scores.items())))[1]
    assert forth.difference.value == pytest.approx(-back.difference.value)
    assert forth.difference.low == pytest.approx(-back.difference.high)
    assert forth.p_value == pytest.approx(back.p_value)


def test_infinite_scores_are_ranked(rng):
    y, noise = draw(rng)
    scores = y + noise
    far = np.where(scores == scores.max(), np.inf, scores)
    same = compare_scores(y, {"a": scores, "b": far})[1]
    assert same.difference.value == 0


def test_json_is_plain(rng):
    y, noise = draw(rng)
    said = compared_json(compare_scores(y, {"a": y + noise, "b": noise}))
    assert json.loads(json.dumps(said, allow_nan=False))[0]["p_value"] is None


def test_rows_of_one_class_and_no_scores_are_refused(rng):
    with pytest.raises(DataError, match="all 3 rows are labelled normal"):
        compare_scores([0, 0, 0], {"a": [1.0, 2.0, 3.0]})
    with pytest.raises(DataError, match="no score"):
        compare_scores([0, 1], {})
