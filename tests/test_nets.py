import pytest
import torch

from vae_anomaly.nets import NETS, Residual, build_nets, linear

SAMPLES = {1: (5,), 2: (2, 32), 3: (1, 16, 16)}
LAYERS = [(), (8,), (8, 8), (16, 8), (8, 8, 4, 4)]


@pytest.mark.parametrize("hidden", LAYERS)
@pytest.mark.parametrize("rank", NETS)
def test_shapes(rank, hidden, generator):
    encoder, decoder = build_nets(SAMPLES[rank], 3, 2, hidden, generator=generator)
    assert encoder(torch.zeros(7, *SAMPLES[rank])).shape == (7, 6)
    assert decoder(torch.zeros(7, 3)).shape == (7, *SAMPLES[rank], 2)
    # Draws of z come with a further axis in front.
    assert decoder(torch.zeros(4, 7, 3)).shape == (4, 7, *SAMPLES[rank], 2)


def test_without_hidden_layers_both_nets_are_affine(generator):
    """f(a + b) = f(a) + f(b) - f(0)."""
    encoder, decoder = build_nets((5,), 2, 2, (), generator=generator)
    for net, n_inputs in ((encoder, 5), (decoder, 2)):
        a, b = torch.randn(2, 6, n_inputs, generator=generator)
        torch.testing.assert_close(net(a + b), net(a) + net(b) - net(torch.zeros(n_inputs)))


def test_residual_block_starts_as_the_identity(generator):
    h = torch.randn(4, 8, generator=generator)
    block = Residual(8, generator)
    torch.testing.assert_close(block(h), h, rtol=0, atol=0)
    block(h).sum().backward()
    assert block.second.weight.grad.abs().sum() > 0.0


def test_further_layers_of_the_same_width_change_nothing_at_first():
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    shallow, deep = (
        build_nets((5,), 2, 1, hidden, generator=torch.Generator().manual_seed(0))[0] for hidden in ((8,), (8, 8, 8))
    )
    torch.testing.assert_close(deep[:-1](x), shallow[:-1](x), rtol=0, atol=0)


@pytest.mark.parametrize("hidden", LAYERS)
def test_extra_inputs_start_without_effect(hidden, generator):
    plain, wider = (
        build_nets((5,), 2, 1, hidden, n_extra=n_extra, generator=torch.Generator().manual_seed(0))[0]
        for n_extra in (0, 3)
    )
    x, extra = torch.randn(4, 5, generator=generator), torch.randn(4, 3, generator=generator)
    torch.testing.assert_close(wider(torch.cat([x, extra], dim=-1)), plain(x))
    assert (wider[0].weight[:, 5:] == 0.0).all()


def test_layer_keeps_the_variance(generator):
    layer = linear(400, 400, generator, gain=2.0)
    out = layer(torch.randn(100, 400, generator=generator))
    # 40,000 outputs, at least 400 of them independent: the variance is known to sqrt(2 / 400) = 7 % or better.
    assert float(out.detach().var()) == pytest.approx(4.0, rel=0.2)


@pytest.mark.parametrize("rank", NETS)
def test_weights_depend_on_the_generator_alone(rank, seeded_torch):
    states = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        pair = build_nets(SAMPLES[rank], 2, 2, (8, 8), generator=torch.Generator().manual_seed(0))
        states.append([net.state_dict() for net in pair])
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_unknown_rank_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"No network for samples of shape \(2, 2, 2, 2, 2\); supported: \[1"):
        build_nets((2, 2, 2, 2, 2), 2, 1, ())
