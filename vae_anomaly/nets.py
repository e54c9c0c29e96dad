"""Encoder and decoder networks: one function for each rank of ``event_shape``."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["NETS", "build_nets", "mlp"]

Pair = tuple[nn.Module, nn.Module]


def linear(n_in: int, n_out: int, generator: torch.Generator | None, gain: float = 1.0) -> nn.Linear:
    """Fully connected layer with outputs of variance about ``gain**2`` for inputs of variance 1."""
    layer = nn.Linear(n_in, n_out)
    with torch.no_grad():
        nn.init.normal_(layer.weight, std=gain / math.sqrt(max(n_in, 1)), generator=generator)
        nn.init.zeros_(layer.bias)
    return layer


class Residual(nn.Module):
    """h + W2 silu(W1 silu(h)): starts as the identity, so that depth costs nothing before it pays."""

    def __init__(self, width: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.first = linear(width, width, generator)
        self.second = linear(width, width, generator, gain=0.0)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.second(nn.functional.silu(self.first(nn.functional.silu(h))))
        return h + out


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
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


def _with_extra_inputs(layer: nn.Module, n_extra: int) -> nn.Linear:
    assert isinstance(layer, nn.Linear)
    wider = nn.Linear(layer.in_features + n_extra, layer.out_features)
    with torch.no_grad():
        wider.weight.zero_()
        wider.weight[:, : layer.in_features] = layer.weight
        wider.bias.zero_()
    return wider


NETS: dict[int, Callable[..., Pair]] = {
    1: mlp,
}


def build_nets(
    event_shape: Sequence[int],
    latent_dim: int,
    n_params: int,
    hidden: Sequence[int],
    *,
    n_extra: int = 0,
    generator: torch.Generator | None = None,
) -> Pair:
    """Encoder and decoder for samples of this shape."""
    try:
        net = NETS[len(event_shape)]
    except KeyError:
        raise ValueError(
            f"No network for samples of shape {tuple(event_shape)}; supported: {sorted(NETS)} axes a sample."
        ) from None
    return net(event_shape, latent_dim, n_params, hidden, n_extra=n_extra, generator=generator)
