import math
import warnings

import numpy as np
import pytest
import torch

from vae_anomaly.calibration import calibrated, chosen_on_labels, first_calibration, groups_of, split_to_calibrate
from vae_anomaly.errors import CalibrationWarning, DataError
from vae_anomaly.groups import row_groups
from vae_anomaly.label_thresholds import LABEL_THRESHOLDS
from vae_anomaly.thresholds import THRESHOLDS

BY_GROUP = [name for name, rule in THRESHOLDS.items() if rule.extrapolation is None]


@pytest.fixture
def scores(rng):
    """Some rows can't be scored."""
    values = rng.gamma(2.0, size=800)
    values[::50] = np.nan
    return values


def generators(n):
    return [torch.Generator().manual_seed(member) for member in range(n)]


@pytest.mark.parametrize("name", THRESHOLDS)
def test_rows_without_a_score_and_their_order_count_for_nothing(name, scores, rng):
    found = calibrated(scores, name, 0.05, None)
    assert np.array_equal(found.scores, np.sort(scores[~np.isnan(scores)]))
    assert calibrated(rng.permutation(found.scores), name, 0.05, None).threshold == found.threshold
    assert (found.rule["name"], found.rule["fpr"], found.rule["labels"]) == (name, 0.05, None)
    assert (found.rule["extrapolation"] is None) == (name in BY_GROUP)


@pytest.mark.parametrize("name", BY_GROUP)
def test_each_group_gets_the_threshold_that_it_would_get_alone(name, scores, rng):
    machines = rng.choice(["a", "b"], size=len(scores))
    found = calibrated(scores, name, 0.05, row_groups(machines, len(scores)))
    for machine, threshold in found.group_thresholds.items():
        assert threshold == calibrated(scores[machines == machine], name, 0.05, None).threshold
    assert sorted(found.group_thresholds) == ["a", "b"]
    assert found.threshold == calibrated(scores, name, 0.05, None).threshold


def test_too_few_rows_give_a_threshold_that_flags_nothing(scores):
    found = calibrated(scores[:5], "conformal", 0.05, None, enough=False)
    assert found.threshold == math.inf
    with pytest.raises(ValueError, match="at least 19 calibration"):
        calibrated(scores[:5], "conformal", 0.05, None)


def test_a_rule_that_refuses_the_rows_of_a_fit_costs_the_threshold_alone():
    split = split_to_calibrate("peaks_over_threshold", 0.01, 3000, generators(3))
    assert split.enough
    with pytest.warns(CalibrationWarning, match=r"No row will be flagged until calibrate\(\)"):
        found = first_calibration(np.zeros(len(split.calibration)), "peaks_over_threshold", 0.01, None, split)
    assert found.threshold == math.inf
    assert not found.rule["out_of_fold"]


@pytest.mark.parametrize(("fpr", "needed", "extrapolates"), [(0.0001, 9999, False), (0.001, 999, True)])
def test_a_split_says_what_a_rate_takes(fpr, needed, extrapolates):
    with pytest.warns(CalibrationWarning, match=f"needs at least {needed} calibration rows") as said:
        split = split_to_calibrate("conformal", fpr, 900, generators(7))
    assert not split.enough
    assert ("peaks_over_threshold" in str(said[0].message)) == extrapolates
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert split_to_calibrate("conformal", 0.05, 900, generators(7)).enough


def test_an_extrapolation_does_not_go_by_group(scores):
    rows = row_groups(["a"] * len(scores), len(scores))
    with pytest.raises(ValueError, match="does not go by group"):
        groups_of(rows, "peaks_over_threshold", 0.05)


@pytest.mark.parametrize("name", LABEL_THRESHOLDS)
def test_what_is_said_of_a_threshold_on_labels_counts_what_it_flags(name, scores, rng):
    labels = (rng.random(len(scores)) < 0.2).astype(int)
    scores = scores + labels
    parameters = LABEL_THRESHOLDS[name].complete(name, {})
    threshold, said = chosen_on_labels(labels, scores, name, parameters, out_of_fold=True)
    known = ~np.isnan(scores)
    assert said["labels"] == {
        "n_normal": int((labels[known] == 0).sum()),
        "n_anomalies": int(labels[known].sum()),
        "normal_flagged": int((scores[labels == 0] > threshold).sum()),
        "anomalies_flagged": int((scores[labels == 1] > threshold).sum()),
    }
    assert {**said["parameters"], **({} if said["fpr"] is None else {"fpr": said["fpr"]})} == parameters
    assert said["out_of_fold"]


def test_labels_of_one_class_choose_nothing(scores):
    with pytest.raises(DataError):
        chosen_on_labels(np.zeros(len(scores)), scores, "youden", {}, out_of_fold=False)
