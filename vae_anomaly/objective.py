"""What training maximises: the ELBO of each member on samples of its own, and the gradient of it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from vae_anomaly.ensemble import Ensemble
from vae_anomaly.nets import Layers
from vae_anomaly.pullbacks import Sampled, log_densities, sampled
from vae_anomaly.replay import Branch
from vae_anomaly.scratch import blocks
from vae_anomaly.vae import VAE

if TYPE_CHECKING:
    from vae_anomaly.fused import LearnedLayers
    from vae_anomaly.kernels.layers import FusedLayers

__all__ = ["Learned", "Objective", "has_holes", "objective_of"]


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


def objective_of(
    ensemble: Ensemble,
    x: Tensor,
    into: Mapping[str, Tensor] | None = None,
    *,
    fused: bool = False,
    rounded: bool = False,
) -> Objective:
    """The objective of an ensemble on samples of ``x``, of shape (n_samples, *event_shape).

    ``into`` names places for gradients of parameters, some of which are then put there. ``fused`` is for ensembles of
    which :func:`~vae_anomaly.kernels.learning.is_fused` says that a GPU learns by its own programs; these need places.
    ``rounded`` says that a processor is to learn by products of numbers in bfloat16.

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
        return _ByAutograd(ensemble, rounded=rounded)
    joint.complete = not has_holes(x)
    kind = _Fused if fused else _Rounded if rounded else _WrittenOut
    return kind(ensemble, joint, into)


def has_holes(x: Tensor) -> bool:
    """Whether an entry is missing; a part of the rows at a time, as they may lie on disk.

    Examples
    --------
    >>> has_holes(torch.ones(2, 3)), has_holes(torch.tensor([[1.0, torch.nan]]))
    (False, True)
    """
    return any(bool(torch.isnan(x[part]).any()) for part in blocks(len(x), math.prod(x.shape[1:])))


