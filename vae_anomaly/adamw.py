"""A step of AdamW over all parameters of an ensemble as one tensor, with gradients clipped for each member."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

__all__ = ["BETAS", "EPS", "AdamW", "PlainAdamW"]

# A GPU goes through a tensor by blocks of 65,536 numbers, each on a processor of its own: ours would keep a dozen of
# its hundred busy. So many tensors, the most that it takes at once, keep three times as many.
N_PIECES = {"cuda": 36}
# It reads four numbers at a time, if these are aligned.
ALIGNED = 4
# Shares that the moments keep, and what keeps a step finite.
BETAS, EPS = (0.9, 0.999), 1e-8


class AdamW(ABC):
    """Steps of AdamW [1]_ with the gradient of each member clipped.

    Parameters
    ----------
    flat, gradient : Tensor of shape (n_members, n_numbers)
        Parameters, which a step changes in place, and where their gradients are put before it.
    limit : float
        The longest gradient of a member.
    weight_decay : float

    References
    ----------
    .. [1] Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, https://arxiv.org/abs/1711.05101
    """

    def __init__(self, flat: Tensor, gradient: Tensor, limit: float, weight_decay: float) -> None:
        self.flat, self.gradient, self.limit, self.weight_decay = flat, gradient, limit, weight_decay
        self.mean, self.square = torch.zeros_like(flat), torch.zeros_like(flat)

    @abstractmethod
    def step(self, learning_rate: Any) -> None:
        """Follow the gradients, which it may write over; on a GPU the rate may be a number on the device."""


class PlainAdamW(AdamW):
    """By torch's operations, on any device."""

    def __init__(self, flat: Tensor, gradient: Tensor, limit: float, weight_decay: float) -> None:
        super().__init__(flat, gradient, limit, weight_decay)
        n_pieces = N_PIECES.get(flat.device.type, 1)
        self.pieces = [_pieces(value, n_pieces) for value in (flat, gradient, self.mean, self.square)]
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
            beta1=BETAS[0], beta2=BETAS[1], lr=learning_rate, weight_decay=self.weight_decay, eps=EPS, maximize=False,
        )  # fmt: skip


def _pieces(flat: Tensor, n_pieces: int) -> list[Tensor]:
    """The same numbers as ``n_pieces`` tensors, or fewer, of nearly the same length."""
    length = math.ceil(flat.numel() / n_pieces)
    return list(torch.split(flat.view(-1), length + -length % ALIGNED))
