"""Programs of a GPU, which Triton compiles: imported where they are used, as for each there is a way without it."""

from collections.abc import Callable

__all__ = ["works"]


def works(trial: Callable[[], object]) -> bool:
    """Whether Triton is there, finds a compiler, and knows the GPU on which the trial of a program is made.

    Examples
    --------
    >>> works(lambda: 1), works(lambda: 1 / 0)
    (True, False)
    """
    try:
        trial()
    except Exception:  # Whatever it is, there is another way.
        return False
    return True
