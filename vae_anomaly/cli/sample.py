"""vae-anomaly sample: new rows drawn from a model."""

import sys

import click

from vae_anomaly.cli.common import check_output, load_detector, output_format, overwrite_option, tell


@click.command("sample")
@click.argument("model", metavar="MODEL")
@click.option("-n", "--rows", type=click.IntRange(1), default=10, show_default=True, help="Number of rows.")
@click.option(
    "-o", "--output", default="-", metavar="FILE", help="CSV or Parquet file [default: CSV to standard output]."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@overwrite_option
@click.option("-q", "--quiet", is_flag=True, help="No summary.")
def command(model: str, rows: int, output: str, seed: int, overwrite: bool, quiet: bool) -> None:
    """Draw new rows from the prior of MODEL, in the units and types of the table that it was fitted on."""
    import pandas as pd

    from vae_anomaly.atomic import replacing
    from vae_anomaly.data.writers import write_table

    check_output(output, overwrite)
    file_format = output_format(output)
    detector = load_detector(model)
    drawn = detector.sample(rows, random_state=seed)
    if not isinstance(drawn, pd.DataFrame):
        drawn = pd.DataFrame(drawn, columns=[column.name for column in detector.schema_.columns])
    if output == "-":
        drawn.to_csv(sys.stdout, index=False, lineterminator="\n")
        return
    with replacing(output) as temporary:
        write_table(drawn, temporary, format=file_format)
    tell(quiet, f"Wrote {rows} rows to {output}.")
