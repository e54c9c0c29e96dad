"""AdamW over all parameters of an ensemble as one tensor, with gradients clipped for each member."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw

if TYPE_CHECKING:
    from vae_anomaly.ensemble import Ensemble
    from vae_anomaly.kernels.adamw import FusedAdamW
    from vae_anomaly.training import Plan

__all__ = ["FlatParameters", "one_cycle"]

# A GPU goes through a tensor by blocks of 65,536 numbers, each on a processor of its own: ours would keep a dozen of
# its hundred busy. So many tensors, the most that it takes at once, keep three times as many.
N_PIECES = {"cuda": 36}
# It reads four numbers at a time, if these are aligned.
ALIGNED = 4
# Shares that the moments keep, and what keeps a step finite.
BETAS, EPS = (0.9, 0.999), 1e-8


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


class AdamW(Protocol):
    """A step over parameters of shape (n_members, n_numbers), with the gradient of each member clipped."""

    def step(self, learning_rate: Any) -> None:
        """Follow the gradients, which it may write over; on a GPU the rate may be a number on the device."""


class FlatParameters:
    """The parameters of an ensemble as views of one tensor, so that a step of AdamW [1]_ is a handful of operations.

    Layers are many and small: an operation for each costs more to start than to run.

    References
    ----------
    .. [1] Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, https://arxiv.org/abs/1711.05101
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
        self.adamw: AdamW = _adamw(fused=fused)(self.flat, self.gradient, limit, plan.weight_decay, BETAS, EPS)

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


class PlainAdamW:
    """By torch's operations, on any device.

    Parameters
    ----------
    flat, gradient : Tensor of shape (n_members, n_numbers)
        Parameters, which a step changes in place, and where their gradients are put before it.
    limit : float
        The longest gradient of a member.
    weight_decay : float
    betas : tuple of float
        Shares that the two moments keep.
    eps : float
        What keeps a step finite.
    """

    def __init__(
        self,
        flat: Tensor,
        gradient: Tensor,
        limit: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self.gradient, self.limit, self.weight_decay = gradient, limit, weight_decay
        self.betas, self.eps = betas, eps
        n_pieces = N_PIECES.get(flat.device.type, 1)
        mean, square = torch.zeros_like(flat), torch.zeros_like(flat)
        self.pieces = [_pieces(value, n_pieces) for value in (flat, gradient, mean, square)]
        self.n_steps = list(torch.zeros(len(self.pieces[0]), device=flat.device).unbind())

    def step(self, learning_rate: float | Tensor) -> None:
        norm = torch.linalg.vector_norm(self.gradient, dim=1, keepdim=True)
        factor = (self.limit / (norm + 1e-6)).clamp(max=1.0)
        # A processor can be asked whether there is anything to do.
        if factor.device.type != "cpu" or bool((factor < 1.0).any()):
            self.gradient.mul_(factor)
        flat, gradient, mean, square = self.pieces
        # The function under the class of this name, which adds half the time to a step as small as this.
        adamw(
            flat, gradient, mean, square, [], self.n_steps, fused=True, amsgrad=False,
            beta1=self.betas[0], beta2=self.betas[1], lr=learning_rate, weight_decay=self.weight_decay, eps=self.eps,
            maximize=False,
        )  # fmt: skip


def _adamw(*, fused: bool) -> "type[PlainAdamW | FusedAdamW]":
    if not fused:
        return PlainAdamW
    from vae_anomaly.kernels.adamw import FusedAdamW

    return FusedAdamW


def _join(values: Iterable[Tensor], out: Tensor | None = None) -> Tensor:
    """All numbers of each member in a row."""
    return torch.cat([value.reshape(len(value), -1) for value in values], dim=1, out=out)


def _pieces(flat: Tensor, n_pieces: int) -> list[Tensor]:
    """The same numbers as ``n_pieces`` tensors, or fewer, of nearly the same length."""
    length = math.ceil(flat.numel() / n_pieces)
    return list(torch.split(flat.view(-1), length + -length % ALIGNED))
