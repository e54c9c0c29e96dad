from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
from tables import TINY, numbers

from vae_anomaly import neighbours, scoring
from vae_anomaly.detector import VAEDetector
from vae_anomaly.ensemble import Ensemble
from vae_anomaly.scores import SCORES, light, scores_for, with_shares
from vae_anomaly.scoring import SMALL_BATCHES, map_rows

N_ROWS = 150


@pytest.fixture
def ensemble(make_vae):
    return Ensemble([make_vae(n_codes=9, mask_input=True, seed=seed) for seed in range(2)])


@pytest.fixture
def eps(generator):
    return torch.randn(4, 1, 2, generator=generator)


def rows_of(rng, holes):
    rows = rng.normal(size=(N_ROWS, 5)).astype(np.float32)
    rows[rng.random(rows.shape) < holes] = np.nan
    return rows


@pytest.mark.parametrize("holes", [0.0, 0.3])
@pytest.mark.parametrize("name", scores_for(images=False))
def test_a_few_rows_score_bit_for_bit_as_among_many(name, holes, ensemble, eps, rng):
    rows, function = rows_of(rng, holes), SCORES[name].function
    wanted = map_rows(ensemble, eps, function, rows, again=True)
    for n_rows in (1, 5, 8, 9, SMALL_BATCHES[-1], SMALL_BATCHES[-1] + 1):
        some = map_rows(ensemble, eps, function, rows[7 : 7 + n_rows], again=True)
        np.testing.assert_array_equal(some, wanted[7 : 7 + n_rows])


def test_a_block_that_changes_a_bit_is_not_used(ensemble, eps, rng):
    """As on a processor that multiplies few rows in another order; tried the second time that few rows come."""

    def function(vae, x, eps):
        return x[:, 0] + (1e-6 if len(x) < SMALL_BATCHES[1] else 0.0)

    rows = rows_of(rng, 0.0)
    sizes = []

    def watched(vae, x, eps):
        sizes.append(len(x))
        return function(vae, x, eps)

    first = map_rows(ensemble, eps, watched, rows[:1], again=True)
    assert set(sizes) == {scoring.SCORING_BATCH}
    one = map_rows(ensemble, eps, watched, rows[:1], again=True)
    np.testing.assert_array_equal(one, first)
    assert set(sizes) == {scoring.SCORING_BATCH, *SMALL_BATCHES}
    assert sizes[-1] == SMALL_BATCHES[1]
    np.testing.assert_array_equal(one, map_rows(ensemble, eps, function, rows)[:1])
    sizes.clear()
    map_rows(ensemble, eps, watched, rows[:1], again=True)
    assert set(sizes) == {SMALL_BATCHES[1]}


def test_small_blocks_are_tried_beside_the_usual_one_as_it_is_used(ensemble, eps, rng, monkeypatch):
    """Wide rows come in blocks no larger than those in which all members come at once."""
    monkeypatch.setattr(scoring, "SCORING_BATCH", 32)

    def function(vae, x, eps):
        return x[:, 0] + (1e-6 if torch._C._functorch.is_batchedtensor(vae.exemplars) else 0.0)

    rows = rows_of(rng, 0.0)
    wanted = map_rows(ensemble, eps, function, rows)
    for _ in range(2):
        np.testing.assert_array_equal(map_rows(ensemble, eps, function, rows[:5], again=True), wanted[:5])


@pytest.mark.parametrize("left_over", [0, 1, 76, 512, 513])
def test_rows_that_are_left_over_come_in_small_blocks(left_over, ensemble, eps, rng):
    rows, sizes = rng.normal(size=(scoring.SCORING_BATCH + left_over, 5)).astype(np.float32), []

    def watched(vae, x, eps):
        sizes.append(len(x))
        return x[:, 0]

    for _ in range(2):
        np.testing.assert_array_equal(map_rows(ensemble, eps, watched, rows, again=True), rows[:, 0])
    sizes.clear()
    map_rows(ensemble, eps, watched, rows, again=True)
    small = {0: [], 1: [SMALL_BATCHES[0]], 76: [128], 512: 4 * [128], 513: [scoring.SCORING_BATCH]}[left_over]
    wanted = [scoring.SCORING_BATCH, *small]
    assert sorted(sizes, reverse=True) == sorted(2 * wanted, reverse=True)


