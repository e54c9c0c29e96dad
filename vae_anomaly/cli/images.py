"""Images on the command line: which DATA holds them, and how they are read."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from vae_anomaly.cli.common import Command, all_options, read_data

if TYPE_CHECKING:
    from vae_anomaly.data import Data
    from vae_anomaly.data.images import Images
    from vae_anomaly.detector import VAEDetector

__all__ = ["image_options", "read_any"]

# Where torchvision's data sets go that were not there.
DEFAULT_ROOT = "~/.cache/vae-anomaly"


def image_options(command: Command) -> Command:
    """Options that only images have."""
    return all_options(
        [
            click.option("--images", is_flag=True, help="DATA is a table with paths of images, in a column 'path'."),
            click.option(
                "--normal-class",
                metavar="CLASS",
                multiple=True,
                help="Subfolder, or class of a named data set, whose images are normal (repeatable).",
            ),
            click.option(
                "--root",
                metavar="FOLDER",
                default=DEFAULT_ROOT,
                show_default=True,
                help="Where the files of a named data set are, or go.",
            ),
        ]
    )(command)


def read_any(
    path: str,
    *,
    split: str,
    images: bool,
    normal_class: Sequence[str],
    root: str,
    size: int | None = None,
    detector: "VAEDetector | None" = None,
    **columns: Any,
) -> "Data | Images":
    """Table or images at ``path``; of a data set that comes in two parts, the one called ``split``.

    The model's images decide the shape of new ones.
    """
    if not (images or holds_images(path)):
        if normal_class or size:
            option = "--normal-class" if normal_class else "--size"
            raise click.UsageError(f"{option} is for images, and {path} holds none.")
        return read_data(path, **columns)
    _refuse_columns(columns)
    shape = getattr(detector.schema_, "shape", None) if detector is not None and detector.holds_images else None
    if detector is not None and shape is None:
        raise click.UsageError(f"{path} holds images, and the model was fitted on a table.")
    options: dict[str, Any] = {
        "size": size if shape is None else shape[1:],
        "channels": None if shape is None else shape[0],
    }
    found = _read(path, split, normal_class, root, columns, options)
    in_split = found.splits == split
    return found.take(in_split) if in_split.any() else found


def holds_images(path: str) -> bool:
    """Whether ``path`` is an image, a folder of images, an array of them, or the name of a data set."""
    from vae_anomaly.data.decoding import SUFFIXES
    from vae_anomaly.data.named import NAMED

    if path == "-":
        return False
    if not os.path.exists(path):
        return path in NAMED
    name = path.lower()
    if os.path.isdir(path):
        return any(file.lower().endswith(tuple(SUFFIXES)) for _, _, files in os.walk(path) for file in files)
    if name.endswith((".npy", ".npz")):
        return _array_rank(path) >= 3
    return name.endswith((*SUFFIXES, "-ubyte", "-ubyte.gz"))


def _array_rank(path: str) -> int:
    """Axes of the array, or of the largest one, in a file; 0 where that can't be told."""
    try:
        with np.load(path, mmap_mode="r", allow_pickle=False) as file:
            return max((file[key].ndim for key in file.files), default=0)
    except TypeError:
        return int(np.load(path, mmap_mode="r", allow_pickle=False).ndim)
    except (OSError, ValueError):
        # The reader has a sentence for it.
        return 0


def _refuse_columns(columns: dict[str, Any]) -> None:
    given = {"--id": columns.get("id_column"), "--drop": columns.get("drop"), "--delimiter": columns.get("delimiter")}
    for option, value in given.items():
        if value:
            raise click.UsageError(f"{option} is for tables, and DATA holds images.")
    for name in columns.get("keep", ()):
        if name != "kind":
            raise click.UsageError(f"Images have no column {name!r}, only 'kind': the class or defect of each.")


def _read(
    path: str, split: str, normal_class: Sequence[str], root: str, columns: dict[str, Any], options: dict[str, Any]
) -> "Images":
    from vae_anomaly.data.images import read_images
    from vae_anomaly.data.named import NAMED, read_named

    normal = tuple(normal_class) or tuple(columns.get("normal_value") or ())
    if path in NAMED and not os.path.exists(path):
        return read_named(path, root=Path(root).expanduser(), normal_class=normal, split=split, **options)
    return read_images(path, label=columns.get("label"), normal_class=normal, **options)
