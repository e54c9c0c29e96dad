import math

import naive
import numpy as np
import pytest
import torch
from scipy.spatial import distance
from sklearn.metrics.pairwise import nan_euclidean_distances

from vae_anomaly import scores as scores_module
from vae_anomaly.likelihoods import LIKELIHOODS, Blocks
from vae_anomaly.priors import PRIORS
from vae_anomaly.scores import (
    REFERENCES,
    SCORES,
    kl,
    mahalanobis,
    neg_elbo,
    neg_log_px,
    neg_log_px_z,
    reconstruction_error,
    reconstruction_probability,
    scores_for,
    shares,
    typicality,
)
from vae_anomaly.usual import upper_tail

D, LATENT, N_MC = 5, 2, 8
TABLE = scores_for(images=False)
EXACT_SHARES = [name for name in TABLE if SCORES[name].complete]


def fitted(vae, generator):
    """The VAE with its references filled from rows of its own making, some with holes."""
    z, eps = torch.randn(60, LATENT, generator=generator), torch.randn(N_MC, 1, LATENT, generator=generator)
    x = vae.decode(z).mean.detach()
    x[::7, 0] = torch.nan
    with torch.no_grad():
        for fill in REFERENCES:
            for name, value in fill(vae, x[:40], x[40:], eps).items():
                vae.get_buffer(name).copy_(value)
    return vae


@pytest.fixture
def vae(make_vae, generator):
    return fitted(make_vae((D,), LATENT), generator)


@pytest.fixture
def x(generator):
    return torch.randn(13, D, generator=generator)


@pytest.fixture
def eps(generator):
    return torch.randn(N_MC, 1, LATENT, generator=generator)


def with_holes(x):
    x = x.clone()
    x[::2, 1], x[3, 2:], x[5, :] = torch.nan, torch.nan, torch.nan
    return x


# -- laws of every score ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", TABLE)
def test_one_finite_number_per_row(name, likelihood, prior, make_vae, x, eps, generator):
    vae = fitted(make_vae((D,), LATENT, likelihood=likelihood, prior=prior), generator)
    for rows in (x, with_holes(x), 100.0 * x):
        scores = SCORES[name].function(vae, rows, eps)
        assert scores.shape == (len(rows),)
        assert torch.isfinite(scores).all()


