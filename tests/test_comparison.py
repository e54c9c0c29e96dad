import numpy as np
import pandas as pd
import pytest
from tables import TINY, labelled, numbers

from vae_anomaly.baselines import BASELINES, KNN, baseline_scores, describe
from vae_anomaly.comparison import PairedDifference, compare, paired_differences, split_rows, verdict
from vae_anomaly.detector import VAEDetector
from vae_anomaly.errors import DataError
from vae_anomaly.metrics import Interval, evaluate


class Nearest(KNN):
    """A detector that is there at once."""

    def anomaly_score(self, X):
        return -self.score_samples(X)


class Told(Nearest):
    """A detector that scores with numbers it was given."""

    def __init__(self, scores=()):
        super().__init__()
        self.scores = scores

    def fit(self, X):
        return self

    def anomaly_score(self, X):
        return np.asarray(self.scores)


@pytest.fixture
def split(rng):
    train, test = rng.normal(size=(60, 3)), rng.normal(size=(50, 3))
    y = (np.arange(50) < 20).astype(int)
    return train, test + 1.5 * y[:, None], y


# split_rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_normal", [4, 5, 100])
def test_half_of_the_normal_rows_trains_and_everything_else_tests(n_normal):
    y = np.random.default_rng(1).permutation(np.repeat([0, 1, -1], [n_normal, 3, 2]))
    train, test = split_rows(y, seed=0)
    assert len(train) == n_normal // 2
    assert (y[train] == 0).all()
    assert sorted([*train, *test]) == np.flatnonzero(y >= 0).tolist()


def test_the_seed_makes_the_split():
    y = np.repeat([0, 1], [100, 5])
    one, again, other = (split_rows(y, seed=seed)[0].tolist() for seed in (0, 0, 1))
    assert one == again != other
    assert one != sorted(one)


def test_a_large_table_is_subsampled_with_its_share_of_anomalies():
    y = np.repeat([0, 1], [900, 100])
    train, test = split_rows(y, seed=0, max_rows=100)
    assert (len(train), (y[test] == 0).sum(), (y[test] == 1).sum()) == (45, 45, 10)
    assert not set(train) & set(test)
    # The shuffle is the same one, and comes first.
    whole_train, whole_test = split_rows(y, seed=0)
    assert train.tolist() == whole_train[:45].tolist()
    for unchanged, whole in zip(split_rows(y, seed=0, max_rows=1000), (whole_train, whole_test), strict=True):
        assert np.array_equal(unchanged, whole)


@pytest.mark.parametrize(
    ("y", "sentence"), [([0, 0, 0, 1], "at least 4 normal rows.*there are 3"), ([0] * 9, "labelled anomalies")]
)
def test_rows_that_cannot_be_split(y, sentence):
    with pytest.raises(DataError, match=sentence):
        split_rows(y, seed=0)


# compare -------------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_an_evaluation_of_each_detector(split):
    train, test, y = split
    results = compare(train, test, y, Nearest())
    assert [result.name for result in results] == ["vae", *BASELINES]
    for result in results[1:]:
        scores = baseline_scores(result.name, train, test)
        np.testing.assert_array_equal(result.scores, scores)
        evaluation = evaluate(y, scores, 0.0)
        assert result.roc_auc == evaluation.roc_auc
        assert result.average_precision == evaluation.average_precision
        assert result.settings == describe(result.name)
        assert result.fit_seconds >= 0
        assert result.score_seconds >= 0
    assert results[0].settings == "Nearest()"


def test_a_vae_and_a_mixed_table_with_holes():
    """Baselines get what the schema makes of the table, with 0 in the holes."""
    table = labelled(160, 30)
    y = table.pop("anomaly").to_numpy()
    table.loc[::7, "flow"] = np.nan
    train, test = split_rows(y, seed=0)
    X_train, X_test = (table.iloc[rows].reset_index(drop=True) for rows in (train, test))
    detector = VAEDetector(**TINY)
    vae, knn = compare(X_train, X_test, y[test], detector, ["knn"])
    assert vae.settings.startswith("VAEDetector(")
    np.testing.assert_array_equal(vae.scores, detector.anomaly_score(X_test))
    encoded = [np.nan_to_num(detector.schema_.encode(X).astype(float)) for X in (X_train, X_test)]
    np.testing.assert_array_equal(knn.scores, baseline_scores("knn", *encoded))


