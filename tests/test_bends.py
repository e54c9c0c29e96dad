"""Maps of many columns at once give what numpy.interp gives for each."""

import warnings

import numpy as np
import pytest

from vae_anomaly.bends import PiecewiseLinear

KNOTS = {
    "normal": lambda rng: rng.normal(size=100),
    "few": lambda rng: rng.normal(size=2),
    "one": lambda rng: rng.normal(size=1),
    "whole numbers": lambda rng: rng.integers(-50, 50, size=80).astype(float),
    "heavy tails": lambda rng: rng.standard_cauchy(size=100) ** 3,
    "very heavy tails": lambda rng: np.exp(20 * rng.normal(size=100)),
    "one far off": lambda rng: np.append(rng.normal(size=99), 1e15),
    "as large as numbers get": lambda rng: 1.7e308 * rng.uniform(-1, 1, size=20),
    "as small as numbers get": lambda rng: 1e-310 * rng.normal(size=20),
    "none": lambda rng: np.empty(0),
}


def values_for(knots, rng):
    """Values on knots, beside them, between them, and beyond them."""
    size = np.abs(knots).max(initial=1.0) / 3
    between = rng.choice(knots, 200) * rng.uniform(size=200) if len(knots) else rng.normal(size=200)
    ends = np.array([0.0, -0.0, 1e308, -1e308, 5e-324])
    values = np.concatenate([knots, np.nextafter(knots, np.inf), np.nextafter(knots, -np.inf), between, ends])
    return rng.choice(np.append(values, size), 500)


def by_numpy(values, knots, at):
    with np.errstate(all="ignore"):
        return np.interp(values, knots, at) if len(knots) else np.zeros(len(values))


@pytest.mark.parametrize("kind", KNOTS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_each_column_is_mapped_as_numpy_maps_it(kind, order):
    rng = np.random.default_rng(0)
    knots = [np.unique(KNOTS[name](rng)) for name in (kind, "normal", kind)]
    at = [np.sort(rng.normal(size=len(own))) for own in knots]
    values = np.array([values_for(own, rng) for own in knots], order="F" if order == "C" else "C").T
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = PiecewiseLinear(knots, at)(values)
    for column in range(3):
        np.testing.assert_array_equal(found[:, column], by_numpy(values[:, column], knots[column], at[column]))


def test_a_missing_value_disturbs_no_other():
    maps = PiecewiseLinear([[0.0, 1.0], [5.0, 6.0, 8.0]], [[0.0, 2.0], [1.0, 0.0, 1.0]])
    values = np.array([[0.5, np.nan], [np.nan, 7.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = maps(values)
    assert found[0, 0] == 1.0
    assert found[1, 1] == 0.5
    assert maps(values[:0]).shape == (0, 2)


def test_the_map_of_no_columns_is_none():
    assert PiecewiseLinear([], [])(np.empty((3, 0))).shape == (3, 0)
