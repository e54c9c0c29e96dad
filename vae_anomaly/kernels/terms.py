"""Terms of the ELBO and their ways back, each as one program of a GPU."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from vae_anomaly.kernels.launch import begun, early
from vae_anomaly.likelihoods import LOG_ROOT_2PI, MAX_LOGIT, RAW_ONE, Bernoulli, Gaussian, Likelihood
from vae_anomaly.pullbacks import Sampled
from vae_anomaly.vae import MAX_LOGVAR

__all__ = ["FUSED", "FusedDensity", "fused_sampled"]

# Numbers that a program has at work at once.
NUMBERS = 1024
PER_WARP = 256


@triton.jit
def _tanh(h):  # type: ignore[no-untyped-def]
    # By a power that does not overflow.
    small = tl.exp(-2.0 * tl.abs(h))
    return tl.where(h < 0.0, -1.0, 1.0) * (1.0 - small) / (1.0 + small)


@triton.jit
def _softplus(h):  # type: ignore[no-untyped-def]
    return tl.maximum(h, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(h)))


@triton.jit(do_not_specialize=["n_rows", "n_latent"])  # type: ignore[untyped-decorator]
def _draw(  # type: ignore[no-untyped-def]
    raw, eps, z, kl, n_rows, n_latent, BOUND: tl.constexpr, ROWS: tl.constexpr, LATENT: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    begun(EARLY)
    rows, places = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, LATENT)[None, :]
    lead, real = rows.to(tl.int64)[:, None] * n_latent, (rows < n_rows)[:, None] & (places < n_latent)
    mu = tl.load(raw + 2 * lead + places, mask=real, other=0.0)
    log_scale = 0.5 * BOUND * _tanh(tl.load(raw + 2 * lead + n_latent + places, mask=real, other=0.0) / BOUND)
    scale = tl.exp(log_scale)
    tl.store(z + lead + places, mu + scale * tl.load(eps + lead + places, mask=real, other=0.0), mask=real)
    squares = tl.where(real, mu * mu + scale * scale - 2.0 * log_scale, 0.0)
    tl.store(kl + rows, 0.5 * (tl.sum(squares, axis=1) - n_latent), mask=rows < n_rows)


@triton.jit(do_not_specialize=["n_rows", "n_latent", "per_row"])  # type: ignore[untyped-decorator]
def _draw_back(  # type: ignore[no-untyped-def]
    raw, eps, of_z, weights, beta, of_raw, n_rows, n_latent, per_row,
    BOUND: tl.constexpr, ROWS: tl.constexpr, LATENT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """From one row of ``weights`` to the next it is ``per_row`` numbers: none, if all have the same."""
    begun(EARLY)
    rows, places = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, LATENT)[None, :]
    lead, real = rows.to(tl.int64)[:, None] * n_latent, (rows < n_rows)[:, None] & (places < n_latent)
    mu = tl.load(raw + 2 * lead + places, mask=real, other=0.0)
    bounded = _tanh(tl.load(raw + 2 * lead + n_latent + places, mask=real, other=0.0) / BOUND)
    scale = tl.exp(0.5 * BOUND * bounded)
    weight = tl.load(beta) * tl.load(weights + rows * per_row, mask=rows < n_rows, other=0.0)[:, None]
    own = tl.load(of_z + lead + places, mask=real, other=0.0)
    of_scale = own * tl.load(eps + lead + places, mask=real, other=0.0) + weight * scale
    of_log_scale = 0.5 * (of_scale * scale - weight)
    tl.store(of_raw + 2 * lead + places, own + weight * mu, mask=real)
    tl.store(of_raw + 2 * lead + n_latent + places, of_log_scale * (1.0 - bounded * bounded), mask=real)


def _by_row(values: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, int]:
    """A number for each row, and how many there are from one row to the next: none, where all have the same one."""
    return (values, 0) if values.numel() == 1 else (values.expand(shape).contiguous(), 1)


def fused_sampled(raw: Tensor, eps: Tensor) -> Sampled:
    """As :func:`vae_anomaly.pullbacks.sampled`, in float32, on a CUDA device."""
    raw, eps = raw.contiguous(), eps.contiguous()
    lead, n_latent = raw.shape[:-1], eps.shape[-1]
    n_rows, width = lead.numel(), triton.next_power_of_2(n_latent)
    sizes = {"BOUND": MAX_LOGVAR, "ROWS": max(1, NUMBERS // width), "LATENT": width, **early(raw.device)}
    grid = (triton.cdiv(n_rows, sizes["ROWS"]),)
    z, kl = torch.empty_like(eps), raw.new_empty(lead)
    _draw[grid](raw, eps, z, kl, n_rows, n_latent, **sizes)

    def pullback(of_z: Tensor, weights: Tensor, beta: float | Tensor) -> Tensor:
        of_raw, (weights, per_row) = torch.empty_like(raw), _by_row(weights, lead)
        of_z, beta = of_z.contiguous(), torch.as_tensor(beta, device=raw.device)
        _draw_back[grid](raw, eps, of_z, weights, beta, of_raw, n_rows, n_latent, per_row, **sizes)
        return of_raw

    return Sampled(z, kl, pullback)


@triton.jit(do_not_specialize=["n_rows", "n_entries", "per_row"])  # type: ignore[untyped-decorator]
def _density(  # type: ignore[no-untyped-def]
    phi, x, floor, weights, log_px, of_phi, n_rows, n_entries, per_row,
    BINARY: tl.constexpr, THERE: tl.constexpr, BACK: tl.constexpr, BOUND: tl.constexpr, RAW_ONE: tl.constexpr,
    LOG_ROOT: tl.constexpr, NUMBERS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """log p(x | z) of one sample and, the way BACK, the gradient of phi if it counts against a loss by its weight."""
    begun(EARLY)
    row, member = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sample = member * n_rows + row
    x += sample * n_entries
    phi += sample * n_entries * (1 if BINARY else 2)
    of_phi += sample * n_entries * (1 if BINARY else 2)
    floor += member * n_entries
    total = tl.zeros((NUMBERS,), tl.float32)
    g = -tl.load(weights + sample * per_row) if BACK else 0.0
    for start in range(0, n_entries, NUMBERS):
        places = start + tl.arange(0, NUMBERS)
        real = places < n_entries
        value = tl.load(x + places, mask=real, other=0.0)
        if BINARY:
            share = _tanh(tl.load(phi + places, mask=real, other=0.0) / BOUND)
            logit = BOUND * share
            inside = tl.minimum(tl.maximum(value, 0.0), 1.0)
            if BACK:
                tl.store(of_phi + places, g * (inside - tl.sigmoid(logit)) * (1.0 - share * share), mask=real)
            if THERE:
                entry = inside * logit - _softplus(logit) - BOUND * tl.abs(value - inside)
                total += tl.where(real, entry, 0.0)
        else:
            raw = tl.load(phi + 2 * places + 1, mask=real, other=0.0) + RAW_ONE
            scale = _softplus(raw) + tl.load(floor + places, mask=real, other=1.0)
            u = (value - tl.load(phi + 2 * places, mask=real, other=0.0)) / scale
            if BACK:
                tl.store(of_phi + 2 * places, g * u / scale, mask=real)
                tl.store(of_phi + 2 * places + 1, g * (u * u - 1.0) / scale * tl.sigmoid(raw), mask=real)
            if THERE:
                total += tl.where(real, -tl.log(scale) - LOG_ROOT - 0.5 * u * u, 0.0)
    if THERE:
        tl.store(log_px + sample, tl.sum(total, axis=0))


# Likelihoods whose density is among the programs.
FUSED: tuple[type[Likelihood], ...] = (Bernoulli, Gaussian)


class FusedDensity:
    """log p(x | z) of samples without holes, in float32, on a CUDA device, and its way back.

    Parameters
    ----------
    likelihood : Likelihood
        Of one of the types ``FUSED``; the floors of its scales with a first axis over the members.
    n_members, n_entries : int
    """

    def __init__(self, likelihood: Likelihood, n_members: int, n_entries: int) -> None:
        self.is_binary = isinstance(likelihood, Bernoulli)
        self.numbers = min(NUMBERS, triton.next_power_of_2(n_entries))
        self.n_warps = max(1, self.numbers // PER_WARP)
        self.floor = likelihood.min_scale.expand(n_members, 1, n_entries).reshape(n_members, n_entries).contiguous()

    def __call__(
        self, phi: Tensor, x: Tensor, known: Tensor | None = None
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Of phi of shape (n_members, n_samples, n_entries, n_params), shape (n_members, n_samples), and the way back.

        That goes from what each sample counts against a loss to the gradient of phi. Where it is ``known`` before, both
        ways are one program.
        """
        phi, x = phi.contiguous(), x.contiguous()
        log_px, of_phi = x.new_empty(x.shape[:2]), torch.empty_like(phi)
        self._run(phi, x, log_px if known is None else known, log_px, of_phi, there=True, back=known is not None)

        def pullback(weights: Tensor) -> Tensor:
            if weights is not known:
                self._run(phi, x, weights, log_px, of_phi, there=False, back=True)
            return of_phi

        return log_px, pullback

    def _run(
        self, phi: Tensor, x: Tensor, weights: Tensor, log_px: Tensor, of_phi: Tensor, *, there: bool, back: bool
    ) -> None:
        n_members, n_rows, n_entries = x.shape
        weights, per_row = _by_row(weights, (n_members, n_rows))
        _density[(n_rows, n_members)](
            phi, x, self.floor, weights, log_px, of_phi, n_rows, n_entries, per_row,
            BINARY=self.is_binary, THERE=there, BACK=back, BOUND=MAX_LOGIT, RAW_ONE=RAW_ONE, LOG_ROOT=LOG_ROOT_2PI,
            NUMBERS=self.numbers, num_warps=self.n_warps, **early(x.device),
        )  # fmt: skip
