"""How long to train, and in which batches, by the size of the data."""

import numpy as np
import pytest
import torch

from vae_anomaly import VAEDetector
from vae_anomaly.pixels import PixelSchema
from vae_anomaly.planning import MAX_BATCH_GROWTH, MAX_STEPS, architecture, training_plan
from vae_anomaly.preprocessing import Schema
from vae_anomaly.scratch import ENTRIES_AT_ONCE
from vae_anomaly.splitting import split_rows


def plan(n_rows, n_entries=30, **parameters):
    return training_plan(VAEDetector(**parameters), Schema([]), n_entries, n_rows)


def image_plan(n_rows, n_entries, **parameters):
    schema = PixelSchema((1, 1, n_entries), np.zeros(1), np.ones(1))
    return training_plan(VAEDetector(**parameters), schema, n_entries, n_rows)


@pytest.mark.parametrize("n_rows", [5_000, 50_000, 80_000])
@pytest.mark.parametrize(("n_entries", "batch_size"), [(3, 256), (585, 256), (1_000, 150), (10_000, 64)])
@pytest.mark.parametrize(("kind", "least"), [(plan, 300), (image_plan, 1500)])
def test_data_of_usual_size_are_trained_on_as_they_always_were(kind, least, n_rows, n_entries, batch_size):
    """Figures in the benchmarks rest on it."""
    found = kind(n_rows, n_entries)
    n_steps = min(max(least, 5 * max(1, n_rows // batch_size)), 6000)
    assert (found.batch_size, found.n_steps) == (batch_size, n_steps)


@pytest.mark.parametrize(("n_rows", "batch_size"), [(1, 128), (300, 128), (1_600, 200), (2_048, 256)])
def test_batches_of_few_rows_of_a_table_are_small(n_rows, batch_size):
    assert plan(n_rows).batch_size == batch_size
    assert image_plan(n_rows, 30).batch_size == 256


def test_the_fewer_steps_on_a_table_the_longer_they_are():
    rates = [plan(1000, max_steps=steps).learning_rate for steps in (10, 300, 600, 1500, 6000)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[-1]) == (rates[1], rates[-2]) == pytest.approx((0.012, 0.004))
    assert image_plan(1000, 30, max_steps=10).learning_rate == 0.004
    assert plan(1000, learning_rate=0.1).learning_rate == 0.1


@pytest.mark.parametrize("n_rows", [10**6, 3 * 10**6, 10**7, 12_000_000])
def test_each_of_millions_of_rows_comes_up_once_or_a_few_times(n_rows):
    found = plan(n_rows)
    assert found.n_steps <= MAX_STEPS
    assert 1.0 <= found.n_steps * found.batch_size / n_rows <= 5.0


def test_batches_grow_with_the_rows_and_not_beyond_a_limit():
    sizes = [plan(n_rows).batch_size for n_rows in (10**5, 10**6, 10**7, 10**8, 10**9)]
    assert sizes == sorted(sizes)
    assert sizes[-2:] == [256 * MAX_BATCH_GROWTH] * 2


def test_what_was_asked_for_goes_before_the_size_of_the_data():
    found = plan(10**7, max_steps=7, batch_size=33)
    assert (found.n_steps, found.batch_size) == (7, 33)
    # Batches of a size that was asked for do not grow; then the steps end before the rows do.
    assert plan(10**8, batch_size=128).n_steps == MAX_STEPS


@pytest.mark.parametrize("where", ["fitted", "aside", None])
def test_holes_count_where_rows_are_trained_on(where):
    """One entry, far beyond what is looked at in one go."""
    n_entries = 2000
    n_rows = 2 * (ENTRIES_AT_ONCE // n_entries) + 5
    split = split_rows(n_rows, 19, [torch.Generator().manual_seed(seed) for seed in range(3)])
    x = torch.zeros(n_rows, n_entries)
    if where is not None:
        x[int(getattr(split, where)[-1]), -1] = np.nan
    sizes = architecture(VAEDetector(n_estimators=2), Schema([]), x, split)
    assert sizes["mask_input"] == (where == "fitted")
