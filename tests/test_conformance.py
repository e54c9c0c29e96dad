"""VAEDetector is a scikit-learn estimator, without exceptions."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from tables import TINY, mixed, numbers

from vae_anomaly.detector import VAEDetector, load
from vae_anomaly.scores import scores_for


@pytest.mark.filterwarnings("ignore::vae_anomaly.errors.CalibrationWarning")
@parametrize_with_checks([VAEDetector(max_steps=30, n_estimators=2, hidden=(16,))])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def with_anomalies(n=120):
    X = numbers(n)
    y = (np.arange(n) % 4 == 0).astype(int)
    return X + y[:, None] * [0.0, 200.0, 0.0, 0.0], y


def auroc(detector, X, y):
    return roc_auc_score(y, -detector.score_samples(X))


def false_alarms(detector, X, y):
    return -np.mean(detector.predict(X)[y == 0] == -1)


def test_pipeline():
    pipeline = make_pipeline(StandardScaler(), VAEDetector(**TINY)).fit(numbers())
    new = numbers(20, seed=1)
    assert pipeline.predict(new).shape == (20,)
    assert np.array_equal(pipeline.predict(new) == -1, pipeline.decision_function(new) < 0)


@pytest.mark.parametrize(
    ("grid", "scoring"),
    [({"score_name": sorted(scores_for(images=False))[:3]}, auroc), ({"fpr": [0.1, 0.3]}, false_alarms)],
    ids=["score_name", "fpr"],
)
def test_grid_search(grid, scoring):
    X, y = with_anomalies()
    search = GridSearchCV(VAEDetector(**TINY, threshold="quantile"), grid, scoring=scoring, cv=2, error_score="raise")
    search.fit(X, y)
    (name,) = grid
    assert search.best_params_[name] in grid[name]
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_clone_and_parameters():
    detector = VAEDetector(**TINY, random_state=3).fit(numbers())
    copy = clone(detector)
    assert copy.get_params() == detector.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(numbers())
    copy.set_params(fpr=0.2, score_name="kl")
    assert (copy.fpr, copy.score_name) == (0.2, "kl")
    with pytest.raises(ValueError, match="nonsense"):
        copy.set_params(nonsense=1)


def test_parameters_set_after_fit_wait_for_the_next_fit():
    """KL scores were compared with a threshold of novelty, and sampling with more members than there are failed."""
    X, changed = numbers(), {"score_name": "kl", "n_estimators": 3, "n_mc": 2, "fpr": 0.2, "threshold": "quantile"}
    detector, wanted = VAEDetector(**TINY).fit(X), VAEDetector(**TINY).fit(X)
    detector.set_params(**changed)
    for method in ("anomaly_score", "predict", "p_value", "explain", "reconstruct", "latent"):
        assert np.array_equal(getattr(detector, method)(X), getattr(wanted, method)(X)), method
    assert np.array_equal(detector.sample(5), wanted.sample(5))
    assert (detector.score_name_, detector.fitted_params_) == ("novelty", wanted.get_params())
    rows = numbers(50, seed=1)
    assert detector.calibrate(rows).threshold_ == wanted.calibrate(rows).threshold_
    assert (
        detector.choose_threshold(rows, [0, 1] * 25).calibrate(rows, threshold="conformal").threshold_rule_["fpr"]
        == 0.05
    )
    with pytest.raises(ValueError, match="between 0 and 1"):
        detector.latent(X, member=2)
    anew = VAEDetector(**{**TINY, **changed}).fit(X)
    assert np.array_equal(detector.fit(X).anomaly_score(X), anew.anomaly_score(X))
    assert detector.fitted_params_ == anew.get_params()


def test_the_constructor_stores_its_arguments_unchanged():
    hidden, state = [8, 8], np.random.RandomState(0)
    detector = VAEDetector(hidden=hidden, random_state=state, fpr="not checked here")
    assert detector.hidden is hidden
    assert detector.random_state is state


def test_pickle():
    frame = mixed()
    detector = VAEDetector(**TINY).fit(frame)
    copy = pickle.loads(pickle.dumps(detector))
    assert np.array_equal(copy.score_samples(frame), detector.score_samples(frame))
    assert copy.threshold_ == detector.threshold_


def test_y_is_ignored():
    X, y = with_anomalies()
    assert np.array_equal(VAEDetector(**TINY).fit(X, y).score_samples(X), VAEDetector(**TINY).fit(X).score_samples(X))


def test_fit_predict_agrees_with_predict():
    X = numbers()
    assert np.array_equal(VAEDetector(**TINY).fit_predict(X), VAEDetector(**TINY).fit(X).predict(X))


# Random state --------------------------------------------------------------------------------------------------------


def scores_for(random_state, X=None):
    X = numbers(100) if X is None else X
    return VAEDetector(**TINY, random_state=random_state).fit(X).score_samples(X)


def test_an_integer_seed_decides_everything():
    assert np.array_equal(scores_for(5), scores_for(5))
    assert np.array_equal(scores_for(5), scores_for(np.int64(5)))
    assert not np.array_equal(scores_for(5), scores_for(6))


def test_a_random_state_is_drawn_from():
    state = np.random.RandomState(5)
    first, second = scores_for(state), scores_for(state)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, scores_for(np.random.RandomState(5)))


def test_no_random_state_draws_from_numpy():
    np.random.seed(0)  # noqa: NPY002 - what None stands for
    first, second = scores_for(None), scores_for(None)
    assert not np.array_equal(first, second)
    np.random.seed(0)  # noqa: NPY002
    assert np.array_equal(first, scores_for(None))


# Frames and arrays ---------------------------------------------------------------------------------------------------


def test_feature_names_are_kept():
    detector = VAEDetector(**TINY).fit(mixed())
    assert detector.feature_names_in_.tolist() == list(mixed().columns)
    assert detector.n_features_in_ == 6
    assert not hasattr(VAEDetector(**TINY).fit(numbers()), "feature_names_in_")


def test_feature_names_of_a_table_do_not_outlive_it(rng):
    images = rng.random((30, 1, 8, 8))
    detector = VAEDetector(**TINY).fit(mixed()).fit(images)
    assert not hasattr(detector, "feature_names_in_")
    assert detector.n_features_in_ == 64
    assert detector.fit(mixed()).feature_names_in_.tolist() == list(mixed().columns)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda frame: frame[frame.columns[::-1]], "Feature names must be in the same order"),
        (lambda frame: frame.drop(columns="flow"), "Feature names seen at fit time, yet now missing"),
        (lambda frame: frame.assign(new=1), "Feature names unseen at fit time"),
        (lambda frame: frame.rename(columns={"flow": "Flow"}), "Feature names unseen at fit time"),
    ],
    ids=["order", "missing", "extra", "renamed"],
)
@pytest.mark.parametrize("method", ["predict", "score_samples", "p_value", "explain", "calibrate"])
def test_feature_names_are_checked(method, change, sentence):
    detector = VAEDetector(**TINY).fit(mixed())
    with pytest.raises(ValueError, match=sentence):
        getattr(detector, method)(change(mixed()))


def test_another_number_of_columns():
    detector = VAEDetector(**TINY).fit(numbers())
    with pytest.raises(ValueError, match="X has 3 features, but VAEDetector is expecting 4 features"):
        detector.predict(numbers()[:, :3])


def test_frame_and_array_of_numbers_score_alike():
    frame = pd.DataFrame(numbers(), columns=list("abcd"))
    assert np.array_equal(
        VAEDetector(**TINY).fit(frame).score_samples(frame), VAEDetector(**TINY).fit(numbers()).score_samples(numbers())
    )


def test_the_index_of_a_frame_does_not_matter():
    frame = mixed()
    shuffled = frame.set_index(frame.index[::-1])
    detector = VAEDetector(**TINY).fit(frame)
    assert np.array_equal(detector.score_samples(shuffled), detector.score_samples(frame))
    assert np.array_equal(VAEDetector(**TINY).fit(shuffled).score_samples(frame), detector.score_samples(frame))


@pytest.mark.parametrize("convert", [np.asfortranarray, np.float32, lambda X: X.tolist()], ids=["F", "f4", "list"])
def test_layout_and_type_of_an_array_do_not_matter(convert):
    # float32 holds these values exactly.
    X = np.round(numbers(), 1).astype(np.float32).astype(np.float64)
    detector = VAEDetector(**TINY).fit(X)
    assert np.array_equal(detector.score_samples(convert(X)), detector.score_samples(X))


def test_duplicated_column_names():
    frame = mixed().set_axis(["a", "a", "b", "c", "d", "e"], axis=1)
    with pytest.raises(ValueError, match=r"Duplicated column names: \['a'\]"):
        VAEDetector(**TINY).fit(frame)


def test_pandas_categories_are_texts():
    plain = mixed()
    categories = plain.astype({"valve": "category", "mode": "category"})
    assert np.array_equal(
        VAEDetector(**TINY).fit(categories).score_samples(categories),
        VAEDetector(**TINY).fit(plain).score_samples(plain),
    )


def test_numbered_columns_with_text_can_be_sampled():
    frame = mixed().set_axis(range(6), axis=1)
    drawn = VAEDetector(**TINY).fit(frame).sample(4)
    assert set(drawn["4"]) <= {"idle", "run", "wash"}


@pytest.mark.parametrize(
    "params",
    [
        {"latent_dim": np.int64(3)},
        {"max_steps": np.int64(30)},
        {"fpr": np.float32(0.1)},
        {"n_mc": np.int32(2)},
    ],
    ids=lambda params: next(iter(params)),
)
def test_numpy_numbers_are_parameters_like_any_other(params, tmp_path):
    # What a parameter grid made of numpy.arange or numpy.logspace hands over.
    detector = VAEDetector(**{**TINY, **params}).fit(numbers())
    detector.save(tmp_path / "model.safetensors")
    assert np.array_equal(
        load(tmp_path / "model.safetensors").score_samples(numbers()), detector.score_samples(numbers())
    )
