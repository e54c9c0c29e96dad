"""The one training loop: all members of an ensemble at once, each with its own rows and batches, stopping together."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_anomaly.ensemble import Ensemble
from vae_anomaly.errors import TrainingError
from vae_anomaly.memory import keep_freed_memory
from vae_anomaly.optimizer import FlatParameters, one_cycle
from vae_anomaly.splitting import index_type
from vae_anomaly.vae import VAE

__all__ = ["Change", "History", "Plan", "active_units", "train"]

# Rows on which held-out terms are computed: enough for a mean, few enough to cost less than the steps between two
# checks.
MAX_HELD_OUT = 2000  # times the draws of z for each
# Of wide rows, such as images, fewer: these rows lie in memory while all others may stay on disk.
MAX_HELD_OUT_ENTRIES = 2_000_000
MIN_STEPS_PER_CHECK = 25
# Of millions of rows, an epoch is too long to wait for the first look.
MAX_STEPS_PER_CHECK = 500
TERMS = ("elbo", "reconstruction", "kl")


@dataclass(frozen=True)
class Plan:
    """How to train: sizes, rates and when to stop."""

    n_steps: int
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    beta: float = 1.0
    warmup: float = 0.1
    """Share of the steps over which the weight of the KL rises from 0 to ``beta``."""
    patience: float = 0.3
    """Share of the steps without a better held-out ELBO after which training stops."""
    robust: float = 0.0
    """Share of each batch, that with the lowest ELBO, which is left out of the loss once the KL is phased in."""
    n_mc_held_out: int = 4
    change: "Change | None" = None
    """What is done to the samples of each batch before they are learned from; held-out samples stay as they are."""


@dataclass(frozen=True)
class History:
    """Terms over the course of training, each of shape (n_checks, n_estimators), in nats.

    ``elbo`` holds the bound with the weight beta on its KL term, which training maximises.
    """

    epoch: NDArray[np.float64]
    train_elbo: NDArray[np.float64]
    train_reconstruction: NDArray[np.float64]
    train_kl: NDArray[np.float64]
    val_elbo: NDArray[np.float64]
    val_reconstruction: NDArray[np.float64]
    val_kl: NDArray[np.float64]
    best: NDArray[np.int64]
    """Check whose weights all members kept, of shape ()."""


Change = Callable[[Tensor, torch.Generator], Tensor]
"""Samples of one member's batch -> samples to learn from in their place, of the same shape."""

OnCheck = Callable[[float, float, float], None]
"""Called with the share of the steps done, the epoch, and the held-out ELBO, mean over the members."""


def train(
    ensemble: Ensemble,
    x: Tensor,
    train_rows: Tensor,
    held_out_rows: Tensor,
    plan: Plan,
    generators: Sequence[torch.Generator],
    on_check: OnCheck | None = None,
) -> History:
    """Train all members in place, and leave them with the weights of the best held-out ELBO.

    AdamW with a one-cycle learning rate, gradients clipped for each member, and the weight of the KL warmed up.

    All members stop at the same step, by the mean over the held-out rows of all, less the tenth that is rated lowest. A
    fold of a small table is too few rows to choose a step by, all folds together are not; and as no member's step hangs
    on its own held-out rows alone, these rows may calibrate it, too.

    Parameters
    ----------
    ensemble : Ensemble
    x : Tensor of shape (n_samples, *event_shape)
        Normal samples, on the ensemble's device.
    train_rows, held_out_rows : LongTensor of shape (n_estimators, n)
        Rows that each member trains on, and rows that decide when to stop.
    plan : Plan
    generators : sequence of torch.Generator
        One for each member, on the CPU: order of batches and base samples.
    on_check : callable, optional
        Told of the progress.

    Raises
    ------
    TrainingError
        If a loss is not finite; the message says in which epoch and batch.
    """
    keep_freed_memory()
    run = _Run(ensemble, x, train_rows, held_out_rows, plan, generators)
    for first in range(0, plan.n_steps, run.steps_per_check):
        run.advance(first, min(first + run.steps_per_check, plan.n_steps))
        run.check()
        if on_check is not None:
            on_check(run.step / plan.n_steps, run.epoch, float(run.held_out[-1][0].mean()))
        if run.stopped:
            break
    run.restore_best()
    return run.history()


