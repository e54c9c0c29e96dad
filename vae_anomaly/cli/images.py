"""Images on the command line: which DATA holds them, and how they are read."""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from vae_anomaly.cli.common import Command, FiniteRange, all_options, read_data, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vae_anomaly.data import Data
    from vae_anomaly.data.images import Images
    from vae_anomaly.detector import VAEDetector

__all__ = [
    "check_normal",
    "check_table",
    "check_there",
    "holds_images",
    "image_options",
    "image_progress",
    "read_any",
    "tell_ignored",
    "tell_resized",
]

# Where torchvision's data sets go that were not there.
DEFAULT_ROOT = "~/.cache/vae-anomaly"
# Folders of these names beside others say that not all images are normal.
TELLING_CLASSES = (
    *("good", "normal", "ok", "pass"),
    *("bad", "defect", "defects", "defective", "anomaly", "anomalies", "anomalous", "abnormal", "fail", "faulty"),
    *("ng", "nok", "not_ok"),
)


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
            click.option(
                "--cache-gb",
                type=FiniteRange(0),
                default=2.0,
                show_default=True,
                help="Gigabytes of decoded images to keep in memory; fit puts more than that into a temporary file.",
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
    cache_gb: float,
    size: int | None = None,
    tile: int | None = None,
    detector: "VAEDetector | None" = None,
    **columns: Any,
) -> "Data | Images":
    """Table or images at ``path``; of a data set that comes in two parts, the one called ``split``.

    The model's images decide the shape of new ones. To be cut into tiles, images keep their own size unless one is
    named.
    """
    if not (images or holds_images(path)):
        check_table(path, normal_class, size, tile)
        return read_data(path, **columns)
    _refuse_columns(columns)
    if path == "-":
        raise click.UsageError("--images: images are read from files, never from standard input. Name where they are.")
    shape = getattr(detector.schema_, "shape", None) if detector is not None and detector.holds_images else None
    if detector is not None and shape is None:
        raise click.UsageError(f"{path} holds images, and the model was fitted on a table.")
    options: dict[str, Any] = {
        "size": size if shape is None else shape[1:],
        "channels": None if shape is None else shape[0],
    }
    # fit decodes each image once, and has no use for them afterwards.
    found = _read(path, split, normal_class, root, columns, options, cache_gb=0.0 if detector is None else cache_gb)
    in_split = found.splits == split
    chosen = found.take(in_split) if in_split.any() else found
    return _at_own_size(chosen) if tile is not None and size is None else chosen


def _at_own_size(images: "Images") -> "Images":
    """Images that are not resized.

    Raises
    ------
    DataError
        If they are not all of one size.
    """
    from vae_anomaly.errors import DataError

    sizes = images.X.own_sizes(most=len(images))
    if len(sizes) > 1:
        (low, *_, high) = (f"{width} x {height}" for height, width in sizes)
        raise DataError(
            f"{images.name} has images of {len(sizes)} sizes, such as {low} and {high} pixels, and tiles are cut from "
            "images of one size. Name a height and width for all with --size."
        )
    return replace(images, X=images.X.resized(*sizes)) if sizes else images


def check_table(path: str, normal_class: Sequence[str] = (), size: int | None = None, tile: int | None = None) -> None:
    """Refuse options that only images have, and a folder in which there is nothing to read."""
    if normal_class or size or tile:
        option = "--normal-class" if normal_class else "--size" if size else "--tile"
        raise click.UsageError(f"{option} is for images, and {path} holds none.")
    if os.path.isdir(path):
        _check_folder(path)


def check_there(*data: str, models: Sequence[str] = ()) -> None:
    """Refuse files that are no models and data that do not exist, before torch is imported, which takes seconds."""
    from vae_anomaly.errors import DataError
    from vae_anomaly.persistence import load_header

    for path in models:
        load_header(path)
    for path in data:
        if not (path == "-" or os.path.exists(path) or holds_images(path)):
            raise DataError(f"{path} does not exist.")


def holds_images(path: str) -> bool:
    """Whether ``path`` is an image, a folder of images, an array of them, or the name of a data set."""
    from vae_anomaly.data.decoding import SUFFIXES
    from vae_anomaly.data.images import files_below
    from vae_anomaly.data.named import NAMED

    if path == "-":
        return False
    if not os.path.exists(path):
        return path in NAMED
    name = path.lower()
    if os.path.isdir(path):
        return any(file.lower().endswith(tuple(SUFFIXES)) for file in files_below(path))
    if name.endswith((".npy", ".npz")):
        return _array_rank(path) >= 3
    return name.endswith((*SUFFIXES, "-ubyte", "-ubyte.gz"))


