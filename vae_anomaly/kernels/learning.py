"""Whether an ensemble learns by programs that Triton makes for a GPU, in place of torch's operations."""

import functools

import torch

from vae_anomaly.ensemble import Ensemble
from vae_anomaly.kernels import works
from vae_anomaly.products import PRECISIONS, multiplied
from vae_anomaly.replay import Branch

__all__ = ["is_fused"]

# Triton compiles for six seconds, once on a machine, and takes 0.7 to fetch what it compiled, once in a process: fewer
# steps than these have less to gain.
MIN_STEPS = 4000


def is_fused(ensemble: Ensemble, n_steps: int) -> bool:
    """Whether these steps are better taken by the programs, and whether that can be done here."""
    return (
        n_steps >= MIN_STEPS
        and ensemble.device.type == "cuda"
        and ensemble.joint() is not None
        and all(value.dtype == torch.float32 for value in ensemble.params.values())
        and _works(ensemble.device)
    )


@functools.cache
def _works(device: torch.device) -> bool:
    """Whether such programs can be made for this device."""
    x, weight, bias = (torch.zeros(shape, device=device) for shape in ((1, 4, 4), (1, 4, 4), (1, 4)))

    def trial() -> None:
        from vae_anomaly.kernels.adamw import FusedAdamW
        from vae_anomaly.kernels.layers import FusedLayers
        from vae_anomaly.kernels.terms import fused_sampled

        with multiplied(device, PRECISIONS["auto"].gpu):
            out, pullback = FusedLayers(["affine"], [weight, bias], [weight.clone(), bias.clone()])(x)
            fused_sampled(out, out[..., :2]).pullback(out[..., :2], out[..., 0], 1.0)
            pullback(out, Branch(device))
            FusedAdamW(bias, bias.clone(), 1.0, 0.0).step(bias[0, 0])

    return works(trial)
