"""What training maximises: the ELBO of each member on samples of its own, and the gradient of it."""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vae_anomaly.ensemble import Ensemble
from vae_anomaly.nets import Layers
from vae_anomaly.pullbacks import log_densities, sampled
from vae_anomaly.replay import Branch
from vae_anomaly.scratch import blocks
from vae_anomaly.vae import VAE

__all__ = ["Learned", "Objective", "objective_of"]


class Learned(NamedTuple):
    """What one batch says; the two terms in nats, of the samples that are learned from."""

    reconstruction: Tensor
    """E[log p(x|z)], shape (n_estimators, n)."""
    kl: Tensor
    """KL(q(z|x) || p(z)), shape (n_estimators, n)."""
    gradients: list[Tensor]
    """Of the mean of beta KL less reconstruction, with respect to each of the ensemble's parameters, in their order."""


class Objective(Protocol):
    """The ELBO of all members of an ensemble, whose parameters stay where they are in memory.

    ``x`` has shape (n_estimators, n_samples, *event_shape), and ``eps`` (n_draws, n_estimators, n_samples or 1,
    latent_dim).
    """

    def terms(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and KL of each sample, shape (n_estimators, n_samples), without a gradient."""

    def learned(self, x: Tensor, eps: Tensor, beta: float | Tensor, left_out: int) -> Learned:
        """The same with gradients, by one draw; the ``left_out`` samples with the lowest ELBO are left out."""


def objective_of(ensemble: Ensemble, x: Tensor) -> Objective:
    """The objective of an ensemble on samples of ``x``, of shape (n_samples, *event_shape).

    Examples
    --------
    >>> vae, x = VAE((5,), latent_dim=2, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 5)
    >>> objective = objective_of(Ensemble([vae]), x)
    >>> reconstruction, kl, gradients = objective.learned(x[None], torch.zeros(1, 1, 3, 2), beta=1.0, left_out=1)
    >>> kl.shape, gradients[0].shape
    (torch.Size([1, 2]), torch.Size([1, 128, 5]))
    """
    joint = ensemble.joint()
    if joint is None:
        return _ByAutograd(ensemble)
    joint.complete = not _has_holes(x)
    return _WrittenOut(ensemble, joint)


def _has_holes(x: Tensor) -> bool:
    """Whether an entry is missing; a part of the rows at a time, as they may lie on disk."""
    return any(bool(torch.isnan(x[part]).any()) for part in blocks(len(x), math.prod(x.shape[1:])))


class _ByAutograd:
    """Any ensemble."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble

    @torch.no_grad()
    def terms(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        return self._terms(x, eps)

    def _terms(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        terms: tuple[Tensor, Tensor] = self.ensemble.map(VAE.elbo_terms, x, eps, in_dims=(0, 1))
        return terms

    def learned(self, x: Tensor, eps: Tensor, beta: float | Tensor, left_out: int) -> Learned:
        reconstruction, kl = self._terms(x, eps)
        if left_out:
            kept = _kept((reconstruction - kl).detach(), left_out)
            reconstruction, kl = reconstruction.gather(1, kept), kl.gather(1, kept)
        # Members share nothing, so the gradient of the sum holds the gradient of each.
        loss = (beta * kl - reconstruction).sum() / kl.shape[1]
        gradients = torch.autograd.grad(loss, list(self.ensemble.params.values()))
        return Learned(reconstruction.detach(), kl.detach(), list(gradients))


class _WrittenOut:
    """Networks of affine maps and a standard normal prior: all members as one program, and back by its formulas."""

    def __init__(self, ensemble: Ensemble, joint: VAE) -> None:
        assert isinstance(joint.encoder, Layers)
        assert isinstance(joint.decoder, Layers)
        self.vae = joint
        self.encoder, self.decoder = joint.encoder.learned(), joint.decoder.learned()
        self.own = [value for name, value in ensemble.params.items() if name.startswith("likelihood.")]
        found = [*self.own, *self.encoder.weights, *self.decoder.weights]
        places = {id(value): place for place, value in enumerate(found)}
        self.order = [places[id(value)] for value in ensemble.params.values()]

    @torch.no_grad()
    def terms(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        return self.vae.elbo_terms(x, eps)

    @torch.no_grad()
    def learned(self, x: Tensor, eps: Tensor, beta: float | Tensor, left_out: int) -> Learned:
        raw, back_to_encoder = self.encoder(self.vae.encoder_input(x))
        z, kl, back_to_raw = sampled(raw, eps[0])
        said, back_to_decoder = self.decoder(z)
        phi = said.reshape(*x.shape, self.vae.likelihood.n_params)
        entries, back_to_phi = log_densities(self.vae, self.own, phi, x)
        reconstruction, kl, weights = _weighted(entries.sum(dim=-1), kl, left_out)

        branch = Branch(x.device)
        of_phi, *of_own = back_to_phi(-weights.unsqueeze(-1))
        of_z, of_decoder = back_to_decoder(of_phi.flatten(-2), branch)
        assert of_z is not None
        _, of_encoder = back_to_encoder(back_to_raw(of_z, beta * weights), branch, wanted=False)
        branch.join()
        found = [*of_own, *of_encoder, *of_decoder]
        return Learned(reconstruction, kl, [found[place] for place in self.order])


def _weighted(reconstruction: Tensor, kl: Tensor, left_out: int) -> tuple[Tensor, Tensor, Tensor]:
    """Terms of the samples that are learned from, and what each sample counts; one number if all count the same."""
    share = 1.0 / (kl.shape[1] - left_out)
    if not left_out:
        return reconstruction, kl, torch.full_like(kl[:1, :1], share)
    kept = _kept(reconstruction - kl, left_out)
    return reconstruction.gather(1, kept), kl.gather(1, kept), torch.zeros_like(kl).scatter_(1, kept, share)


def _kept(elbo: Tensor, left_out: int) -> Tensor:
    """Places of all samples but the ``left_out`` with the lowest ELBO."""
    return elbo.topk(elbo.shape[1] - left_out).indices
