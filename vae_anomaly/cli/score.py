"""vae-anomaly score: model and new rows in, predictions table out."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vae_anomaly.cli.common import (
    FiniteRange,
    Fraction,
    NameType,
    check_output,
    device_option,
    load_detector,
    model_columns,
    output_format,
    overwrite_option,
    print_json,
    run_options,
    table_options,
    tell,
)
from vae_anomaly.cli.images import image_options, image_progress, read_any

if TYPE_CHECKING:
    import pandas as pd

    from vae_anomaly.data import Data
    from vae_anomaly.data.images import Images
    from vae_anomaly.predictions import Aligned

GATE_FAILED = 6


@click.command("score")
@click.argument("model", metavar="MODEL")
@click.argument("data", metavar="DATA")
@click.option(
    "-o", "--output", default="-", metavar="FILE", help="CSV or Parquet file [default: CSV to standard output]."
)
@click.option(
    "--scores", "score_names", type=NameType("score"), multiple=True, help="Further score to add (repeatable)."
)
@click.option(
    "--top", "n_top", type=click.IntRange(0), default=3, show_default=True, help="Features to name for each row."
)
@click.option(
    "--fdr",
    type=Fraction(),
    help="In place of the threshold: flag rows together, at most this share of them false alarms on average.",
)
@click.option(
    "--maps",
    metavar="FOLDER",
    help="For images: write where each is odd, as .npy and as a picture, named as the images.",
)
@click.option(
    "--fail-above-rate",
    type=FiniteRange(0, 1, max_open=True),
    help="Exit with 6 if a larger share of the rows is flagged.",
)
@table_options(label=False)
@image_options
@device_option
@overwrite_option
@run_options
def command(
    model: str,
    data: str,
    output: str,
    score_names: tuple[str, ...],
    n_top: int,
    fdr: float | None,
    maps: str | None,
    fail_above_rate: float | None,
    device: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **columns: Any,
) -> None:
    """Score the rows of DATA with MODEL: one line each, with score, p-value, verdict and the features behind it."""
    from vae_anomaly.data import Data
    from vae_anomaly.drift import drift_p_value
    from vae_anomaly.heat_maps import write_anomaly_maps
    from vae_anomaly.predictions import groups_of, has_group, predict_table

    if output == "-" and as_json:
        raise click.UsageError("--json and the predictions both go to standard output; name a file with -o.")
    check_output(output, overwrite)
    file_format = output_format(output)
    detector = load_detector(model, device)
    table = read_any(data, split="test", detector=detector, **columns, **model_columns(detector))
    if maps is not None:
        _check_maps(maps, table, overwrite)
    with _progress(quiet, table) as on_part:
        predictions, aligned = predict_table(
            detector, table, score_names=score_names, n_top=n_top, fdr=fdr, on_part=on_part
        )
    _write(predictions, output, file_format)
    if maps is not None and not isinstance(table, Data):
        write_anomaly_maps(detector, table, maps)
        tell(quiet, f"Wrote maps of the images to {maps}.")
    calibration, groups = detector.calibration_scores_, groups_of(detector, table)
    summary = _summary(predictions, aligned, table, output)
    summary |= {
        "fdr": fdr,
        # The bound takes all p-values to come from one set of calibration rows.
        "false_alarm_share": None
        if detector.groups_
        else _false_alarm_share(predictions, summary["flagged"], len(calibration)),
        "without_group": None if groups is None else int((~has_group(detector, groups)).sum()),
        # Scores out of fold come from one member each, and the mean of all members has another law.
        "drift_p_value": None
        if detector.threshold_rule_["out_of_fold"]
        else drift_p_value(calibration, predictions["anomaly_score"]),
    }
    if summary["without_group"]:
        assert detector.groups_ is not None
        tell(
            quiet,
            f"{summary['without_group']} rows have no {detector.groups_.column!r} that the model was calibrated on; "
            "all calibration rows judge them.",
        )
    _tell_summary(quiet, summary, aligned)
    if as_json:
        print_json(summary)
    if fail_above_rate is not None and summary["flagged_share"] > fail_above_rate:
        tell(
            False,
            f"{summary['flagged_share']:.2%} of the rows are flagged, more than --fail-above-rate {fail_above_rate}.",
        )
        raise click.exceptions.Exit(GATE_FAILED)


def _progress(quiet: bool, table: "Data | Images") -> Any:
    """Progress over images; a table is done at once."""
    from vae_anomaly.data import Data

    if isinstance(table, Data):
        return nullcontext()
    return image_progress(quiet, "Scoring", "Scored", len(table))


def _check_maps(folder: str, table: "Data | Images", overwrite: bool) -> None:
    from vae_anomaly.data import Data

    if isinstance(table, Data):
        raise click.UsageError(f"--maps is for images, and {table.name} holds none.")
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise click.UsageError(f"--maps {folder}: name a folder.")
    if not path.resolve().parent.is_dir():
        raise click.UsageError(f"--maps {folder}: the folder {str(path.parent)!r} does not exist. Create it first.")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise click.UsageError(f"--maps {folder}: there are files already. Add --overwrite to replace them.")


def _write(predictions: "pd.DataFrame", output: str, file_format: str) -> None:
    from vae_anomaly.atomic import replacing
    from vae_anomaly.data.writers import write_table

    if output == "-":
        predictions.to_csv(sys.stdout, index=False, lineterminator="\n")
        return
    with replacing(output) as temporary:
        write_table(predictions, temporary, format=file_format)


def _summary(predictions: "pd.DataFrame", aligned: "Aligned", table: "Data | Images", output: str) -> dict[str, Any]:
    n_rows, n_scored = len(predictions), int((aligned.reasons == "").sum())
    n_flagged = int(predictions["is_anomaly"].fillna(0).sum())
    return {
        "data": table.name,
        "output": output,
        "rows": n_rows,
        "scored": n_scored,
        "flagged": n_flagged,
        "flagged_share": n_flagged / n_scored if n_scored else 0.0,
        "not_scored": n_rows - n_scored,
        "ignored_columns": list(aligned.extra),
    }


def _false_alarm_share(predictions: "pd.DataFrame", n_flagged: int, n_calibration: int) -> float | None:
    """Upper bound on the share of false alarms among the flagged rows, with 95 % confidence."""
    from vae_anomaly.discoveries import false_alarm_share

    return false_alarm_share(predictions["p_value"], n_calibration, n_flagged) if n_flagged else None


def _tell_summary(quiet: bool, summary: dict[str, Any], aligned: "Aligned") -> None:
    if aligned.extra:
        names = ", ".join(repr(name) for name in aligned.extra[:10])
        more = f" and {len(aligned.extra) - 10} more" if len(aligned.extra) > 10 else ""
        tell(quiet, f"Ignored columns that the model does not know: {names}{more}.")
    if summary["not_scored"]:
        first = next(reason for reason in aligned.reasons if reason)
        tell(quiet, f"{summary['not_scored']} rows can't be scored; column 'reason' says why (the first: {first}).")
    tell(quiet, f"Flagged {summary['flagged']} of {summary['scored']} rows ({summary['flagged_share']:.2%}).")
    if summary["false_alarm_share"] is not None and summary["false_alarm_share"] < 1.0:
        tell(
            quiet, f"At most {summary['false_alarm_share']:.0%} of the flagged rows are false alarms (95 % confidence)."
        )
    _tell_drift(quiet, summary["drift_p_value"])
    if summary["output"] != "-":
        tell(quiet, f"Wrote {summary['output']}.")


def _tell_drift(quiet: bool, p_value: float | None) -> None:
    from vae_anomaly.drift import DRIFT_LEVEL

    if p_value is not None and p_value < DRIFT_LEVEL:
        tell(
            quiet,
            "Even the rows that look normal score unlike the calibration rows (their law and number below the "
            f"median, p = {p_value:.1g}). Normal itself may have changed; if these rows are normal, calibrate on them.",
        )
