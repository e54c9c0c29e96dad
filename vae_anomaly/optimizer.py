"""All parameters of an ensemble as one tensor, which steps of AdamW follow, and the one-cycle rate of these."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vae_anomaly.adamw import AdamW, PlainAdamW

if TYPE_CHECKING:
    from vae_anomaly.ensemble import Ensemble
    from vae_anomaly.training import Plan

__all__ = ["FlatParameters", "one_cycle"]


def one_cycle(step: int, n_steps: int, peak: float) -> float:
    """Learning rate of a step [1]_: up from peak / 25 over the first 30 %, then down to next to nothing, by cosines.

    References
    ----------
    .. [1] Smith and Topin, "Super-convergence", 2017, https://arxiv.org/abs/1708.07120

    Examples
    --------
    >>> [round(one_cycle(step, 9, 0.1), 4) for step in (0, 2, 9)]
    [0.004, 0.1, 0.0]
    """
    start, end = peak / 25.0, peak / 25.0 / 1e4
    top = 0.3 * (n_steps + 1) - 1.0
    if step <= top:
        return peak + (start - peak) * (1.0 + math.cos(math.pi * step / top)) / 2.0
    return end + (peak - end) * (1.0 + math.cos(math.pi * (step - top) / (n_steps - top))) / 2.0


class FlatParameters:
    """The parameters of an ensemble as views of one tensor, so that a step of AdamW is a handful of operations.

    Layers are many and small: an operation for each costs more to start than to run.
    """

    def __init__(self, ensemble: "Ensemble", plan: "Plan", *, fused: bool = False) -> None:
        self.shapes = {name: value.shape for name, value in ensemble.params.items()}
        self.flat = _join([value.detach() for value in ensemble.params.values()])
        ensemble.params = {name: value.requires_grad_() for name, value in self._views(self.flat).items()}
        self.gradient = torch.zeros_like(self.flat)
        self.places = self._views(self.gradient)
        """Where the gradient of each parameter lies in a step: what is put there need not be copied."""
        # The longest gradient, by entry: wide tables have longer ones.
        limit = plan.max_grad_norm * math.prod(ensemble.skeleton.event_shape)
        self.adamw = _adamw(fused=fused)(self.flat, self.gradient, limit, plan.weight_decay)

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        # Views of a slice: they keep the stride of the whole from member to member.
        parts = torch.split(flat, [shape[1:].numel() for shape in self.shapes.values()], dim=1)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def step(self, gradients: Sequence[Tensor], learning_rate: float | Tensor) -> None:
        """Follow the gradients of all parameters, those of each member scaled to at most ``max_grad_norm`` an entry."""
        elsewhere = [
            (place, own) for place, own in zip(self.places.values(), gradients, strict=True) if own is not place
        ]
        if len(elsewhere) == len(self.places):
            _join(gradients, out=self.gradient)
        else:
            for place, own in elsewhere:
                place.copy_(own)
        self.adamw.step(learning_rate)

    def copy(self) -> Tensor:
        """The parameters as they are now."""
        return self.flat.clone()

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters by name, each a tensor of its own."""
        return {name: part.detach().contiguous().requires_grad_() for name, part in self._views(flat).items()}


def _adamw(*, fused: bool) -> type[AdamW]:
    if not fused:
        return PlainAdamW
    from vae_anomaly.kernels.adamw import FusedAdamW

    return FusedAdamW


def _join(values: Iterable[Tensor], out: Tensor | None = None) -> Tensor:
    """All numbers of each member in a row."""
    return torch.cat([value.reshape(len(value), -1) for value in values], dim=1, out=out)
