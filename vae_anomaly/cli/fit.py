"""vae-anomaly fit: normal rows in, model file out."""

import re
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import click

from vae_anomaly.cli.common import (
    FiniteRange,
    Fraction,
    NameType,
    check_device,
    device_option,
    group_option,
    overwrite_option,
    print_json,
    progress,
    promise,
    run_options,
    table_options,
    tell,
)
from vae_anomaly.cli.images import (
    check_normal,
    check_table,
    check_there,
    image_options,
    image_progress,
    read_any,
    tell_ignored,
    tell_resized,
)
from vae_anomaly.cli.large import columns_note, large_options, open_large, sample_note
from vae_anomaly.cli.outputs import check_output

if TYPE_CHECKING:
    from vae_anomaly.data import Data
    from vae_anomaly.data.images import Images
    from vae_anomaly.data.large import LargeTable
    from vae_anomaly.detector import VAEDetector


@click.command("fit")
@click.argument("data", metavar="DATA")
@click.option("-o", "--output", required=True, metavar="MODEL", help="Model file to write (.safetensors).")
@table_options(label=True)
@group_option
@click.option("--categorical", metavar="COLUMN", multiple=True, help="Column of codes, not quantities (repeatable).")
@click.option(
    "--fpr", type=Fraction(), default=0.05, show_default=True, help="Share of normal rows that may be flagged."
)
@click.option("--threshold", type=NameType("threshold"), default="conformal", show_default=True)
@click.option("--score", "score_name", type=NameType("score", ["auto"]), default="auto", show_default=True)
@click.option("--likelihood", type=NameType("likelihood", ["auto"]), default="auto", show_default=True)
@click.option("--prior", type=NameType("prior"), default="standard_normal", show_default=True)
@click.option(
    "--estimators", "n_estimators", type=click.IntRange(1), default=6, show_default=True, help="Ensemble members."
)
@click.option(
    "--latent-dim", type=click.IntRange(1), help="Latent variables [default: as many as columns, at most 128]."
)
@click.option(
    "--net",
    type=NameType("net", ["auto"]),
    default="auto",
    show_default=True,
    help="auto: conv for large images, else mlp.",
)
@click.option(
    "--backbone",
    type=NameType("backbone", ["auto", "pixels"]),
    default="auto",
    show_default=True,
    help="What describes patches of images: gabor needs no weights, resnets are torchvision's. auto: gabor for large "
    "images, else pixels.",
)
@click.option(
    "--weights",
    "backbone_weights",
    metavar="FILE",
    help="The backbone's weights, as torch.save or safetensors writes a state_dict [default: torchvision's download].",
)
@click.option(
    "--size",
    type=click.IntRange(4, 2048),
    help="Height and width that images are resized to [default: found in the files].",
)
@click.option(
    "--tile",
    type=click.IntRange(8, 2048),
    help="Cut images, at their own size, into overlapping squares of so many pixels a side, and stitch their maps.",
)
@click.option("--hidden", default="96,96", show_default=True, help="Widths of the encoder's layers.")
@click.option("--beta", type=FiniteRange(0), default=1.0, show_default=True, help="Weight of the KL term.")
@click.option("--min-scale", type=FiniteRange(0, min_open=True), default=0.05, show_default=True)
@click.option("--max-steps", type=click.IntRange(1), help="Optimiser steps [default: 300 to 6000, by rows].")
@click.option("--batch-size", type=click.IntRange(1), help="[default: 256, fewer for few or wide rows]")
@click.option("--learning-rate", type=FiniteRange(0, min_open=True), help="[default: 0.004 to 0.012, by steps]")
@click.option(
    "--robust",
    type=FiniteRange(0, 0.49),
    default=0.0,
    show_default=True,
    help="Share of the rows that may be anomalies.",
)
@click.option(
    "--rank-share",
    type=FiniteRange(0, 0.95),
    default=0.15,
    show_default=True,
    help="Weight of a value's rank beside the value.",
)
@click.option(
    "--flip", "flips", type=click.Choice(["h", "v"]), multiple=True, help="Flip images to learn from (repeatable)."
)
@click.option("--shift", type=click.IntRange(0), default=0, help="Shift images to learn from, by so many pixels.")
@click.option(
    "--brightness", type=FiniteRange(0, 1), default=0.0, help="Make images to learn from so much brighter or darker."
)
@click.option("--seed", "random_state", type=click.IntRange(0), default=0, show_default=True)
@large_options
@image_options
@device_option
@click.option(
    "--precision",
    type=NameType("precision"),
    default="auto",
    show_default=True,
    help="Of products in training. auto: TF32 for large ones, or many, on CUDA, else float32. bfloat16: for processors "
    "with AMX or AVX512-BF16.",
)
@overwrite_option
@run_options
def command(
    data: str,
    output: str,
    label: str | None,
    normal_value: tuple[str, ...],
    id_column: str | None,
    drop: tuple[str, ...],
    delimiter: str | None,
    group: str | None,
    categorical: tuple[str, ...],
    hidden: str,
    size: int | None,
    images: bool,
    normal_class: tuple[str, ...],
    root: str,
    cache_gb: float,
    max_rows: int | None,
    max_memory: int | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **params: Any,
) -> None:
    """Learn what normal rows look like, and write a MODEL file.

    DATA is CSV, Parquet, .npy, .npz, a folder of such files, or - for standard input; or images: a folder of them
    (subfolders are classes; the layout of MVTec AD is recognised), an array, an IDX file, or mnist, fashion-mnist,
    kmnist, cifar10, svhn. With --label or --normal-class, only what is normal is trained on. The threshold is set by
    rows that the members scoring them did not train on.
    """
    check_output(output, overwrite, [path for path in (data, params["backbone_weights"]) if path], stdout=False)
    check_there(data)
    check_device(params["device"], params["precision"])
    columns: dict[str, Any] = {
        "label": label,
        "normal_value": normal_value,
        "id_column": id_column,
        "drop": drop,
        "delimiter": delimiter,
        "keep": () if group is None else (group,),
        "text_columns": categorical if group is None else (*categorical, group),
    }
    seed = params["random_state"]
    image_only: dict[str, Any] = {"normal_class": normal_class, "root": root, "size": size, "tile": params["tile"]}
    large = open_large(data, images=images, max_rows=max_rows, max_memory=max_memory, **columns)
    if large is None:
        table = read_any(data, split="train", images=images, cache_gb=cache_gb, **image_only, **columns)
        _check_images(table, params)
        _check_weights(params["backbone"], params["backbone_weights"])
        asked = size or any(params[name] not in (None, "auto") for name in ("tile", "backbone", "net", "likelihood"))
        rows = _normal(table, cache_gb, quiet, as_drawings=not asked)
        if max_rows is not None:
            rows = _fewer(rows, max_rows, seed)
    else:
        check_table(data, normal_class, size, params["tile"])
        _check_images(large, params)
        rows = _drawn(large, max_rows, seed) if max_rows is not None else _in_parts(large, group, seed)
    detector = _fit(rows, group, quiet, categorical_features=categorical, hidden=_widths(hidden), **params)
    detector.save(output, notes={**rows.notes, "id": id_column})
    summary = _summary(detector, rows, output)
    _tell_summary(quiet, detector, summary)
    if as_json:
        print_json(summary)


