"""How much memory there is, and what the C library does with what is freed."""

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

__all__ = ["as_tensor", "available_memory", "fits", "keep_freed_memory", "use_huge_pages"]

# The largest block that glibc learns from is 32 MiB.
LARGEST = 30 * 2**20
HUGE_PAGE = 2 * 2**20
# What any machine has that trains networks.
FALLBACK = 4 * 2**30


def as_tensor(array: NDArray[Any]) -> torch.Tensor:
    """A tensor that is only read, of an array that may be written to or not: torch knows the first kind alone.

    Examples
    --------
    >>> import numpy as np
    >>> as_tensor(np.broadcast_to(np.float32(2.0), (3,))).tolist()
    [2.0, 2.0, 2.0]
    """
    view = array.view()
    try:
        view.flags.writeable = True
    except ValueError:
        view = array.copy()
    return torch.from_numpy(view)


def available_memory() -> int:
    """Bytes of memory that a process can have without others losing theirs; where that is not known, half of all.

    Examples
    --------
    >>> available_memory() > 2**20
    True
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):
        return FALLBACK


def fits(n_bytes: int, device: torch.device) -> bool:
    """Whether so much takes less than half of what a GPU has free; a table in memory fits onto any other device.

    Examples
    --------
    >>> fits(10**15, torch.device("cpu"))
    True
    """
    return device.type != "cuda" or 2 * n_bytes <= torch.cuda.mem_get_info(device)[0]


def keep_freed_memory() -> None:
    """Have freed blocks of up to 30 MiB used again, where the C library is glibc.

    At first it hands larger ones than 128 KiB back to the system and asks for them anew, page by page, which costs a
    step of training 7 %. It learns better from the first large block that is freed; this one is never written to, so it
    takes no memory.
    """
    torch.empty(LARGEST, dtype=torch.uint8)


def use_huge_pages() -> None:
    """Have the next 60 MiB come in pages of 2 MiB, where the system is Linux and gives them to those who ask.

    A step of training goes through thousands of pages of 4 KiB, more than a processor remembers the places of; on a
    virtual machine, above all, it takes long to look for one.
    """
    keep_freed_memory()
    if sys.platform != "linux":
        return
    # At once, so that the second block is not the memory of the first; as large as those that stay when they are freed.
    for block in [torch.empty(LARGEST - HUGE_PAGE, dtype=torch.uint8) for _ in range(2)]:
        start = -(-block.data_ptr() // HUGE_PAGE) * HUGE_PAGE
        length = block.data_ptr() + block.numel() - start
        # Advice: where it is not taken, all is as before.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
