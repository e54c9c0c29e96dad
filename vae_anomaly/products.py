"""In which precision matrices are multiplied: a setting of the whole process, taken for a while and put back."""

import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "PRECISIONS",
    "ROUNDED",
    "Affine",
    "ProcessorProducts",
    "Products",
    "RoundedProducts",
    "multiplied",
    "precision_fault",
    "products_for",
]

FULL = "ieee"
ROUNDED = "bf16"


class Precision(NamedTuple):
    """Of products in training, as PyTorch names it; scores are always in full precision."""

    processor: str = FULL
    gpu: str = FULL
    """Of large ones, and by programs of our own."""


PRECISIONS = {"auto": Precision(gpu="tf32"), "float32": Precision(), "bfloat16": Precision(processor=ROUNDED)}
# Smaller products gain little in TF32, or lose.
MIN_MULTIPLICATIONS = 100_000_000
# The same of bfloat16, by a processor.
MIN_ROUNDED = 8_000_000
# A result with fewer columns leaves registers of a processor empty.
NARROW = 12
# What processors call the instructions that multiply numbers of bfloat16.
BFLOAT16 = ("amx_bf16", "avx512_bf16")

_TAKEN = threading.RLock()


def precision_fault(precision: str, device: torch.device) -> str:
    """Why a device can't multiply in one of ``PRECISIONS``, as a sentence; empty if it can.

    Examples
    --------
    >>> precision_fault("auto", torch.device("cpu")), precision_fault("bfloat16", torch.device("cuda"))
    ('', 'bfloat16 is for processors, and a GPU takes TF32 by itself.')
    """
    if precision != "bfloat16":
        return ""
    if device.type != "cpu":
        return "bfloat16 is for processors, and a GPU takes TF32 by itself."
    if not _multiplies_bfloat16():
        return "this processor has no instructions for bfloat16 (AMX or AVX512-BF16), and would gain nothing."
    return ""


def _multiplies_bfloat16() -> bool:
    # Older versions of PyTorch do not tell.
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in BFLOAT16)


def products_for(
    precision: str, device: torch.device, n_rows: int, weights: Iterable[Tensor], *, fused: bool = False
) -> str:
    """How to multiply so many rows by each of stacked weights, under one of ``PRECISIONS``; the largest decide.

    Programs that ``fused`` says to be ours gain at any size.

    Examples
    --------
    >>> narrow, wide = torch.empty(6, 96, 96, device="meta"), torch.empty(6, 512, 512, device="meta")
    >>> gpu = torch.device("cuda")
    >>> products_for("auto", gpu, 256, [narrow]), products_for("auto", gpu, 256, [narrow, wide])
    ('ieee', 'tf32')
    """
    chosen = PRECISIONS[precision]
    if device.type == "cpu":
        return chosen.processor
    # A convolution takes a weight to every pixel.
    largest = max((math.inf if value.ndim > 3 else value.numel() for value in weights), default=0)
    return chosen.gpu if fused or n_rows * largest >= MIN_MULTIPLICATIONS else FULL


@contextmanager
def multiplied(device: torch.device, products: str = FULL) -> Iterator[None]:
    """Products and convolutions of a GPU in this precision, as PyTorch names it.

    One thread at a time: others wait for a GPU in any case, and what all have at work might not fit into its memory. A
    processor multiplies as it is told product by product, in any number of threads.

    Examples
    --------
    >>> with multiplied(torch.device("cpu")):
    ...     float(torch.ones(2, 3) @ torch.ones(3, 2) @ torch.ones(2) @ torch.ones(2))
    12.0
    """
    if device.type != "cuda":
        yield
        return
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    with _TAKEN:
        before = [setting.fp32_precision for setting in settings]
        try:
            for setting in settings:
                setting.fp32_precision = products
            yield
        finally:
            for setting, value in zip(settings, before, strict=True):
                setting.fp32_precision = value


class Affine(NamedTuple):
    """An affine map of each of several networks, as products of a batch want it."""

    weight: Tensor
    """Shape (n_networks, n_out, n_in)."""
    turned: Tensor
    """The same, shape (n_networks, n_in, n_out)."""
    bias: Tensor
    """Shape (n_networks, 1, n_out)."""


