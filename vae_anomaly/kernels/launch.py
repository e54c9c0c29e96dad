"""How programs that follow each other in a stream are begun: each before the one ahead of it is through.

To begin one takes a GPU as long as a small one takes. Where it can, it does so while the last is at work, and the
program waits by itself for what that leaves.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl

__all__ = ["begun", "early"]

# Compute capability of the first GPUs of NVIDIA's that can; those of others have numbers of their own.
FIRST = (9, 0)


@triton.jit  # type: ignore[untyped-decorator]
def begun(EARLY: tl.constexpr):  # type: ignore[no-untyped-def]
    """First line of a program that is launched by :func:`early`: all that was asked for before is done after it."""
    if EARLY:
        tl.extra.cuda.gdc_wait()
        # Not before: by then only the program ahead of this one would be through, and not the one ahead of that.
        tl.extra.cuda.gdc_launch_dependents()


@functools.cache
def early(device: torch.device) -> dict[str, Any]:
    """Options of a launch on this device."""
    able = device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= FIRST
    return {"EARLY": True, "launch_pdl": True} if able else {"EARLY": False}
