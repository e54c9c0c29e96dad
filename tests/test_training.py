import math
from dataclasses import replace

import naive
import numpy as np
import pytest
import torch

from vae_anomaly import training
from vae_anomaly.ensemble import Ensemble
from vae_anomaly.errors import TrainingError
from vae_anomaly.likelihoods import LIKELIHOODS
from vae_anomaly.priors import PRIORS
from vae_anomaly.training import MIN_STEPS_PER_CHECK, Plan, active_units, train
from vae_anomaly.vae import VAE

D, LATENT = 4, 2
N_TRAIN, N_HELD_OUT = 80, 30


def generator_of(member):
    return torch.Generator().manual_seed(100 + member)


@pytest.fixture
def x(generator):
    """Rows near a plane; in double precision, so that the same sums in another order are the same number."""
    W = torch.randn(LATENT, D, generator=generator)
    z, noise = torch.randn(200, LATENT, generator=generator), torch.randn(200, D, generator=generator)
    return (z @ W + 0.3 * noise).double()


def rows_of(*members):
    """For each member its own rows to train on and to hold out."""
    orders = [torch.randperm(200, generator=torch.Generator().manual_seed(member)) for member in members]
    return torch.stack(orders)[:, :N_TRAIN], torch.stack(orders)[:, -N_HELD_OUT:]


def run(make_vae, x, plan, *members, **options):
    """Ensemble of these members and its history; member 2, say, is the same whichever siblings it has."""
    vaes = [make_vae((D,), LATENT, seed=member, dtype=x.dtype, **options) for member in members]
    ensemble = Ensemble(vaes)
    history = train(ensemble, x, *rows_of(*members), plan, [generator_of(member) for member in members])
    return ensemble, history


# -- against one plain loop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [
        Plan(60, batch_size=16, learning_rate=1e-2),
        Plan(60, batch_size=16, learning_rate=1e-2, warmup=0.0, beta=4.0, weight_decay=0.1),
        Plan(60, batch_size=16, learning_rate=1e-2, warmup=1.0, max_grad_norm=0.02),
        Plan(53, batch_size=30, learning_rate=1e-2, n_mc_held_out=1),  # a ragged end of the rows, and of the checks
        Plan(30, batch_size=500, learning_rate=1e-2),  # more than there are rows
    ],
    ids=["usual", "heavy KL", "clipped", "ragged", "one batch"],
)
@pytest.mark.parametrize("prior", ["standard_normal", "vamp"])
def test_ensemble_of_one_learns_as_the_plain_loop_does(prior, plan, make_vae, x):
    """The same order of rows, noise, warm-up, clipping, AdamW, one-cycle rates and choice of the best check."""
    # The plain loop never stops before its last step.
    plan = replace(plan, patience=2.0)
    ensemble, history = run(make_vae, x, plan, 0, prior=prior)
    (rows,), (held_out,) = rows_of(0)
    vae = make_vae((D,), LATENT, dtype=x.dtype, prior=prior)
    steps_per_epoch = N_TRAIN // min(plan.batch_size, N_TRAIN)
    steps_per_check = steps_per_epoch * math.ceil(MIN_STEPS_PER_CHECK / steps_per_epoch)
    elbos, best = naive.train_one(vae, x[rows], x[held_out], plan, generator_of(0), steps_per_check)
    # Sixty steps of double precision, in which a tiny gradient may be divided by its own tiny size.
    np.testing.assert_allclose(history.val_elbo[:, 0], elbos[: len(history.val_elbo)], rtol=1e-6)
    for name, value in ensemble.params.items():
        torch.testing.assert_close(value[0].detach(), best[name], rtol=1e-6, atol=1e-8)


