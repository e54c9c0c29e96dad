"""Anomaly detection with variational autoencoders that are trained on normal data only."""

import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_anomaly.data import read
    from vae_anomaly.detector import VAEDetector, load
    from vae_anomaly.vae import VAE

# Left to itself, MKL multiplies the last rows of a small matrix by another kernel than the others on processors without
# AVX-512, and a row's score would hang on its place in the batch. Read at the first product; costs nothing measurable.
os.environ.setdefault("MKL_CBWR", "AUTO")

try:
    __version__ = version("vae-anomaly")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["VAE", "VAEDetector", "__version__", "load", "read"]

_HOME = {"VAE": "vae", "VAEDetector": "detector", "load": "detector", "read": "data"}


def __getattr__(name: str) -> Any:
    # Lazy, so that `vae-anomaly --help` and the readers never wait for torch.
    if name not in _HOME:
        raise AttributeError(f"module 'vae_anomaly' has no attribute {name!r}")
    return getattr(import_module(f"vae_anomaly.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
