"""vae-anomaly sample: new rows or images drawn from a model, or a look at its latent space."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vae_anomaly.cli.common import load_detector, output_format, overwrite_option, tell
from vae_anomaly.cli.images import check_there
from vae_anomaly.cli.outputs import check_output

if TYPE_CHECKING:
    from vae_anomaly.detector import VAEDetector


@click.command("sample")
@click.argument("model", metavar="MODEL")
@click.option(
    "-n",
    "--rows",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Number of rows or images; with --traverse, of latent units at most.",
)
@click.option(
    "--traverse",
    is_flag=True,
    help="For images: a row for each active latent unit, moved from -3 to 3 scales of the prior.",
)
@click.option(
    "--between",
    nargs=2,
    metavar="IMAGE IMAGE",
    help="For images: what lies between the codes of two image files.",
)
@click.option(
    "-o",
    "--output",
    default="-",
    metavar="FILE",
    help="CSV or Parquet file [default: CSV to standard output]; for images, .png (all on one sheet) or .npy.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@overwrite_option
@click.option("-q", "--quiet", is_flag=True, help="No summary.")
def command(
    model: str,
    rows: int,
    traverse: bool,
    between: tuple[str, str] | None,
    output: str,
    seed: int,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Draw new rows or images from the prior of MODEL, in the units and types of what it was fitted on."""
    if traverse and between:
        raise click.UsageError("--traverse and --between are two sheets; ask for one at a time.")
    check_output(output, overwrite, [model, *(between or ())])
    check_there(models=[model])
    detector = load_detector(model)
    if detector.holds_images:
        _check_sheet(output)
        if traverse:
            _traverse(detector, rows, output, quiet)
        elif between:
            _between(detector, between, rows, output, quiet)
        else:
            drawn = detector.sample(rows, random_state=seed)
            _write_images(drawn, output, math.ceil(math.sqrt(rows)))
            tell(quiet, f"Wrote {rows} images to {output}.")
        return
    if traverse or between:
        option = "--traverse" if traverse else "--between"
        raise click.UsageError(f"{option} is for images, and {model} was fitted on a table.")
    _write_table(detector, rows, output, seed)
    if output != "-":
        tell(quiet, f"Wrote {rows} rows to {output}.")


def _write_table(detector: "VAEDetector", rows: int, output: str, seed: int) -> None:
    import pandas as pd

    from vae_anomaly.atomic import replacing
    from vae_anomaly.data.writers import write_table

    file_format = output_format(output)
    drawn = detector.sample(rows, random_state=seed)
    if not isinstance(drawn, pd.DataFrame):
        drawn = pd.DataFrame(drawn, columns=detector.schema_.feature_names)
    if output == "-":
        drawn.to_csv(sys.stdout, index=False, lineterminator="\n")
        return
    with replacing(output) as temporary:
        write_table(drawn, temporary, format=file_format)


def _check_sheet(output: str) -> None:
    if Path(output).suffix.lower() not in (".png", ".npy"):
        raise click.UsageError(f"-o {output}: images go to a file that ends in .png (all on one sheet) or .npy.")


def _traverse(detector: "VAEDetector", n_units: int, output: str, quiet: bool) -> None:
    from vae_anomaly.traversal import traverse

    found = traverse(detector, max_units=n_units)
    _write_images(found.images.reshape(-1, *found.images.shape[2:]), output, len(found.steps))
    units = ", ".join(
        f"{unit + 1} ({variance:.2g})" for unit, variance in zip(found.units, found.variances, strict=True)
    )
    tell(quiet, f"Rows are latent units of the first member, with the variance of their codes: {units}.")
    tell(quiet, f"Columns go from {found.steps[0]:g} to {found.steps[-1]:g} scales of the prior. Wrote {output}.")


def _between(detector: "VAEDetector", paths: tuple[str, str], n_images: int, output: str, quiet: bool) -> None:
    from vae_anomaly.traversal import between

    if n_images < 2:
        raise click.UsageError(f"-n {n_images}: between two images there are at least 2, the ends.")
    first, second = (_image(path, detector) for path in paths)
    _write_images(between(detector, first, second, n_images=n_images), output, n_images)
    tell(quiet, f"Wrote {n_images} images from {paths[0]} to {paths[1]}, as the model sees them, to {output}.")


def _image(path: str, detector: "VAEDetector") -> Any:
    """The one image in a file, in the shape that the model knows."""
    from vae_anomaly.data.images import read_images
    from vae_anomaly.errors import DataError

    channels, *size = detector.schema_.shape  # type: ignore[union-attr]
    images = read_images(path, size=tuple(size), channels=channels).X
    if len(images) != 1:
        raise DataError(f"{path} holds {len(images)} images. Name a file with one.")
    x, reasons = images.load()
    if reasons[0]:
        raise DataError(f"{path}: {reasons[0]}.")
    return x[0]


def _write_images(images: Any, output: str, n_columns: int) -> None:
    import numpy as np

    from vae_anomaly.atomic import replacing

    with replacing(output) as temporary, open(temporary, "wb") as file:
        if Path(output).suffix.lower() == ".npy":
            # As image readers take them: channels last.
            np.save(file, np.moveaxis(images, 1, -1))
        else:
            _sheet(images, n_columns).save(file, format="PNG")


def _sheet(images: Any, n_columns: int) -> Any:
    """Images side by side, line after line."""
    import torch
    from torchvision.transforms.v2.functional import to_pil_image
    from torchvision.utils import make_grid

    grid = make_grid(torch.from_numpy(images), nrow=n_columns, padding=2, pad_value=1.0)
    return to_pil_image(grid)
