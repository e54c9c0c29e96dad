"""Anomaly maps of images, as arrays and as pictures to look at."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_anomaly.atomic import replacing
from vae_anomaly.data.decoding import grey

__all__ = ["map_names", "overlay", "write_maps"]

# How much of the picture the strongest colour hides.
_OPACITY = 0.8
_COLOURS = "autumn_r"


def write_maps(
    folder: str | os.PathLike[str],
    names: Iterable[str],
    maps: NDArray[np.floating[Any]],
    images: NDArray[np.float32],
    *,
    scale: tuple[float, float],
) -> list[Path | None]:
    """Write each map as it is, and laid over its image in colours; give the paths of the .npy files.

    ``a/b/003`` becomes ``folder/a/b/003.npy``, float32 of shape (h, w), and ``folder/a/b/003.png``. Each file appears
    whole or not at all. An image that could not be decoded (NaN throughout) gets no files and None in the list.

    Parameters
    ----------
    folder : str or path
        Where to write. Made if it is not there.
    names : iterable of str
        One for each image, of those that :func:`map_names` chose for all that this folder is to hold.
    maps : ndarray of shape (n, h, w)
        Higher is more anomalous.
    images : ndarray of shape (n, c, h, w)
        The images that the maps belong to, in [0, 1].
    scale : (float, float)
        No colour up to the first value, the strongest colour from the second on. One scale for all images makes their
        colours comparable.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> paths = write_maps(folder, ["a/003"], np.ones((1, 8, 8)), np.zeros((1, 1, 8, 8), np.float32), scale=(0, 2))
    >>> [path.relative_to(folder).as_posix() for path in sorted(Path(folder).rglob("*.*"))]
    ['a/003.npy', 'a/003.png']
    """
    names = list(names)
    if not len(names) == len(maps) == len(images):
        raise ValueError(f"There are {len(names)} names, {len(maps)} maps, {len(images)} images; give as many of each.")
    if maps.ndim != 3 or images.ndim != 4 or maps.shape[1:] != images.shape[2:]:
        shapes = f"Maps have shape {maps.shape} and images {images.shape}"
        raise ValueError(f"{shapes}, expected (n, h, w) and (n, c, h, w).")
    _check_scale(scale)
    paths: list[Path | None] = []
    for name, anomaly_map, image in zip(names, maps, images, strict=True):
        if np.isnan(image).all():
            paths.append(None)
            continue
        path = Path(folder, f"{name}.npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_array(path, anomaly_map)
        _write_picture(Path(folder, f"{name}.png"), overlay(anomaly_map, image, scale))
        paths.append(path)
    return paths


def overlay(
    anomaly_map: NDArray[np.floating[Any]], image: NDArray[np.float32], scale: tuple[float, float]
) -> NDArray[np.uint8]:
    """The image in grey, coloured from yellow to red where the map exceeds the scale: (h, w, 3).

    Examples
    --------
    >>> overlay(np.array([[0.0, 9.0]]), np.zeros((1, 1, 2), np.float32), scale=(1, 9)).tolist()
    [[[0, 0, 0], [204, 0, 0]]]
    """
    from matplotlib import colormaps

    low, high = scale
    # What is no number is not coloured.
    excess = np.nan_to_num(np.clip((anomaly_map.astype(np.float64) - low) / (high - low), 0, 1))
    backdrop = np.repeat(np.nan_to_num(grey(image)[0])[..., None], 3, axis=-1)
    # The square root shows even a small excess.
    opacity = _OPACITY * np.sqrt(excess)[..., None]
    colours = colormaps[_COLOURS](excess)[..., :3]
    blend: NDArray[np.float64] = np.clip((1 - opacity) * backdrop + opacity * colours, 0, 1)
    return np.rint(255 * blend).astype(np.uint8)


def map_names(names: Sequence[str | int]) -> list[str]:
    """A relative path without suffix for each name, all different, none of which leads up or to another drive.

    Names are paths relative to the folder that was read, or numbers. A suffix stays where two differ in nothing else.

    Examples
    --------
    >>> map_names(["a/003.png", "../b.png", "/c.png", 7, "d.jpg", "d.png"])
    ['a/003', '__/b', 'c', '7', 'd.jpg', 'd.png']
    """
    whole = [_safe(str(name)) for name in names]
    stems = [_stem(given, name) for given, name in zip(names, whole, strict=True)]
    shared = Counter(stem.casefold() for stem in stems)
    unique: list[str] = []
    taken: set[str] = set()
    for name, stem in zip(whole, stems, strict=True):
        candidate = wanted = name if shared[stem.casefold()] > 1 else stem
        number = 2
        # File systems differ in whether they tell upper from lower case.
        while candidate.casefold() in taken:
            candidate, number = f"{wanted}~{number}", number + 1
        taken.add(candidate.casefold())
        unique.append(candidate)
    return unique


def _safe(name: str) -> str:
    # A backslash separates and a colon names a drive, on some systems.
    parts = [re.sub(r"[\0:]", "_", part) for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    return "/".join("__" if part == ".." else part for part in parts) or "_"


def _stem(given: str | int, name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix() if isinstance(given, str) else name


def _check_scale(scale: tuple[float, float]) -> None:
    low, high = scale
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"scale={scale} is no pair of a lower and a higher number.")


def _write_array(path: Path, anomaly_map: NDArray[np.floating[Any]]) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, anomaly_map.astype(np.float32))


def _write_picture(path: Path, pixels: NDArray[np.uint8]) -> None:
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
