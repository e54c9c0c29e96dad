"""Outputs that would replace what a verb reads."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vae_anomaly.cli.images import holds_images

if TYPE_CHECKING:
    from vae_anomaly.data.images import Images

__all__ = ["check_apart", "check_maps_apart"]


def check_apart(output: str, reads: Sequence[str], *, option: str = "-o") -> None:
    """Refuse an output that is one of the paths that are read, or would lie among the files of one that is a folder.

    With ``--overwrite`` the data would be gone.
    """
    if output == "-":
        return
    for path in reads:
        if _same(output, path):
            raise click.UsageError(f"{option} {output}: this would replace {path}, which is read. Name another file.")
        if os.path.isdir(path) and _among(output, path):
            raise click.UsageError(
                f"{option} {output}: this would lie among the files of {path}, which are read. Name a file elsewhere."
            )


def _same(one: str, other: str) -> bool:
    """Whether both are one file, however they are spelt."""
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)


def _among(output: str, folder: str) -> bool:
    """Whether a file would be read as one of a folder's tables or images; those of a model or a page are not."""
    from vae_anomaly.data import READERS
    from vae_anomaly.data.decoding import SUFFIXES

    # Of a symbolic link, the link would be replaced.
    parent, top = Path(output).parent.resolve(), Path(folder).resolve()
    if not parent.is_relative_to(top):
        return False
    if holds_images(folder):
        return output.lower().endswith(tuple(SUFFIXES))
    return parent == top and output.lower().endswith(tuple(READERS))


def check_maps_apart(folder: str, images: "Images") -> None:
    """Refuse a folder of maps in which one of them would replace an image: they have the same names."""
    from vae_anomaly.data.maps import map_names

    if not os.path.isdir(folder):
        return
    read = {os.path.realpath(path) for path in (images.name, *(images.X.paths or ()))}
    for name in map_names(images.ids.tolist()):
        for file in (os.path.join(folder, f"{name}.npy"), os.path.join(folder, f"{name}.png")):
            if os.path.realpath(file) in read:
                raise click.UsageError(f"--maps {folder}: {file} would replace what is read. Name another folder.")
