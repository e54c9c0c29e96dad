import naive
import numpy as np
import pandas as pd
import pytest
from tables import TINY

from vae_anomaly.detector import VAEDetector, load
from vae_anomaly.errors import DataError
from vae_anomaly.groups import Groups, row_groups
from vae_anomaly.thresholds import conformal

COLUMNS = ["a", "b", "c", "d"]


def machines(n_samples, seed=0):
    """Normal rows of two machines, the second with wider noise, and the machine of each."""
    rng = np.random.default_rng(seed)
    machine = np.where(rng.random(n_samples) < 0.5, 7, 8)
    noise = np.where(machine == 7, 0.1, 0.3)[:, None] * rng.normal(size=(n_samples, 4))
    mixing = np.random.default_rng(99).normal(size=(2, 4))
    X = pd.DataFrame(rng.normal(size=(n_samples, 2)) @ mixing + noise, columns=COLUMNS)
    return X, pd.Series(machine, name="machine")


@pytest.fixture(scope="module")
def grouped():
    X, machine = machines(400)
    return VAEDetector(**TINY, fpr=0.1).fit(X, groups=machine)


# Groups --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[7, 8, 7], [7.0, 8.0, 7.0], ["7", "8", "7"], pd.Series([7, 8, 7], index=[5, 5, 9])])
def test_groups_are_named_by_text(values):
    assert row_groups(values, 3).names.tolist() == ["7", "8", "7"]


@pytest.mark.parametrize("missing", [None, np.nan, "", pd.NA])
def test_a_missing_group_has_no_name(missing):
    assert row_groups(["a", missing], 2).names.tolist() == ["a", None]
    with pytest.raises(DataError, match="No calibration row has a 'group': there are no groups"):
        Groups.of(row_groups([missing, missing], 2))


def test_one_group_for_each_row():
    with pytest.raises(ValueError, match="groups has 2 entries, expected one for each of the 3 rows"):
        row_groups(["a", "b"], 3)


@pytest.mark.parametrize("groups", [[["a"], ["b"]], pd.DataFrame({"machine": [7, 8]}), "a"])
def test_groups_are_one_column(groups):
    with pytest.raises(ValueError, match=r"groups has shape .*, expected one entry for each of the 2 rows"):
        row_groups(groups, 2)


def test_thresholds_and_p_values_are_those_of_each_group(rng):
    names, scores, new = rng.choice(["a", "b", "c"], size=300), rng.normal(size=300), rng.normal(size=50)
    groups = Groups.of(row_groups(names, 300))
    thresholds = groups.thresholds(scores, lambda own: conformal(own, 0.1))
    assert thresholds == {name: conformal(scores[names == name], 0.1) for name in "abc"}
    asked = rng.choice(["a", "b", "c", "other", None], size=50)
    expected = [
        naive.p_value(scores[names == name].tolist() if name in ("a", "b", "c") else scores.tolist(), score)
        for name, score in zip(asked, new, strict=True)
    ]
    np.testing.assert_array_equal(groups.p_values(scores, new, row_groups(asked, 50)), expected)


def test_a_group_with_too_few_rows_is_named():
    groups = Groups.of(row_groups(["a"] * 30 + ["b"] * 12, 42))
    with pytest.raises(
        DataError, match=r"Group 'b' of 'group' has 12 calibration rows, and fpr=0.05 needs at least 19"
    ):
        groups.check_enough(19, 0.05)


# Detectors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", [800, 3000], ids=["out of fold", "set aside"])
def test_each_group_keeps_its_rate(n_samples):
    """One threshold for all flags far more of the wider machine; 300 calibration rows a group, 2,000 new ones."""
    X, machine = machines(n_samples)
    detector = VAEDetector(**{**TINY, "n_estimators": 6, "max_steps": 200}, fpr=0.1).fit(X, groups=machine)
    new, machine = machines(4000, seed=1)
    wide = (machine == 8).to_numpy()
    pooled, own = (detector.predict(new, groups) == -1 for groups in (None, machine))
    assert pooled[wide].mean() > 3.0 * pooled[~wide].mean()
    # Four standard deviations of the Beta law of the rate and of the count of new rows.
    tolerance = 4.0 * np.sqrt(0.1 * 0.9 * (1 / detector.groups_.counts().min() + 1 / 2000))
    assert own[wide].mean() == pytest.approx(0.1, abs=tolerance)
    assert own[~wide].mean() == pytest.approx(0.1, abs=tolerance)


