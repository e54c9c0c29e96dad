"""What can go wrong through no fault of the code; each error knows the exit code of the command line."""

from collections.abc import Mapping
from typing import TypeVar

__all__ = [
    "CalibrationWarning",
    "CellError",
    "DataError",
    "DataWarning",
    "ModelFileError",
    "PosteriorCollapseWarning",
    "TrainingError",
    "UnknownNameError",
    "look_up",
]


class DataError(ValueError):
    """Input data or their schema can't be used; the message says where and what to do."""

    exit_code = 3


class ModelFileError(ValueError):
    """A model file can't be read, was damaged or changed, or was written by something else."""

    exit_code = 4


class TrainingError(RuntimeError):
    """Training stopped because a loss was not finite."""

    exit_code = 1


class DataWarning(UserWarning):
    """Input data are used in a way that may not be the one that was meant; the message says how."""


class CalibrationWarning(UserWarning):
    """There are too few calibration rows for the false-alarm promise that was asked for."""


class PosteriorCollapseWarning(UserWarning):
    """The posterior carries next to no information about the data: the latent variables are ignored."""


class CellError(DataError):
    """One cell of a table can't be used.

    Parameters
    ----------
    row : int
        Position of the row, from 0.
    detail : str
        The column, the value and what is wrong with it.
    """

    def __init__(self, row: int, detail: str) -> None:
        super().__init__(f"row {row + 1}, {detail}")
        self.row, self.detail = row, detail


class UnknownNameError(ValueError):
    """A name that no registry entry has."""

    exit_code = 2


Entry = TypeVar("Entry")


def look_up(what: str, name: str, registry: Mapping[str, Entry]) -> Entry:
    """Entry of a registry, or an error that lists the names there are.

    Examples
    --------
    >>> look_up("score", "elbow", {"kl": 1, "neg_elbo": 2})
    Traceback (most recent call last):
    vae_anomaly.errors.UnknownNameError: Unknown score 'elbow'. Choose from 'kl', 'neg_elbo'.
    """
    # What can't be hashed is no name, either.
    if not isinstance(name, str) or name not in registry:
        known = ", ".join(repr(key) for key in sorted(registry))
        raise UnknownNameError(f"Unknown {what} {name!r}. Choose from {known}.")
    return registry[name]