def test_a_member_does_not_know_its_siblings(make_vae, x):
    plan = Plan(60, batch_size=16)
    together, history = run(make_vae, x, plan, 0, 1, 2)
    for member in range(3):
        alone, own = run(make_vae, x, plan, member)
        for name, value in alone.params.items():
            torch.testing.assert_close(together.params[name][member].detach(), value[0].detach(), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(history.val_elbo[:, member], own.val_elbo[:, 0], rtol=1e-6)


def test_same_generators_give_the_same_weights(make_vae, x):
    (first, _), (again, _) = (run(make_vae, x.float(), Plan(40, batch_size=16), 0, 1) for _ in range(2))
    torch.testing.assert_close(again.tensors(), first.tensors(), rtol=0, atol=0)


# -- what is kept, and when it stops ----------------------------------------------------------------------------------


def held_out_elbo(ensemble, x, plan, *members):
    """Held-out ELBO of each member, on the base samples that its generator draws first."""
    _, held_out_rows = rows_of(*members)
    values = []
    for member, vae, rows in zip(members, ensemble.members(), held_out_rows, strict=True):
        eps = torch.randn(plan.n_mc_held_out, LATENT, generator=generator_of(member))[:, None]
        values.append(float(vae.elbo(x[rows], eps, plan.beta).mean().detach()))
    return values


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_the_weights_of_the_best_check_are_kept(beta, make_vae, x):
    plan = Plan(300, batch_size=16, learning_rate=3e-2, beta=beta, patience=1.0)
    ensemble, history = run(make_vae, x, plan, 0, 1, 2)
    kept = history.val_elbo[history.best]
    np.testing.assert_allclose(held_out_elbo(ensemble, x, plan, 0, 1, 2), kept, rtol=1e-6)


def unlike(make_vae, x, n_members=2):
    """Held-out rows unlike the rows trained on: the more is learned of these, the worse those are rated."""
    ensemble = Ensemble([make_vae((D,), LATENT, seed=member, dtype=x.dtype) for member in range(n_members)])
    rows = torch.arange(200)
    train_rows, held_out_rows = rows[:N_TRAIN].expand(n_members, -1), rows[N_TRAIN:].expand(n_members, -1)
    x[N_TRAIN:] = 10.0 + 10.0 * x[N_TRAIN:].flip(dims=(1,))
    return ensemble, train_rows, held_out_rows, [generator_of(member) for member in range(n_members)]


def test_training_stops_when_it_gets_no_better(make_vae, x):
    plan = Plan(1000, batch_size=N_TRAIN, learning_rate=1e-2, warmup=0.0, patience=0.2)
    ensemble, train_rows, held_out_rows, generators = unlike(make_vae, x)
    history = train(ensemble, x, train_rows, held_out_rows, plan, generators)
    # A fifth of 1000 steps is eight checks of 25 steps without a better one.
    assert len(history.val_elbo) == history.best + 1 + 8 < 1000 / MIN_STEPS_PER_CHECK
    assert history.val_elbo[history.best].mean() > history.val_elbo[-1].mean()


def test_one_extreme_row_does_not_end_training(make_vae, x):
    """Its rating falls from the first check on, while all others rise."""
    plan = Plan(300, batch_size=16, learning_rate=1e-2, patience=1.0)
    _, usual = run(make_vae, x, plan, 0, 1)
    x[rows_of(0, 1)[1][0, 0]] = 300.0
    _, history = run(make_vae, x, plan, 0, 1)
    assert history.val_elbo.mean(axis=1).argmax() < usual.best / 2
    assert history.best > usual.best / 2


def test_history_has_a_row_for_each_check(make_vae, x):
    plan = Plan(100, batch_size=16, beta=0.5, patience=1.0)
    _, history = run(make_vae, x, plan, 0, 1)
    # Five steps an epoch, 25 steps a check.
    np.testing.assert_allclose(history.epoch, [5.0, 10.0, 15.0, 20.0])
    for part in ("train", "val"):
        elbo, reconstruction, kl = (getattr(history, f"{part}_{term}") for term in ("elbo", "reconstruction", "kl"))
        assert elbo.shape == (4, 2)
        np.testing.assert_allclose(elbo, reconstruction - 0.5 * kl, rtol=1e-5)
        assert (kl > 0.0).all()


def test_many_rows_are_looked_at_within_their_first_epoch(make_vae, x, monkeypatch):
    monkeypatch.setattr(training, "MAX_STEPS_PER_CHECK", 30)
    plan = Plan(100, batch_size=1, patience=1.0)
    _, history = run(make_vae, x, plan, 0)
    # A check in the middle of an epoch does not begin a new one: its batches go on where they were.
    np.testing.assert_allclose(history.epoch * N_TRAIN, [30, 60, 90, 100])


def test_each_row_of_an_epoch_comes_up_once(make_vae, x, monkeypatch):
    """Whatever checks lie between, each member sees its own rows in an order of its own."""
    monkeypatch.setattr(training, "MAX_STEPS_PER_CHECK", 7)
    seen = []
    plan = Plan(2 * N_TRAIN, batch_size=1, patience=1.0, change=lambda own, generator: seen.append(own) or own)
    run(make_vae, x, plan, 0, 1)
    (train_rows, _), order = rows_of(0, 1), torch.cat(seen).reshape(2, N_TRAIN, 2, D)
    for epoch in order:
        for member in range(2):
            found, wanted = epoch[:, member], x[train_rows[member]]
            torch.testing.assert_close(found[found[:, 0].argsort()], wanted[wanted[:, 0].argsort()], rtol=0, atol=0)
    assert not torch.equal(order[0, :, 0], order[1, :, 0])


def test_progress_is_told(make_vae, x):
    told = []
    ensemble = Ensemble([make_vae((D,), LATENT, dtype=x.dtype)])
    plan = Plan(60, batch_size=16, patience=1.0)
    history = train(ensemble, x, *rows_of(0), plan, [generator_of(0)], lambda *values: told.append(values))
    shares, epochs, elbos = zip(*told, strict=True)
    np.testing.assert_allclose(shares, [25 / 60, 50 / 60, 1.0])
    np.testing.assert_allclose(epochs, history.epoch)
    np.testing.assert_allclose(elbos, history.val_elbo[:, 0])


@pytest.mark.parametrize("weight", [math.inf, -math.inf])
def test_a_loss_that_is_not_finite_says_where(weight, make_vae, x):
    """Epoch and batch are those in which the infinite row comes up."""
    plan = Plan(100, batch_size=16)
    (rows,), _ = rows_of(0)
    generator = generator_of(0)
    torch.randn(plan.n_mc_held_out, LATENT, generator=generator)
    position = 37
    bad_row = rows[torch.randperm(N_TRAIN, generator=generator)[position]]
    x[bad_row, 1] = weight
    sentence = rf"not finite in epoch 1, batch {position // 16 + 1}\. Lower learning_rate, raise min_scale"
    with pytest.raises(TrainingError, match=sentence):
        run(make_vae, x, plan, 0)


def test_random_state_of_torch_and_numpy_is_left_alone(make_vae, x, seeded_torch):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    run(make_vae, x, Plan(30, batch_size=16), 0, 1, prior="vamp")
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
    np.testing.assert_equal(np.random.get_state(), numpy_before)  # noqa: NPY002


@pytest.mark.parametrize(
    ("likelihood", "prior"),
    [*((name, "standard_normal") for name in LIKELIHOODS), *(("gaussian", name) for name in PRIORS)],
)
def test_every_likelihood_and_prior_learns(likelihood, prior, make_vae, x):
    """The clipping of gradients once broke on the one number that ``gaussian_shared`` learns for its scale."""
    plan = Plan(100, batch_size=16, learning_rate=1e-2)
    _, history = run(make_vae, x.sigmoid(), plan, 0, 1, likelihood=likelihood, prior=prior)
    assert (history.val_elbo.max(axis=0) > history.val_elbo[0]).all()


def test_rows_with_holes_are_learned_from(make_vae, x, generator):
    x[torch.rand(x.shape, generator=generator) < 0.2] = torch.nan
    ensemble, history = run(make_vae, x, Plan(150, batch_size=16), 0, 1, mask_input=True)
    assert all(torch.isfinite(value).all() for value in ensemble.params.values())
    assert (history.val_elbo[-1] > history.val_elbo[0]).all()


# -- the weight of the KL ----------------------------------------------------------------------------------------------


def test_the_larger_beta_the_fewer_nats_the_code_costs(make_vae, x):
    kl = [run(make_vae, x, Plan(150, batch_size=16, beta=beta), 0)[1].val_kl[-1, 0] for beta in (0.1, 1.0, 10.0)]
    assert kl[0] > kl[1] > kl[2]


# -- the oracle -------------------------------------------------------------------------------------------------------


def test_linear_vae_learns_probabilistic_pca(rng):
    """Its ELBO comes close to the log-density of maximum-likelihood probabilistic PCA, and never above it on average.

    The posterior at the maximum is diagonal in the axes of the principal components, so that nothing but the distance
    left to go after a few hundred steps keeps the two apart: two hundredths of a nat a row, where the code is worth
    more than a nat.
    """
    d, latent_dim, n = 6, 2, 1000
    W, sigma = rng.normal(size=(d, latent_dim)), 0.5
    x = rng.normal(size=(n + 500, latent_dim)) @ W.T + sigma * rng.normal(size=(n + 500, d))
    solution = naive.ppca_fit(x[:n], latent_dim)
    log_px = naive.ppca_log_px(x, *solution)

    vae = VAE((d,), latent_dim, likelihood="gaussian_shared", hidden=(), generator=generator_of(0))
    ensemble, x_torch, rows = Ensemble([vae]), torch.from_numpy(x).float(), torch.arange(n + 500)[None]
    plan = Plan(600, batch_size=200, learning_rate=2e-2, weight_decay=0.0)
    train(ensemble, x_torch, rows[:, :n], rows[:, n:], plan, [generator_of(0)])

    # Draws with mean 0 and covariance I: exact for the quadratic log p(x | z) of a linear decoder.
    axes = math.sqrt(latent_dim) * torch.eye(latent_dim)
    elbo = ensemble.map(VAE.elbo, x_torch, torch.cat([axes, -axes])[:, None])[0].detach().numpy()
    without_code = naive.ppca_log_px(x[:n], np.zeros((d, 1)), x[:n].mean(axis=0), x[:n].std())
    assert log_px[:n].mean() - without_code.mean() > 1.0
    assert log_px[:n].mean() - 0.02 < elbo[:n].mean() <= log_px[:n].mean() + 1e-4
    assert abs(elbo[n:].mean() - log_px[n:].mean()) < 0.02


# -- active units -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spreads", "n_active"), [((1.0, 1.0), 2), ((1.0, 0.05), 1), ((0.0, 0.0), 0), ((0.15, 0.0), 1)]
)
def test_active_units_are_those_whose_mean_varies_by_more_than_a_hundredth(spreads, n_active, rng):
    x = rng.normal(size=(500, 2))
    x = torch.from_numpy((x - x.mean(axis=0)) / x.std(axis=0)).float()
    vae = VAE((2,), 2, hidden=(), generator=generator_of(0))
    with torch.no_grad():
        vae.encoder[0].weight[:2] = torch.diag(torch.tensor(spreads))
        vae.encoder[0].bias[:2] = 5.0
    assert int(active_units(vae, x)) == n_active
