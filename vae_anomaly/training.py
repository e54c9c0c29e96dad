"""The one training loop: all members of an ensemble at once, each with its own rows and batches, stopping together."""

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_anomaly.ensemble import Ensemble
from vae_anomaly.errors import TrainingError
from vae_anomaly.kernels.learning import is_fused
from vae_anomaly.memory import use_huge_pages
from vae_anomaly.objective import objective_of
from vae_anomaly.optimizer import FlatParameters, one_cycle
from vae_anomaly.products import ROUNDED, multiplied, products_for
from vae_anomaly.replay import Replayed, own_stream
from vae_anomaly.replayed_steps import ReplayedSteps
from vae_anomaly.streaming import RowsOnDisk, rows_of
from vae_anomaly.supply import Supply
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
# Elsewhere an operation takes longer than to ask for it.
REPLAYED_ON = ("cuda",)
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
    precision: str = "auto"
    """Of products, one of ``PRECISIONS``."""
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
    use_huge_pages()
    with own_stream(ensemble.device), closing(_Run(ensemble, x, train_rows, held_out_rows, plan, generators)) as run:
        for first in range(0, plan.n_steps, run.steps_per_check):
            with multiplied(ensemble.device, run.products):
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
        self.ensemble, self.x, self.plan = ensemble, x, plan
        few = max(1, min(MAX_HELD_OUT, MAX_HELD_OUT_ENTRIES // math.prod(x.shape[1:])))
        self.held_out_x = rows_of(x, held_out_rows[:, :few])
        self.supply = _supply(ensemble, x, train_rows, plan, generators)
        steps_per_epoch = self.supply.steps_per_epoch
        whole_epochs = steps_per_epoch * math.ceil(MIN_STEPS_PER_CHECK / steps_per_epoch)
        self.steps_per_check = min(whole_epochs, MAX_STEPS_PER_CHECK)
        self.step = 0
        n_draws = max(1, min(plan.n_mc_held_out, MAX_HELD_OUT // self.held_out_x.shape[1]))
        self.held_out_eps = self.supply.noise(n_draws).to(ensemble.device).movedim(1, 0)[:, :, None]
        replayed = ensemble.device.type in REPLAYED_ON and plan.change is None
        # Recorded: to ask for them one by one takes even longer than for torch's operations.
        fused = replayed and is_fused(ensemble, plan.n_steps)
        self.weights = FlatParameters(ensemble, plan, fused=fused)
        self.products = products_for(
            plan.precision, ensemble.device, self.supply.batch_size, ensemble.params.values(), fused=fused
        )
        # What a product on a GPU takes hangs on where its result lies.
        into = self.weights.places if fused or ensemble.device.type == "cpu" else None
        self.objective = objective_of(ensemble, x, into, fused=fused, rounded=self.products == ROUNDED)
        self.best_elbo = -math.inf
        self.best_check = 0
        self.best_weights = self.weights.copy()
        self.stopped = False
        self.epochs: list[float] = []
        self.trained: list[NDArray[np.float64]] = []
        self.held_out: list[NDArray[np.float64]] = []
        self.look = Replayed(self._held_out_terms, ensemble.device)
        self.replayed: ReplayedSteps | None = None
        if replayed:
            self.replayed = ReplayedSteps(
                self._take, x, self.supply, self._schedule, plan.n_steps, self.steps_per_check, ensemble.device,
                fused=fused,
            )  # fmt: skip

    @property
    def epoch(self) -> float:
        """Passes over the training rows so far."""
        return self.step / self.supply.steps_per_epoch

    def close(self) -> None:
        """Leave off, and let go of what a device has recorded."""
        if self.replayed is not None:
            self.replayed.close()
        del self.replayed, self.look

    def _next_batch(self) -> Tensor:
        """Samples of the next batch, shape (n_estimators, batch_size, *event_shape), changed if the plan says so."""
        (rows,) = self.supply.rows(self.step, self.step + 1)
        batch = rows_of(self.x, rows)
        change, generators = self.plan.change, self.supply.generators
        if change is None:
            return batch
        return torch.stack([change(own, generator) for own, generator in zip(batch, generators, strict=True)])

    def _schedule(self, step: int) -> tuple[float, float, int]:
        """Weight of the KL, learning rate, and how many rows of the batch are left out."""
        plan = self.plan
        warmup_steps = max(1.0, plan.warmup * plan.n_steps)
        beta = plan.beta * min(1.0, (step + 1) / warmup_steps)
        left_out = int(plan.robust * self.supply.batch_size) if step >= warmup_steps else 0
        return beta, one_cycle(step, plan.n_steps, plan.learning_rate), left_out

    def advance(self, first: int, last: int) -> None:
        """Take the steps from ``first`` up to ``last``."""
        if self.replayed is not None:
            terms = self.replayed.advance(first, last)
        else:
            taken = []
            for self.step in range(first, last):
                batch = self._next_batch()
                eps = self.supply.noise(self.supply.batch_size).to(batch.device)[None]
                taken.append(torch.stack(self._take(batch, eps, *self._schedule(self.step))).mean(dim=-1))
            terms = torch.stack(taken, dim=1)
        self.step = last
        reconstruction, kl = terms
        self._guard(reconstruction + kl, first)
        elbo = reconstruction - self.plan.beta * kl
        self.trained.append(_to_numpy(torch.stack([elbo, reconstruction, kl]).mean(dim=1)))

    def _take(
        self, batch: Tensor, eps: Tensor, beta: float | Tensor, learning_rate: float | Tensor, left_out: int
    ) -> tuple[Tensor, Tensor]:
        """One step; the two terms of the rows of its batch, each of shape (n_estimators, n)."""
        reconstruction, kl, gradients = self.objective.learned(batch, eps, beta, left_out)
        self.weights.step(gradients, learning_rate)
        return reconstruction, kl

    def _guard(self, losses: Tensor, first: int) -> None:
        """Stop at the first loss that is not finite; looked at once per check, so that no step waits for the device."""
        bad = ~torch.isfinite(losses).all(dim=1)
        if bool(bad.any()):
            step = first + int(bad.nonzero()[0, 0])
            epoch, batch = divmod(step, self.supply.steps_per_epoch)
            raise TrainingError(
                f"Training stopped: the loss was not finite in epoch {epoch + 1}, batch {batch + 1}. "
                "Lower learning_rate, raise min_scale, or look for extreme values in the training data."
            )

    def _held_out_terms(self) -> Tensor:
        """ELBO, reconstruction and KL, mean over each member's rows, then the usual ELBO, and 1 if all are finite."""
        reconstruction, kl = self.objective.terms(self.held_out_x, self.held_out_eps)
        elbo = reconstruction - self.plan.beta * kl
        means = torch.stack([elbo, reconstruction, kl]).mean(dim=-1).double().flatten()
        finite = torch.isfinite(elbo).all().double().reshape(1)
        return torch.cat([means, _trimmed_mean(elbo).reshape(1), finite])

    def check(self) -> None:
        """Compute the held-out terms; keep the weights if they are the best yet, stop if the best is long ago."""
        *means, usual, finite = self.look().tolist()
        if not finite:
            raise TrainingError(
                f"Training stopped: the held-out ELBO was not finite after epoch {self.epoch:.0f}. "
                "Look for extreme values in the training data, or raise min_scale."
            )
        self.held_out.append(np.array(means).reshape(3, -1))
        self.epochs.append(self.epoch)
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


def _supply(
    ensemble: Ensemble, x: Tensor, train_rows: Tensor, plan: Plan, generators: Sequence[torch.Generator]
) -> Supply:
    """Rows and base samples; a GPU draws its own, unless rows are to be fetched from elsewhere."""
    here, device = generators, ensemble.device
    if device.type == "cuda":
        generators = [torch.Generator(device).manual_seed(_seed(generator)) for generator in here]
    if isinstance(x, RowsOnDisk):
        return Supply(train_rows.cpu(), plan.batch_size, ensemble.skeleton.latent_dim, here, generators)
    return Supply(train_rows, plan.batch_size, ensemble.skeleton.latent_dim, generators)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator))


def _trimmed_mean(elbo: Tensor) -> Tensor:
    """Mean over the rows of all folds, less the tenth that is rated lowest.

    One extreme row, whose rating falls as all others rise, would end training at its first check.
    """
    rows = elbo.double().flatten().sort().values
    return rows[len(rows) // 10 :].mean()


def _to_numpy(values: Tensor) -> NDArray[np.float64]:
    return values.double().cpu().numpy()


def active_units(vae: VAE, x: Tensor) -> Tensor:
    """Number of latent variables whose posterior mean varies over the samples by a variance above 0.01 [1]_.

    References
    ----------
    .. [1] Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2016, https://arxiv.org/abs/1509.00519
    """
    return (vae.encode(x).mean.var(dim=0, correction=0) > 0.01).sum()
