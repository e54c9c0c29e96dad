"""The layers of many networks side by side as one function, whose gradient is written out."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vae_anomaly.replay import Branch

__all__ = ["STEPS", "run_layers"]

# What a row of layers is made of: an affine map, SiLU, and the two ends of a residual branch.
STEPS = ("affine", "silu", "split", "join")


def run_layers(steps: Sequence[str], x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Layers of several networks, each on samples of its own.

    Parameters
    ----------
    steps : sequence of str
        Of ``STEPS``, in order, an affine map first and last. "split" keeps its input, "join" adds what was kept last.
    x : Tensor of shape (..., n_networks, n_samples, n_in)
    weights : sequence of Tensor
        Weight and bias of each affine map, in order, with a first axis over the networks.

    Examples
    --------
    >>> x, weight, bias = torch.ones(2, 5, 3), torch.ones(2, 4, 3), torch.zeros(2, 4)
    >>> run_layers(["affine"], x, [weight, bias])[1, 0].tolist()
    [3.0, 3.0, 3.0, 3.0]
    """
    lead, (n_networks, n_samples, n_in) = x.shape[:-3], x.shape[-3:]
    # All draws of a network's samples are samples of it.
    joined = x.reshape(-1, n_networks, n_samples, n_in).movedim(0, 1).reshape(n_networks, -1, n_in)
    if any(value.requires_grad for value in weights):
        # Without a gradient to come, nothing is kept for it.
        out: Tensor = _Layers.apply(tuple(steps), torch.is_grad_enabled(), joined, *weights)
    else:
        out = _plain(steps, joined, weights)
    return out.reshape(n_networks, -1, n_samples, out.shape[-1]).movedim(1, 0).reshape(*lead, *x.shape[-3:-1], -1)


def _plain(steps: Sequence[str], h: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The same of weights that are not learned, by the operations that each network's own layers are made of.

    On some processors, at least, each row then gets the bits that it gets from these.
    """
    affine, skipped = iter(zip(weights[::2], weights[1::2], strict=True)), []
    for step in steps:
        if step == "affine":
            weight, bias = next(affine)
            h = torch.baddbmm(bias.unsqueeze(-2), h, weight.mT)
        elif step == "silu":
            h = nn.functional.silu(h)
        elif step == "split":
            skipped.append(h)
        else:
            h = skipped.pop() + h
    return h


class _Layers(torch.autograd.Function):
    """Autograd through separate operations adds a bias in a pass of its own, computes each sigmoid twice, and spends
    on dispatch what small products take.
    """

    @staticmethod
    def forward(ctx: Any, steps: tuple[str, ...], keep: bool, x: Tensor, *weights: Tensor) -> Tensor:
        affine = iter(zip(weights[::2], weights[1::2], strict=True))
        # What the gradient needs: sigmoids, and inputs of affine maps.
        kept: list[Tensor] = []
        skipped: list[Tensor] = []
        h, before = x, "start"
        for step in steps:
            if step == "affine":
                weight, bias = next(affine)
                if before != "silu":
                    kept.append(h)
                h = torch.baddbmm(bias.unsqueeze(-2), h, weight.mT)
            elif step == "silu":
                gate = torch.sigmoid(h)
                # A residual branch needs its input once more.
                h = h.mul_(gate) if before == "affine" else h * gate
                kept += [gate, h]
            elif step == "split":
                skipped.append(h)
            else:
                h.add_(skipped.pop())
            before = step
            if not keep:
                kept.clear()
        ctx.steps = steps
        ctx.save_for_backward(*weights, *kept)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        n_weights = 2 * ctx.steps.count("affine")
        weights, kept = ctx.saved_tensors[:n_weights], list(ctx.saved_tensors[n_weights:])
        one = g.new_ones(())
        found: list[Tensor] = []
        skipped: list[Tensor] = []
        # Nobody waits for the gradients of weights before the end.
        branch = Branch(g.device)
        for index in range(len(ctx.steps) - 1, -1, -1):
            step = ctx.steps[index]
            if step == "affine":
                # The output of a SiLU is kept once, and taken off when its own turn comes.
                after_silu = index > 0 and ctx.steps[index - 1] == "silu"
                inputs = kept[-1] if after_silu else kept.pop()
                found += branch.run(functools.partial(_of_weights, g, inputs), g, inputs)
                if index == 0 and not ctx.needs_input_grad[2]:
                    branch.join()
                    return None, None, None, *found[::-1]
                g = torch.bmm(g, weights[n_weights - len(found)])
            elif step == "silu":
                out, gate = kept.pop(), kept.pop()
                # The derivative of h s(h) is s + h s (1 - s): from the output, by the weight s, towards 1.
                # Memory that was written a moment ago is faster than fresh memory.
                g = torch.lerp(out, one, gate, out=gate).mul_(g)
            elif step == "join":
                skipped.append(g)
            else:
                g = skipped.pop() + g
        branch.join()
        return None, None, g, *found[::-1]


def _of_weights(g: Tensor, inputs: Tensor) -> list[Tensor]:
    """Gradients of the bias and of the weight of an affine map, from that of its output."""
    return [g.sum(dim=-2), torch.bmm(g.mT, inputs)]