@dataclass
class _Rows:
    """Normal rows to fit on, as the detector takes them, and where they come from."""

    X: Any
    source: Any
    """Tells the file and the row of each, and has its group."""
    counts: dict[str, int]
    notes: dict[str, Any]
    said: list[str] = field(default_factory=list)
    """Sentences for people."""


def _check_images(table: "Data | Images | LargeTable", params: dict[str, Any]) -> None:
    """Refuse for a table what changes images."""
    from vae_anomaly.data.images import Images

    if isinstance(table, Images):
        return
    options = {"flips": "--flip", "shift": "--shift", "brightness": "--brightness", "tile": "--tile"}
    asked = {option: params[name] for name, option in options.items()}
    asked |= {"--net conv": params["net"] == "conv", "--backbone": params["backbone"] != "auto"}
    asked |= {"--weights": params["backbone_weights"]}
    for option, value in asked.items():
        if value:
            raise click.UsageError(f"{option} is for images, and {table.name} holds none.")


def _check_weights(backbone: str, weights: str | None) -> None:
    """Refuse weights for a backbone that takes none."""
    if weights is None:
        return
    from vae_anomaly.backbones import BACKBONES

    if not (backbone in BACKBONES and BACKBONES[backbone].learned):
        learned = ", ".join(name for name, entry in BACKBONES.items() if entry.learned)
        raise click.UsageError(
            f"--weights {weights}: name the backbone that they belong to with --backbone: {learned}."
        )


