"""Terms of the ELBO, each with its pullback: what takes a gradient with respect to it back to what it is made of.

Autograd needs more time to note down operations as small as these than they take.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vae_anomaly.likelihoods import (
    LOG_ROOT_2PI,
    MAX_LOGIT,
    RAW_ONE,
    Bernoulli,
    Categorical,
    Gaussian,
    GaussianPerFeature,
    GaussianShared,
    Likelihood,
    Mixed,
    OneHotBlocks,
    StudentT,
    log_normaliser,
    softplus,
)
from vae_anomaly.vae import MAX_LOGVAR, VAE

__all__ = ["WRITTEN_OUT", "Sampled", "log_densities", "sampled"]

Pullback = Callable[[Tensor], list[Tensor]]
"""Gradient with respect to a result -> gradients with respect to what it was made of."""


class Sampled(NamedTuple):
    """A draw of z from each posterior."""

    z: Tensor
    """Shape (..., n_samples, latent_dim)."""
    kl: Tensor
    """KL divergence of the posterior from the standard normal, shape (..., n_samples), in nats."""
    pullback: Callable[[Tensor, Tensor, float | Tensor], Tensor]
    """Gradient with respect to ``z``, what each sample counts, and the weight of ``kl`` beside that -> gradient with
    respect to what the encoder says."""


def sampled(raw: Tensor, eps: Tensor) -> Sampled:
    """Draw z by the reparameterisation trick.

    Parameters
    ----------
    raw : Tensor of shape (..., n_samples, 2 * latent_dim)
        Means and raw log-variances, as the encoder says them.
    eps : Tensor of shape (..., n_samples, latent_dim)
        Base samples.

    Examples
    --------
    >>> z, kl, pullback = sampled(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0]]))
    >>> float(z), float(kl)
    (4.0, 0.5)
    >>> pullback(torch.ones(1, 1), torch.zeros(1), 1.0).tolist()
    [[1.0, 1.5]]
    """
    mu, raw_logvar = raw.chunk(2, dim=-1)
    logvar, back = _bounded(raw_logvar, MAX_LOGVAR)
    log_scale = logvar.mul_(0.5)
    scale = torch.exp(log_scale)
    z = torch.addcmul(mu, scale, eps)
    squares = torch.addcmul(mu.square(), scale, scale)
    kl = 0.5 * (torch.sub(squares, log_scale, alpha=2.0).sum(dim=-1) - mu.shape[-1])

    def pullback(of_z: Tensor, weights: Tensor, beta: float | Tensor) -> Tensor:
        of_kl = (beta * weights).unsqueeze(-1)
        of_scale = (of_z * eps).add_(of_kl * scale)
        of_logvar = of_scale.mul_(scale).sub_(of_kl).mul_(0.5)
        return torch.cat([of_z + of_kl * mu, back(of_logvar)], dim=-1)

    return Sampled(z, kl, pullback)


def log_densities(vae: VAE, own: Sequence[Tensor], phi: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
    """Contribution of each entry of ``x`` to log p(x | z), as :meth:`VAE.entries` says it.

    Parameters
    ----------
    vae : VAE
    own : sequence of Tensor
        Parameters of its likelihood.
    phi : Tensor of shape (..., *event_shape, n_params)
        What the decoder says.
    x : Tensor of shape (..., *event_shape)

    Returns
    -------
    Tensor of shape (..., *event_shape)
    callable
        Gradient with respect to the first, or what can be broadcast to it -> gradients with respect to ``phi`` and
        each of ``own``.
    """
    written_out = WRITTEN_OUT.get(type(vae.likelihood))
    if written_out is None:
        return _by_autograd(vae, own, phi, x)

    def shaped(of_phi: Tensor, *of_own: Tensor) -> list[Tensor]:
        # The likelihood's parameters broadcast along the samples; what is learned has no axis for that.
        return [of_phi, *(one.reshape(value.shape) for one, value in zip(of_own, own, strict=True))]

    if vae.complete:
        entries, pullback = written_out(vae.likelihood, phi, x)
        return entries, lambda g: shaped(*pullback(g))
    missing = torch.isnan(x)
    entries, pullback = written_out(vae.likelihood, phi, torch.where(missing, 0.0, x))
    return torch.where(missing, vae.missing_log_px, entries), lambda g: shaped(*pullback(torch.where(missing, 0.0, g)))


def _by_autograd(vae: VAE, own: Sequence[Tensor], phi: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
    with torch.enable_grad():
        phi = phi.detach().requires_grad_()
        entries = vae.entries(vae.likelihood(phi), x)

    def pullback(g: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(entries, [phi, *own], g.expand_as(entries)))

    return entries.detach(), pullback


def _scaled(raw: Tensor, min_scale: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Scales above a floor, and the way back from what may hold more samples than there are scales."""
    raw = raw + RAW_ONE
    return softplus(raw) + min_scale, lambda g: torch.ops.aten.softplus_backward(g.sum_to_size(raw.shape), raw, 1, 20)