def _check_folder(path: str) -> None:
    """Refuse a folder in which there is nothing to read."""
    from vae_anomaly.data import READERS
    from vae_anomaly.data.decoding import SUFFIXES
    from vae_anomaly.data.images import files_below
    from vae_anomaly.errors import DataError

    names = list(files_below(path))
    if not any(name.lower().endswith(tuple(READERS)) for name in names):
        what = f"{len(names)} other files, such as {min(names)}" if names else "no files at all"
        raise DataError(
            f"{path} is a folder without an image or a table, with {what}. Images end in {', '.join(SUFFIXES)}, tables "
            f"in {', '.join(READERS)}."
        )


def check_normal(images: "Images", quiet: bool) -> None:
    """Refuse images of several classes where normal ones were expected, or say that all of them are taken.

    Raises
    ------
    DataError
        If the name of a class says that normal and other images are mixed.
    """
    from vae_anomaly.errors import DataError

    kinds = sorted(set(images.kinds))
    if images.y is not None or len(kinds) < 2:
        return
    named = ", ".join(repr(kind) for kind in kinds[:8] if kind) + (", ..." if len(kinds) > 8 else "")
    telling = next((kind for kind in kinds if kind.lower() in TELLING_CLASSES), None)
    if telling is not None:
        raise DataError(
            f"{images.name} has classes ({named}), and normal images alone were expected. Name the normal ones with "
            "--normal-class, or give their folder."
        )
    tell(quiet, f"{images.name} has classes ({named}), and all images are taken as normal; --normal-class says else.")


@contextmanager
def image_progress(quiet: bool, doing: str, done: str, n_images: int) -> "Iterator[Callable[[int], None]]":
    """Told of images as they are done, it shows how many, and in the end how many a second."""
    start, count = time.perf_counter(), 0
    shown = sys.stderr if sys.stderr.isatty() and not quiet else None
    bar: Any = click.progressbar(length=n_images, label=doing, file=sys.stderr) if shown else nullcontext()

    def rate() -> str:
        return f"{count / max(time.perf_counter() - start, 1e-9):,.3g} a second"

    with bar as line:

        def on_part(n: int) -> None:
            nonlocal count
            count += n
            if shown:
                line.label = f"{doing}, {rate()}"
                line.update(n)

        yield on_part
    tell(quiet, f"{done} {count:,} images, {rate()}.")


def tell_ignored(images: "Images", quiet: bool) -> None:
    """Say how many files were passed over, as an image of another format would be missed."""
    if images.n_ignored:
        what = "file that is no image" if images.n_ignored == 1 else "files that are no images"
        tell(quiet, f"Passed over {images.n_ignored} {what} of a known format.")


def tell_resized(images: "Images", quiet: bool, *, few_tones: bool = False) -> None:
    """Say to which size images are brought that have another one, or several; and whether their few tones are why."""
    sizes = images.X.own_sizes()
    height, width = images.X.size
    if sizes in ([], [(height, width)]):
        return
    low, *rest = (f"{w} x {h}" for h, w in sizes)
    what = f"of {len(sizes)} sizes, such as {low} and {rest[-1]}," if rest else f"of {low} pixels"
    why = ", as they have few tones" if few_tones else ""
    tell(quiet, f"Images {what} are brought to {width} x {height} pixels{why}; --size names another side.")


def _array_rank(path: str) -> int:
    """Axes of the array, or of the largest one, in a file; 0 where that can't be told."""
    try:
        with np.load(path, mmap_mode="r", allow_pickle=False) as file:
            return max((file[key].ndim for key in file.files), default=0)
    except TypeError:
        return int(np.load(path, mmap_mode="r", allow_pickle=False).ndim)
    except Exception:  # a damaged file can raise almost anything, and the reader has a sentence for it
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
    path: str,
    split: str,
    normal_class: Sequence[str],
    root: str,
    columns: dict[str, Any],
    options: dict[str, Any],
    cache_gb: float,
) -> "Images":
    from vae_anomaly.data.images import read_images
    from vae_anomaly.data.named import NAMED, read_named

    normal = tuple(normal_class) or tuple(columns.get("normal_value") or ())
    if path in NAMED and not os.path.exists(path):
        return read_named(path, root=Path(root).expanduser(), normal_class=normal, split=split, **options)
    return read_images(path, label=columns.get("label"), normal_class=normal, cache_gb=cache_gb, **options)
