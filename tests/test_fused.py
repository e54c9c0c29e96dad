import pytest
import torch

from vae_anomaly.affine import affine_maps
from vae_anomaly.fused import LearnedLayers, _Silu, _SiluAtOnce, run_layers
from vae_anomaly.nets import Layers, linear, trunk
from vae_anomaly.replay import Branch

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
    return [torch.stack(values).detach() for values in zip(*each, strict=True)]


def back(pullback, g):
    branch = Branch(g.device)
    gradients = pullback(g, branch)
    branch.join()
    return gradients


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("lead", [(), (1,), (4,)])
def test_networks_side_by_side_are_each_its_layers_in_turn(networks, lead, generator):
    x = torch.randn(*lead, N_NETWORKS, 9, N_IN, generator=generator, dtype=torch.float64)
    joined = run_layers(networks[0].steps, x, affine_maps(weights_of(networks)))
    alone = torch.stack([net(x[..., index, :, :]) for index, net in enumerate(networks)], dim=-3)
    torch.testing.assert_close(joined, alone)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_way_back_is_the_gradient_of_the_layers_in_turn(networks, generator):
    x = torch.randn(N_NETWORKS, 9, N_IN, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = weights_of(networks)
    out, pullback = LearnedLayers(networks[0].steps, weights)(x.detach())
    torch.testing.assert_close(out, run_layers(networks[0].steps, x.detach(), affine_maps(weights)))
    g = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    of_samples, found = back(pullback, g)
    for index, net in enumerate(networks):
        wanted = [value for layer in net.affine for value in (layer.weight, layer.bias)]
        samples, *wanted = torch.autograd.grad((g[index] * net(x[index])).sum(), [x, *wanted])
        torch.testing.assert_close([value[index] for value in found], wanted)
        torch.testing.assert_close(of_samples[index], samples[index])


@pytest.mark.parametrize("hidden", HIDDEN)
def test_gradient_of_samples_is_spared_where_none_is_wanted(networks, generator):
    x = torch.randn(N_NETWORKS, 2, N_IN, generator=generator, dtype=torch.float64)
    steps, weights = networks[0].steps, weights_of(networks)
    (out, first), (_, second) = (LearnedLayers(steps, weights, wanted=wanted)(x) for wanted in (False, True))
    spared, without = back(first, out.clone())
    of_samples, wanted = back(second, out.clone())
    torch.testing.assert_close(without, wanted, rtol=0, atol=0)
    assert spared is None
    assert (of_samples != 0.0).all()


@pytest.mark.parametrize("n_networks", [1, N_NETWORKS])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_gradients_go_where_they_are_wanted_if_that_is_in_one_piece(networks, n_networks, generator):
    steps, weights = networks[0].steps, [value[:n_networks].contiguous() for value in weights_of(networks)]
    sizes = [value[0].numel() for value in weights]
    flat = torch.full((n_networks, sum(sizes)), torch.nan, dtype=torch.float64)
    parts = zip(torch.split(flat, sizes, dim=1), weights, strict=True)
    places = [part.view(value.shape) for part, value in parts]
    x = torch.randn(n_networks, 9, N_IN, generator=generator, dtype=torch.float64)
    (out, pullback), (_, plain) = (LearnedLayers(steps, weights, into=into)(x) for into in (places, None))
    (_, found), (_, wanted) = back(pullback, out.clone()), back(plain, out.clone())
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert all((own is place) == (n_networks == 1) for own, place in zip(found, places, strict=True))


@pytest.mark.parametrize("hidden", HIDDEN)
def test_weights_that_change_in_their_place_are_seen(networks, generator):
    """As those of a step of training do; and what was given is not written over."""
    x, weights = torch.randn(N_NETWORKS, 2, N_IN, generator=generator, dtype=torch.float64), weights_of(networks)
    layers, before = LearnedLayers(networks[0].steps, weights), x.clone()
    for value in weights:
        value *= 2.0
    out, pullback = layers(x)
    fresh, again = LearnedLayers(networks[0].steps, [value.clone() for value in weights])(x)
    torch.testing.assert_close(out, fresh, rtol=0, atol=0)
    torch.testing.assert_close(back(pullback, out.clone()), back(again, out.clone()), rtol=0, atol=0)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_second_way_back_is_refused(networks, generator):
    """It would be wrong without a word: the first writes over what was kept for it."""
    x = torch.randn(N_NETWORKS, 2, N_IN, generator=generator, dtype=torch.float64)
    out, pullback = LearnedLayers(networks[0].steps, weights_of(networks))(x)
    back(pullback, out.clone())
    with pytest.raises(IndexError):
        back(pullback, out.clone())


@pytest.mark.parametrize("may_overwrite", [False, True])
def test_silu_is_the_same_by_its_gate_and_at_once(may_overwrite, generator):
    """A processor goes one way, a GPU the other."""
    h, g = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    inner = h.clone().requires_grad_()
    wanted = torch.nn.functional.silu(inner)
    (of_h,) = torch.autograd.grad(wanted, inner, g)
    for silu in (_Silu(h), _SiluAtOnce(h)):
        gate, out = silu(h.clone(), may_overwrite=may_overwrite)
        torch.testing.assert_close(out, wanted)
        torch.testing.assert_close(silu.back(g, gate, out), of_h)