def test_flagged_rows_are_those_with_a_p_value_of_at_most_fpr(grouped):
    X, machine = machines(300, seed=1)
    groups = machine.astype(str).where(np.arange(300) % 3 > 0, "9")
    np.testing.assert_array_equal(grouped.predict(X, groups) == -1, grouped.p_value(X, groups) <= 0.1)
    other = groups == "9"
    np.testing.assert_array_equal(grouped.p_value(X, groups)[other], grouped.p_value(X)[other])
    assert set(grouped.thresholds_of(groups, 300)) == {grouped.threshold_, *grouped.group_thresholds_.values()}


def test_fit_predict_judges_each_group_by_its_own_threshold(grouped):
    """It fitted by group and judged all rows by one threshold."""
    X, machine = machines(400)
    found = VAEDetector(**TINY, fpr=0.1).fit_predict(X, groups=machine)
    assert np.array_equal(found, grouped.predict(X, groups=machine))
    assert not np.array_equal(found, grouped.predict(X))


def test_the_threshold_of_all_rows_does_not_depend_on_groups(grouped):
    X, _ = machines(400)
    plain = VAEDetector(**TINY, fpr=0.1).fit(X)
    assert plain.threshold_ == grouped.threshold_
    assert np.array_equal(plain.p_value(X), grouped.p_value(X))
    assert (plain.groups_, plain.group_thresholds_) == (None, {})
    assert np.array_equal(plain.predict(X, ["7"] * 400), plain.predict(X))


def test_calibration_sets_groups_anew_or_drops_them(grouped, tmp_path):
    grouped.save(tmp_path / "m.safetensors")
    copy, (X, machine) = load(tmp_path / "m.safetensors"), machines(200, seed=2)
    copy.calibrate(X, groups=machine + 1)
    assert sorted(copy.group_thresholds_) == ["8", "9"]
    scores = copy.anomaly_score(X)
    assert copy.group_thresholds_["9"] == conformal(scores[machine == 8], 0.1)
    copy.choose_threshold(X, np.arange(200) < 20)
    assert copy.group_thresholds_ == {}
    assert np.array_equal(copy.predict(X, machine + 1), copy.predict(X))
    copy.calibrate(X, threshold="conformal")
    assert (copy.groups_, copy.group_thresholds_) == (None, {})


def test_groups_are_saved(grouped, tmp_path):
    grouped.save(tmp_path / "m.safetensors")
    copy, (X, machine) = load(tmp_path / "m.safetensors"), machines(100, seed=1)
    assert copy.group_thresholds_ == grouped.group_thresholds_
    assert (copy.groups_.column, copy.groups_.names) == ("machine", ("7", "8"))
    assert np.array_equal(copy.p_value(X, machine), grouped.p_value(X, machine))
    copy.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_too_few_rows_of_a_group_are_refused_before_training(monkeypatch):
    monkeypatch.setattr("vae_anomaly.detector.fit_ensemble", None)
    X, _ = machines(400)
    with pytest.raises(DataError, match=r"Group 'b' of 'group' has \d calibration rows, and fpr=0.1 needs at least 9"):
        VAEDetector(**TINY, fpr=0.1).fit(X, groups=["a"] * 395 + ["b"] * 5)


def test_an_extrapolation_does_not_go_by_group(grouped):
    X, machine = machines(800)
    with pytest.raises(ValueError, match="The threshold 'peaks_over_threshold' does not go by group"):
        VAEDetector(**TINY, threshold="peaks_over_threshold").fit(X, groups=machine)


def test_groups_are_the_same_however_they_are_written():
    groups = Groups.of(row_groups(["7", "7.0", "8", "8", "8.0"], 5))
    assert (groups.names, groups.codes.tolist()) == (("7", "8"), [0, 0, 1, 1, 1])
    assert groups.codes_of(row_groups(["7.0", "8", "9", None, "007"], 5)).tolist() == [0, 1, -1, -1, -1]
