import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch.distributions import Independent, Normal

from vae_anomaly.priors import MIN_SCALE, PRIORS

EVENT_SHAPE = (4,)
WEIGHTS = torch.tensor([[0.4, -0.3], [0.2, 0.9], [-0.5, 0.1], [0.3, 0.6]], dtype=torch.float64)


def encode(x):
    """A posterior whose mean and scale depend on x."""
    return Independent(Normal(x @ WEIGHTS, 0.5 + (x @ WEIGHTS).sin().square()), 1)


@pytest.fixture(params=PRIORS)
def prior(request, generator):
    return make(request.param, generator)


def make(name, generator):
    made = PRIORS[name](2, n_components=3, event_shape=EVENT_SHAPE, generator=generator).double()
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.5 * torch.randn(value.shape, generator=generator))
    return made


def test_density_integrates_to_one(prior):
    axis = torch.linspace(-10.0, 10.0, 201, dtype=torch.float64)
    density = prior(encode).log_prob(torch.cartesian_prod(axis, axis)).exp().detach()
    # The trapezoidal rule is exact to double precision here: the step is a fifth of the smallest scale.
    assert float(density.sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1.0, abs=1e-6)


def test_distribution_has_the_latent_shape(prior, seeded_torch):
    pz = prior(encode)
    assert pz.batch_shape == ()
    assert pz.event_shape == (2,)
    z = pz.sample((7, 3))
    assert z.shape == (7, 3, 2)
    assert pz.log_prob(z).shape == (7, 3)


def test_samples_follow_the_density(prior, seeded_torch):
    """The mean and the expected log-density of draws are those of the quadrature."""
    pz = prior(encode)
    axis = torch.linspace(-10.0, 10.0, 201, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    mass = pz.log_prob(grid).exp() * (axis[1] - axis[0]) ** 2
    z = pz.sample((20_000,))
    for values, expected in (
        (z, mass @ grid),
        (pz.log_prob(z)[:, None], (mass @ pz.log_prob(grid))[None]),
    ):
        assert ((values.mean(dim=0) - expected).abs() < 5.0 * values.std(dim=0) / math.sqrt(len(z))).all()


def test_initial_values_come_from_the_generator(prior):
    kind = type(prior)
    first, again = (
        kind(2, n_components=3, event_shape=EVENT_SHAPE, generator=torch.Generator().manual_seed(1)).state_dict()
        for _ in range(2)
    )
    torch.testing.assert_close(first, again, rtol=0, atol=0)


def test_standard_normal_is_that_of_scipy(generator, rng):
    z = rng.normal(size=(6, 2))
    log_pz = make("standard_normal", generator)(encode).log_prob(torch.from_numpy(z))
    np.testing.assert_allclose(log_pz, stats.norm.logpdf(z).sum(axis=1), rtol=1e-12)


def test_gaussian_mixture_is_that_of_scipy(generator, rng):
    prior, z = make("gaussian_mixture", generator), rng.normal(size=(6, 2))
    loc, scale = prior.loc.detach().numpy(), np.logaddexp(0.0, prior.raw_scale.detach().numpy()) + MIN_SCALE
    log_weights = np.log(special.softmax(prior.logits.detach().numpy()))
    components = stats.norm(loc, scale).logpdf(z[:, None]).sum(axis=2)
    log_pz = prior(encode).log_prob(torch.from_numpy(z)).detach()
    np.testing.assert_allclose(log_pz, special.logsumexp(components + log_weights, axis=1), rtol=1e-9)


def test_gaussian_mixture_has_a_floor_under_its_scales(generator):
    prior = make("gaussian_mixture", generator)
    with torch.no_grad():
        prior.raw_scale.fill_(-100.0)
    highest = prior(encode).log_prob(prior.loc).max().detach()
    assert float(highest) <= -2.0 * math.log(MIN_SCALE * math.sqrt(2.0 * math.pi))


def test_vamp_is_the_mixture_of_the_posteriors_of_its_pseudo_inputs(generator):
    prior = make("vamp", generator)
    z = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    weights = prior.logits.softmax(dim=0)
    density = sum(
        weight * encode(pseudo_input).log_prob(z).exp()
        for weight, pseudo_input in zip(weights, prior.pseudo_inputs, strict=True)
    )
    torch.testing.assert_close(prior(encode).log_prob(z), density.log())


def test_vamp_starts_from_training_samples(generator):
    """With equal weights it is then the aggregate posterior of those samples; a hole counts as the average, 0."""
    prior = PRIORS["vamp"](2, n_components=3, event_shape=EVENT_SHAPE, generator=generator).double()
    x = torch.randn(3, *EVENT_SHAPE, generator=generator, dtype=torch.float64)
    x[1, 2] = torch.nan
    prior.start_from(x)
    filled = torch.where(torch.isnan(x), 0.0, x)
    torch.testing.assert_close(prior.pseudo_inputs.detach(), filled)
    assert prior.pseudo_inputs.requires_grad
    z = torch.randn(6, 1, 2, generator=generator, dtype=torch.float64)
    aggregate = encode(filled).log_prob(z).exp().mean(dim=1).log()
    torch.testing.assert_close(prior(encode).log_prob(z[:, 0]), aggregate)


def test_start_from_keeps_the_density_normalised(prior, generator):
    prior.start_from(torch.randn(3, *EVENT_SHAPE, generator=generator))
    test_density_integrates_to_one(prior)
