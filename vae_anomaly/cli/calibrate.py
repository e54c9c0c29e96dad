"""vae-anomaly calibrate: a new threshold for a model, from more normal rows."""

from typing import Any

import click

from vae_anomaly.cli.common import (
    Fraction,
    NameType,
    check_output,
    device_option,
    load_detector,
    overwrite_option,
    print_json,
    promise,
    read_data,
    run_options,
    table_options,
    tell,
    text_columns,
)


@click.command("calibrate")
@click.argument("model", metavar="MODEL")
@click.argument("data", metavar="DATA")
@click.option(
    "-o", "--output", required=True, metavar="MODEL", help="Model file to write; MODEL itself with --overwrite."
)
@click.option("--fpr", type=Fraction(), help="Share of normal rows that may be flagged [default: the model's].")
@click.option("--threshold", type=NameType("threshold"), help="Rule for the threshold [default: the model's].")
@table_options(label=True)
@device_option
@overwrite_option
@run_options
def command(
    model: str,
    data: str,
    output: str,
    fpr: float | None,
    threshold: str | None,
    device: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **columns: Any,
) -> None:
    """Set the threshold of MODEL anew from the normal rows of DATA, which it must not have been trained on.

    The weights stay as they are. With --label, only the rows labelled normal count.
    """
    from vae_anomaly.errors import DataError
    from vae_anomaly.predictions import align, as_fitted, located

    check_output(output, overwrite, stdout=False)
    detector = load_detector(model, device)
    table = read_data(data, **columns, text_columns=text_columns(detector)).normal()
    aligned = align(detector, table)
    scorable = aligned.reasons == ""
    if not scorable.any():
        raise DataError(f"{table.name} has no normal row that can be scored.")
    before = detector.threshold_
    with located(table.take(scorable)):
        try:
            detector.calibrate(as_fitted(detector, aligned.X[scorable]), threshold=threshold, fpr=fpr)
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{table.name}: {error}") from None
    detector.save(output, notes={**detector.notes_, "calibration_data": table.name})
    summary = {
        "model": output,
        "calibrated_on": len(detector.calibration_scores_),
        "threshold_before": before,
        "threshold": detector.threshold_,
        "fpr": detector.threshold_rule_["fpr"],
        "rule": detector.threshold_rule_["name"],
        "extrapolation": detector.threshold_rule_["extrapolation"],
    }
    tell(quiet, f"Threshold {before:.6g} -> {detector.threshold_:.6g}: {promise(detector)}.")
    tell(quiet, f"Wrote {output}.")
    if as_json:
        print_json(summary)
