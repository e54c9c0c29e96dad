import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from vae_anomaly.by_type import recall_by_type, recall_by_type_json
from vae_anomaly.metrics import evaluate


@pytest.fixture
def labelled(rng):
    y = np.repeat([0, 1], [200, 60])
    types = np.array(["fine"] * 200 + ["leak"] * 40 + ["jam"] * 20, dtype=object)
    scores = rng.normal(size=260) + 2.0 * (types == "leak") + 0.3 * (types == "jam")
    return evaluate(y, scores, 1.5, n_resamples=0), types


def test_the_kinds_add_up_to_the_whole(labelled):
    evaluation, types = labelled
    rows = recall_by_type(evaluation, types)
    assert [row.name for row in rows] == ["jam", "leak"]
    assert sum(row.n_caught for row in rows) == evaluation.confusion.tp
    assert sum(row.n_anomalies for row in rows) == evaluation.n_anomalies
    weighted = sum(row.roc_auc.value * row.n_anomalies for row in rows) / evaluation.n_anomalies
    assert weighted == pytest.approx(evaluation.roc_auc.value)


def test_the_area_is_that_of_the_kind_against_all_normal_rows(labelled):
    evaluation, types = labelled
    jam = recall_by_type(evaluation, types)[0]
    some = (types == "jam") | (evaluation.y == 0)
    assert jam.roc_auc.value == pytest.approx(roc_auc_score(evaluation.y[some], evaluation.scores[some]))


def test_a_missing_type_is_a_type_of_its_own(labelled):
    evaluation, types = labelled
    types[-3:] = [None, np.nan, ""]
    rows = {row.name: row.n_anomalies for row in recall_by_type(evaluation, types)}
    assert rows == {"(no type)": 3, "jam": 17, "leak": 40}


def test_types_of_another_length_are_refused(labelled):
    with pytest.raises(ValueError, match="260 rows"):
        recall_by_type(labelled[0], ["leak"])


def test_json_is_plain(labelled):
    json.dumps(recall_by_type_json(recall_by_type(*labelled)), allow_nan=False)


def test_all_that_is_missing_is_no_type(labelled):
    evaluation, types = labelled
    types[-4:] = [None, np.nan, pd.NA, ""]
    found = {row.name: row.n_anomalies for row in recall_by_type(evaluation, types)}
    assert found == {"(no type)": 4, "jam": 16, "leak": 40}
