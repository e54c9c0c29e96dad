"""p(z): what is believed about the latent variables before a sample is seen."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, distributions, nn
from torch.distributions import Distribution, Independent, MixtureSameFamily
from torch.nn import functional as F

__all__ = ["PRIORS", "GaussianMixture", "Prior", "StandardNormal", "VampPrior"]

MIN_SCALE = 0.05


class Prior(nn.Module):
    """Distribution of the latent variables, of event shape (latent_dim,).

    Parameters
    ----------
    latent_dim : int
    n_components : int, default=16
        Number of components of the mixtures; ignored by a prior that has none.
    event_shape : tuple of int, default=()
        Shape of one sample, for the prior that is made of samples.
    generator : torch.Generator, optional
        Source of the initial values.
    """

    name: ClassVar[str]

    def __init__(
        self,
        latent_dim: int,
        *,
        n_components: int = 16,
        event_shape: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim, self.n_components, self.event_shape = latent_dim, n_components, event_shape
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Draw initial values."""

    def start_from(self, x: Tensor) -> None:
        """Take initial values from ``n_components`` training samples, if the prior is made of samples."""

    def forward(self, encode: Callable[[Tensor], Distribution]) -> Distribution:
        """Distribution p(z); ``encode`` is the VAE's own q(z | x), for a prior that is built from it."""
        raise NotImplementedError


class StandardNormal(Prior):
    """Independent standard normals, N(0, I) (Kingma and Welling 2013, https://arxiv.org/abs/1312.6114)."""

    name = "standard_normal"

    # A buffer tells where (device) and in which precision to make the distribution.
    origin: Tensor

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        self.register_buffer("origin", torch.zeros(self.latent_dim))

    def forward(self, encode: Callable[[Tensor], Distribution]) -> Distribution:
        normal = distributions.Normal(self.origin, torch.ones_like(self.origin), validate_args=False)
        return Independent(normal, 1, validate_args=False)


class GaussianMixture(Prior):
    """Mixture of diagonal Gaussians with learned weights, means and scales (Dilokthanakul et al. 2016,
    https://arxiv.org/abs/1611.02648): normal data that come in kinds get a place for each.
    """

    name = "gaussian_mixture"

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        shape = (self.n_components, self.latent_dim)
        self.logits = nn.Parameter(torch.zeros(self.n_components))
        self.loc = nn.Parameter(_draw(shape, generator))
        self.raw_scale = nn.Parameter(torch.full(shape, 0.5413))  # softplus: 1

    def forward(self, encode: Callable[[Tensor], Distribution]) -> Distribution:
        components = distributions.Normal(self.loc, F.softplus(self.raw_scale) + MIN_SCALE, validate_args=False)
        return _mixture(self.logits, components)


class VampPrior(Prior):
    """Mixture of the posteriors of learned pseudo-inputs (Tomczak and Welling 2018, https://arxiv.org/abs/1705.07120).

    It approximates the aggregate posterior, so it says where the codes of normal samples really are.
    """

    name = "vamp"

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        self.logits = nn.Parameter(torch.zeros(self.n_components))
        shape = (self.n_components, *self.event_shape)
        self.pseudo_inputs = nn.Parameter(_draw(shape, generator))

    def start_from(self, x: Tensor) -> None:
        with torch.no_grad():
            self.pseudo_inputs.copy_(torch.nan_to_num(x))

    def forward(self, encode: Callable[[Tensor], Distribution]) -> Distribution:
        posterior = encode(self.pseudo_inputs)
        return _mixture(self.logits, distributions.Normal(posterior.mean, posterior.stddev, validate_args=False))


def _draw(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    drawn = torch.empty(shape)
    # On the meta device nothing is drawn, and torch would import its compiler for it.
    return drawn if drawn.is_meta else drawn.normal_(generator=generator)


def _mixture(logits: Tensor, components: distributions.Normal) -> MixtureSameFamily:
    weights = distributions.Categorical(logits=logits, validate_args=False)
    return MixtureSameFamily(weights, Independent(components, 1, validate_args=False), validate_args=False)


PRIORS: dict[str, type[Prior]] = {
    "standard_normal": StandardNormal,
    "gaussian_mixture": GaussianMixture,
    "vamp": VampPrior,
}
