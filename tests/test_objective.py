import pytest
import torch

from vae_anomaly import objective, scratch
from vae_anomaly.ensemble import Ensemble
from vae_anomaly.likelihoods import LIKELIHOODS, Blocks, Gaussian
from vae_anomaly.objective import objective_of
from vae_anomaly.priors import PRIORS
from vae_anomaly.pullbacks import WRITTEN_OUT
from vae_anomaly.vae import VAE

N, D, LATENT = 9, 5, 2
BLOCKS = {"mixed": Blocks(2, 1, (2,)), "categorical": Blocks(0, 0, (2, 3))}
DOUBLE = torch.float64


def ensemble_of(make_vae, likelihood, blocks, **options):
    """Three members that differ in all there is; in double precision, so that the order of sums hardly counts."""
    likelihoods = [LIKELIHOODS[likelihood]((D,), blocks, min_scale=0.1 * seed) for seed in range(1, 4)]
    return Ensemble(
        [make_vae((D,), likelihood=px, seed=i, dtype=DOUBLE, **options) for i, px in enumerate(likelihoods)]
    )


def wanted_of(ensemble, x, eps, beta, left_out):
    """Terms and gradients of each member by its ELBO alone."""
    found = []
    for index, vae in enumerate(ensemble.members()):
        reconstruction, kl = vae.elbo_terms(x[index], eps[:, index])
        kept = (reconstruction - kl).argsort(descending=True)[: len(kl) - left_out]
        loss = -(reconstruction - beta * kl)[kept].mean()
        gradients = torch.autograd.grad(loss, list(vae.parameters()))
        found.append((reconstruction[kept].mean(), kl[kept].mean(), *gradients))
    return [torch.stack(values) for values in zip(*found, strict=True)]


def check(ensemble, x, left_out=0, beta=0.7):
    eps = torch.randn(1, 3, N, LATENT, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    before = x.clone()
    reconstruction, kl, gradients = objective_of(ensemble, x[0]).learned(x, eps, beta, left_out)
    assert reconstruction.shape == kl.shape == (3, N - left_out)
    wanted = wanted_of(ensemble, x, eps, beta, left_out)
    torch.testing.assert_close([reconstruction.mean(dim=1), kl.mean(dim=1), *gradients], wanted)
    assert not any(value.requires_grad for value in (reconstruction, kl, *gradients))
    torch.testing.assert_close(x, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("left_out", [0, 3])
@pytest.mark.parametrize("holes", [0.0, 0.3])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_terms_and_gradients_are_those_of_each_member(likelihood, holes, left_out, make_vae, generator):
    ensemble = ensemble_of(make_vae, likelihood, BLOCKS.get(likelihood), mask_input=True)
    # Some beyond the ends of the unit interval.
    x = 1.4 * torch.rand(3, N, D, generator=generator, dtype=DOUBLE) - 0.2
    x[torch.rand(x.shape, generator=generator) < holes] = torch.nan
    check(ensemble, x, left_out)


@pytest.mark.parametrize("blocks", [Blocks(5), Blocks(0, 5), Blocks(3, 2), Blocks(0, 0, (5,)), Blocks(0, 2, (3,))])
def test_any_kind_of_column_may_be_missing_from_a_mixed_table(blocks, make_vae, generator):
    check(ensemble_of(make_vae, "mixed", blocks), torch.rand(3, N, D, generator=generator, dtype=DOUBLE))


@pytest.mark.parametrize("hidden", [(), (8,), (8, 8, 6)])
@pytest.mark.parametrize("prior", PRIORS)
def test_any_prior_and_any_layers(prior, hidden, make_vae, generator):
    ensemble = ensemble_of(make_vae, "gaussian", None, prior=prior, hidden=hidden)
    check(ensemble, torch.randn(3, N, D, generator=generator, dtype=DOUBLE), beta=torch.tensor(2.0))


def test_networks_with_convolutions(generator):
    members = [VAE((36,), LATENT, image_shape=(1, 6, 6), hidden=(8,), generator=generator).to(DOUBLE) for _ in range(3)]
    check(Ensemble(members), torch.randn(3, N, 36, generator=generator, dtype=DOUBLE), left_out=2)


@pytest.mark.parametrize("likelihood", [name for name in LIKELIHOODS if LIKELIHOODS[name] in WRITTEN_OUT])
def test_extreme_outputs_of_a_decoder(likelihood, make_vae, generator):
    """Where softplus is taken for the identity, and where logits are at their bounds."""
    ensemble = ensemble_of(make_vae, likelihood, BLOCKS.get(likelihood))
    for name, value in ensemble.params.items():
        if name.startswith("decoder."):
            value.data *= 20.0
    check(ensemble, torch.rand(3, N, D, generator=generator, dtype=DOUBLE))


def test_a_likelihood_that_is_only_like_a_known_one_is_not_taken_for_it(make_vae, generator):
    class Doubled(Gaussian):
        def forward(self, phi):
            return super().forward(2.0 * phi)

    ensemble = Ensemble([make_vae((D,), likelihood=Doubled((D,)), seed=seed, dtype=DOUBLE) for seed in range(3)])
    check(ensemble, torch.randn(3, N, D, generator=generator, dtype=DOUBLE))


@pytest.mark.parametrize("prior", ["standard_normal", "vamp"])
def test_terms_without_gradients_take_any_number_of_draws(prior, make_vae, generator):
    ensemble = ensemble_of(make_vae, "gaussian", None, prior=prior)
    x = torch.randn(3, N, D, generator=generator, dtype=DOUBLE)
    eps = torch.randn(4, 3, 1, LATENT, generator=generator, dtype=DOUBLE)
    reconstruction, kl = objective_of(ensemble, x[0]).terms(x, eps)
    assert not reconstruction.requires_grad
    looped = [vae.elbo_terms(x[index], eps[:, index]) for index, vae in enumerate(ensemble.members())]
    for found, wanted in zip((reconstruction, kl), zip(*looped, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(wanted).detach())


@pytest.mark.parametrize("row", [0, 3, 6])
def test_a_hole_in_any_row_is_found(row, make_vae, monkeypatch):
    monkeypatch.setattr(scratch, "ENTRIES_AT_ONCE", 2 * D)
    x = torch.zeros(7, D, dtype=DOUBLE)
    assert not objective.has_holes(x)
    x[row, 1] = torch.nan
    assert objective.has_holes(x)
