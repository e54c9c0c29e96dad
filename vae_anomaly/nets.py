"""Encoder and decoder networks, for rows of numbers and for rows of pixels."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vae_anomaly.affine import Affine, affine_maps
from vae_anomaly.fused import LearnedLayers, run_layers

__all__ = ["NETS", "Layers", "build_nets", "conv2d", "mlp"]

Pair = tuple[nn.Module, nn.Module]


class Unfilled:
    """A layer whose weights are drawn by whoever makes it, once, and not by torch before."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


class Linear(Unfilled, nn.Linear):
    """Fully connected layer."""


class Conv2d(Unfilled, nn.Conv2d):
    """Convolution."""


def linear(n_in: int, n_out: int, generator: torch.Generator | None, gain: float = 1.0) -> nn.Linear:
    """Fully connected layer with outputs of variance about ``gain**2`` for inputs of variance 1."""
    layer = Linear(n_in, n_out)
    _initialize(layer.weight, layer.bias, gain / math.sqrt(max(n_in, 1)), generator)
    return layer


@torch.no_grad()
def _initialize(weight: Tensor, bias: Tensor | None, std: float, generator: torch.Generator | None) -> None:
    # A network without memory has no values to draw, and torch would import its compiler to draw none: 170 MB.
    if weight.is_meta:
        return
    nn.init.normal_(weight, std=std, generator=generator)
    assert bias is not None
    nn.init.zeros_(bias)


