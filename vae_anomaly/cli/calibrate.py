"""vae-anomaly calibrate: a new threshold for a model, from more normal rows or from labelled ones."""

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from vae_anomaly.cli.common import (
    FiniteRange,
    Fraction,
    NameType,
    device_option,
    group_option,
    load_detector,
    overwrite_option,
    print_json,
    promise,
    run_options,
    table_options,
    tell,
    text_columns,
)
from vae_anomaly.cli.images import check_normal, check_there, holds_images, image_options, read_any
from vae_anomaly.cli.names import NAMES
from vae_anomaly.cli.outputs import check_output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vae_anomaly.data import Data
    from vae_anomaly.data.images import Images
    from vae_anomaly.detector import VAEDetector


@click.command("calibrate")
@click.argument("model", metavar="MODEL")
@click.argument("data", metavar="DATA")
@click.option(
    "-o", "--output", required=True, metavar="MODEL", help="Model file to write; MODEL itself with --overwrite."
)
@click.option("--fpr", type=Fraction(), help="Share of normal rows that may be flagged [default: the model's].")
@click.option(
    "--threshold",
    type=NameType("threshold", second="label threshold"),
    help="Rule for the threshold [default: the model's]. The last four choose it on labels.",
)
@click.option("--beta", type=FiniteRange(0, min_open=True), help="How often f_beta counts recall [default: 1].")
@click.option("--cost-miss", type=FiniteRange(0, min_open=True), help="Cost of a missed anomaly [default: 1].")
@click.option("--cost-alarm", type=FiniteRange(0, min_open=True), help="Cost of a false alarm [default: 1].")
@group_option
@table_options(label=True)
@image_options
@device_option
@overwrite_option
@run_options
def command(
    model: str,
    data: str,
    output: str,
    fpr: float | None,
    threshold: str | None,
    beta: float | None,
    cost_miss: float | None,
    cost_alarm: float | None,
    group: str | None,
    device: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **columns: Any,
) -> None:
    """Set the threshold of MODEL anew from the normal rows of DATA, which it must not have been trained on.

    The weights stay as they are. With --label, only the rows labelled normal count; the thresholds youden, f_beta, cost
    and recall_at_fpr are chosen on the anomalies, too.
    """
    given = {"fpr": fpr, "beta": beta, "cost_miss": cost_miss, "cost_alarm": cost_alarm}
    parameters = {name: value for name, value in given.items() if value is not None}
    labelled = bool(columns["label"]) or holds_images(data)
    _check_options(threshold, labelled, group, parameters)
    # The model itself may be replaced.
    check_output(output, overwrite, [data], stdout=False)
    check_there(data, models=[model])
    detector = load_detector(model, device)
    own = () if group is None else (group,)
    table = read_any(
        data, split="test", detector=detector, **columns, keep=own, text_columns=(*text_columns(detector), *own)
    )
    before, grouped = detector.threshold_, detector.groups_
    if threshold in NAMES["label threshold"]:
        _choose(detector, table, threshold, parameters, columns["cache_gb"], quiet)
        notes = {**detector.notes_, "label_data": table.name}
    else:
        if detector.holds_images:
            check_normal(table, quiet)  # type: ignore[arg-type]
        _calibrate(detector, table.normal(), group, columns["cache_gb"], quiet, threshold=threshold, fpr=fpr)
        notes = {**detector.notes_, "calibration_data": table.name}
    detector.save(output, notes=notes)
    rule = detector.threshold_rule_
    summary = {
        "model": output,
        "calibrated_on": len(detector.calibration_scores_),
        "threshold_before": before,
        "threshold": detector.threshold_,
        "fpr": rule["fpr"],
        "rule": rule["name"],
        "parameters": rule["parameters"],
        "extrapolation": rule["extrapolation"],
        "labels": rule["labels"],
        "group_thresholds": detector.group_thresholds_,
    }
    if grouped is not None and not detector.group_thresholds_:
        tell(quiet, f"Dropped the thresholds by {grouped.column!r}: one threshold now holds for all rows.")
    tell(quiet, f"Threshold {before:.6g} -> {detector.threshold_:.6g}: {promise(detector)}.")
    tell(quiet, f"Wrote {output}.")
    if as_json:
        print_json(summary)


