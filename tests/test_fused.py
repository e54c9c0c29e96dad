import pytest
import torch

from vae_anomaly.fused import run_layers
from vae_anomaly.nets import Layers, linear, trunk

HIDDEN = [(), (6,), (6, 6), (7, 6), (6, 6, 6, 4, 4)]
N_NETWORKS, N_IN, N_OUT = 3, 5, 4


@pytest.fixture
def networks(hidden):
    """Networks of the same layers whose weights are all drawn."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(N_NETWORKS):
        layers = [*trunk(N_IN, hidden, generator), linear((N_IN, *hidden)[-1], N_OUT, generator)]
        found.append(Layers(*layers).double())
        for value in found[-1].parameters():
            value.data = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    return found


def weights_of(networks):
    """Weight and bias of each affine map, with a first axis over the networks."""
    each = [[value for layer in net.affine for value in (layer.weight, layer.bias)] for net in networks]
    return [torch.stack(values).detach().requires_grad_() for values in zip(*each, strict=True)]


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("lead", [(), (1,), (4,)])
def test_networks_side_by_side_are_each_its_layers_in_turn(networks, lead, generator):
    x = torch.randn(*lead, N_NETWORKS, 9, N_IN, generator=generator, dtype=torch.float64)
    joined = run_layers(networks[0].steps, x, weights_of(networks))
    alone = torch.stack([net(x[..., index, :, :]) for index, net in enumerate(networks)], dim=-3)
    torch.testing.assert_close(joined, alone)
    with torch.no_grad():
        torch.testing.assert_close(run_layers(networks[0].steps, x, weights_of(networks)), joined, rtol=0, atol=0)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_gradient_is_that_of_the_layers_in_turn(networks, generator):
    x = torch.randn(2, N_NETWORKS, 9, N_IN, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = weights_of(networks)
    out = run_layers(networks[0].steps, x, weights)
    factor = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    of_samples, *found = torch.autograd.grad((factor * out).sum(), [x, *weights])
    for index, net in enumerate(networks):
        wanted = [value for layer in net.affine for value in (layer.weight, layer.bias)]
        alone = (factor[:, index] * net(x[:, index])).sum()
        samples, *wanted = torch.autograd.grad(alone, [x, *wanted])
        torch.testing.assert_close([value[index] for value in found], wanted)
        torch.testing.assert_close(of_samples[:, index], samples[:, index])


@pytest.mark.parametrize("hidden", HIDDEN)
def test_gradient_of_samples_is_spared_where_none_is_wanted(networks, generator):
    x = torch.randn(N_NETWORKS, 2, N_IN, generator=generator, dtype=torch.float64)
    weights = weights_of(networks)
    without = torch.autograd.grad(run_layers(networks[0].steps, x, weights).square().sum(), weights)
    x.requires_grad_()
    *wanted, of_samples = torch.autograd.grad(run_layers(networks[0].steps, x, weights).square().sum(), [*weights, x])
    torch.testing.assert_close(list(without), wanted, rtol=0, atol=0)
    assert (of_samples != 0.0).all()


@pytest.mark.parametrize("hidden", [(6, 6)])
def test_a_second_gradient_is_refused(networks, generator):
    """It would be wrong without a word: the first is written out, and takes the memory of what was kept for it."""
    x = torch.randn(N_NETWORKS, 2, N_IN, generator=generator, dtype=torch.float64, requires_grad=True)
    loss = run_layers(networks[0].steps, x, weights_of(networks)).square().sum()
    (gradient,) = torch.autograd.grad(loss, [x], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, [x])