class _ByAutograd:
    """Any ensemble."""

    def __init__(self, ensemble: Ensemble, *, rounded: bool) -> None:
        self.ensemble = ensemble
        # Of maps between features alone, those that are so large are rare.
        self.rounded = rounded and ensemble.skeleton.picture is not None

    @torch.no_grad()
    def terms(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        return self._terms(x, eps)

    def _terms(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        terms: tuple[Tensor, Tensor] = self.ensemble.map(VAE.elbo_terms, x, eps, in_dims=(0, 1))
        return terms

    def learned(self, x: Tensor, eps: Tensor, beta: float | Tensor, left_out: int) -> Learned:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.rounded):
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

    def __init__(self, ensemble: Ensemble, joint: VAE, into: Mapping[str, Tensor] | None) -> None:
        assert isinstance(joint.encoder, Layers)
        assert isinstance(joint.decoder, Layers)
        self.vae = joint
        names = {id(value): name for name, value in ensemble.params.items()}

        def of_net(net: Layers, *, wanted: bool) -> "LearnedLayers | FusedLayers":
            places = None if into is None else [into[names[id(value)]] for value in net.weights]
            return self.layers(net, places, wanted=wanted)

        # Nobody asks for the gradient of samples.
        self.encoder, self.decoder = of_net(joint.encoder, wanted=False), of_net(joint.decoder, wanted=True)
        self.own = [value for name, value in ensemble.params.items() if name.startswith("likelihood.")]
        found = [*self.own, *joint.encoder.weights, *joint.decoder.weights]
        order = {id(value): place for place, value in enumerate(found)}
        self.order = [order[id(value)] for value in ensemble.params.values()]

    @torch.no_grad()
    def terms(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        return self.vae.elbo_terms(x, eps)

    @torch.no_grad()
    def learned(self, x: Tensor, eps: Tensor, beta: float | Tensor, left_out: int) -> Learned:
        self.encoder.begin()
        self.decoder.begin()
        raw, back_to_encoder = self.encoder(self.vae.encoder_input(x))
        z, kl, back_to_raw = self.sampled(raw, eps[0])
        said, back_to_decoder = self.decoder(z)
        phi = said.reshape(*x.shape, self.vae.likelihood.n_params)
        log_px, back_to_phi = self.explained(phi, x, left_out)
        reconstruction, kl, weights = self.weighted(log_px, kl, left_out)

        branch = Branch(x.device)
        of_phi, *of_own = back_to_phi(weights)
        of_z, of_decoder = back_to_decoder(of_phi.flatten(-2), branch)
        assert of_z is not None
        _, of_encoder = back_to_encoder(back_to_raw(of_z, weights, beta), branch)
        branch.join()
        found = [*of_own, *of_encoder, *of_decoder]
        return Learned(reconstruction, kl, [found[place] for place in self.order])

    def layers(self, net: Layers, into: Sequence[Tensor] | None, *, wanted: bool) -> "LearnedLayers | FusedLayers":
        """Layers to learn from, whose gradients go to these places."""
        return net.learned(wanted=wanted, into=into)

    def weighted(self, reconstruction: Tensor, kl: Tensor, left_out: int) -> tuple[Tensor, Tensor, Tensor]:
        """Terms of the samples that are learned from, and what each sample counts; one number if all count the same."""
        share = 1.0 / (kl.shape[1] - left_out)
        if not left_out:
            return reconstruction, kl, torch.full_like(kl[:1, :1], share)
        kept = _kept(reconstruction - kl, left_out)
        return reconstruction.gather(1, kept), kl.gather(1, kept), torch.zeros_like(kl).scatter_(1, kept, share)

    def sampled(self, raw: Tensor, eps: Tensor) -> Sampled:
        """A draw of z from each posterior, and the way back."""
        return sampled(raw, eps)

    def explained(self, phi: Tensor, x: Tensor, left_out: int) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
        """log p(x | z) of each sample, and the way from what each counts to phi and the likelihood's parameters.

        Of the samples, as many as are ``left_out`` will not count.
        """
        entries, pullback = log_densities(self.vae, self.own, phi, x)
        return entries.sum(dim=-1), lambda weights: pullback(-weights.unsqueeze(-1))


class _Rounded(_WrittenOut):
    """The same with large products of numbers in bfloat16."""

    def layers(self, net: Layers, into: Sequence[Tensor] | None, *, wanted: bool) -> "LearnedLayers":
        return net.learned(wanted=wanted, into=into, rounded=True)


class _Fused(_WrittenOut):
    """The same by programs of a GPU, which does several of these operations in the time that it takes to begin one."""

    def __init__(self, ensemble: Ensemble, joint: VAE, into: Mapping[str, Tensor] | None) -> None:
        super().__init__(ensemble, joint, into)
        from vae_anomaly.kernels.terms import FUSED, FusedDensity, fused_sampled

        self._sampled, self._density = fused_sampled, None
        self._shares: dict[int, Tensor] = {}
        if joint.complete and type(joint.likelihood) in FUSED:
            self._density = FusedDensity(joint.likelihood, ensemble.n_estimators, math.prod(joint.event_shape))

    def layers(self, net: Layers, into: Sequence[Tensor] | None, *, wanted: bool) -> "FusedLayers":
        from vae_anomaly.kernels.layers import FusedLayers

        assert into is not None
        return FusedLayers(net.steps, net.weights, into, wanted=wanted)

    def weighted(self, reconstruction: Tensor, kl: Tensor, left_out: int) -> tuple[Tensor, Tensor, Tensor]:
        if left_out:
            return super().weighted(reconstruction, kl, left_out)
        return reconstruction, kl, self._share(kl)

    def sampled(self, raw: Tensor, eps: Tensor) -> Sampled:
        return self._sampled(raw, eps)

    def explained(self, phi: Tensor, x: Tensor, left_out: int) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
        if self._density is None:
            return super().explained(phi, x, left_out)
        log_px, pullback = self._density(phi, x, None if left_out else self._share(x))
        return log_px, lambda weights: [pullback(weights)]

    def _share(self, x: Tensor) -> Tensor:
        """What each sample counts where all of them do, of shape (n_estimators, n, ...)."""
        n = x.shape[1]
        if n not in self._shares:
            self._shares[n] = x.new_full((1, 1), 1.0 / n)
        return self._shares[n]


def _kept(elbo: Tensor, left_out: int) -> Tensor:
    """Places of all samples but the ``left_out`` with the lowest ELBO."""
    return elbo.topk(elbo.shape[1] - left_out).indices