def _normal(table: "Data | Images", cache_gb: float, quiet: bool, *, as_drawings: bool) -> _Rows:
    """What to train on; images that can't be decoded are left out, drawings brought to few pixels."""
    from vae_anomaly.data import Data
    from vae_anomaly.data.decode_once import decode_once
    from vae_anomaly.data.drawings import fewer_pixels
    from vae_anomaly.planning import MAX_MLP_PIXELS

    normal = table.normal()
    X = normal.X
    if not isinstance(normal, Data):
        check_normal(normal, quiet)
        tell_ignored(normal, quiet)
        if as_drawings:
            normal = replace(normal, X=fewer_pixels(normal.X, more_than=MAX_MLP_PIXELS))
        tell_resized(normal, quiet, few_tones=normal.X is not X)
        with image_progress(quiet, "Decoding", "Decoded", len(normal)) as on_part:
            X, reasons = decode_once(normal.X, cache_gb=cache_gb, on_part=on_part)
        if (reasons != "").any():
            first = int((reasons != "").argmax())
            tell(quiet, f"Left out {(reasons != '').sum()} images, such as {normal.locate(first)}: {reasons[first]}.")
        normal = normal.take(reasons == "")
    kind = "row" if isinstance(normal, Data) else "image"
    _check_enough(table.name, len(normal), kind if table.y is None else f"{kind} labelled normal")
    counts = {
        "rows": len(table.X),
        "normal_rows": len(normal.X),
        "anomalies_left_out": 0 if table.y is None else int((table.y == 1).sum()),
        "unlabelled_left_out": 0 if table.y is None else int((table.y == -1).sum()),
    }
    return _Rows(X, normal, counts, _notes(table))


def _check_enough(name: str, n_rows: int, what: str) -> None:
    from vae_anomaly.errors import DataError

    if n_rows < 2:
        raise DataError(f"{name} has {n_rows or 'no'} {what}, and at least 2 are needed to fit.")


def _notes(table: "Data | Images | LargeTable") -> dict[str, Any]:
    return {"data": table.name, "left_out_columns": list(table.dropped)}


def _fewer(rows: _Rows, max_rows: int, seed: int) -> _Rows:
    """Some of the rows of a table that was read whole: those that would be drawn from its batches."""
    from vae_anomaly.in_parts import survey

    chosen = survey(lambda texts: iter([rows.X]), max_rows, seed).positions
    return _stated(rows.source.take(chosen), rows.counts, rows.notes, seed)


def _drawn(table: "LargeTable", max_rows: int, seed: int) -> _Rows:
    """Some of the rows of a table that is read in batches."""
    sample = table.sample(max_rows, seed)
    _check_large(table)
    return _stated(sample, _counts(table), _notes(table), seed)


def _stated(sample: "Data", counts: dict[str, int], notes: dict[str, Any], seed: int) -> _Rows:
    """Rows that were drawn, and that they were."""
    n_normal = counts["normal_rows"]
    said = f"Drew {len(sample)} of the {n_normal} normal rows, uniformly, by the seed {seed}."
    counts = {**counts, "sampled": len(sample)}
    return _Rows(sample.X, sample, counts, {**notes, "sample": sample_note(len(sample), n_normal, seed)}, [said])


def _in_parts(table: "LargeTable", group: str | None, seed: int) -> _Rows:
    """All rows of a table that is read in batches."""
    from vae_anomaly.in_parts import TableInParts

    X = TableInParts(table.parts, seed)
    _check_large(table)
    said = [f"{table.name} may not fit into memory: its rows are encoded into a temporary file."]
    if not X.exact:
        said.append(columns_note(len(X.sample), len(X)))
    notes = _notes(table)
    if not X.exact:
        notes["columns_sample"] = sample_note(len(X.sample), len(X), seed)
    return _Rows(X, table, _counts(table), notes, said)


def _counts(table: "LargeTable") -> dict[str, int]:
    counts = table.counts
    return {
        "rows": counts.rows,
        "normal_rows": counts.normal,
        "anomalies_left_out": counts.anomalies,
        "unlabelled_left_out": counts.unlabelled,
    }


def _check_large(table: "LargeTable") -> None:
    _check_enough(table.name, table.counts.normal, "row" if table.label is None else "row labelled normal")


def _widths(text: str) -> tuple[int, ...]:
    try:
        widths = tuple(int(width) for width in text.split(",") if width.strip())
    except ValueError:
        widths = (0,)
    if any(width < 1 for width in widths):
        raise click.UsageError(f"--hidden {text}: write positive widths with commas, such as 96,96.")
    return widths


