"""In which precision matrices are multiplied: a setting of the whole process, taken for a while and put back."""

import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["PRECISIONS", "ROUNDED", "multiplied", "precision_fault", "products_for"]

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
