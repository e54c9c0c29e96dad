"""What can go wrong through no fault of the code; each error knows the exit code of the command line."""

__all__ = ["CalibrationWarning", "DataError", "ModelFileError", "PosteriorCollapseWarning", "TrainingError"]


class DataError(ValueError):
    """Input data or their schema can't be used; the message says where and what to do."""

    exit_code = 3


class ModelFileError(ValueError):
    """A model file can't be read, was damaged or changed, or was written by something else."""

    exit_code = 4


class TrainingError(RuntimeError):
    """Training stopped because a loss was not finite."""

    exit_code = 1


class CalibrationWarning(UserWarning):
    """There are too few calibration rows for the false-alarm promise that was asked for."""


class PosteriorCollapseWarning(UserWarning):
    """The posterior carries next to no information about the data: the latent variables are ignored."""
