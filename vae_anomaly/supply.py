"""What the steps of training take: rows in a new order each epoch, and base samples, of each member's own; laid out."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_anomaly.splitting import index_type

__all__ = ["LaidOut", "Supply"]


class Supply:
    """Rows and base samples for as many steps as are asked for at once, on the device where they were drawn.

    Parameters
    ----------
    train_rows : LongTensor of shape (n_estimators, n_rows)
        Rows that each member trains on.
    batch_size, latent_dim : int
    generators : sequence of torch.Generator
        One for each member, on any device.
    noise : sequence of torch.Generator, optional
        The same for base samples, where these are drawn elsewhere than the orders of rows.

    Examples
    --------
    >>> supply = Supply(torch.tensor([[3, 4, 5, 6]]), 2, 1, [torch.Generator().manual_seed(0)])
    >>> supply.steps_per_epoch, supply.rows(0, 2).sort(dim=2).values.tolist()
    (2, [[[3, 4]], [[5, 6]]])
    """

    def __init__(
        self,
        train_rows: Tensor,
        batch_size: int,
        latent_dim: int,
        generators: Sequence[torch.Generator],
        noise: Sequence[torch.Generator] | None = None,
    ) -> None:
        self.train_rows, self.latent_dim = train_rows, latent_dim
        self.generators, self.noise_generators = generators, noise or generators
        n_rows = train_rows.shape[1]
        self.batch_size = min(batch_size, n_rows)
        self.steps_per_epoch = max(1, n_rows // self.batch_size)
        self._orders: Tensor | None = None

    def rows(self, first: int, last: int) -> Tensor:
        """Rows of the batches of these steps, shape (n_steps, n_estimators, batch_size).

        Each epoch comes in a new order, less the ragged end.
        """
        parts = []
        while first < last:
            within = first % self.steps_per_epoch
            if within == 0 or self._orders is None:
                self._orders = self._new_orders()
            end = min(within + last - first, self.steps_per_epoch)
            places = self._orders[:, within * self.batch_size : end * self.batch_size]
            # Not a view of the order, whose memory the next one is to have.
            chosen = self.train_rows.gather(1, places.to(self.train_rows.device).long())
            parts.append(chosen.reshape(len(chosen), -1, self.batch_size).movedim(1, 0))
            first += end - within
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def noise(self, *shape: int) -> Tensor:
        """Base samples of shape (n_estimators, *shape, latent_dim)."""
        n = math.prod(shape)
        draws = [
            torch.randn(n, self.latent_dim, generator=generator, device=generator.device)
            for generator in self.noise_generators
        ]
        return torch.stack(draws).reshape(len(draws), *shape, self.latent_dim)

    def _new_orders(self) -> Tensor:
        """A new order of each member's rows, in half the memory that indices usually take."""
        self._orders = None
        n_rows, device = self.train_rows.shape[1], self.generators[0].device
        orders = torch.empty(len(self.generators), n_rows, dtype=index_type(n_rows), device=device)
        for own, generator in zip(orders, self.generators, strict=True):
            torch.randperm(n_rows, generator=generator, out=own)
        return orders


class LaidOut:
    """What the steps take, one after the other, and places for what they say.

    Parameters
    ----------
    x : Tensor of shape (n_samples, *event_shape), or None
        None where the samples themselves are laid out.
    samples : Tensor of shape (n_steps, n_members, n_rows), or with event_shape behind
        Places of each batch in ``x``, or the samples.
    eps : Tensor of shape (n_steps, n_members, n_rows, latent_dim)
    rates : Tensor of shape (n_steps, 2)
    terms : Tensor of shape (n_steps, 2, n_members)
        Where the means of the two terms go.
    place : LongTensor of shape (1,)
        Which step is next.
    """

    def __init__(
        self, x: Tensor | None, samples: Tensor, eps: Tensor, rates: Tensor, terms: Tensor, place: Tensor
    ) -> None:
        self.x, self.samples, self.eps, self.rates, self.terms, self.place = x, samples, eps, rates, terms, place

    def take(self) -> tuple[Tensor, Tensor, Tensor]:
        """Samples, base samples and rates of the next step."""
        chosen, eps = self.samples.index_select(0, self.place)[0], self.eps.index_select(0, self.place)
        return chosen if self.x is None else self.x[chosen], eps, self.rates.index_select(0, self.place)[0]

    def note(self, reconstruction: Tensor, kl: Tensor) -> None:
        """Put down the means of the terms of this step, of shape (n_members, n), and go on to the next."""
        self.terms.index_copy_(0, self.place, torch.stack([reconstruction, kl]).mean(dim=-1)[None])
        self.place.add_(1)