@pytest.mark.parametrize("name", TABLE)
def test_score_of_a_row_depends_on_that_row_alone(name, vae, x, eps, generator):
    """Batch size and order change no score, up to the rounding of matrix products of another shape."""
    vae, rows, eps, score = vae.double(), with_holes(x).double(), eps.double(), SCORES[name].function
    together = score(vae, rows, eps)
    order = torch.randperm(len(rows), generator=generator)
    torch.testing.assert_close(score(vae, rows[order], eps), together[order], rtol=1e-9, atol=1e-9)
    one_by_one = torch.cat([score(vae, rows[i : i + 1], eps) for i in range(len(rows))])
    torch.testing.assert_close(one_by_one, together, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("name", TABLE)
def test_shares_sum_to_the_score(name, holes, vae, x, eps):
    rows = with_holes(x) if holes else x
    contributions = shares(SCORES[name], vae, rows, eps)
    assert contributions.shape == rows.shape
    assert torch.isfinite(contributions).all()
    scores = SCORES[name].function(vae, rows, eps)
    scale = max(float(contributions.abs().sum(dim=1).max().detach()), 1.0)
    torch.testing.assert_close(contributions.sum(dim=1), scores, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("name", TABLE)
def test_shares_sum_to_the_score_under_every_likelihood(name, likelihood, make_vae, x, eps, generator):
    vae = fitted(make_vae((D,), LATENT, likelihood=likelihood), generator)
    contributions = shares(SCORES[name], vae, x, eps)
    scale = max(float(contributions.abs().sum(dim=1).max().detach()), 1.0)
    expected = SCORES[name].function(vae, x, eps)
    torch.testing.assert_close(contributions.sum(dim=1), expected, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("name", TABLE)
def test_shares_of_a_row_depend_on_that_row_alone(name, vae, x, eps):
    vae, rows, eps, score = vae.double(), with_holes(x).double(), eps.double(), SCORES[name]
    one_by_one = torch.cat([shares(score, vae, rows[i : i + 1], eps) for i in range(len(rows))])
    torch.testing.assert_close(one_by_one, shares(score, vae, rows, eps), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EXACT_SHARES)
def test_shares_of_a_sum_over_entries_are_its_terms(name, vae, x, eps):
    rows = with_holes(x)
    entries = SCORES[name].entries(vae, rows, eps)
    torch.testing.assert_close(entries.sum(dim=1), SCORES[name].function(vae, rows, eps))
    torch.testing.assert_close(shares(SCORES[name], vae, rows, eps), entries, rtol=0, atol=0)


def test_sums_over_entries_have_exact_shares():
    assert {"neg_log_px_z", "reconstruction_error", "reconstruction_probability"} <= set(EXACT_SHARES)


@pytest.mark.parametrize("name", [name for name in TABLE if name not in EXACT_SHARES])
def test_an_average_or_missing_entry_gets_no_share_of_the_remainder(name, vae, x, eps):
    rows = x.clone()
    rows[:, 0], rows[:, 1] = 0.0, torch.nan
    entries = SCORES[name].entries
    owned = torch.zeros_like(x) if entries is None else entries(vae, rows, eps)
    torch.testing.assert_close(shares(SCORES[name], vae, rows, eps)[:, :2], owned[:, :2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TABLE)
def test_scores_with_gradients_are_those_without(name, vae, x, eps):
    """Scoring runs without gradients, and ``shares`` takes its own inside."""
    with torch.no_grad():
        scores, contributions = SCORES[name].function(vae, x, eps), shares(SCORES[name], vae, x, eps)
    torch.testing.assert_close(scores, SCORES[name].function(vae, x, eps))
    torch.testing.assert_close(contributions, shares(SCORES[name], vae, x, eps))


# -- laws of single scores --------------------------------------------------------------------------------------------


def posterior_of(vae, row):
    qz = vae.encode(row)
    return qz.mean[0].tolist(), qz.stddev[0].tolist()


def decoder_of(vae):
    def decode(z):
        px = vae.decode(torch.tensor(z, dtype=torch.float64)).base_dist
        return px.mean.tolist(), px.stddev.tolist()

    return decode


def test_bounds_are_those_of_plain_loops(make_vae, x, eps):
    vae, draws = make_vae((D,), LATENT, dtype=torch.float64), eps[:, 0].tolist()
    x, eps = x.double(), eps.double()
    elbos, bounds = neg_elbo(vae, x, eps).tolist(), neg_log_px(vae, x, eps).tolist()
    for i in range(len(x)):
        arguments = x[i].tolist(), *posterior_of(vae, x[i : i + 1]), draws, decoder_of(vae)
        assert elbos[i] == pytest.approx(-naive.gaussian_elbo(*arguments), rel=1e-9)
        # The log of the number of draws is taken in single precision.
        assert bounds[i] == pytest.approx(-naive.importance_weighted_bound(*arguments), abs=1e-6)


def test_importance_weighted_bound_of_one_draw_is_its_log_weight(vae, x, eps):
    terms = vae.terms(x, eps[:1])
    torch.testing.assert_close(neg_log_px(vae, x, eps[:1]), -(terms.log_px_z + terms.log_pz - terms.log_qz)[0])


@pytest.mark.parametrize("prior", PRIORS)
def test_importance_weighted_bound_tightens_with_more_draws(prior, make_vae, x, generator):
    """The log of a mean is at least the mean of the logs: exact for nested blocks of the same draws."""
    vae = make_vae((D,), LATENT, prior=prior, dtype=torch.float64)
    eps = torch.randn(512, 1, LATENT, generator=generator, dtype=torch.float64)
    of_one, of_eight, of_64 = (
        torch.stack([neg_log_px(vae, x.double(), block) for block in eps.split(size)]).mean(dim=0)
        for size in (1, 8, 64)
    )
    assert (of_eight < of_one).all()
    assert (of_64 < of_eight).all()


@pytest.mark.parametrize("prior", PRIORS)
def test_importance_weighted_bound_is_not_looser_than_the_elbo(prior, make_vae, x, generator):
    """Up to the Monte Carlo error of the expected log-weight, whose KL part the ELBO has in closed form."""
    vae = make_vae((D,), LATENT, prior=prior, dtype=torch.float64)
    x, eps = x.double(), torch.randn(512, 1, LATENT, generator=generator, dtype=torch.float64)
    terms = vae.terms(x, eps)
    standard_error = (terms.log_qz - terms.log_pz).std(dim=0) / math.sqrt(len(eps))
    assert (neg_log_px(vae, x, eps) <= neg_elbo(vae, x, eps) + 5.0 * standard_error).all()


@pytest.mark.parametrize("n_mc", [1, 8])
def test_importance_weights_far_beyond_the_range_of_floats_are_summed(n_mc, vae, x, eps):
    scores = neg_log_px(vae, 1e4 * x, eps[:n_mc])
    assert torch.isfinite(scores).all()
    assert (scores > 1e3).all()


def test_neg_elbo_is_kl_plus_reconstruction_probability(vae, x, eps):
    torch.testing.assert_close(neg_elbo(vae, x, eps), kl(vae, x, eps) + reconstruction_probability(vae, x, eps))


def test_reconstruction_probability_without_noise_is_neg_log_px_z(vae, x):
    torch.testing.assert_close(
        reconstruction_probability(vae, x, torch.zeros(1, 1, LATENT)), neg_log_px_z(vae, x, None)
    )


def test_neg_log_px_z_is_minus_the_log_density_at_the_posterior_mean(vae, x, eps):
    torch.testing.assert_close(neg_log_px_z(vae, x, eps), -vae.decode(vae.encode(x).mean).log_prob(x))


def test_reconstruction_error_is_the_sum_of_squares(vae, x, eps):
    reconstructed = vae.decode(vae.encode(x).mean).mean.tolist()
    expected = [
        sum((a - b) ** 2 for a, b in zip(*rows, strict=True)) for rows in zip(x.tolist(), reconstructed, strict=True)
    ]
    np.testing.assert_allclose(reconstruction_error(vae, x, eps).detach(), expected, rtol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 0.5, 30.0])
def test_typicality_is_symmetric_about_the_usual_neg_elbo(offset, vae, x, eps):
    for row in x:
        rated = neg_elbo(vae, row[None], eps).detach()
        for usual in (rated - offset, rated + offset):
            vae.usual_neg_elbo.copy_(usual[0])
            # The difference of two numbers of this size, in single precision.
            error = 4e-7 * (abs(float(rated)) + offset)
            assert float(typicality(vae, row[None], eps).detach()) == pytest.approx(offset, abs=error)


def test_mahalanobis_is_that_of_scipy(vae, x, eps):
    codes = vae.encode(x).mean.detach().double().numpy()
    centre, precision = vae.code_mean.double().numpy(), vae.code_precision.double().numpy()
    expected = [distance.mahalanobis(code, centre, precision) ** 2 for code in codes]
    # The precision has entries of up to 1 / ridge = 1000, and what they multiply has cancelled.
    np.testing.assert_allclose(mahalanobis(vae, x, eps).detach(), expected, rtol=1e-4, atol=1e-4)


# -- what the end of fit fills in -------------------------------------------------------------------------------------


def filled(vae, x, eps):
    buffers = {}
    with torch.no_grad():
        for fill in REFERENCES:
            values = fill(vae, x, x, eps)
            assert not buffers.keys() & values.keys()
            for name, value in values.items():
                assert value.shape == vae.get_buffer(name).shape
                vae.get_buffer(name).copy_(value)
            buffers |= values
    return buffers


def test_usual_entries_are_means_over_the_observed(make_vae, x, eps):
    vae, rows = make_vae((D,), LATENT), with_holes(x)
    buffers = filled(vae, rows, eps)
    for name, sign, value in (("neg_log_px_z", -1.0, "missing_log_px"), ("reconstruction_error", 1.0, "missing_error")):
        entries = SCORES[name].entries(vae, rows, eps).detach()
        expected = torch.where(torch.isnan(rows), torch.nan, entries).nanmean(dim=0)
        torch.testing.assert_close(buffers[value], sign * expected)


@pytest.mark.parametrize("name", ["neg_log_px_z", "reconstruction_error"])
def test_a_hole_neither_raises_nor_lowers_the_mean_score(name, make_vae, x, eps):
    """A row of holes scores what normal rows score on average, when these have none."""
    vae = make_vae((D,), LATENT)
    filled(vae, x, eps)
    empty = torch.full((1, D), torch.nan)
    score = SCORES[name].function
    torch.testing.assert_close(score(vae, empty, eps)[0], score(vae, x, eps).mean())


def test_code_statistics_are_those_of_numpy(make_vae, generator, eps):
    vae, x = make_vae((D,), LATENT, n_codes=200), torch.randn(200, D, generator=generator)
    buffers = filled(vae, x, eps)
    codes = vae.encode(x).mean.detach().double().numpy()
    np.testing.assert_allclose(buffers["code_mean"], codes.mean(axis=0), rtol=1e-5, atol=1e-6)
    precision = np.linalg.inv(np.cov(codes.T, bias=True) + 1e-3 * np.eye(LATENT))
    np.testing.assert_allclose(buffers["code_precision"], precision, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("holes", [False, True])
def test_nearest_neighbour_is_that_of_scikit_learn(holes, make_vae, generator, eps):
    vae = make_vae((D,), LATENT, n_codes=40)
    train, x = torch.randn(40, D, generator=generator), torch.randn(30, D, generator=generator)
    filled(vae, train, eps)
    if holes:
        # The row without any value has no distance.
        x = with_holes(x)[torch.arange(30) != 5]
    expected = nan_euclidean_distances(x.numpy(), train.numpy()).min(axis=1)
    found = SCORES["nearest_neighbour"].function(vae, x, eps).detach()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_nearest_neighbour_of_a_kept_sample_is_itself(make_vae, x, eps):
    vae = make_vae((D,), LATENT, n_codes=len(x))
    filled(vae, x, eps)
    assert (SCORES["nearest_neighbour"].function(vae, x, eps) < 1e-6).all()


def test_the_least_likely_samples_are_not_kept(make_vae, generator, eps):
    vae, x = make_vae((D,), LATENT, n_codes=90), torch.randn(100, D, generator=generator)
    x[::10] += 100.0
    buffers = filled(vae, x, eps)
    assert torch.equal(buffers["exemplars"], x[torch.arange(100) % 10 != 0])
    torch.testing.assert_close(buffers["codes"], vae.encode(buffers["exemplars"]).mean.detach())


@pytest.mark.parametrize("holes", [False, True])
def test_novelty_is_the_higher_of_two_standardised_scores(holes, make_vae, x, generator, eps):
    vae = make_vae((D,), LATENT, n_codes=len(x))
    new = torch.cat([torch.randn(64, D, generator=generator), torch.full((1, D), 1e3)])
    if holes:
        new = with_holes(new)
        new = new[~torch.isnan(new).all(dim=1)]
    # Samples are compared by all entries but one.
    vae.compared[4] = 0.0
    filled(vae, x, eps)

    def bounded(rows):
        return SCORES["neg_log_px_z"].entries(vae, rows, eps).clamp(max=20.0).sum(dim=1).detach()

    def without_one(rows):
        return np.delete(rows.numpy(), 4, axis=1)

    distances = nan_euclidean_distances(without_one(new), without_one(x))
    distances[np.isnan(distances)] = np.inf
    place = distances.argmin(axis=1)
    assert (place == 0).sum() < len(new) / 2
    first = bounded(new) - 0.75 * bounded(x)[place]
    second = torch.from_numpy(distances.min(axis=1)).float()
    # A kept sample is no distance from itself, which is not what is usual for held-out ones.
    torch.testing.assert_close(vae.usual_unexplained, upper_tail(0.25 * bounded(x)), rtol=1e-4, atol=1e-4)
    vae.usual_unseen = torch.tensor([1.5, 0.7])
    first, second = (first - vae.usual_unexplained[0]) / vae.usual_unexplained[1], (second - 1.5) / 0.7
    assert 0 < (first > second).sum() < len(new)
    found = SCORES["novelty"].function(vae, new, eps).detach()
    torch.testing.assert_close(found, torch.maximum(first, second), rtol=1e-4, atol=1e-4)


def test_usual_neg_elbo_is_the_mean(make_vae, x, eps):
    vae = make_vae((D,), LATENT)
    filled(vae, x, eps)
    torch.testing.assert_close(vae.usual_neg_elbo, neg_elbo(vae, x, eps).mean().detach())


def test_shares_of_a_mixed_table_sum_to_the_score(make_vae, x, eps, generator):
    likelihood = LIKELIHOODS["mixed"]((D,), Blocks(2, 1, (2,)))
    vae = make_vae((D,), LATENT, likelihood=likelihood)
    rows = torch.cat([x[:, :2], (x[:, 2:3] > 0).float(), torch.eye(2)[(x[:, 3] > 0).long()]], dim=-1)
    for score in (SCORES[name] for name in TABLE):
        contributions = shares(score, vae, rows, eps)
        torch.testing.assert_close(contributions.sum(dim=1), score.function(vae, rows, eps), rtol=1e-4, atol=1e-4)


def test_entries_beyond_the_bound_share_it_by_what_they_cost(vae, eps):
    far = torch.zeros(2, vae.event_shape[0])
    far[1, :2] = torch.tensor([1e3, 40.0])
    costs, bounded = (
        function(vae, far, eps) for function in (scores_module._neg_log_entries, scores_module._bounded_entries)
    )
    clipped = costs.clamp(max=scores_module.MAX_NATS)
    torch.testing.assert_close(bounded.sum(dim=1), clipped.sum(dim=1))
    beyond = costs > scores_module.MAX_NATS
    assert beyond[1].sum() > 1
    assert torch.equal(bounded[~beyond], costs[~beyond])
    torch.testing.assert_close(
        bounded[1][beyond[1]] / bounded[1][beyond[1]].sum(), costs[1][beyond[1]] / costs[1][beyond[1]].sum()
    )
