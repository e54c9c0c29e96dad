"""Weights of pretrained networks: from a file, or from torchvision's servers. Nothing in them is ever executed."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_anomaly.errors import DataError

__all__ = ["download_weights", "read_weights"]


def read_weights(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:
    """Weights in a ``.safetensors`` file, or in one that ``torch.save`` wrote of a ``state_dict``.

    Raises
    ------
    DataError
        If the file is missing or holds anything but tensors.
    """
    name = os.fspath(path)
    if not Path(name).is_file():
        wrong = "is a folder" if Path(name).is_dir() else "does not exist"
        raise DataError(f"The file of weights {name!r} {wrong}.")
    state = _safetensors(name) if name.lower().endswith(".safetensors") else _torch(name)
    if not (isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values())):
        raise DataError(f"{name} holds no weights: it has to be a state_dict, names with a tensor each.")
    return state


def _safetensors(name: str) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(name)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{name} is no safetensors file, or it is damaged ({error}).") from None


def _torch(name: str) -> Any:
    try:
        return torch.load(name, map_location="cpu", weights_only=True)
    except Exception:
        # Foreign bytes fail in as many ways as there are, and torch's own advice is to run them.
        raise DataError(
            f"{name} is damaged, or holds more than weights, and code in such a file is never run. Save the network's "
            "state_dict() and nothing else."
        ) from None


def download_weights(name: str) -> Mapping[str, Tensor]:
    """Torchvision's best weights of one of its networks, from its servers or from torch's cache on this machine.

    Raises
    ------
    DataError
        If they are not here and can't be downloaded.
    """
    from torchvision.models import get_model_weights

    weights: Any = get_model_weights(name)
    try:
        state: Mapping[str, Tensor] = weights.DEFAULT.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"The weights of {name} are not on this machine and could not be downloaded ({error}). Name a file of them "
            "(--weights FILE, or backbone_weights=), or take the backbone 'gabor', which needs none."
        ) from None
    return state