def _check_options(threshold: str | None, labelled: bool, group: str | None, parameters: dict[str, float]) -> None:
    """Refuse options that do not go with the rule."""
    from vae_anomaly.label_thresholds import LABEL_THRESHOLDS as rules

    if threshold in rules and not labelled:
        raise click.UsageError(f"--threshold {threshold} needs --label, the column that says which rows are anomalies.")
    if threshold in rules and group is not None:
        raise click.UsageError(f"--group does not go with --threshold {threshold}, which is one for all rows.")
    takes = rules[threshold].parameters if threshold in rules else ("fpr",)
    for name in parameters:
        if name not in takes:
            fitting = [rule for rule in rules if name in rules[rule].parameters]
            fitting += NAMES["threshold"] if name == "fpr" else []
            raise click.UsageError(
                f"--{name.replace('_', '-')} does not go with --threshold {threshold or '(the model has its own)'}, "
                f"but with {' and '.join(fitting)}."
            )


def _tell_seen(quiet: bool, n_seen: int, n_rows: int) -> None:
    if n_seen:
        tell(
            quiet,
            f"{n_seen} of {n_rows} rows equal rows that the model was trained on, which score lower than new ones: the "
            "threshold may come out too low.",
        )


def _choose(
    detector: "VAEDetector",
    table: "Data | Images",
    rule: str,
    parameters: dict[str, float],
    cache_gb: float,
    quiet: bool,
) -> None:
    """Threshold from the labelled rows that can be scored."""
    if table.y is None:
        raise click.UsageError(f"--threshold {rule} needs labels: name the classes of normal images by --normal-class.")
    labelled, X = _scorable(detector, table.take(table.y >= 0), "labelled row", cache_gb)
    assert labelled.y is not None
    with _named(labelled):
        _tell_seen(quiet, detector.seen_rows(X)["training"], len(labelled))
        detector.choose_threshold(X, labelled.y, rule, **parameters)
    detector.threshold_rule_["labels"]["data"] = table.name


def _calibrate(
    detector: "VAEDetector", normal: "Data | Images", group: str | None, cache_gb: float, quiet: bool, **options: Any
) -> None:
    """Threshold from the normal rows that can be scored."""
    normal, X = _scorable(detector, normal, "normal row", cache_gb)
    with _named(normal):
        _tell_seen(quiet, detector.seen_rows(X)["training"], len(normal))
        detector.calibrate(X, groups=None if group is None else normal.kept[group], **options)


def _scorable(
    detector: "VAEDetector", table: "Data | Images", what: str, cache_gb: float
) -> tuple["Data | Images", Any]:
    """The rows that can be scored, and their columns, or images, as the detector takes them."""
    from vae_anomaly.data import Data
    from vae_anomaly.data.decode_once import decode_once
    from vae_anomaly.errors import DataError
    from vae_anomaly.predictions import Aligned, align, as_fitted

    if not len(table):
        raise DataError(f"{table.name} has no {what}.")
    found = align(detector, table) if isinstance(table, Data) else decode_once(table.X, cache_gb=cache_gb)
    scorable = found.reasons == ""
    if not scorable.any():
        raise DataError(f"{table.name} has no {what} that can be scored.")
    X = as_fitted(detector, found.X[scorable]) if isinstance(found, Aligned) else found.x
    return table.take(scorable), X


@contextmanager
def _named(table: "Data | Images") -> "Iterator[None]":
    """Say which table gives no threshold, and in which row a cell is that can't be used."""
    from vae_anomaly.errors import CellError, DataError
    from vae_anomaly.predictions import located

    with located(table):
        try:
            yield
        except CellError:
            raise
        except ValueError as error:
            raise DataError(f"{table.name}: {error}") from None
