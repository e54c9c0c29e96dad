import math

import pytest
import torch
from torch import nn

from vae_anomaly.nets import Residual, ToPixels, build_nets, linear

LAYERS = [(), (8,), (8, 8), (16, 8), (8, 8, 4, 4)]
IMAGES = [(1, 8, 8), (3, 16, 16), (1, 28, 28), (3, 17, 9), (1, 3, 40), (3, 64, 32)]


@pytest.mark.parametrize("hidden", LAYERS)
def test_shapes(hidden, generator):
    encoder, decoder = build_nets((5,), 3, 2, hidden, generator=generator)
    assert encoder(torch.zeros(7, 5)).shape == (7, 6)
    assert decoder(torch.zeros(7, 3)).shape == (7, 5, 2)
    # Draws of z come with a further axis in front.
    assert decoder(torch.zeros(4, 7, 3)).shape == (4, 7, 5, 2)


def test_weights_of_a_generator_leave_that_of_torch_alone(generator):
    before = torch.get_rng_state()
    build_nets((5,), 3, 2, (8, 8), n_extra=2, generator=generator)
    build_nets((64,), 3, 2, (8, 8), image_shape=(1, 8, 8), generator=generator)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("image_shape", IMAGES)
def test_shapes_of_images(image_shape, generator):
    n_pixels = math.prod(image_shape)
    encoder, decoder = build_nets((n_pixels,), 3, 2, (8, 16), image_shape=image_shape, generator=generator)
    assert encoder(torch.zeros(7, n_pixels)).shape == (7, 6)
    assert decoder(torch.zeros(4, 7, 3)).shape == (4, 7, n_pixels, 2)


def test_a_pixel_reaches_the_codes_and_a_code_every_pixel(generator):
    encoder, decoder = build_nets((3 * 12 * 20,), 4, 1, (8,), image_shape=(3, 12, 20), generator=generator)
    x = torch.randn(1, 720, generator=generator, requires_grad=True)
    encoder(x).square().sum().backward()
    assert (x.grad != 0).all()
    z = torch.zeros(1, 4)
    moved = decoder(z + torch.randn(1, 4, generator=generator)) - decoder(z)
    assert (moved.abs() > 0).float().mean() > 0.99


def test_pixels_keep_their_places(generator):
    """The decoder's parameters belong to the pixels in the order of a flattened image."""
    decoder = ToPixels([nn.Unflatten(1, (2, 3, 4))], 2)
    z = torch.arange(24.0)[None]
    phi = decoder(z).reshape(3, 4, 2)
    torch.testing.assert_close(phi[..., 0], torch.arange(12.0).reshape(3, 4))
    torch.testing.assert_close(phi[..., 1], torch.arange(12.0, 24.0).reshape(3, 4))


@pytest.mark.parametrize(("options", "sentence"), [
    ({"image_shape": (1, 2, 2)}, "no rows of 5 numbers"),
    ({"image_shape": (1, 5, 1), "n_extra": 5}, "no input for missing pixels"),
])  # fmt: skip
def test_images_that_do_not_fit(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_nets((5,), 2, 1, (8,), **options)


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


@pytest.mark.parametrize("image_shape", [None, (1, 8, 8)])
def test_weights_depend_on_the_generator_alone(image_shape, seeded_torch):
    states = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        pair = build_nets((64,), 2, 2, (8, 8), image_shape=image_shape, generator=torch.Generator().manual_seed(0))
        states.append([net.state_dict() for net in pair])
    torch.testing.assert_close(*states, rtol=0, atol=0)
