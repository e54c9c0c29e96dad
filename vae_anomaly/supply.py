"""What the steps of training take: rows in a new order each epoch, and base samples, of each member's own."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_anomaly.splitting import index_type

__all__ = ["Supply"]


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
