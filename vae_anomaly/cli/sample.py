"""vae-anomaly sample: new rows or images drawn from a model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vae_anomaly.cli.common import check_output, load_detector, output_format, overwrite_option, tell

if TYPE_CHECKING:
    from vae_anomaly.detector import VAEDetector


@click.command("sample")
@click.argument("model", metavar="MODEL")
@click.option("-n", "--rows", type=click.IntRange(1), default=10, show_default=True, help="Number of rows or images.")
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
def command(model: str, rows: int, output: str, seed: int, overwrite: bool, quiet: bool) -> None:
    """Draw new rows or images from the prior of MODEL, in the units and types of what it was fitted on."""
    check_output(output, overwrite)
    detector = load_detector(model)
    if detector.holds_images:
        _write_images(detector, rows, output, seed)
        tell(quiet, f"Wrote {rows} images to {output}.")
        return
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


def _write_images(detector: "VAEDetector", n_images: int, output: str, seed: int) -> None:
    import numpy as np

    from vae_anomaly.atomic import replacing

    suffix = Path(output).suffix.lower()
    if suffix not in (".png", ".npy"):
        raise click.UsageError(f"-o {output}: images go to a file that ends in .png (all on one sheet) or .npy.")
    drawn = detector.sample(n_images, random_state=seed)
    with replacing(output) as temporary, open(temporary, "wb") as file:
        if suffix == ".npy":
            # As image readers take them: channels last.
            np.save(file, np.moveaxis(drawn, 1, -1))
        else:
            _sheet(drawn).save(file, format="PNG")


def _sheet(images: Any) -> Any:
    """Images side by side, in a square as far as their number allows."""
    import math

    import torch
    from torchvision.transforms.v2.functional import to_pil_image
    from torchvision.utils import make_grid

    grid = make_grid(torch.from_numpy(images), nrow=math.ceil(math.sqrt(len(images))), padding=2, pad_value=1.0)
    return to_pil_image(grid)