class Residual(nn.Module):
    """h + W2 silu(W1 silu(h)): starts as the identity, so that depth costs nothing before it pays."""

    def __init__(self, width: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.first = linear(width, width, generator)
        self.second = linear(width, width, generator, gain=0.0)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.second(nn.functional.silu(self.first(nn.functional.silu(h))))
        return h + out


class Layers(nn.Sequential):
    """Affine maps, SiLUs and residual blocks in a row, and at the end perhaps an :class:`~torch.nn.Unflatten`.

    Where the weights have a first axis over several networks, all of them run as one, on inputs of shape
    (..., n_networks, n_samples, n_in).
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        steps: list[str] = []
        # A tuple, so that each map is a module of its layer alone.
        self.affine: tuple[nn.Linear, ...] = ()
        for layer in self:
            if isinstance(layer, Residual):
                steps += ["split", "silu", "affine", "silu", "affine", "join"]
                self.affine += (layer.first, layer.second)
            elif isinstance(layer, nn.Linear):
                steps.append("affine")
                self.affine += (layer,)
            elif isinstance(layer, nn.SiLU):
                steps.append("silu")
        self.steps = tuple(steps)
        self.settled: list[Affine] = []

    @property
    def weights(self) -> list[Tensor]:
        """Weight and bias of each affine map, in order."""
        return [value for layer in self.affine for value in (layer.weight, layer.bias)]

    def learned(
        self, *, wanted: bool = True, into: Sequence[Tensor] | None = None, rounded: bool = False
    ) -> LearnedLayers:
        """Layers of several networks to learn from, by the weights as they are and stay in memory.

        The rest is as :class:`~vae_anomaly.fused.LearnedLayers` has it.
        """
        return LearnedLayers(self.steps, self.weights, wanted=wanted, into=into, rounded=rounded)

    def settle(self) -> None:
        """Of several networks, whose weights will stay where they are in memory: keep the views that they run by."""
        self.settled = affine_maps(self.weights)

    def forward(self, x: Tensor) -> Tensor:
        if self.affine[0].weight.ndim == 3:
            joined = run_layers(self.steps, x, self.settled or affine_maps(self.weights))
            return self[-1](joined) if isinstance(self[-1], nn.Unflatten) else joined
        for layer in self:
            x = layer(x)
        return x


def trunk(n_in: int, hidden: Sequence[int], generator: torch.Generator | None) -> list[nn.Module]:
    """Layers from ``n_in`` to ``hidden[-1]`` features: residual where the width stays, plain where it changes."""
    layers: list[nn.Module] = []
    width = n_in
    for n_out in hidden:
        same = bool(layers) and n_out == width
        layers.append(Residual(width, generator) if same else linear(width, n_out, generator))
        if not same:
            layers.append(nn.SiLU())
        width = n_out
    return layers


def mlp(
    event_shape: Sequence[int],
    latent_dim: int,
    n_params: int,
    hidden: Sequence[int],
    *,
    n_extra: int = 0,
    generator: torch.Generator | None = None,
) -> Pair:
    """Residual MLP encoder (n_features + n_extra) -> 2 latent_dim, and decoder latent_dim -> (n_features, n_params).

    The decoder mirrors the encoder's ``hidden`` widths; an empty ``hidden`` gives the linear VAE, which is
    probabilistic PCA. ``n_extra`` further inputs of the encoder start with weight 0.
    """
    (n_features,) = event_shape
    widths = list(hidden)
    encoder = trunk(n_features, widths, generator)
    encoder.append(linear(widths[-1] if widths else n_features, 2 * latent_dim, generator, gain=0.5))
    if n_extra:
        encoder[0] = _with_extra_inputs(encoder[0], n_extra)
    decoder = trunk(latent_dim, widths[::-1], generator)
    decoder.append(linear(widths[0] if widths else latent_dim, n_features * n_params, generator, gain=0.5))
    decoder.append(nn.Unflatten(-1, (n_features, n_params)))
    return Layers(*encoder), Layers(*decoder)


def _with_extra_inputs(layer: nn.Module, n_extra: int) -> nn.Linear:
    assert isinstance(layer, nn.Linear)
    wider = Linear(layer.in_features + n_extra, layer.out_features)
    with torch.no_grad():
        wider.weight.zero_()
        wider.weight[:, : layer.in_features] = layer.weight
        wider.bias.zero_()
    return wider


# A stage of a convolutional network halves both sides, until the shorter one has no more pixels than this.
MIN_SIDE = 4
N_GROUPS = 8


def conv(n_in: int, n_out: int, generator: torch.Generator | None, *, stride: int = 1, gain: float = 1.0) -> nn.Conv2d:
    """Convolution of 3 x 3 pixels with outputs of variance about ``gain**2`` for inputs of variance 1."""
    layer = Conv2d(n_in, n_out, 3, stride=stride, padding=1)
    _initialize(layer.weight, layer.bias, gain / math.sqrt(9 * n_in), generator)
    return layer


def group_norm(width: int) -> nn.GroupNorm:
    """Normalisation over groups of channels; unlike over a batch, an image has no part in another's."""
    return nn.GroupNorm(math.gcd(N_GROUPS, width), width)


class ConvResidual(nn.Module):
    """h + W2 silu(norm(W1 silu(norm(h)))) with convolutions; starts as the identity."""

    def __init__(self, width: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.norm_first, self.norm_second = group_norm(width), group_norm(width)
        self.first = conv(width, width, generator)
        self.second = conv(width, width, generator, gain=0.0)

    def forward(self, h: Tensor) -> Tensor:
        middle = self.first(nn.functional.silu(self.norm_first(h)))
        out: Tensor = self.second(nn.functional.silu(self.norm_second(middle)))
        return h + out


class Resized(nn.Module):
    """Nearest-neighbour interpolation to a size, then a convolution: no checkerboards, any size."""

    def __init__(
        self, n_in: int, n_out: int, size: tuple[int, int], generator: torch.Generator | None, *, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.size, self.conv = size, conv(n_in, n_out, generator, gain=gain)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.conv(nn.functional.interpolate(h, size=self.size, mode="nearest"))
        return out


class Pixels(nn.Module):
    """Layers that want images, on inputs whose last axis holds the pixels of one; any number of axes before it."""

    def __init__(self, shape: tuple[int, int, int], layers: list[nn.Module]) -> None:
        super().__init__()
        self.shape, self.layers = shape, nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast, what is made of it is still in the precision of the samples.
        out: Tensor = self.layers(x.reshape(-1, *self.shape)).to(x.dtype)
        return out.reshape(*x.shape[:-1], *out.shape[1:])


class ToPixels(nn.Module):
    """Layers from codes to images, whose pixels go to the last axis but one: (..., n_pixels, n_params)."""

    def __init__(self, layers: list[nn.Module], n_params: int) -> None:
        super().__init__()
        self.layers, self.n_params = nn.Sequential(*layers), n_params

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.layers(z.reshape(-1, z.shape[-1])).to(z.dtype)
        n_samples, _, height, width = out.shape
        phi = out.reshape(n_samples, -1, self.n_params, height, width).movedim(2, -1)
        return phi.reshape(*z.shape[:-1], -1, self.n_params)


def stages(height: int, width: int, widest: int) -> list[tuple[int, int, int]]:
    """Height, width and channels of each stage; channels double from a quarter of ``widest`` up to it."""
    sizes = [(math.ceil(height / 2), math.ceil(width / 2))]
    while min(sizes[-1]) > MIN_SIDE:
        sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
    return [(h, w, min(widest, max(8, widest // 4) * 2**i)) for i, (h, w) in enumerate(sizes)]


def conv2d(
    image_shape: Sequence[int],
    latent_dim: int,
    n_params: int,
    hidden: Sequence[int],
    *,
    generator: torch.Generator | None = None,
) -> Pair:
    """Residual convolutional encoder n_pixels -> 2 latent_dim, and decoder latent_dim -> (n_pixels, n_params).

    A sample is a row of channels x height x width pixels, of any size. Both sides are halved until the shorter has 4
    pixels at most; the widest of ``hidden`` is the number of channels there. The first layer halves them already: at
    full size, layers cost the most and see the least.
    """
    channels, height, width = image_shape
    if not hidden:
        raise ValueError("A convolutional network needs at least one width in hidden.")
    first, *further = stages(height, width, max(hidden))
    encoder: list[nn.Module] = [conv(channels, first[2], generator, stride=2)]
    for (_, _, n_in), (_, _, n_out) in itertools.pairwise([first, *further]):
        encoder += [ConvResidual(n_in, generator), conv(n_in, n_out, generator, stride=2)]
    bottom = (first, *further)[-1]
    encoder += [ConvResidual(bottom[2], generator), group_norm(bottom[2]), nn.SiLU(), nn.Flatten(1)]
    encoder.append(linear(math.prod(bottom), 2 * latent_dim, generator, gain=0.5))
    decoder: list[nn.Module] = [
        linear(latent_dim, math.prod(bottom), generator),
        nn.Unflatten(1, (bottom[2], bottom[0], bottom[1])),
        ConvResidual(bottom[2], generator),
    ]
    for (_, _, n_in), (h, w, n_out) in itertools.pairwise([first, *further][::-1]):
        decoder += [Resized(n_in, n_out, (h, w), generator), ConvResidual(n_out, generator)]
    decoder += [group_norm(first[2]), nn.SiLU()]
    decoder.append(Resized(first[2], channels * n_params, (height, width), generator, gain=0.5))
    return Pixels((channels, height, width), encoder), ToPixels(decoder, n_params)


NETS: dict[str, Callable[..., Pair]] = {
    "mlp": mlp,
    "conv": conv2d,
}


def build_nets(
    event_shape: Sequence[int],
    latent_dim: int,
    n_params: int,
    hidden: Sequence[int],
    *,
    image_shape: Sequence[int] | None = None,
    n_extra: int = 0,
    generator: torch.Generator | None = None,
) -> Pair:
    """Encoder and decoder for rows of numbers, or convolutional ones for rows of the pixels of an image."""
    if image_shape is None:
        return mlp(event_shape, latent_dim, n_params, hidden, n_extra=n_extra, generator=generator)
    if math.prod(image_shape) != math.prod(event_shape):
        raise ValueError(f"Images of shape {tuple(image_shape)} are no rows of {math.prod(event_shape)} numbers.")
    if n_extra:
        raise ValueError("A convolutional network has no input for missing pixels.")
    return conv2d(image_shape, latent_dim, n_params, hidden, generator=generator)
