import math

import naive
import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence

from vae_anomaly.likelihoods import LIKELIHOODS, RAW_ONE
from vae_anomaly.priors import PRIORS
from vae_anomaly.vae import MAX_LOGVAR, VAE

D, LATENT = 6, 2
SIGMA = 0.4


def ppca_parameters(rng):
    """W with orthogonal columns, so that the posterior of probabilistic PCA is diagonal, as that of a VAE is."""
    basis = np.linalg.qr(rng.normal(size=(D, LATENT)))[0]
    return basis * [2.0, 0.7], rng.normal(size=D), SIGMA


def ppca_vae(W, mean, sigma):
    """The linear Gaussian VAE that is this probabilistic PCA, with its exact posterior."""
    vae = VAE((D,), LATENT, likelihood="gaussian_shared", hidden=()).double()
    M_inverse = np.linalg.inv(W.T @ W + sigma**2 * np.eye(LATENT))
    to_mean = M_inverse @ W.T
    logvar = np.log(sigma**2 * np.diag(M_inverse))
    floor = float(vae.likelihood.min_scale)
    set_to(vae.encoder[0].weight, np.vstack([to_mean, np.zeros((LATENT, D))]))
    set_to(vae.encoder[0].bias, np.concatenate([-to_mean @ mean, MAX_LOGVAR * np.arctanh(logvar / MAX_LOGVAR)]))
    set_to(vae.decoder[0].weight, W)
    set_to(vae.decoder[0].bias, mean)
    set_to(vae.likelihood.raw_scale, np.log(np.expm1(sigma - floor)) - RAW_ONE)
    return vae


def set_to(parameter, values):
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(values))


def exact_eps(latent_dim=LATENT):
    """Base samples with mean 0 and covariance I: means over them are exact for polynomials of degree 3 in z."""
    axes = math.sqrt(latent_dim) * torch.eye(latent_dim, dtype=torch.float64)
    return torch.cat([axes, -axes])[:, None]


@pytest.fixture
def ppca(rng):
    return ppca_parameters(rng)


@pytest.fixture
def rows(rng, ppca):
    """Rows that this probabilistic PCA makes, and some that it does not."""
    W, mean, sigma = ppca
    drawn = rng.normal(size=(20, LATENT)) @ W.T + mean + sigma * rng.normal(size=(20, D))
    return np.vstack([drawn, 3.0 * rng.normal(size=(10, D))])


# -- the oracle: a linear Gaussian VAE is probabilistic PCA (Lucas et al. 2019, arXiv:1911.02469) ---------------------


