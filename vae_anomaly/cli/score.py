"""vae-anomaly score: model and new rows in, predictions table out."""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import click

from vae_anomaly.cli.common import (
    FiniteRange,
    Fraction,
    NameType,
    device_option,
    load_detector,
    model_columns,
    output_format,
    overwrite_option,
    print_json,
    read_batches,
    run_options,
    table_options,
    tell,
)
from vae_anomaly.cli.images import (
    check_table,
    check_there,
    holds_images,
    image_options,
    image_progress,
    read_any,
    tell_ignored,
)
from vae_anomaly.cli.outputs import check_maps, check_output

if TYPE_CHECKING:
    import pandas as pd

    from vae_anomaly.data.images import Images
    from vae_anomaly.detector import VAEDetector
    from vae_anomaly.score_file import ScoreRun
    from vae_anomaly.tallies import Tally

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
    help="Exit with 6 if a larger share of the rows is flagged, or none has a score.",
)
@click.option(
    "--resume", is_flag=True, help="Go on with FILE.partial, which a run of the same command that was cut off left."
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
    resume: bool,
    device: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **columns: Any,
) -> None:
    """Score the rows of DATA with MODEL: one line each, with score, p-value, verdict and the features behind it."""
    if output == "-" and as_json:
        raise click.UsageError("--json and the predictions both go to standard output; name a file with -o.")
    check_output(output, overwrite, [model, data])
    if resume and "-" in (output, data):
        raise click.UsageError("--resume is for files: standard input and output can't be gone back to.")
    file_format = output_format(output)
    check_there(data, models=[model])
    detector = load_detector(model, device)
    asked: dict[str, Any] = {"score_names": score_names, "n_top": n_top, "fdr": fdr}
    columns |= model_columns(detector)
    order = _Order(data, columns, asked, output, file_format, maps, overwrite, quiet)
    if columns["images"] or holds_images(data):
        if resume:
            raise click.UsageError(f"--resume is for tables, and {data} holds images.")
        name, tally = _score_images(detector, order)
        ignored: tuple[str, ...] = ()
    else:
        run = _table_run(detector, order)
        name, ignored = run.batches.name, run.ignored_columns
        tally = _score_table(run, order, _task(detector, model, order), resume)
    summary = _summary(detector, tally, name, output, fdr, ignored)
    _tell_summary(quiet, summary, tally, detector)
    if as_json:
        print_json(summary)
    if fail_above_rate is not None:
        _check_rate(summary, fail_above_rate)


def _check_rate(summary: dict[str, Any], limit: float) -> None:
    """End with a code of its own where too many rows are flagged, or it can't be told."""
    if not summary["scored"]:
        tell(False, f"None of the {summary['rows']} rows has a score to hold against --fail-above-rate {limit}.")
    elif summary["flagged_share"] > limit:
        tell(False, f"{summary['flagged_share']:.2%} of the rows are flagged, more than --fail-above-rate {limit}.")
    else:
        return
    raise click.exceptions.Exit(GATE_FAILED)


class _Order(NamedTuple):
    """What is to be scored, and where the predictions go."""

    data: str
    columns: dict[str, Any]
    """How it is read."""
    asked: dict[str, Any]
    """What the predictions hold."""
    output: str
    file_format: str
    maps: str | None
    overwrite: bool
    quiet: bool


def _score_images(detector: "VAEDetector", order: _Order) -> tuple[str, "Tally"]:
    """Name of the data and counts of their predictions, which are written."""
    from vae_anomaly.heat_maps import write_anomaly_maps
    from vae_anomaly.predictions import predict_table
    from vae_anomaly.score_file import new_tally

    images = cast("Images", read_any(order.data, split="test", detector=detector, **order.columns))
    tell_ignored(images, order.quiet)
    if order.maps is not None:
        check_maps(order.maps, order.overwrite, images)
    with image_progress(order.quiet, "Scoring", "Scored", len(images)) as on_part:
        predictions, _ = predict_table(detector, images, on_part=on_part, **order.asked)
    _write(predictions, order.output, order.file_format)
    if order.maps is not None:
        write_anomaly_maps(detector, images, order.maps)
        tell(order.quiet, f"Wrote maps of the images to {order.maps}.")
    tally = new_tally(detector, order.asked["fdr"])
    tally.add(predictions)
    return images.name, tally


def _table_run(detector: "VAEDetector", order: _Order) -> "ScoreRun":
    from vae_anomaly.score_file import ScoreRun

    check_table(order.data, order.columns["normal_class"])
    options = ("id_column", "drop", "delimiter", "keep", "text_columns")
    batches = read_batches(order.data, **{name: order.columns[name] for name in options})
    if order.maps is not None:
        raise click.UsageError(f"--maps is for images, and {batches.name} holds none.")
    return ScoreRun(detector, batches, on_rows=_row_progress(order.quiet), **order.asked)


