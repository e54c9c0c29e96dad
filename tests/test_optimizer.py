import naive
import numpy as np
import pytest
import torch

from vae_anomaly.adamw import ALIGNED, N_PIECES
from vae_anomaly.ensemble import Ensemble
from vae_anomaly.optimizer import FlatParameters, one_cycle
from vae_anomaly.training import Plan


@pytest.mark.parametrize("n_steps", [1, 2, 3, 10, 2000])
def test_one_cycle_is_that_of_torch(n_steps):
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=n_steps + 1)
    rates = []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose([one_cycle(step, n_steps, 0.1) for step in range(n_steps)], rates, rtol=1e-9)


@pytest.fixture
def ensemble(make_vae):
    """A likelihood with a single number as parameter is among what there is to lay flat."""
    return Ensemble([make_vae(likelihood="gaussian_shared", seed=seed, dtype=torch.float64) for seed in range(3)])


def test_flat_parameters_are_those_of_the_ensemble(ensemble):
    before = {name: value.detach().clone() for name, value in ensemble.params.items()}
    weights = FlatParameters(ensemble, Plan(1))
    assert weights.flat.shape == (3, sum(value[0].numel() for value in before.values()))
    torch.testing.assert_close(ensemble.params, before, rtol=0, atol=0)
    weights.flat += 1.0
    torch.testing.assert_close(ensemble.params, {name: value + 1.0 for name, value in before.items()})
    kept = weights.split(weights.copy())
    weights.flat += 1.0
    torch.testing.assert_close(kept, {name: value + 1.0 for name, value in before.items()})
    assert all(value.is_contiguous() and value.is_leaf and value.requires_grad for value in kept.values())


def test_a_step_is_adamw_with_the_gradient_of_each_member_clipped(ensemble):
    """Of three members, one has a gradient below the limit."""
    plan, rate = Plan(1, weight_decay=0.1, max_grad_norm=1.0), 0.01
    start = {name: value.detach().clone() for name, value in ensemble.params.items()}
    weights, sizes = FlatParameters(ensemble, plan), torch.tensor([0.001, 10.0, 100.0])
    plain = [naive.AdamW([value[member].clone() for value in start.values()], 0.1) for member in range(3)]
    for _ in range(3):
        # The gradient of each member's size times its squared length.
        gradients = [
            2.0 * sizes.reshape(3, *(1 for _ in value.shape[1:])) * value.detach() for value in ensemble.params.values()
        ]
        norms = [float((2.0 * size * row).norm()) for size, row in zip(sizes, weights.flat, strict=True)]
        assert norms[0] < weights.adamw.limit < norms[1]
        for member, (norm, size) in enumerate(zip(norms, sizes, strict=True)):
            factor = min(1.0, weights.adamw.limit / (norm + 1e-6))
            plain[member].step([2.0 * size * value * factor for value in plain[member].params], rate)
        weights.step(gradients, rate)
    for member in range(3):
        for value, wanted in zip(ensemble.params.values(), plain[member].params, strict=True):
            torch.testing.assert_close(value[member].detach(), wanted)


@pytest.mark.parametrize("n_pieces", [7, 10_000])
def test_a_step_in_pieces_is_the_step_of_the_whole(make_vae, n_pieces, monkeypatch):
    """As on a GPU; more pieces than there are numbers for are fewer."""

    def after_two_steps():
        ensemble = Ensemble([make_vae(seed=seed) for seed in range(3)])
        weights = FlatParameters(ensemble, Plan(1, max_grad_norm=1e-3))
        for rate in (0.01, 0.02):
            weights.step([2.0 * value.detach() for value in ensemble.params.values()], rate)
        return weights

    whole = after_two_steps()
    monkeypatch.setitem(N_PIECES, "cpu", n_pieces)
    pieces = after_two_steps()
    assert len(whole.adamw.pieces[0]) == 1 < len(pieces.adamw.pieces[0]) <= n_pieces
    assert all(len(piece) % ALIGNED == 0 for piece in pieces.adamw.pieces[0][:-1])
    # A processor computes the last few numbers of a piece by other instructions.
    torch.testing.assert_close(pieces.flat, whole.flat, rtol=0, atol=1e-7)