def _fit(rows: _Rows, group: str | None, quiet: bool, **params: Any) -> "VAEDetector":
    from vae_anomaly.detector import VAEDetector
    from vae_anomaly.errors import CalibrationWarning, CellError, DataError
    from vae_anomaly.predictions import located

    for sentence in rows.said:
        tell(quiet, sentence)
    detector = VAEDetector(**params)
    groups = None if group is None else rows.source.kept[group]
    with warnings.catch_warnings(), located(rows.source), progress(quiet) as on_check:
        # In the shell nobody would see a model that never flags anything for what it is.
        warnings.simplefilter("error", CalibrationWarning)
        try:
            detector.fit(rows.X, groups=groups, on_check=on_check)
        except CalibrationWarning as warning:
            raise DataError(f"{rows.source.name}: {_in_shell(str(warning))}") from None
        except CellError:
            raise
        except DataError as error:
            named = "" if str(error).startswith(rows.source.name) else f"{rows.source.name}: "
            raise DataError(f"{named}{error}{_other_delimiter(rows.X)}") from None
    return detector


def _in_shell(text: str) -> str:
    """Advice as the command line takes it: there is no model yet that could be calibrated."""
    text = re.sub(r"No row will be flagged until calibrate\(\) gets \d+ normal rows\. Or fit on", "Fit on", text)
    return text.replace("raise fpr", "raise --fpr")


def _other_delimiter(X: Any) -> str:
    """Advice for a table whose only column has a name that looks like several."""
    from vae_anomaly.data.delimited import DELIMITERS

    names = [str(name) for name in getattr(X, "columns", ())]
    if len(names) != 1 or not any(character in names[0] for character in DELIMITERS):
        return ""
    return f" Its only column is {names[0]!r}: name another delimiter with --delimiter, or leave that out."


def _summary(detector: "VAEDetector", rows: _Rows, output: str) -> dict[str, Any]:
    return {
        "model": output,
        **rows.counts,
        "trained_on": detector.n_rows_["train"],
        "calibrated_on": detector.n_rows_["calibration"],
        "threshold": detector.threshold_,
        "fpr": detector.threshold_rule_["fpr"],
        "rule": detector.threshold_rule_["name"],
        "group_thresholds": detector.group_thresholds_,
        "extrapolation": detector.threshold_rule_["extrapolation"],
        "active_units": [int(count) for count in detector.active_units_],
        "notes": detector.schema_.notes(),
        "duplicates": _duplicates(detector),
    }


def _duplicates(detector: "VAEDetector") -> int | None:
    """How many of the rows trained on equal another one; None where their number is not known any more."""
    from vae_anomaly.row_hashes import MAX_KEPT

    n_distinct = len(detector.row_hashes_["training"])
    return None if n_distinct > MAX_KEPT else detector.n_rows_["train"] - n_distinct


def _tell_parts(quiet: bool, detector: "VAEDetector") -> None:
    """Say that not all patches or tiles of the images are learned from, where there are too many."""
    from vae_anomaly.splitting import MAX_PARTS

    n_parts = detector.n_rows_["train"] * detector.schema_.n_parts
    # An image that is seen whole is none of them.
    if detector.schema_.n_parts > 1 and n_parts > MAX_PARTS:
        tell(
            quiet,
            f"Each member learned from {MAX_PARTS:,} of their {n_parts:,} patches or tiles at most, drawn by the seed.",
        )


def _tell_summary(quiet: bool, detector: "VAEDetector", summary: dict[str, Any]) -> None:
    for note in summary["notes"]:
        tell(quiet, note)
    left_out = [
        f"{summary[key]} {what}"
        for key, what in (("anomalies_left_out", "labelled anomalies"), ("unlabelled_left_out", "rows without a label"))
        if summary[key]
    ]
    also = f"; left out {' and '.join(left_out)}" if left_out else ""
    n_rows = summary.get("sampled", summary["normal_rows"])
    tell(quiet, f"Fitted on {n_rows} normal rows{also}.")
    tell(
        quiet,
        f"Trained on {summary['trained_on']} of them, {detector.n_estimators} members, "
        f"{detector.active_units_.mean():.3g} of {detector.architecture_['latent_dim']} latent units active.",
    )
    _tell_parts(quiet, detector)
    if detector.holds_images and summary["duplicates"]:
        tell(quiet, f"{summary['duplicates']} of them are equal to another one, and count as often as they are there.")
    tell(quiet, f"Threshold {detector.threshold_:.6g}: {promise(detector)}.")
    tell(quiet, f"Wrote {summary['model']}.")