def _normal(mu: Tensor, raw_scale: Tensor, x: Tensor, min_scale: Tensor) -> tuple[Tensor, Pullback]:
    scale, back = _scaled(raw_scale, min_scale)
    u = (x - mu).div_(scale)
    entries = torch.addcmul(torch.rsub(scale.log(), -LOG_ROOT_2PI), u, u, value=-0.5)

    def pullback(g: Tensor) -> list[Tensor]:
        of_mu = (g * u).div_(scale)
        return [of_mu, back(torch.addcmul(-g / scale, of_mu, u))]

    return entries, pullback


def _bounded(raw: Tensor, bound: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """As :func:`~vae_anomaly.likelihoods.bounded`; the way back writes over the gradient that it is given."""
    share = torch.mul(raw, 2.0 / bound).sigmoid_()

    def back(g: Tensor) -> Tensor:
        of_raw: Tensor = torch.ops.aten.sigmoid_backward.grad_input(g, share, grad_input=g)
        return of_raw.mul_(4.0)

    return (share - 0.5).mul_(2.0 * bound), back


def _binary(raw: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
    logits, back = _bounded(raw, MAX_LOGIT)
    inside, outside = (x, None) if _within(x) else _parted(x)
    # Of a 0; its logarithm is minus the softplus of the logits, which are bounded.
    probability = torch.neg(logits).sigmoid_()
    entries = probability.log().addcmul_(inside, logits)
    if outside is not None:
        entries.sub_(outside)

    def pullback(g: Tensor) -> list[Tensor]:
        return [back((inside - 1.0).add_(probability).mul_(g))]

    return entries, pullback


def _within(x: Tensor) -> bool:
    """Whether all values are in [0, 1], where to ask takes less time than what it may save."""
    if x.device.type != "cpu" or not x.numel():
        return False
    least, most = torch.aminmax(x)
    return bool(least >= 0.0) and bool(most <= 1.0)


def _parted(x: Tensor) -> tuple[Tensor, Tensor]:
    """Values within [0, 1], and what is subtracted for those beyond."""
    inside = x.clamp(0.0, 1.0)
    return inside, (x - inside).abs_().mul_(MAX_LOGIT)


def _onehot(raw: Tensor, x: Tensor, likelihood: Categorical) -> tuple[Tensor, Pullback]:
    # Two logits within half of it differ by at most the whole.
    logits, back = _bounded(raw, MAX_LOGIT / 2)
    px = OneHotBlocks(logits, likelihood.owner, likelihood.padded)

    def pullback(g: Tensor) -> list[Tensor]:
        of_log_pi = g * x
        of_blocks = F.pad(of_log_pi, (0, 1))[..., likelihood.padded].sum(dim=-1)
        return [back(of_log_pi - of_blocks[..., likelihood.owner].mul_(px.mean))]

    return px.log_prob(x), pullback


def _gaussian(likelihood: Gaussian, phi: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
    mu, raw_scale = phi.unbind(dim=-1)
    entries, pullback = _normal(mu, raw_scale, x, likelihood.min_scale)
    return entries, lambda g: [torch.stack(pullback(g), dim=-1)]


def _gaussian_per_feature(likelihood: GaussianPerFeature, phi: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
    entries, pullback = _normal(phi.squeeze(dim=-1), likelihood.raw_scale, x, likelihood.min_scale)

    def back(g: Tensor) -> list[Tensor]:
        of_mu, of_raw_scale = pullback(g)
        return [of_mu.unsqueeze(-1), of_raw_scale]

    return entries, back


def _student_t(likelihood: StudentT, phi: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
    mu, raw_scale = phi.unbind(dim=-1)
    df, (scale, back) = likelihood.df, _scaled(raw_scale, likelihood.min_scale)
    y = (x - mu).div_(scale)
    squares = y.square()
    far = torch.log1p(squares / df)
    entries = (-0.5 * (df + 1.0) * far).sub_(scale.log()).sub_(log_normaliser(df))

    def pullback(g: Tensor) -> list[Tensor]:
        # Of y, but for its sign: of mu, times the scale.
        weights = (df + 1.0) / (squares + df)
        of_mu = (weights * y).mul_(g).div_(scale)
        of_scale = (of_mu * y).sub_(g / scale)
        slope = 0.5 * (torch.digamma(0.5 * (df + 1.0)) - torch.digamma(0.5 * df) - 1.0 / df)
        of_df = (weights * squares).div_(df).sub_(far).mul_(0.5).add_(slope).mul_(g).sum_to_size(df.shape)
        of_raw_df = torch.ops.aten.softplus_backward(of_df, likelihood.raw_df, 1, 20)
        return [torch.stack([of_mu, back(of_scale)], dim=-1), of_raw_df]

    return entries, pullback


def _bernoulli(likelihood: Bernoulli, phi: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
    entries, pullback = _binary(phi.squeeze(dim=-1), x)
    return entries, lambda g: [pullback(g)[0].unsqueeze(-1)]


def _categorical(likelihood: Categorical, phi: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
    entries, pullback = _onehot(phi.squeeze(dim=-1), x, likelihood)
    return entries, lambda g: [pullback(g)[0].unsqueeze(-1)]


def _mixed(likelihood: Mixed, phi: Tensor, x: Tensor) -> tuple[Tensor, Pullback]:
    n_real, n_binary, categories = likelihood.blocks
    sizes = [n_real, n_binary, sum(categories)]
    first, second = phi.unbind(dim=-1)
    (mu, binary, onehot), (reals, bits, chosen) = torch.split(first, sizes, dim=-1), torch.split(x, sizes, dim=-1)
    parts = [_normal(mu, second[..., :n_real], reals, likelihood.min_scale), _binary(binary, bits)]
    if categories:
        parts.append(_onehot(onehot, chosen, likelihood))
    entries = torch.cat([own for own, _ in parts], dim=-1)

    def pullback(g: Tensor) -> list[Tensor]:
        # What is the same for all columns stays one number for each sample.
        shares = torch.split(g, sizes, dim=-1) if g.shape[-1] == sum(sizes) else itertools.repeat(g)
        of_phi = torch.empty_like(phi)
        of_first, of_second = of_phi.unbind(dim=-1)
        places = torch.split(of_first, sizes, dim=-1)
        # Only reals have a second parameter.
        of_second[..., n_real:] = 0.0
        for (_, back), own, place in zip(parts, shares, places, strict=False):
            found, *of_scale = back(own)
            place.copy_(found)
            if of_scale:
                of_second[..., :n_real] = of_scale[0]
        return [of_phi]

    return entries, pullback


# Likelihoods whose density is simple enough; of all others, autograd takes care.
WRITTEN_OUT: dict[type[Likelihood], Callable[..., tuple[Tensor, Pullback]]] = {
    Gaussian: _gaussian,
    GaussianPerFeature: _gaussian_per_feature,
    GaussianShared: _gaussian_per_feature,
    StudentT: _student_t,
    Bernoulli: _bernoulli,
    Categorical: _categorical,
    Mixed: _mixed,
}