def test_linear_vae_has_the_posterior_of_probabilistic_pca(ppca, rows):
    mean, covariance = naive.ppca_posterior(rows, *ppca)
    qz = ppca_vae(*ppca).encode(torch.from_numpy(rows))
    np.testing.assert_allclose(qz.mean.detach(), mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(qz.variance.detach()[0], np.diag(covariance), rtol=1e-9)


def test_elbo_at_the_exact_posterior_is_log_px(ppca, rows):
    elbo = ppca_vae(*ppca).elbo(torch.from_numpy(rows), exact_eps())
    np.testing.assert_allclose(elbo.detach(), naive.ppca_log_px(rows, *ppca), rtol=1e-7)


@pytest.mark.parametrize("n_mc", [1, 2, 5, 64])
def test_every_draw_from_the_exact_posterior_gives_log_px(n_mc, ppca, rows, generator):
    """p(x | z) p(z) / p(z | x) = p(x) for any z: an importance weight without variance."""
    terms = ppca_vae(*ppca).terms(torch.from_numpy(rows), torch.randn(n_mc, 1, LATENT, generator=generator))
    log_weights = terms.log_px_z + terms.log_pz - terms.log_qz
    expected = np.broadcast_to(naive.ppca_log_px(rows, *ppca), (n_mc, len(rows)))
    np.testing.assert_allclose(log_weights.detach(), expected, rtol=1e-7)


def test_elbo_falls_short_by_the_divergence_from_the_exact_posterior(ppca, rows):
    """log p(x) - ELBO = KL(q(z | x) || p(z | x)) > 0 when q is another Gaussian."""
    vae, x = ppca_vae(*ppca), torch.from_numpy(rows)
    posterior = vae.encode(x)
    with torch.no_grad():
        vae.encoder[0].bias.add_(torch.tensor([0.3, -0.2, 0.5, -0.7]))
    gap = naive.ppca_log_px(rows, *ppca) - vae.elbo(x, exact_eps()).detach().numpy()
    assert (gap > 0.0).all()
    np.testing.assert_allclose(gap, kl_divergence(vae.encode(x), posterior).detach(), rtol=1e-6)


def test_elbo_of_random_draws_is_log_px_up_to_monte_carlo_error(ppca, rows, generator):
    vae, x = ppca_vae(*ppca), torch.from_numpy(rows)
    terms = vae.terms(x, torch.randn(4000, 1, LATENT, generator=generator))
    standard_error = terms.log_px_z.std(dim=0).detach().numpy() / math.sqrt(4000)
    error = (terms.log_px_z.mean(dim=0) - terms.kl).detach().numpy() - naive.ppca_log_px(rows, *ppca)
    assert (np.abs(error) < 5.0 * standard_error).all()


@pytest.mark.parametrize("missing", [[0], [1, 4], [0, 2, 3]])
def test_imputation_converges_to_the_posterior_given_the_observed_entries(missing, ppca, rows):
    """Filling x_m with W_m E[z | x_o, x_m] over and over ends where E[z | x_o, x_m] = E[z | x_o]."""
    W, mean, sigma = ppca
    observed = np.setdiff1d(np.arange(D), missing)
    expected, _ = naive.ppca_posterior(rows[:, observed], W[observed], mean[observed], sigma)
    holed = rows.copy()
    holed[:, missing] = np.nan
    vae = ppca_vae(*ppca)
    vae.imputation_steps = 2000
    np.testing.assert_allclose(vae.encode(torch.from_numpy(holed)).mean.detach(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mask_input", [False, True])
def test_imputation_changes_nothing_for_a_complete_row(mask_input, make_vae, generator):
    vae = make_vae((4,), 3, mask_input=mask_input)
    x = torch.randn(5, 4, generator=generator)
    before = vae.encode(x).mean
    vae.imputation_steps = 5
    assert torch.equal(vae.encode(x).mean, before)


# -- against plain loops ----------------------------------------------------------------------------------------------


def test_terms_are_those_of_plain_loops(make_vae, generator):
    vae = make_vae((4,), 3, dtype=torch.float64)
    x, eps = torch.randn(5, 4, generator=generator).double(), torch.randn(6, 1, 3, generator=generator).double()
    terms, elbo, qz = vae.terms(x, eps), vae.elbo(x, eps), vae.encode(x)

    def decode(z):
        px = vae.decode(torch.tensor(z, dtype=torch.float64)).base_dist
        return px.mean.tolist(), px.stddev.tolist()

    for row in range(len(x)):
        posterior = qz.mean[row].tolist(), qz.stddev[row].tolist()
        for draw in range(len(eps)):
            expected = naive.gaussian_terms(x[row].tolist(), *posterior, eps[draw, 0].tolist(), decode)
            got = [float(values[draw, row].detach()) for values in terms[:3]]
            assert got == pytest.approx(expected, rel=1e-9)
        expected = naive.gaussian_elbo(x[row].tolist(), *posterior, eps[:, 0].tolist(), decode)
        assert float(elbo[row].detach()) == pytest.approx(expected, rel=1e-9)


# -- identities of every VAE ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_neg_elbo_is_kl_less_expected_log_px_z(likelihood, prior, make_vae, generator):
    vae = make_vae(likelihood=likelihood, prior=prior)
    x, eps = torch.rand(7, 5, generator=generator), torch.randn(3, 1, 2, generator=generator)
    terms = vae.terms(x, eps)
    assert terms.log_px_z.shape == terms.log_pz.shape == terms.log_qz.shape == (3, 7)
    assert terms.kl.shape == (7,)
    assert all(torch.isfinite(values).all() for values in terms)
    torch.testing.assert_close(-vae.elbo(x, eps), terms.kl - terms.log_px_z.mean(dim=0))
    torch.testing.assert_close(list(vae.elbo_terms(x, eps)), [terms.log_px_z.mean(dim=0), terms.kl])
    torch.testing.assert_close(vae.kl(x, eps), terms.kl, rtol=0, atol=0)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_draws_one_after_the_other_say_what_all_say_at_once(likelihood, make_vae, generator, monkeypatch):
    vae = make_vae(likelihood=likelihood)
    x, eps = torch.rand(7, 5, generator=generator), torch.randn(3, 1, 2, generator=generator)
    x[2, 3] = torch.nan
    decoded = []
    vae.decoder.register_forward_hook(lambda net, given, said: decoded.append(given[0].ndim))

    def found():
        with torch.no_grad():
            return [*vae.terms(x, eps), *vae.elbo_terms(x, eps), vae.expected_entries(x, eps)]

    at_once = found()
    monkeypatch.setattr("vae_anomaly.vae.MAX_DECODED", 0)
    torch.testing.assert_close(found(), at_once)
    assert decoded == 3 * [3] + 9 * [2]
    vae.elbo(x, eps).sum().backward()
    assert decoded[12:] == [3], "autograd notes down one operation sooner than three"
    torch.testing.assert_close(at_once[-1].sum(dim=-1), at_once[4])


@pytest.mark.parametrize("prior", PRIORS)
def test_kl_is_the_monte_carlo_mean_within_its_standard_error(prior, make_vae, generator):
    vae = make_vae(prior=prior, dtype=torch.float64)
    x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    terms = vae.terms(x, torch.randn(4000, 1, 2, generator=generator, dtype=torch.float64))
    log_ratio = terms.log_qz - terms.log_pz
    standard_error = log_ratio.std(dim=0) / math.sqrt(len(log_ratio))
    assert ((terms.kl - log_ratio.mean(dim=0)).abs() <= 5.0 * standard_error).all()
    assert (terms.kl > -5.0 * standard_error).all()


def test_closed_form_kl_has_no_monte_carlo_error(make_vae, generator):
    vae, x = make_vae(), torch.randn(8, 5, generator=generator)
    one, many = (vae.terms(x, torch.randn(n_mc, 1, 2, generator=generator)).kl for n_mc in (1, 9))
    torch.testing.assert_close(one, many, rtol=0, atol=0)
    qz = vae.encode(x)
    for row in range(len(x)):
        expected = naive.standard_normal_kl(qz.mean[row].tolist(), qz.stddev[row].tolist())
        # A sum of terms of size 1, in single precision.
        assert float(one[row].detach()) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0])
def test_beta_weighs_the_kl(beta, make_vae, generator):
    vae = make_vae()
    x, eps = torch.randn(7, 5, generator=generator), torch.randn(3, 1, 2, generator=generator)
    expected = vae.elbo(x, eps) + (1.0 - beta) * vae.terms(x, eps).kl
    torch.testing.assert_close(vae.elbo(x, eps, beta), expected)
    torch.testing.assert_close(vae.elbo(x, eps, torch.tensor(beta)), expected)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_posterior_is_neither_a_point_nor_boundless(size, make_vae, generator):
    qz = make_vae().encode(size * torch.randn(200, 5, generator=generator))
    logvar = 2.0 * qz.stddev.log()
    assert (logvar.abs() <= MAX_LOGVAR + 1e-4).all()


# -- missing entries --------------------------------------------------------------------------------------------------


@pytest.fixture
def holed(generator):
    x = torch.randn(12, 5, generator=generator)
    missing = torch.rand(12, 5, generator=generator) < 0.3
    missing[0], missing[1] = False, True
    return x, missing


@pytest.mark.parametrize("mask_input", [False, True])
def test_likelihood_of_a_row_with_holes_is_that_of_its_observed_entries(mask_input, make_vae, holed, generator):
    vae, (x, missing) = make_vae(mask_input=mask_input), holed
    x_holed = torch.where(missing, torch.nan, x)
    px = vae.decode(torch.randn(3, 12, 2, generator=generator))
    observed_only = torch.where(missing, 0.0, px.base_dist.log_prob(x)).sum(dim=-1)
    torch.testing.assert_close(vae.log_px_z(px, x_holed), observed_only)
    vae.missing_log_px.fill_(-1.5)
    filled = observed_only - 1.5 * missing.sum(dim=-1)
    torch.testing.assert_close(vae.log_px_z(px, x_holed), filled)


def test_a_missing_entry_counts_for_what_it_contributes_on_average(make_vae, holed, generator):
    vae, (x, missing) = make_vae(), holed
    vae.missing_log_px.copy_(torch.arange(5.0))
    px = vae.decode(torch.randn(3, 12, 2, generator=generator))
    entries = vae.entries(px, torch.where(missing, torch.nan, x))
    torch.testing.assert_close(entries[:, missing], torch.arange(5.0).expand(12, 5)[missing].expand(3, -1))
    torch.testing.assert_close(entries[:, ~missing], px.base_dist.log_prob(x)[:, ~missing])


def test_encoder_sees_the_average_in_place_of_a_hole(make_vae, holed):
    vae, (x, missing) = make_vae(), holed
    with_holes, with_zeros = vae.encode(torch.where(missing, torch.nan, x)), vae.encode(torch.where(missing, 0.0, x))
    torch.testing.assert_close(with_holes.mean, with_zeros.mean, rtol=0, atol=0)
    torch.testing.assert_close(with_holes.stddev, with_zeros.stddev, rtol=0, atol=0)


def test_with_mask_input_the_encoder_tells_a_hole_from_the_average(make_vae, holed):
    vae, (x, missing) = make_vae(mask_input=True), holed
    difference = vae.encode(torch.where(missing, torch.nan, x)).mean - vae.encode(torch.where(missing, 0.0, x)).mean
    torch.testing.assert_close((difference != 0.0).any(dim=-1), missing.any(dim=-1))


def test_mask_input_starts_without_effect(holed):
    x, missing = holed
    x_holed = torch.where(missing, torch.nan, x)
    plain, masked = (
        VAE((5,), 2, mask_input=mask_input, generator=torch.Generator().manual_seed(0)) for mask_input in (False, True)
    )
    torch.testing.assert_close(masked.encode(x_holed).mean, plain.encode(x_holed).mean)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_holes_leave_the_gradient_finite(likelihood, make_vae, holed, generator):
    vae, (x, missing) = make_vae(likelihood=likelihood, mask_input=True), holed
    vae.elbo(torch.where(missing, torch.nan, x), torch.randn(3, 1, 2, generator=generator)).sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in vae.parameters())


# -- randomness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_weights_come_from_the_generator_and_the_global_one_is_left_alone(likelihood, prior, seeded_torch):
    states = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
        generator = torch.Generator().manual_seed(0)
        vae = VAE((5,), 2, likelihood=likelihood, prior=prior, mask_input=True, generator=generator)
        vae.terms(torch.zeros(3, 5), torch.zeros(1, 1, 2))
        torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
        np.testing.assert_equal(np.random.get_state(), numpy_before)  # noqa: NPY002
        states.append(vae.state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_unknown_names_are_refused():
    with pytest.raises((KeyError, ValueError), match="gausian"):
        VAE((5,), 2, likelihood="gausian")
    with pytest.raises((KeyError, ValueError), match="wamp"):
        VAE((5,), 2, prior="wamp")