def test_light_functions_come_in_larger_blocks(ensemble, eps, rng):
    rows, sizes = rng.normal(size=(scoring.LIGHT_BATCH + 700, 5)).astype(np.float32), []

    @light
    def watched(vae, x, eps):
        sizes.append(len(x))
        return x[:, 0]

    np.testing.assert_array_equal(map_rows(ensemble, eps, watched, rows), rows[:, 0])
    assert set(sizes) == {scoring.LIGHT_BATCH}
    for score in (SCORES["neg_log_px_z"], SCORES["reconstruction_error"]):
        assert score.function.light
        assert with_shares(score).light
    assert not hasattr(with_shares(SCORES["novelty"]), "light")


def test_threads_with_different_rows_do_not_disturb_each_other(ensemble, eps, rng):
    """Rows with holes in one thread, complete ones in another."""
    kinds = [rows_of(rng, holes) for holes in (0.0, 0.3)]
    kinds += [rows[:5] for rows in kinds]

    def scores(index):
        return map_rows(ensemble, eps, SCORES["novelty"].function, kinds[index % 4], again=True)

    wanted = list(map(scores, range(4)))
    ensemble = Ensemble(list(ensemble.members()))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(scores, range(80)))
    for index, values in enumerate(found):
        np.testing.assert_array_equal(values, wanted[index % 4])


def test_scoring_leaves_the_network_as_it_was(ensemble, eps, rng):
    for holes in (0.0, 0.3):
        map_rows(ensemble, eps, SCORES["novelty"].function, rows_of(rng, holes))
        assert {(vae.complete, vae.imputation_steps) for vae in (ensemble.skeleton, *ensemble.views())} == {(False, 0)}


def test_rows_that_may_not_be_written_to_are_scored(ensemble, eps, rng, recwarn):
    rows = np.repeat(rows_of(rng, 0.0), 8, axis=0)
    rows.flags.writeable = False
    map_rows(ensemble, eps, SCORES["kl"].function, rows)
    assert not recwarn.list


@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_the_number_of_threads_changes_no_bit(holes, ensemble, eps, rng, monkeypatch):
    monkeypatch.setattr(scoring, "SCORING_BATCH", 16)
    rows, before, found = rows_of(rng, holes), torch.get_num_threads(), []
    try:
        # As many threads as blocks, fewer, and more.
        for n_threads in (1, 2, 3, 16):
            torch.set_num_threads(n_threads)
            found.append(map_rows(ensemble, eps, SCORES["novelty"].function, rows))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[1:], [found[0]] * 3)


def test_a_block_that_decides_between_equal_distances_otherwise_is_not_used(eps, rng, monkeypatch):
    """The last bit of a distance says which of two samples is nearer."""
    exact = neighbours._row_by_row

    def otherwise(constant, points, x):
        rest = exact(constant, points, x)
        if x.shape[-2] > SMALL_BATCHES[0]:
            return rest
        return rest + 2e-7 * rest.abs() * torch.arange(rest.shape[-1]).sin()

    monkeypatch.setattr(neighbours, "_row_by_row", otherwise)
    detector = VAEDetector(**TINY).fit(numbers(300))
    rows = detector.schema_.encode(pd.DataFrame(numbers(1)))
    function = SCORES["novelty"].function
    for _ in range(2):
        map_rows(detector.ensemble_, detector.eps_, function, rows, again=True)
    assert scoring._SMALL[detector.ensemble_][function, False, torch.get_num_threads()] == SMALL_BATCHES[1:]