class _Run:
    """State of one training run."""

    def __init__(
        self,
        ensemble: Ensemble,
        x: Tensor,
        train_rows: Tensor,
        held_out_rows: Tensor,
        plan: Plan,
        generators: Sequence[torch.Generator],
    ) -> None:
        self.ensemble, self.x, self.plan, self.generators = ensemble, x, plan, generators
        few = max(1, min(MAX_HELD_OUT, MAX_HELD_OUT_ENTRIES // math.prod(x.shape[1:])))
        self.train_rows, self.held_out_x = train_rows, x[held_out_rows[:, :few]]
        n_rows = train_rows.shape[1]
        self.batch_size = min(plan.batch_size, n_rows)
        self.steps_per_epoch = max(1, n_rows // self.batch_size)
        whole_epochs = self.steps_per_epoch * math.ceil(MIN_STEPS_PER_CHECK / self.steps_per_epoch)
        self.steps_per_check = min(whole_epochs, MAX_STEPS_PER_CHECK)
        self.step = 0
        n_draws = max(1, min(plan.n_mc_held_out, MAX_HELD_OUT // self.held_out_x.shape[1]))
        self.held_out_eps = self._noise(n_draws).movedim(1, 0)[:, :, None]
        self._orders: Tensor | None = None
        self.weights = FlatParameters(ensemble, plan)
        self.joint = ensemble.joint()
        if self.joint is not None:
            self.joint.complete = not _has_holes(x)
        self.best_elbo = -math.inf
        self.best_check = 0
        self.best_weights = self.weights.copy()
        self.stopped = False
        self.epochs: list[float] = []
        self.trained: list[NDArray[np.float64]] = []
        self.held_out: list[NDArray[np.float64]] = []

    @property
    def epoch(self) -> float:
        """Passes over the training rows so far."""
        return self.step / self.steps_per_epoch

    def _noise(self, n: int) -> Tensor:
        """Base samples of shape (n_estimators, n, latent_dim), each member's from its own generator."""
        latent_dim = self.ensemble.skeleton.latent_dim
        draws = [torch.randn(n, latent_dim, generator=generator) for generator in self.generators]
        return torch.stack(draws).to(self.x.device)

    def _next_rows(self) -> Tensor:
        """Rows of the next batch, shape (n_estimators, batch_size); each epoch in a new order, less the ragged end."""
        within = self.step % self.steps_per_epoch
        if within == 0 or self._orders is None:
            self._orders = self._new_orders().to(self.x.device)
        places = self._orders[:, within * self.batch_size : (within + 1) * self.batch_size]
        return self.train_rows.gather(1, places.long()).long()

    def _new_orders(self) -> Tensor:
        """A new order of each member's rows, in half the memory that indices usually take."""
        self._orders = None
        n_rows = self.train_rows.shape[1]
        orders = torch.empty(len(self.generators), n_rows, dtype=index_type(n_rows))
        for own, generator in zip(orders, self.generators, strict=True):
            torch.randperm(n_rows, generator=generator, out=own)
        return orders

    def _next_batch(self) -> Tensor:
        """Samples of the next batch, shape (n_estimators, batch_size, *event_shape), changed if the plan says so."""
        batch: Tensor = self.x[self._next_rows()]
        change = self.plan.change
        if change is None:
            return batch
        return torch.stack([change(own, generator) for own, generator in zip(batch, self.generators, strict=True)])

    def advance(self, first: int, last: int) -> None:
        """Take the steps from ``first`` up to ``last``."""
        plan, terms = self.plan, []
        warmup_steps = max(1.0, plan.warmup * plan.n_steps)
        for self.step in range(first, last):
            beta = plan.beta * min(1.0, (self.step + 1) / warmup_steps)
            batch, eps = self._next_batch(), self._noise(self.batch_size)[None]
            left_out = int(plan.robust * self.batch_size) if self.step >= warmup_steps else 0
            reconstruction, kl = self._terms(batch, eps, left_out)
            # Members share nothing, so the gradient of the sum holds the gradient of each.
            loss = (beta * kl - reconstruction).sum() / kl.shape[1]
            self.weights.step(loss, one_cycle(self.step, plan.n_steps, plan.learning_rate))
            terms.append(torch.stack([reconstruction.detach(), kl.detach()]).mean(dim=-1))
        self.step = last
        reconstruction, kl = torch.stack(terms, dim=1)
        self._guard(reconstruction + kl, first)
        elbo = reconstruction - plan.beta * kl
        self.trained.append(_to_numpy(torch.stack([elbo, reconstruction, kl]).mean(dim=1)))

    def _elbo_terms(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Terms of each member's own rows, shape (n_estimators, n); ``eps`` has an axis over draws in front."""
        if self.joint is not None:
            return self.joint.elbo_terms(x, eps)
        terms: tuple[Tensor, Tensor] = self.ensemble.map(VAE.elbo_terms, x, eps, in_dims=(0, 1))
        return terms

    def _terms(self, x: Tensor, eps: Tensor, left_out: int) -> tuple[Tensor, Tensor]:
        """The same, less the ``left_out`` rows with the lowest ELBO."""
        reconstruction, kl = self._elbo_terms(x, eps)
        if left_out:
            kept = (reconstruction - kl).detach().topk(kl.shape[1] - left_out).indices
            reconstruction, kl = reconstruction.gather(1, kept), kl.gather(1, kept)
        return reconstruction, kl

    def _guard(self, losses: Tensor, first: int) -> None:
        """Stop at the first loss that is not finite; looked at once per check, so that no step waits for the device."""
        bad = ~torch.isfinite(losses).all(dim=1)
        if bool(bad.any()):
            step = first + int(bad.nonzero()[0, 0])
            epoch, batch = divmod(step, self.steps_per_epoch)
            raise TrainingError(
                f"Training stopped: the loss was not finite in epoch {epoch + 1}, batch {batch + 1}. "
                "Lower learning_rate, raise min_scale, or look for extreme values in the training data."
            )

    @torch.no_grad()
    def check(self) -> None:
        """Compute the held-out terms; keep the weights if they are the best yet, stop if the best is long ago."""
        reconstruction, kl = self._elbo_terms(self.held_out_x, self.held_out_eps)
        elbo = reconstruction - self.plan.beta * kl
        if not bool(torch.isfinite(elbo).all()):
            raise TrainingError(
                f"Training stopped: the held-out ELBO was not finite after epoch {self.epoch:.0f}. "
                "Look for extreme values in the training data, or raise min_scale."
            )
        self.held_out.append(_to_numpy(torch.stack([elbo, reconstruction, kl]).mean(dim=-1)))
        self.epochs.append(self.epoch)
        usual = _trimmed_mean(elbo)
        if usual > self.best_elbo:
            self.best_elbo, self.best_check = usual, len(self.epochs) - 1
            self.best_weights = self.weights.copy()
        warm = self.step >= self.plan.warmup * self.plan.n_steps
        allowed = math.ceil(self.plan.patience * self.plan.n_steps / self.steps_per_check)
        self.stopped = warm and len(self.epochs) - 1 - self.best_check >= allowed

    def restore_best(self) -> None:
        """Give all members the weights of the best check."""
        self.ensemble.params = self.weights.split(self.best_weights)

    def history(self) -> History:
        trained, held_out = np.stack(self.trained, axis=1), np.stack(self.held_out, axis=1)
        curves = dict(zip((f"train_{term}" for term in TERMS), trained, strict=True))
        curves |= dict(zip((f"val_{term}" for term in TERMS), held_out, strict=True))
        return History(epoch=np.array(self.epochs), best=np.array(self.best_check), **curves)


def _has_holes(x: Tensor) -> bool:
    """Whether an entry is missing; a few rows at a time, as they may lie on disk."""
    size = max(1, MAX_HELD_OUT_ENTRIES // math.prod(x.shape[1:]))
    return any(bool(torch.isnan(x[start : start + size]).any()) for start in range(0, len(x), size))


def _trimmed_mean(elbo: Tensor) -> float:
    """Mean over the rows of all folds, less the tenth that is rated lowest.

    One extreme row, whose rating falls as all others rise, would end training at its first check.
    """
    rows = elbo.double().flatten().sort().values
    return float(rows[len(rows) // 10 :].mean())


def _to_numpy(values: Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()


def active_units(vae: VAE, x: Tensor) -> Tensor:
    """Number of latent variables whose posterior mean varies over the samples by a variance above 0.01 [1]_.

    References
    ----------
    .. [1] Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2016, https://arxiv.org/abs/1509.00519
    """
    return (vae.encode(x).mean.var(dim=0, correction=0) > 0.01).sum()