def _score_table(run: "ScoreRun", order: _Order, task: dict[str, Any], resume: bool) -> "Tally":
    """Counts of the predictions, which are written."""
    from vae_anomaly.partial import Partial

    output, quiet = order.output, order.quiet
    if output == "-":
        return run.to_stream(sys.stdout.buffer)
    partial = Partial(output, task)
    if partial.is_foreign and not order.overwrite:
        raise click.UsageError(
            f"-o {output}: {partial.path} is in the way, and no run left it that can be gone on with. Rename it, or "
            "add --overwrite to replace it."
        )
    if partial.is_foreign:
        tell(quiet, f"Replacing {partial.path}, which can't be gone on with.")
    elif resume and not partial.exists:
        tell(quiet, f"There is no {partial.path} to go on with; starting from the first row.")
    elif not resume and partial.exists:
        tell(quiet, f"Replacing {partial.path}, which a run that was cut off has left; --resume would go on with it.")
    try:
        return run.to_file(output, order.file_format, task=task, resume=resume)
    except BaseException:
        if partial.fits:
            tell(False, f"What is done is in {partial.path}; the same command with --resume goes on from there.")
        raise


def _task(detector: "VAEDetector", model: str, order: _Order) -> dict[str, Any]:
    """What the predictions hang on."""
    from vae_anomaly import __version__
    from vae_anomaly.data.tabular import tables_in

    data, given = order.data, {**order.asked, **order.columns}
    paths = [] if data == "-" else [Path(path) for path in (tables_in(data) if os.path.isdir(data) else [data])]
    options = {"--scores": "score_names", "--top": "n_top", "--fdr": "fdr", "--id": "id_column"}
    options |= {f"--{name}": name for name in ("drop", "delimiter")}
    with open(model, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "version": __version__,
        "model": digest,
        # Another processor rounds otherwise.
        "device": detector.ensemble_.device.type,
        "data": [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths],
        **{f"option {option}": given[name] for option, name in options.items()},
    }


def _row_progress(quiet: bool) -> Callable[[int], None] | None:
    """Told how many rows are done, it shows them; silent where standard error is no terminal."""
    if quiet or not sys.stderr.isatty():
        return None
    start = time.perf_counter()

    def on_rows(n_rows: int) -> None:
        rate = n_rows / max(time.perf_counter() - start, 1e-9)
        click.echo(f"\rScored {n_rows:,} rows, {rate:,.0f} a second ", err=True, nl=False)

    return on_rows


def _write(predictions: "pd.DataFrame", output: str, file_format: str) -> None:
    from vae_anomaly.atomic import replacing
    from vae_anomaly.data.writers import write_table

    if output == "-":
        predictions.to_csv(sys.stdout, index=False, lineterminator="\n")
        return
    with replacing(output) as temporary:
        write_table(predictions, temporary, format=file_format)


def _summary(
    detector: "VAEDetector", tally: "Tally", name: str, output: str, fdr: float | None, ignored: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "data": name,
        "output": output,
        "rows": tally.rows,
        "scored": tally.scored,
        "flagged": tally.flagged,
        "flagged_share": tally.flagged_share,
        "not_scored": tally.rows - tally.scored,
        "ignored_columns": list(ignored),
        "fdr": fdr,
        # The bound takes all p-values to come from one set of calibration rows.
        "false_alarm_share": None if detector.groups_ else tally.false_alarm_share(len(detector.calibration_scores_)),
        "without_group": None if detector.groups_ is None else tally.without_group,
        # Scores out of fold come from one member each, and the mean of all members has another law.
        "drift_p_value": None if detector.threshold_rule_["out_of_fold"] else tally.low.p_value(),
    }


def _tell_summary(quiet: bool, summary: dict[str, Any], tally: "Tally", detector: "VAEDetector") -> None:
    if summary["without_group"]:
        assert detector.groups_ is not None
        tell(
            quiet,
            f"{summary['without_group']} rows have no {detector.groups_.column!r} that the model was calibrated on; "
            "all calibration rows judge them.",
        )
    extra = summary["ignored_columns"]
    if extra:
        names = ", ".join(repr(name) for name in extra[:10])
        more = f" and {len(extra) - 10} more" if len(extra) > 10 else ""
        tell(quiet, f"Ignored columns that the model does not know: {names}{more}.")
    if summary["not_scored"]:
        what = f"(the first: {tally.first_reason})"
        tell(quiet, f"{summary['not_scored']} rows can't be scored; column 'reason' says why {what}.")
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
