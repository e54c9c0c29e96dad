"""In which precision a GPU multiplies matrices: a setting of the whole process, taken for a while and put back."""

import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

__all__ = ["PRECISIONS", "multiplied", "products_for"]

FULL = "ieee"
# Of training, and what PyTorch calls the precision of large products then; scores are always in full precision.
PRECISIONS = {"auto": "tf32", "float32": FULL}
# Smaller products gain little in TF32, or lose.
MIN_MULTIPLICATIONS = 100_000_000

_TAKEN = threading.RLock()


def products_for(precision: str, n_rows: int, weights: Iterable[torch.Tensor]) -> str:
    """How to multiply so many rows by each of stacked weights, under one of ``PRECISIONS``; the largest decide.

    Examples
    --------
    >>> narrow, wide = torch.empty(6, 96, 96, device="meta"), torch.empty(6, 512, 512, device="meta")
    >>> products_for("auto", 256, [narrow]), products_for("auto", 256, [narrow, wide])
    ('ieee', 'tf32')
    """
    # A convolution takes a weight to every pixel.
    largest = max((math.inf if value.ndim > 3 else value.numel() for value in weights), default=0)
    return PRECISIONS[precision] if n_rows * largest >= MIN_MULTIPLICATIONS else FULL


@contextmanager
def multiplied(device: torch.device, products: str = FULL) -> Iterator[None]:
    """Products and convolutions of a GPU in this precision, as PyTorch names it; on other devices nothing changes.

    One thread at a time: others wait for the GPU in any case, and what all have at work might not fit into its memory.

    Examples
    --------
    >>> with multiplied(torch.device("cpu")):
    ...     float(torch.ones(2, 3) @ torch.ones(3, 2) @ torch.ones(2) @ torch.ones(2))
    12.0
    """
    if device.type != "cuda":
        yield
        return
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    with _TAKEN:
        before = [setting.fp32_precision for setting in settings]
        try:
            for setting in settings:
                setting.fp32_precision = products
            yield
        finally:
            for setting, value in zip(settings, before, strict=True):
                setting.fp32_precision = value