class Products:
    """Those of affine maps of several networks, and of the gradients of these."""

    def factors(self, x: Tensor, own: Affine) -> tuple[Tensor, Affine]:
        """Samples (n_networks, n_samples, n_in) and a map, as they are multiplied, there and on the way back."""
        return x, own

    def factor(self, g: Tensor, x: Tensor) -> Tensor:
        """The gradient of what came out, as it is multiplied where samples were as in ``x``."""
        return g

    def mapped(self, x: Tensor, own: Affine) -> Tensor:
        """What comes out, shape (n_networks, n_samples, n_out)."""
        return torch.baddbmm(own.bias, x, own.turned)

    def back(self, g: Tensor, own: Affine) -> Tensor:
        """Gradient with respect to what came in, from that of what came out."""
        return torch.bmm(g, own.weight)

    def of_weight(self, g: Tensor, x: Tensor, out: Tensor | None) -> Tensor:
        """Gradient with respect to the weight, put into ``out``, if that is given."""
        return torch.bmm(g.mT, x, out=out)


class ProcessorProducts(Products):
    """The same of a processor, which takes up to six times as long for a narrow result as for one that is as low.

    So these come the other way round, and are turned.

    Examples
    --------
    >>> g, x = torch.arange(96.0).view(1, 3, 32), torch.ones(1, 3, 2)
    >>> torch.equal(ProcessorProducts().of_weight(g, x, None), Products().of_weight(g, x, None))
    True
    """

    def back(self, g: Tensor, own: Affine) -> Tensor:
        if own.weight.shape[-1] < NARROW <= g.shape[-2]:
            return torch.bmm(own.turned, g.mT).mT
        return super().back(g, own)

    def of_weight(self, g: Tensor, x: Tensor, out: Tensor | None) -> Tensor:
        if out is None and x.shape[-1] < NARROW <= g.shape[-1]:
            return torch.bmm(x.mT, g).mT
        return super().of_weight(g, x, out)


class RoundedProducts(ProcessorProducts):
    """The same of a processor with instructions for bfloat16: factors of large ones are rounded to it, each once.

    It adds up in float32, and rounds what it found; weights, biases, and all that is done between products stay as they
    are. That is what autocast does [1]_, but for products that are too small to gain, and for the many operations
    around them.

    References
    ----------
    .. [1] Micikevicius et al., "Mixed precision training", 2018, https://arxiv.org/abs/1710.03740

    Examples
    --------
    >>> x, own = torch.full((1, 512, 256), 1.0 + 2**-9), torch.ones(1, 256, 256)
    >>> own, products = Affine(own, own.mT, torch.zeros(1, 1, 256)), RoundedProducts()
    >>> float(products.mapped(x, own)[0, 0, 0]), float(products.mapped(*products.factors(x, own))[0, 0, 0])
    (256.5, 256.0)
    """

    def factors(self, x: Tensor, own: Affine) -> tuple[Tensor, Affine]:
        # The same for the three products of a map, which are equally large.
        if x.numel() * own.turned.shape[-1] < MIN_ROUNDED:
            return x, own
        weight = own.weight.bfloat16()
        return x.bfloat16(), Affine(weight, weight.mT, own.bias)

    def factor(self, g: Tensor, x: Tensor) -> Tensor:
        return g.to(x.dtype)

    def mapped(self, x: Tensor, own: Affine) -> Tensor:
        return super().mapped(x, own) if x.dtype == own.bias.dtype else own.bias + torch.bmm(x, own.turned)

    def back(self, g: Tensor, own: Affine) -> Tensor:
        return super().back(g, own).to(own.bias.dtype)

    def of_weight(self, g: Tensor, x: Tensor, out: Tensor | None) -> Tensor:
        if x.dtype != torch.bfloat16:
            return super().of_weight(g, x, out)
        found = super().of_weight(g, x, None)
        return found.float() if out is None else out.copy_(found)
