import numpy as np
import pytest

from vae_anomaly.baselines import BASELINES, KNN, Mixture, PCAReconstruction, baseline_scores, describe


@pytest.fixture
def table(rng):
    """Rows near a plane in five dimensions, in units of different size."""
    units = np.array([1.0, 100.0, 0.01, 5.0, 1.0])
    rows = rng.normal(size=(230, 2)) @ rng.normal(size=(2, 5)) + 0.1 * rng.normal(size=(230, 5))
    return rows[:200] * units, rows[200:] * units, units


@pytest.mark.parametrize("name", BASELINES)
def test_far_rows_score_higher_than_all_normal_ones(name, table):
    train, normal, units = table
    far = units * np.array([[9.0, -9.0, 9.0, -9.0, 9.0], [-9.0, 9.0, 9.0, 9.0, -9.0]])
    scores = baseline_scores(name, train, np.vstack([normal, far]))
    assert scores.shape == (32,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert scores[-2:].min() > scores[:-2].max()


@pytest.mark.parametrize("name", BASELINES)
def test_scores_do_not_depend_on_the_units_or_on_the_other_rows(name, table):
    train, normal, units = table
    scores = baseline_scores(name, train, normal)
    np.testing.assert_allclose(baseline_scores(name, train / units, normal / units), scores, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(baseline_scores(name, train, normal[::-1])[::-1], scores, rtol=1e-6, atol=1e-9)


def test_knn_is_the_distance_to_the_kth_nearest_row(rng):
    train, test = rng.normal(size=(30, 3)), rng.normal(size=(4, 3))
    expected = [sorted(np.linalg.norm(train - row, axis=1))[4] for row in test]
    np.testing.assert_allclose(-KNN(n_neighbors=5).fit(train).score_samples(test), expected)


def test_pca_is_the_squared_distance_from_the_plane(rng):
    """Exactly on the plane it is nothing, and along the normal it is the square of the step."""
    basis = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    plane, normal = basis[:, :2], basis[:, 2]
    train = rng.normal(size=(50, 2)) @ plane.T
    detector = PCAReconstruction(share=0.999999).fit(train)
    steps = np.array([0.0, 1.0, 3.0])
    np.testing.assert_allclose(
        -detector.score_samples(train[:3] + steps[:, None] * normal), np.square(steps), rtol=1e-6, atol=1e-9
    )


@pytest.mark.filterwarnings("ignore:n_neighbors")
@pytest.mark.parametrize("n_rows", [2, 4, 15])
@pytest.mark.parametrize("name", BASELINES)
def test_fewer_rows_than_neighbours_or_components(name, n_rows, rng):
    train = rng.normal(size=(n_rows, 3))
    scores = baseline_scores(name, train, np.vstack([train, np.full((1, 3), 99.0)]))
    assert np.isfinite(scores).all()
    assert scores[-1] >= np.median(scores)


def test_a_mixture_has_fewer_components_where_rows_are_few(rng):
    n_components = [Mixture(4).fit(rng.normal(size=(n, 3))).mixture_.n_components for n in (2, 29, 30, 60, 500)]
    assert n_components == [1, 1, 2, 4, 4]


@pytest.mark.parametrize("name", BASELINES)
def test_settings_are_told_in_one_line(name):
    text = describe(name)
    assert text.startswith(f"{type(BASELINES[name]()).__name__}(")
    assert all(f"{parameter}=" in text for parameter in BASELINES[name]().get_params())
    assert "\n" not in text