def test_an_array_with_holes():
    X = numbers(120)
    X[::5, 1] = np.nan
    y = (np.arange(60) < 20).astype(int)
    results = compare(X[:60], X[60:], y, VAEDetector(**TINY), ["knn", "kde"])
    assert all(np.isfinite(result.scores).all() for result in results)


def test_rows_that_the_vae_cannot_score_are_left_out_for_all(split):
    train, test, y = split
    told = np.where(np.arange(50) % 10 == 0, np.nan, y + 0.1 * np.arange(50))
    known = ~np.isnan(told)
    results = compare(train, test, y, Told(told), ["lof"])
    for result in results:
        assert np.array_equal(np.isnan(result.scores), ~known)
        assert result.roc_auc == evaluate(y[known], result.scores[known], 0.0).roc_auc
    assert np.isfinite(paired_differences(y, results)[0].roc_auc.value)


def test_holes_without_a_schema():
    X = pd.DataFrame({"flow": [1.0, None] * 10})
    with pytest.raises(DataError, match="no schema_"):
        compare(X[:10], X[10:], [0, 1] * 5, Told(range(10)), ["lof"])


# paired_differences and verdict --------------------------------------------------------------------------------------


def test_differences_are_paired(split):
    """The same scores differ by nothing, in every resample; other scores differ by less than two intervals allow."""
    train, test, y = split
    results = compare(train, test, y, Told(baseline_scores("knn", train, test)), ["knn", "kde"])
    same, other = paired_differences(y, results)
    assert (same.roc_auc.low, same.roc_auc.value, same.roc_auc.high) == (0.0, 0.0, 0.0)
    vae, kde = results[0].roc_auc, results[2].roc_auc
    assert other.roc_auc.value == pytest.approx(kde.value - vae.value)
    assert other.roc_auc.low > kde.low - vae.high
    assert other.roc_auc.high < kde.high - vae.low


def test_differences_do_not_depend_on_which_others_are_compared(split):
    train, test, y = split
    results = compare(train, test, y, Nearest(), ["lof", "pca"])
    both = paired_differences(y, results)
    assert paired_differences(y, [results[0], results[2]]) == both[1:]
    assert both == paired_differences(y, results)


def difference(name, low, value, high, *, also=(-0.1, 0.0, 0.1)):
    return PairedDifference(name, Interval(value, low, high, ""), Interval(also[1], also[0], also[2], ""))


NONE = "On these rows no baseline is better than the VAE: no interval of a difference lies above 0."


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ([difference("knn", -0.1, 0.02, 0.1)], NONE),
        ([difference("knn", 0.0, 0.0, 0.0)], NONE),
        ([difference("knn", -0.2, -0.1, -0.05)], f"{NONE} The VAE is better than knn."),
        (
            [difference("knn", 0.01, 0.02, 0.03), difference("pca", -0.2, -0.1, -0.05)],
            "On these rows knn is better than the VAE: knn by ROC-AUC +0.020 (+0.010 to +0.030). "
            "The VAE is better than pca.",
        ),
        (
            [difference("knn", 0.01, 0.02, 0.03, also=(0.1, 0.2, 0.3)), difference("lof", 0.01, 0.02, 0.03)],
            "On these rows knn and lof are better than the VAE: knn by ROC-AUC +0.020 (+0.010 to +0.030) and average "
            "precision +0.200 (+0.100 to +0.300); lof by ROC-AUC +0.020 (+0.010 to +0.030).",
        ),
    ],
)
def test_verdict(differences, said, split):
    train, test, y = split
    results = compare(train, test, y, Nearest(), [])
    assert verdict(results, differences) == said


def test_a_clearly_better_baseline_is_named(split):
    """Here the VAE's place is taken by noise."""
    train, test, y = split
    results = compare(train, test, y, Told(np.random.default_rng(5).normal(size=50)), ["knn"])
    assert "knn is better than the VAE" in verdict(results, paired_differences(y, results))


def test_nothing_to_compare_with(split):
    train, test, y = split
    results = compare(train, test, y, Nearest(), [])
    assert paired_differences(y, results) == []
    assert "compared with nothing" in verdict(results, [])
