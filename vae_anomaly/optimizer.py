"""AdamW over all parameters of an ensemble as one tensor, with gradients clipped for each member."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim.adamw import adamw

if TYPE_CHECKING:
    from vae_anomaly.ensemble import Ensemble
    from vae_anomaly.training import Plan

__all__ = ["FlatParameters", "one_cycle"]

# A GPU goes through a tensor by blocks of 65,536 numbers, each on a processor of its own: ours would keep a dozen of
# its hundred busy. So many tensors, the most that it takes at once, keep three times as many.
N_PIECES = {"cuda": 36}
# It reads four numbers at a time, if these are aligned.
ALIGNED = 4


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
    """The parameters of an ensemble as views of one tensor, so that a step of AdamW [1]_ is a handful of operations.

    Layers are many and small: an operation for each costs more to start than to run.

    References
    ----------
    .. [1] Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, https://arxiv.org/abs/1711.05101
    """

    def __init__(self, ensemble: "Ensemble", plan: "Plan") -> None:
        self.shapes = {name: value.shape for name, value in ensemble.params.items()}
        self.flat = _join([value.detach() for value in ensemble.params.values()])
        ensemble.params = self._views(self.flat)
        self.weight_decay = plan.weight_decay
        self.limit = plan.max_grad_norm * math.prod(ensemble.skeleton.event_shape)
        n_pieces = N_PIECES.get(self.flat.device.type, 1)
        self.gradient, mean, square = (torch.zeros_like(self.flat) for _ in range(3))
        self.pieces = [_pieces(value, n_pieces) for value in (self.flat, self.gradient, mean, square)]
        self.n_steps = list(torch.zeros(len(self.pieces[0]), device=self.flat.device).unbind())

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        # Views of a slice: they keep the stride of the whole from member to member.
        parts = torch.split(flat, [shape[1:].numel() for shape in self.shapes.values()], dim=1)
        views = zip(self.shapes.items(), parts, strict=True)
        return {name: part.view(shape).requires_grad_() for (name, shape), part in views}

    def step(self, gradients: Sequence[Tensor], learning_rate: float | Tensor) -> None:
        """Follow the gradients of all parameters, those of each member scaled to at most ``max_grad_norm`` an entry."""
        _join(gradients, out=self.gradient)
        norm = torch.linalg.vector_norm(self.gradient, dim=1, keepdim=True)
        factor = (self.limit / (norm + 1e-6)).clamp(max=1.0)
        # A processor can be asked whether there is anything to do.
        if factor.device.type != "cpu" or bool((factor < 1.0).any()):
            self.gradient.mul_(factor)
        flat, gradient, mean, square = self.pieces
        # The function under the class of this name, which adds half the time to a step as small as this.
        adamw(
            flat, gradient, mean, square, [], self.n_steps, fused=True, amsgrad=False,
            beta1=0.9, beta2=0.999, lr=learning_rate, weight_decay=self.weight_decay, eps=1e-8, maximize=False,
        )  # fmt: skip

    def copy(self) -> Tensor:
        """The parameters as they are now."""
        return self.flat.clone()

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters by name, each a tensor of its own."""
        return {name: part.detach().contiguous().requires_grad_() for name, part in self._views(flat).items()}


def _join(values: Iterable[Tensor], out: Tensor | None = None) -> Tensor:
    """All numbers of each member in a row."""
    return torch.cat([value.reshape(len(value), -1) for value in values], dim=1, out=out)


def _pieces(flat: Tensor, n_pieces: int) -> list[Tensor]:
    """The same numbers as ``n_pieces`` tensors, or fewer, of nearly the same length."""
    length = math.ceil(flat.numel() / n_pieces)
    return list(torch.split(flat.view(-1), length + -length % ALIGNED))
