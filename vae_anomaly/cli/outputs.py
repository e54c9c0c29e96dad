"""Where a verb may write: nowhere that loses what is there, or what it reads."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vae_anomaly.cli.images import holds_images

if TYPE_CHECKING:
    from vae_anomaly.data.images import Images

__all__ = ["check_folder", "check_maps", "check_output"]


def check_output(path: str, overwrite: bool, reads: Sequence[str], *, stdout: bool = True) -> None:
    """Refuse, before any work is done, an output that could not be written, or would replace a file or what is read."""
    if path == "-":
        if not stdout:
            raise click.UsageError("-o -: a model can't be written to standard output. Name a file.")
        return
    _check_apart(path, reads)
    folder = Path(path).parent
    if not folder.is_dir():
        raise click.UsageError(f"-o {path}: the folder {str(folder)!r} does not exist. Create it first.")
    if Path(path).is_dir():
        raise click.UsageError(f"-o {path}: this is a folder; name a file in it.")
    if Path(path).exists() and not overwrite:
        raise click.UsageError(f"-o {path}: the file exists. Add --overwrite to replace it, or name another file.")
    if not os.access(folder, os.W_OK):
        raise click.UsageError(f"-o {path}: no permission to write in {str(folder)!r}.")


def check_folder(path: str, *, option: str = "-o", wanted: str = "a folder") -> None:
    """Refuse a folder of outputs that is a file, or could not be made."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise click.UsageError(f"{option} {path}: name {wanted}.")
    # As it is spelt, which is how it will be made, and where a link leads.
    if not (folder.parent.is_dir() and folder.resolve().parent.is_dir()):
        raise click.UsageError(f"{option} {path}: the folder {str(folder.parent)!r} does not exist. Create it first.")


def check_maps(folder: str, overwrite: bool, images: "Images") -> None:
    """Refuse a folder of maps that could not be made or holds files, and one whose maps would replace an image."""
    check_folder(folder, option="--maps")
    if not os.path.isdir(folder):
        return
    if os.listdir(folder) and not overwrite:
        raise click.UsageError(f"--maps {folder}: there are files already. Add --overwrite to replace them.")
    _check_maps_apart(folder, images)


def _check_apart(output: str, reads: Sequence[str]) -> None:
    """Refuse an output that is one of the paths that are read, or would lie among the files of one that is a folder.

    With ``--overwrite`` the data would be gone.
    """
    for path in reads:
        if _same(output, path):
            raise click.UsageError(f"-o {output}: this would replace {path}, which is read. Name another file.")
        if os.path.isdir(path) and _among(output, path):
            raise click.UsageError(
                f"-o {output}: this would lie among the files of {path}, which are read. Name a file elsewhere."
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


def _check_maps_apart(folder: str, images: "Images") -> None:
    """A map has the name of its image."""
    from vae_anomaly.data.maps import map_names

    read = {os.path.realpath(path) for path in (images.name, *(images.X.paths or ()))}
    for name in map_names(images.ids.tolist()):
        for file in (os.path.join(folder, f"{name}.npy"), os.path.join(folder, f"{name}.png")):
            if os.path.realpath(file) in read:
                raise click.UsageError(f"--maps {folder}: {file} would replace what is read. Name another folder.")
