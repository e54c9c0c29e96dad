"""Affine maps of several networks, and the products that they and their gradients are made of."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Affine", "ProcessorProducts", "Products", "RoundedProducts", "affine_maps"]

# A result with fewer columns leaves registers of a processor empty.
NARROW = 12
# Smaller products gain little in bfloat16, or lose.
MIN_ROUNDED = 8_000_000


class Affine(NamedTuple):
    """An affine map of each of several networks, as products of a batch want it."""

    weight: Tensor
    """Shape (n_networks, n_out, n_in)."""
    turned: Tensor
    """The same, shape (n_networks, n_in, n_out)."""
    bias: Tensor
    """Shape (n_networks, 1, n_out)."""


def affine_maps(weights: Sequence[Tensor]) -> list[Affine]:
    """Views of weights and biases in turn; made once where a step of small networks takes hardly longer than these."""
    pairs = zip(weights[::2], weights[1::2], strict=True)
    return [Affine(weight, weight.mT, bias.unsqueeze(-2)) for weight, bias in pairs]


class Products:
    """Those of affine maps of several networks, and of the gradients of these."""

    def factors(self, x: Tensor, own: Affine) -> tuple[Tensor, Affine]:
        """Samples (n_networks, n_samples, n_in) and a map, as they are multiplied, there and on the way back."""
        return x, own

    def factor(self, g: Tensor, x: Tensor) -> Tensor:
        """The gradient of what came out, as it is multiplied where samples were as in ``x``."""
        return g

    def mapped(self, x: Tensor, own: Affine) -> Tensor:
        """What comes out, shape (n_networks, n_samples, n_out)."""
        return torch.baddbmm(own.bias, x, own.turned)

    def back(self, g: Tensor, own: Affine) -> Tensor:
        """Gradient with respect to what came in, from that of what came out."""
        return torch.bmm(g, own.weight)

    def of_weight(self, g: Tensor, x: Tensor, out: Tensor | None) -> Tensor:
        """Gradient with respect to the weight, put into ``out``, if that is given."""
        return torch.bmm(g.mT, x, out=out)


class ProcessorProducts(Products):
    """The same of a processor, which takes up to six times as long for a narrow result as for one that is as low.

    So these come the other way round, and are turned.

    Examples
    --------
    >>> g, x = torch.arange(96.0).view(1, 3, 32), torch.ones(1, 3, 2)
    >>> torch.equal(ProcessorProducts().of_weight(g, x, None), Products().of_weight(g, x, None))
    True
    """

    def back(self, g: Tensor, own: Affine) -> Tensor:
        if own.weight.shape[-1] < NARROW <= g.shape[-2]:
            return torch.bmm(own.turned, g.mT).mT
        return super().back(g, own)

    def of_weight(self, g: Tensor, x: Tensor, out: Tensor | None) -> Tensor:
        if out is None and x.shape[-1] < NARROW <= g.shape[-1]:
            return torch.bmm(x.mT, g).mT
        return super().of_weight(g, x, out)


class RoundedProducts(ProcessorProducts):
    """The same of a processor with instructions for bfloat16: factors of large ones are rounded to it, each once.

    It adds up in float32, and rounds what it found; weights, biases, and all that is done between products stay as they
    are. That is what autocast does [1]_, but for products that are too small to gain, and for the many operations
    around them.

    References
    ----------
    .. [1] Micikevicius et al., "Mixed precision training", 2018, https://arxiv.org/abs/1710.03740

    Examples
    --------
    >>> x, own = torch.full((1, 512, 256), 1.0 + 2**-9), torch.ones(1, 256, 256)
    >>> own, products = Affine(own, own.mT, torch.zeros(1, 1, 256)), RoundedProducts()
    >>> float(products.mapped(x, own)[0, 0, 0]), float(products.mapped(*products.factors(x, own))[0, 0, 0])
    (256.5, 256.0)
    """

    def factors(self, x: Tensor, own: Affine) -> tuple[Tensor, Affine]:
        # The same for the three products of a map, which are equally large.
        if x.numel() * own.turned.shape[-1] < MIN_ROUNDED:
            return x, own
        weight = own.weight.bfloat16()
        return x.bfloat16(), Affine(weight, weight.mT, own.bias)

    def factor(self, g: Tensor, x: Tensor) -> Tensor:
        return g.to(x.dtype)

    def mapped(self, x: Tensor, own: Affine) -> Tensor:
        if x.dtype != torch.bfloat16:
            return super().mapped(x, own)
        return own.bias + torch.bmm(x, own.turned)

    def back(self, g: Tensor, own: Affine) -> Tensor:
        return super().back(g, own).to(own.bias.dtype)

    def of_weight(self, g: Tensor, x: Tensor, out: Tensor | None) -> Tensor:
        if x.dtype != torch.bfloat16:
            return super().of_weight(g, x, out)
        found = super().of_weight(g, x, None)
        return found.float() if out is None else out.copy_(found)
