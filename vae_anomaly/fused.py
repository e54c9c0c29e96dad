"""The layers of many networks side by side as one function, and its gradient, written out."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_anomaly.affine import Affine, ProcessorProducts, Products, RoundedProducts, affine_maps
from vae_anomaly.replay import Branch

__all__ = ["STEPS", "LayersPullback", "LearnedLayers", "run_layers"]

# What a row of layers is made of: an affine map, SiLU, and the two ends of a residual branch.
STEPS = ("affine", "silu", "split", "join")


def run_layers(steps: Sequence[str], x: Tensor, maps: Sequence[Affine]) -> Tensor:
    """Layers of several networks, each on samples of its own, by the operations that each network's own are made of.

    On some processors, at least, each row then gets the bits that it gets from these.

    Parameters
    ----------
    steps : sequence of str
        Of ``STEPS``, in order, an affine map first and last. "split" keeps its input, "join" adds what was kept last.
    x : Tensor of shape (..., n_networks, n_samples, n_in)
    maps : sequence of Affine
        In order.

    Examples
    --------
    >>> x, weight, bias = torch.ones(2, 5, 3), torch.ones(2, 4, 3), torch.zeros(2, 4)
    >>> run_layers(["affine"], x, affine_maps([weight, bias]))[1, 0].tolist()
    [3.0, 3.0, 3.0, 3.0]
    """
    lead, (n_networks, n_samples, n_in) = x.shape[:-3], x.shape[-3:]
    if lead:
        # All draws of a network's samples are samples of it.
        every = x.reshape(-1, n_networks, n_samples, n_in).movedim(0, 1).reshape(n_networks, -1, n_in)
        found = run_layers(steps, every, maps)
        by_draw = found.reshape(n_networks, -1, n_samples, found.shape[-1]).movedim(1, 0)
        return by_draw.reshape(*lead, n_networks, n_samples, -1)
    h, affine, skipped = x, iter(maps), []
    for step in steps:
        if step == "affine":
            _, turned, bias = next(affine)
            h = torch.baddbmm(bias, h, turned)
        elif step == "silu":
            h = nn.functional.silu(h)
        elif step == "split":
            skipped.append(h)
        else:
            h = skipped.pop() + h
    return h


class _Silu:
    """h s(h), s being the sigmoid, and the way back by s, which is kept: a processor takes long to compute it again."""

    def __init__(self, like: Tensor) -> None:
        self.one = torch.ones((), dtype=like.dtype, device=like.device)

    def __call__(self, h: Tensor, *, may_overwrite: bool) -> tuple[Tensor, Tensor]:
        """What is to be kept for the way back, and the output, which is to be kept, too."""
        gate = torch.sigmoid(h)
        return gate, h.mul_(gate) if may_overwrite else h * gate

    def back(self, g: Tensor, gate: Tensor, out: Tensor) -> Tensor:
        # The derivative of h s(h) is s + h s (1 - s): from the output, by the weight s, towards 1.
        # Memory that was written a moment ago is faster than fresh memory.
        return torch.lerp(out, self.one, gate, out=gate).mul_(g)


class _SiluAtOnce(_Silu):
    """The same, each way as one operation, from h: a GPU takes longer to begin one than to compute a sigmoid."""

    def __call__(self, h: Tensor, *, may_overwrite: bool) -> tuple[Tensor, Tensor]:
        return h, nn.functional.silu(h)

    def back(self, g: Tensor, gate: Tensor, out: Tensor) -> Tensor:
        of_h: Tensor = torch.ops.aten.silu_backward(g, gate)
        return of_h


class LearnedLayers:
    """The same of weights that are learned and stay where they are in memory: what comes out, and the way back.

    Autograd through separate operations adds a bias in a pass of its own, computes each sigmoid twice, and spends on
    noting down what small products take.

    Parameters
    ----------
    steps : sequence of str
        As of :func:`run_layers`.
    weights : sequence of Tensor
        Weight and bias of each affine map, in order, with a first axis over the networks.
    wanted : bool, default=True
        Whether the way back goes on to the gradient with respect to the samples.
    into : sequence of Tensor, optional
        Where the gradients of weights and biases are to go, in the same order and of the same shapes. Those that lie in
        one piece get there without a copy.
    rounded : bool, default=False
        Whether large products are by :class:`~vae_anomaly.affine.RoundedProducts`.

    Examples
    --------
    >>> weight, bias = torch.full((1, 1, 2), 3.0), torch.zeros(1, 1)
    >>> out, pullback = LearnedLayers(["affine"], [weight, bias])(torch.ones(1, 4, 2))
    >>> branch = Branch(out.device)
    >>> of_x, of_weights = pullback(torch.ones(1, 4, 1), branch)
    >>> branch.join()
    >>> of_x[0, 0].tolist(), [gradient.tolist() for gradient in of_weights]
    ([3.0, 3.0], [[[[4.0, 4.0]]], [[4.0]]])
    """

    def __init__(
        self,
        steps: Sequence[str],
        weights: Sequence[Tensor],
        *,
        wanted: bool = True,
        into: Sequence[Tensor] | None = None,
        rounded: bool = False,
    ) -> None:
        self.steps, self.wanted = tuple(steps), wanted
        self.maps = affine_maps([value.detach() for value in weights])
        # Of several networks none does, and a product that is put down in parts takes longer than a copy of it.
        places = [place if place.is_contiguous() else None for place in into or ()] or [None] * len(weights)
        self.places = list(zip(places[::2], places[1::2], strict=True))
        on_gpu = weights[0].device.type == "cuda"
        self.products = RoundedProducts() if rounded else Products() if on_gpu else ProcessorProducts()
        self.silu = (_SiluAtOnce if on_gpu else _Silu)(weights[0])

    def begin(self) -> None:
        """Whatever a step can do before it knows its samples."""

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, "LayersPullback"]:
        """Of samples of shape (n_networks, n_samples, n_in)."""
        maps, products = iter(self.maps), self.products
        # What the gradient needs: factors of affine maps, and sigmoids with what came out of SiLUs.
        factors: list[tuple[Tensor, Affine]] = []
        kept: list[Tensor] = []
        skipped: list[Tensor] = []
        h, before = x, "start"
        for step in self.steps:
            if step == "affine":
                factors.append(products.factors(h, next(maps)))
                h = products.mapped(*factors[-1])
            elif step == "silu":
                # A residual branch needs its input once more.
                kept += self.silu(h, may_overwrite=before == "affine")
                h = kept[-1]
            elif step == "split":
                skipped.append(h)
            else:
                h.add_(skipped.pop())
            before = step
        return h, LayersPullback(self, factors, kept)


class LayersPullback:
    """The way back through :class:`LearnedLayers`, to be gone once: it writes over what was kept for it."""

    def __init__(self, layers: LearnedLayers, factors: list[tuple[Tensor, Affine]], kept: list[Tensor]) -> None:
        self.layers, self.factors, self.kept = layers, factors, kept

    @torch.no_grad()
    def __call__(self, g: Tensor, branch: Branch) -> tuple[Tensor | None, list[Tensor]]:
        """Gradients with respect to the samples, unless these are not wanted, and to each of the weights.

        ``g`` is that with respect to what came out. Nobody waits for the gradients of weights before the end: they are
        there once ``branch`` has joined.
        """
        steps, products, kept, places = self.layers.steps, self.layers.products, self.kept, list(self.layers.places)
        found: list[Tensor] = []
        skipped: list[Tensor] = []
        for index in range(len(steps) - 1, -1, -1):
            step = steps[index]
            if step == "affine":
                inputs, own = self.factors.pop()
                factor = products.factor(g, inputs)
                of_weights = functools.partial(_of_weights, products, g, factor, inputs, *places.pop())
                found += branch.run(of_weights, g, inputs)
                if index == 0 and not self.layers.wanted:
                    return None, found[::-1]
                g = products.back(factor, own)
            elif step == "silu":
                out, gate = kept.pop(), kept.pop()
                g = self.layers.silu.back(g, gate, out)
            elif step == "join":
                skipped.append(g)
            else:
                g = skipped.pop() + g
        return g, found[::-1]


def _of_weights(
    products: Products, g: Tensor, factor: Tensor, inputs: Tensor, weight: Tensor | None, bias: Tensor | None
) -> list[Tensor]:
    """Gradients of the bias and of the weight of an affine map, from that of its output; put where they are to go."""
    return [torch.sum(g, dim=-2, out=bias), products.of_weight(factor, inputs, weight)]
