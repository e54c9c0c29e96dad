"""Scores made for images, whose likelihood alone rates what is simple as normal."""

import io
import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vae_anomaly.vae import VAE

__all__ = [
    "input_complexity",
    "likelihood_regret",
    "patch_error",
    "patch_error_entries",
    "path_statistics",
    "usual_path",
]

# Steps of Adam that improve the posterior of a sample, their size, and the draws of z by which they are judged.
REGRET_STEPS = 20
REGRET_RATE = 0.1
REGRET_DRAWS = 2
# Patches of an error map are squares with this share of the shorter side of the image, of at least three pixels.
ERROR_PATCH = 1 / 8


def likelihood_regret(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    r"""By how much the ELBO of a sample rises, in nats, when its own posterior is sought instead of encoded [1]_.

    Mean and scale of q(z | x) start from what the encoder says and follow the gradient of the ELBO for a few steps of
    Adam, for each sample by itself; the decoder stays. The encoder has learned to give normal samples nearly the best
    posterior there is, and foreign ones it has not.

    References
    ----------
    .. [1] Xiao, Yan and Amit, "Likelihood regret: an out-of-distribution detection score for variational auto-encoder",
       2020, https://arxiv.org/abs/2003.02977
    """
    qz, draws = vae.encode(x), eps[:REGRET_DRAWS]
    start = torch.stack([qz.mean, qz.stddev.log()])

    def loss(posterior: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = posterior
        z = mean + log_scale.exp() * draws
        log_qz = -(log_scale + 0.5 * draws.square()).sum(dim=-1)
        # The constants of log p(z) and log q(z | x) cancel where the prior is a standard normal, and are the same
        # for all posteriors of a sample.
        rated = (vae.log_px_z(vae.decode(z), x) + vae.pz().log_prob(z) - log_qz).mean(dim=0)
        return -rated.sum(), rated

    step = torch.func.grad(loss, has_aux=True)
    posterior, first, second = start, torch.zeros_like(start), torch.zeros_like(start)
    gradient, begun = step(posterior)
    best = begun
    for count in range(1, REGRET_STEPS + 1):
        # Adam: one step size for every entry, so that a sample hangs on itself alone.
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        slope = first / (1.0 - 0.9**count) / ((second / (1.0 - 0.999**count)).sqrt() + 1e-8)
        posterior = posterior - REGRET_RATE * slope
        gradient, rated = step(posterior)
        best = torch.maximum(best, rated)
    regret: Tensor = best - begun
    return regret


def input_complexity(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """Negative ELBO less the size of the image as a PNG file, both in nats [1]_.

    What is simple is likely under any model of images; the file says how simple it is.

    References
    ----------
    .. [1] Serra et al., "Input complexity and out-of-distribution detection with likelihood-based generative models",
       2020, https://arxiv.org/abs/1909.11480
    """
    assert vae.picture is not None
    shape, center, scale = vae.picture
    levels = [torch.tensor(part, dtype=x.dtype, device=x.device)[:, None, None] for part in (center, scale)]
    images = torch.nan_to_num(x).reshape(-1, *shape) * levels[1] + levels[0]
    bytes_: Tensor = _FileSizes.apply(images.detach())
    return -vae.elbo(x, eps) - 8.0 * math.log(2.0) * bytes_


class _FileSizes(torch.autograd.Function):
    """Bytes of each image, of shape (..., channels, height, width) with values in [0, 1], as a PNG file."""

    @staticmethod
    def forward(images: Tensor) -> Tensor:
        levels = (images.detach().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).cpu().numpy()
        flat = levels.reshape(-1, *levels.shape[-3:])
        sizes = [_png_bytes(image) for image in flat]
        return torch.tensor(sizes, dtype=images.dtype, device=images.device).reshape(images.shape[:-3])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.new_zeros(ctx.shape)

    @staticmethod
    def vmap(info: Any, in_dims: Any, images: Tensor) -> tuple[Tensor, int]:
        return _FileSizes.apply(images.movedim(in_dims[0], 0)), 0


def _png_bytes(image: np.ndarray) -> int:
    channels, height, width = image.shape
    # Channels other than red, green and blue lie below each other.
    pixels = image.transpose(1, 2, 0) if channels == 3 else image.reshape(channels * height, width)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG", compress_level=9)
        return file.tell()


def path_statistics(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    r"""How unusual three numbers on the path of the likelihood are, in either tail, in nats.

    They are the norms of the reconstruction error, of the posterior mean and of the posterior scale: what a model
    rates foreign images by cancels in their likelihood, not in these [1]_. Each is measured from its median over
    held-out normal samples and divided by the mean distance from it on its side, which is minus the logarithm of an
    exponential tail; the three are added, as Fisher's test does.

    References
    ----------
    .. [1] Guan et al., "Likelihood paths: when likelihood-based out-of-distribution detection fails", 2024,
       https://arxiv.org/abs/2401.04933
    """
    distance = _path(vae, x) - vae.usual_path[:, 0]
    tail = torch.where(distance < 0.0, -distance / vae.usual_path[:, 1], distance / vae.usual_path[:, 2])
    return tail.sum(dim=-1)


def _path(vae: VAE, x: Tensor) -> Tensor:
    """The three numbers, shape (n, 3)."""
    qz = vae.encode(x)
    error = torch.nan_to_num(x) - vae.decode(qz.mean).mean
    error = torch.where(torch.isnan(x), vae.missing_error.sqrt(), error)
    # The floor keeps the gradient of the root finite.
    squares = [error.square().flatten(1).sum(dim=1), qz.mean.square().sum(dim=-1), qz.stddev.square().sum(dim=-1)]
    return torch.stack(squares, dim=-1).clamp(min=1e-12).sqrt()


def usual_path(vae: VAE, train: Tensor, held_out: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """Median, mean deficit and mean excess of the three numbers over held-out normal samples."""
    path = _path(vae, held_out)
    half = max(path.shape[0] // 2, 1)
    # torch.quantile has no rule for vmap.
    middle = path.sort(dim=0).values[path.shape[0] // 2]
    deficit, excess = ((sign * (path - middle)).clamp(min=0.0).sum(dim=0) / half for sign in (-1.0, 1.0))
    least = 1e-3 * middle.abs() + 1e-6
    return {"usual_path": torch.stack([middle, torch.maximum(deficit, least), torch.maximum(excess, least)], dim=-1)}


def patch_error(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """The worst patch of the error map: mean over its pixels of -log p(x|z), less what is usual for each, in nats.

    A defect that is small against the image is lost in a sum over all pixels.
    """
    return _patch_errors(vae, x)[0].flatten(1).amax(dim=1)


def patch_error_entries(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """What each pixel adds to :func:`patch_error`: those of the worst patch, and no others."""
    patches, excess, size = _patch_errors(vae, x)
    n_channels, (rows, columns) = excess.shape[1], patches.shape[1:]
    worst = patches.flatten(1).argmax(dim=1)
    one_hot = F.one_hot(worst, rows * columns).to(x.dtype).reshape(-1, 1, rows, columns)
    # Each patch, as the square that it is.
    square = torch.ones(1, 1, size, size, dtype=x.dtype, device=x.device)
    mask = F.conv_transpose2d(one_hot, square)
    return (excess * mask / (n_channels * size**2)).reshape(x.shape)


def _patch_errors(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Of each patch (n, rows, columns), and of each pixel (n, channels, height, width); side of a patch."""
    assert vae.picture is not None
    shape = vae.picture.shape
    expected = vae.decode(vae.encode(x).mean)
    excess = (vae.missing_log_px - vae.entries(expected, x)).reshape(-1, *shape)
    size = min(*shape[1:], max(3, round(ERROR_PATCH * min(shape[1:]))))
    patches = F.avg_pool2d(excess.mean(dim=1, keepdim=True), size, stride=1).squeeze(1)
    return patches, excess, size
