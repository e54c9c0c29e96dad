"""One file for a fitted model: a .safetensors file whose header holds a JSON document. Nothing in it is ever executed.

This module knows tensors as NumPy arrays and the document as plain data, so a header can be read without torch.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vae_anomaly.atomic import replacing
from vae_anomaly.errors import ModelFileError

__all__ = ["FORMAT_VERSION", "load_header", "load_model", "save_model"]

FORMAT_VERSION = 4
KEY = "vae_anomaly"

# What a header holds, at least.
PARTS: dict[str, Any] = {
    "params": dict,
    "score": str,
    # Columns of a table, or the one shape of images.
    "schema": list | dict,
    "architecture": dict,
    "threshold": dict,
    "groups": dict | None,
    "training": dict,
    "n_calibration": int,
    "fingerprint": str,
    "versions": dict,
    "notes": dict,
}

Tensors = dict[str, NDArray[Any]]


def save_model(path: str | os.PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a model file; ``path`` appears whole or not at all.

    Parameters
    ----------
    path : path-like
    header : mapping
        Plain data that JSON can hold. The format version and a checksum over header and tensors are added.
    tensors : mapping of str to ndarray

    Raises
    ------
    OSError
        If the file can't be written, as on a full disk.
    """
    arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    # As it will be read: JSON has no keys but text, and these may come in another order.
    document = json.loads(json.dumps({"format_version": FORMAT_VERSION, **header}, sort_keys=True))
    document["checksum"] = _checksum(document, arrays)
    with replacing(path) as temporary:
        try:
            save_file(arrays, str(temporary), metadata={KEY: json.dumps(document, sort_keys=True)})
        except SafetensorError as error:
            raise _as_os_error(error, path) from None


def _as_os_error(error: SafetensorError, path: str | os.PathLike[str]) -> Exception:
    """A full disk as Python says it; the library has an error of its own, with the number in its text."""
    found = re.search(r"I/O error: (.*) \(os error (\d+)\)", str(error))
    return error if found is None else OSError(int(found[2]), found[1], os.fspath(path))


def load_model(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Tensors]:
    """Header and tensors of a model file.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, truncated, changed, written by something else, or of another format.
    """
    with _opened(path) as (file, text):
        document = _parse(Path(path).name, text)
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    # Two texts can say the same number, so a changed last digit may leave the document what it was.
    if json.dumps(document, sort_keys=True) != text or document.get("checksum") != _checksum(document, tensors):
        raise ModelFileError(
            f"{Path(path).name} was damaged or changed after it was saved: its checksum does not match."
        )
    return document, tensors


def load_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Header of a model file, in no time: whether somebody changed it is not looked at.

    Raises
    ------
    ModelFileError
        If the file is missing, cut off, written by something else, or of another format.
    """
    with _opened(path) as (_, text):
        return _parse(Path(path).name, text)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, str]]:
    """An open model file, and the text of its header; what goes wrong meanwhile is an error of the file."""
    name = Path(path).name
    if not Path(path).is_file():
        wrong = "is a folder" if Path(path).is_dir() else "does not exist"
        raise ModelFileError(f"Model file {str(path)!r} {wrong}.")
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise ModelFileError(f"{name} is a safetensors file, but not a model of vae-anomaly.")
            yield file, metadata[KEY]
    except (SafetensorError, ValueError, TypeError, OSError, RecursionError) as error:
        if isinstance(error, ModelFileError):
            raise
        raise ModelFileError(f"{name} is not a model file, or it is damaged or cut off ({error}).") from None


def _parse(name: str, text: str) -> dict[str, Any]:
    document = json.loads(text)
    version = document.get("format_version") if isinstance(document, dict) else None
    if not isinstance(version, int):
        raise ModelFileError(f"{name} has no format version; it was damaged or written by something else.")
    if version < FORMAT_VERSION:
        raise ModelFileError(
            f"{name} has format {version}, and this version of vae-anomaly reads format {FORMAT_VERSION}. Fit it anew."
        )
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{name} has format {version}, and this version of vae-anomaly reads format {FORMAT_VERSION}. "
            "Upgrade vae-anomaly."
        )
    assert isinstance(document, dict)
    for part, kind in PARTS.items():
        if part not in document or not isinstance(document[part], kind):
            raise ModelFileError(f"{name} does not hold a whole model: its part {part!r} is missing or unusable.")
    return document


def _checksum(document: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over the document (less the checksum) and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256()
    rest = {key: value for key, value in document.items() if key != "checksum"}
    digest.update(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
