"""The variational autoencoder: encode, decode, and the terms that every bound and score is made of."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, distributions, nn
from torch.distributions import Distribution, Independent

from vae_anomaly.errors import look_up
from vae_anomaly.likelihoods import LIKELIHOODS, Likelihood, bounded
from vae_anomaly.nets import build_nets
from vae_anomaly.picture import Picture
from vae_anomaly.priors import PRIORS, Prior, StandardNormal

__all__ = ["VAE", "Terms"]

# Numbers that are decoded together by a processor: more have left its cache before they are compared with the samples.
MAX_DECODED = 1 << 20

# exp(logvar / 2) stays between 0.007 and 150: a posterior can neither become a point nor spread without end.
MAX_LOGVAR = 10.0


class Terms(NamedTuple):
    """Log-densities of a batch, in nats, and the KL divergence of the posterior from the prior."""

    log_px_z: Tensor
    """log p(x | z), shape (n_mc, n_samples)."""
    log_pz: Tensor
    """log p(z), shape (n_mc, n_samples)."""
    log_qz: Tensor
    """log q(z | x), shape (n_mc, n_samples)."""
    kl: Tensor
    """KL(q(z | x) || p(z)), shape (n_samples,): in closed form where there is one, else the Monte Carlo mean."""


class _Posterior(distributions.Normal):
    """Normal whose scale is computed when it is asked for: most scores need the mean alone."""

    def __init__(self, loc: Tensor, raw_logvar: Tensor) -> None:
        Distribution.__init__(self, loc.shape, validate_args=False)
        self.loc, self.raw_logvar = loc, raw_logvar

    @cached_property
    def log_scale(self) -> Tensor:
        """Logarithm of the scale, within its bounds."""
        return 0.5 * bounded(self.raw_logvar, MAX_LOGVAR)

    @cached_property
    def scale(self) -> Tensor:  # type: ignore[override]
        """Standard deviation."""
        return torch.exp(self.log_scale)


class VAE(nn.Module):
    """Variational autoencoder with a diagonal Gaussian posterior.

    A missing entry of ``x`` is NaN. It is left out of the likelihood. The encoder sees 0, the average, in its place,
    and where ``imputation_steps`` is set, what the decoder expects there after so many passes through the network [1]_.

    Parameters
    ----------
    event_shape : sequence of int
        Shape of one sample; ``(n_features,)`` for rows of a table.
    latent_dim : int
    likelihood : str or Likelihood, default="gaussian"
        p(x | z), one of ``LIKELIHOODS``.
    prior : str or Prior, default="standard_normal"
        p(z), one of ``PRIORS``.
    hidden : sequence of int, default=(128, 128)
        Widths of the encoder's layers; the decoder mirrors them.
    image_shape : sequence of int, optional
        Channels, height and width, if a sample is a row of the pixels of an image: the networks are then convolutional.
    picture : Picture, optional
        The same and how pixels were scaled, whatever the networks: for the scores that see images.
    mask_input : bool, default=False
        Show the encoder which entries are missing; worth its weights only where the training data have holes.
    n_codes : int, default=1
        How many training samples, and codes of them, the end of ``fit`` will leave here, for the scores that compare
        with them; until then each is 0.
    generator : torch.Generator, optional
        Source of the initial weights; without one, torch's global generator.

    References
    ----------
    .. [1] Rezende, Mohamed and Wierstra, "Stochastic backpropagation and approximate inference in deep generative
       models", 2014, appendix F, https://arxiv.org/abs/1401.4082

    Examples
    --------
    >>> import torch
    >>> vae = VAE((5,), latent_dim=2, generator=torch.Generator().manual_seed(0))
    >>> x, eps = torch.zeros(3, 5), torch.zeros(1, 1, 2)
    >>> vae.elbo(x, eps).shape
    torch.Size([3])
    """

    missing_log_px: Tensor
    missing_error: Tensor
    code_mean: Tensor
    code_precision: Tensor
    usual_neg_elbo: Tensor
    exemplars: Tensor
    codes: Tensor
    code_spread: Tensor
    exemplar_costs: Tensor
    exemplar_lengths: Tensor
    compared: Tensor
    usual_unexplained: Tensor
    usual_unseen: Tensor
    patch_contrast: Tensor
    usual_patches: Tensor
    usual_views: Tensor
    usual_path: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dim: int,
        *,
        likelihood: str | Likelihood = "gaussian",
        prior: str | Prior = "standard_normal",
        hidden: Sequence[int] = (128, 128),
        image_shape: Sequence[int] | None = None,
        picture: Picture | None = None,
        mask_input: bool = False,
        n_codes: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.event_shape, self.latent_dim, self.mask_input = tuple(event_shape), latent_dim, mask_input
        self.likelihood = (
            look_up("likelihood", likelihood, LIKELIHOODS)(event_shape) if isinstance(likelihood, str) else likelihood
        )
        if isinstance(prior, str):
            prior = look_up("prior", prior, PRIORS)(latent_dim, event_shape=self.event_shape, generator=generator)
        self.prior = prior
        n_extra = self.event_shape[0] if mask_input else 0
        # Layers draw weights from the global generator before ours replaces them; its state is none of our business.
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            self.encoder, self.decoder = build_nets(
                event_shape,
                latent_dim,
                self.likelihood.n_params,
                hidden,
                image_shape=image_shape,
                n_extra=n_extra,
                generator=generator,
            )
        # Not part of the model: whoever scores rows with holes sets it, training leaves it at 0.
        self.imputation_steps = 0
        # Nor this: whoever knows that no entry of x is missing sets it, and spares looking for holes.
        self.complete = False
        self.picture = picture
        self._register_references(n_codes)
        if picture is not None:
            self._register_picture_references(picture)

    def _register_references(self, n_codes: int) -> None:
        """Buffers that the end of ``fit`` fills with what is usual for normal samples."""
        # Made by operations that torch knows without memory: for others it imports its compiler (see `nets`).

        # What a missing entry contributes to log p(x | z): nothing while training; afterwards what the entry
        # contributes on average, so that a hole neither raises nor lowers a score.
        self.register_buffer("missing_log_px", torch.zeros(self.event_shape))
        self.register_buffer("missing_error", torch.zeros(self.event_shape))
        self.register_buffer("code_mean", torch.zeros(self.latent_dim))
        self.register_buffer("code_precision", torch.zeros(self.latent_dim, self.latent_dim).fill_diagonal_(1.0))
        self.register_buffer("exemplars", torch.zeros(n_codes, *self.event_shape))
        self.register_buffer("codes", torch.zeros(n_codes, self.latent_dim))
        self.register_buffer("code_spread", torch.ones(self.latent_dim))
        self.register_buffer("usual_neg_elbo", torch.zeros(()))
        # Of each of the samples to compare with: what it costs to explain it, in nats; half its squared length over the
        # entries to compare by, for the search; and which entries these are.
        self.register_buffer("exemplar_costs", torch.zeros(n_codes))
        self.register_buffer("exemplar_lengths", torch.zeros(n_codes))
        self.register_buffer("compared", torch.ones(self.event_shape))
        # Where the upper fifth of held-out normal samples begins, and how far it goes on beyond.
        self.register_buffer("usual_unexplained", torch.tensor([0.0, 1.0]))
        self.register_buffer("usual_unseen", torch.tensor([0.0, 1.0]))

    def _register_picture_references(self, picture: Picture) -> None:
        """The same, of scores that see images."""
        n_views, n_places = picture.n_views, picture.n_places
        # Mean, and spread, of the distance at each place; middle, and mean excess over it, of each view and of grain.
        self.register_buffer("patch_contrast", torch.ones(()))
        self.register_buffer("usual_patches", torch.tensor([[0.0], [1.0]]).repeat(1, n_places))
        self.register_buffer("usual_views", torch.tensor([[0.0, 1.0]]).repeat(n_views + 1, 1))
        # Median, mean deficit and mean excess of each of three numbers.
        self.register_buffer("usual_path", torch.tensor([[0.0, 1.0, 1.0]]).repeat(3, 1))

    def encode(self, x: Tensor) -> Distribution:
        """Posterior q(z | x), of batch shape (n_samples,) and event shape (latent_dim,)."""
        return _posterior(self.encoder(self.encoder_input(x)))

    def encoder_input(self, x: Tensor) -> Tensor:
        """What the encoder sees of ``x``: :meth:`filled` and, if it is shown that, which entries are missing."""
        if self.complete:
            return self._beside_mask(x, None)
        missing = torch.isnan(x)
        # Once there is a value everywhere, a mask beside it would say the opposite.
        return self._beside_mask(self.filled(x), torch.zeros_like(missing) if self.imputation_steps else missing)

    def filled(self, x: Tensor) -> Tensor:
        """``x`` as the encoder sees it, with a value in place of each missing one."""
        missing = torch.isnan(x)
        seen, shown = torch.where(missing, 0.0, x), missing
        for _ in range(self.imputation_steps):
            qz = _posterior(self.encoder(self._beside_mask(seen, shown)))
            seen = torch.where(missing, self.decode(qz.mean).mean, seen)
            shown = torch.zeros_like(missing)
        return seen

    def _beside_mask(self, seen: Tensor, missing: Tensor | None) -> Tensor:
        if not self.mask_input:
            return seen
        mask = torch.zeros_like(seen) if missing is None else missing.to(seen.dtype)
        return torch.cat([seen, mask], dim=-1)

    def decode(self, z: Tensor) -> Distribution:
        """Likelihood p(x | z)."""
        px: Distribution = self.likelihood(self.decoder(z))
        return px

    def pz(self) -> Distribution:
        """Prior p(z)."""
        pz: Distribution = self.prior(self.encode)
        return pz

    def entries(self, px: Distribution, x: Tensor) -> Tensor:
        """Contribution of each entry of ``x`` to log p(x | z), shape (..., *event_shape)."""
        assert isinstance(px, Independent)
        if self.complete:
            observed: Tensor = px.base_dist.log_prob(x)
            return observed
        missing = torch.isnan(x)
        log_px: Tensor = px.base_dist.log_prob(torch.where(missing, 0.0, x))
        return torch.where(missing, self.missing_log_px, log_px)

    def log_px_z(self, px: Distribution, x: Tensor) -> Tensor:
        """log p(x | z) of the observed entries."""
        axes = tuple(range(-len(self.event_shape), 0))
        return self.entries(px, x).sum(dim=axes)

    def expected_entries(self, x: Tensor, eps: Tensor) -> Tensor:
        """What each entry of ``x`` contributes to E[log p(x | z)] under q(z | x); ``eps`` as of :meth:`terms`."""
        return self._at_draws(self.entries, _at(self.encode(x), eps), x).mean(dim=0)

    def _at_draws(self, function: Callable[[Distribution, Tensor], Tensor], z: Tensor, x: Tensor) -> Tensor:
        """``function(p(x | z), x)`` at draws of z, of shape (n_mc, n_samples, latent_dim)."""
        if len(z) * x.numel() <= MAX_DECODED or z.device.type != "cpu" or torch.is_grad_enabled():
            return function(self.decode(z), x)
        return torch.stack([function(self.decode(draw), x) for draw in z])

    def terms(self, x: Tensor, eps: Tensor) -> Terms:
        """Terms of the bounds for samples ``x`` of shape (n_samples, *event_shape).

        ``eps`` holds the base samples of z, of shape (n_mc, 1, latent_dim) or (n_mc, n_samples, latent_dim).
        """
        qz, pz = self.encode(x), self.pz()
        z = _at(qz, eps)
        return Terms(self._at_draws(self.log_px_z, z, x), pz.log_prob(z), qz.log_prob(z), self._kl(qz, z, pz))

    def _kl(self, qz: Distribution, z: Tensor, pz: Distribution | None = None) -> Tensor:
        if isinstance(self.prior, StandardNormal):
            # What torch's kl_divergence computes for any two normals, in a third of the operations.
            normal = _normal(qz)
            squares = torch.addcmul(normal.loc.square(), normal.scale, normal.scale)
            return 0.5 * (torch.sub(squares, normal.log_scale, alpha=2.0).sum(dim=-1) - self.latent_dim)
        pz = pz or self.pz()
        log_ratio: Tensor = qz.log_prob(z) - pz.log_prob(z)
        return log_ratio.mean(dim=0)

    def elbo_terms(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """E[log p(x | z)] and KL(q(z | x) || p(z)) of each sample, in nats: the two sides of the ELBO."""
        qz = self.encode(x)
        z = _at(qz, eps)
        return self._at_draws(self.log_px_z, z, x).mean(dim=0), self._kl(qz, z)

    def kl(self, x: Tensor, eps: Tensor) -> Tensor:
        """KL(q(z | x) || p(z)) of each sample, in nats, without the decoder."""
        qz = self.encode(x)
        return self._kl(qz, _at(qz, eps))

    def elbo(self, x: Tensor, eps: Tensor, beta: float | Tensor = 1.0) -> Tensor:
        r"""Evidence lower bound :math:`E_q \log p(x \mid z) - \beta\, KL(q \| p)` of each sample, in nats."""
        reconstruction, kl = self.elbo_terms(x, eps)
        return reconstruction - beta * kl


def _posterior(said: Tensor) -> Distribution:
    """Distribution of z by what the encoder says."""
    mu, raw_logvar = said.chunk(2, dim=-1)
    return Independent(_Posterior(mu, raw_logvar), 1, validate_args=False)


def _normal(qz: Distribution) -> _Posterior:
    assert isinstance(qz, Independent)
    assert isinstance(qz.base_dist, _Posterior)
    return qz.base_dist


def _at(qz: Distribution, eps: Tensor) -> Tensor:
    """z for base samples ``eps``; the distribution itself would take the root of the scale's square."""
    normal = _normal(qz)
    return torch.addcmul(normal.loc, normal.scale, eps)
