"""vae-anomaly report: model and rows in, one HTML page and the figures behind it out."""

import json
import math
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vae_anomaly.cli.common import (
    FiniteRange,
    Fraction,
    NameType,
    device_option,
    load_detector,
    model_columns,
    overwrite_option,
    print_json,
    run_options,
    table_options,
    tell,
)
from vae_anomaly.cli.images import check_there, image_options, read_any
from vae_anomaly.cli.outputs import check_folder, check_output

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vae_anomaly.detector import VAEDetector
    from vae_anomaly.metrics import Interval
    from vae_anomaly.report import Contents

GATE_FAILED = 6
READING = ("label", "normal_value", "id_column", "drop", "delimiter", "images", "normal_class", "root", "cache_gb")


class Outputs(NamedTuple):
    """Where the files of a report go."""

    html: Path
    metrics: Path
    roc: Path
    pr: Path


@click.command("report")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.argument("data", metavar="DATA")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="PATH",
    help="Folder for report.html, metrics.json, roc.csv and pr.csv; or an .html file, with the others beside it.",
)
@click.option("--title", help="Heading of the page [default: the name of the data].")
@click.option("--type", "types", metavar="COLUMN", help="Column with the kind of each anomaly, for recall by kind.")
@click.option("--plots", metavar="FOLDER", help="Write the charts there, too, as SVG and PNG.")
@click.option(
    "--scores/--no-scores",
    "compare",
    default=True,
    help="Compare the scores of the model, but for those that take long [default: yes].",
)
@click.option(
    "--compare-score", "also", type=NameType("score"), multiple=True, help="Compare this one, too (repeatable)."
)
@click.option("--max-fpr", type=Fraction(), default=0.1, show_default=True, help="Where the partial area ends.")
@click.option("--cost-miss", type=FiniteRange(0), help="Cost of a missed anomaly [default: the model's, or 1].")
@click.option("--cost-alarm", type=FiniteRange(0), help="Cost of a false alarm [default: the model's, or 1].")
@click.option("--min-auroc", type=Fraction(), help="Exit with 6 if the area under the ROC curve is smaller.")
@table_options(label=True)
@image_options
@device_option
@overwrite_option
@run_options
def command(
    models: tuple[str, ...],
    data: str,
    output: str,
    title: str | None,
    types: str | None,
    plots: str | None,
    min_auroc: float | None,
    device: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Evaluate MODEL on the rows of DATA, on one HTML page.

    With --label: ROC, precision-recall, rates at the threshold, worst rows. Without: what needs no labels. Of several
    models, the first one is reported, and the others are compared with it on the same rows.
    """
    if options["also"] and len(models) > 1:
        raise click.UsageError("--compare-score compares the scores of one model, and several are named.")
    columns = {name: options.pop(name) for name in READING}
    outputs = _outputs(output, overwrite, [*models, data])
    _check_plots(plots, overwrite)
    names = _names(models)
    check_there(data, models=models)
    detectors = {name: load_detector(path, device) for name, path in names.items()}
    from vae_anomaly.account import account

    detector, *_ = detectors.values()
    table = read_any(data, split="test", detector=detector, **columns, **_model_columns(detectors.values(), types))
    if table.y is None:
        _refuse_without_labels({"--type": types, "--min-auroc": min_auroc, "--compare-score": options["also"] or None})
    name, *others = names
    contents, n_left_out = account(
        detector,
        table,
        title=title or f"{Path(name).stem} on {Path(table.name).name}",
        model_name=name,
        others={other: detectors[other] for other in others},
        types=types,
        provenance={"Command": _shown_command()},
        **options,
    )
    if n_left_out:
        tell(quiet, f"Left out {n_left_out} rows without a {'score' if table.y is None else 'label or a score'}.")
    metrics = _metrics(contents)
    _write(outputs, contents, metrics, plots)
    _tell_summary(quiet, contents, outputs, plots, several=len(models) > 1)
    if as_json:
        print_json({"report": str(outputs.html), **metrics})
    if min_auroc is not None and metrics["roc_auc"]["value"] < min_auroc:
        tell(
            False,
            f"The area under the ROC curve is {metrics['roc_auc']['value']:.4f}, less than --min-auroc {min_auroc}.",
        )
        raise click.exceptions.Exit(GATE_FAILED)


def _refuse_without_labels(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value is not None:
            raise click.UsageError(
                f"{name} needs labels: name the column that says which rows are normal with --label."
            )


def _names(models: tuple[str, ...]) -> dict[str, str]:
    """What to call each model file: its name, or its path where two have the same name."""
    files = [Path(path).name for path in models]
    if len(set(models)) < len(models):
        raise click.UsageError("The same model is named twice. Name each model once.")
    return {path if files.count(file) > 1 else file: path for path, file in zip(models, files, strict=True)}


def _model_columns(detectors: "Iterable[VAEDetector]", types: str | None) -> dict[str, Any]:
    """What all models together need to know of the columns."""
    each = [model_columns(detector, () if types is None else (types,)) for detector in detectors]
    return {key: tuple(dict.fromkeys(name for one in each for name in one[key])) for key in ("keep", "text_columns")}


def _outputs(output: str, overwrite: bool, reads: Sequence[str]) -> Outputs:
    path = Path(output)
    if path.suffix.lower() in (".html", ".htm"):
        folder, html = path.parent, path
    else:
        folder, html = path, path / "report.html"
        check_folder(output, wanted="a folder, or a file that ends in .html")
    outputs = Outputs(html, folder / "metrics.json", folder / "roc.csv", folder / "pr.csv")
    if folder.is_dir() or html is path:
        for target in outputs:
            check_output(str(target), overwrite, reads)
    return outputs


def _check_plots(plots: str | None, overwrite: bool) -> None:
    if plots is None:
        return
    check_folder(plots, option="--plots")
    if not overwrite and any(Path(plots).glob("*.svg")):
        raise click.UsageError(f"--plots {plots}: there are charts already. Add --overwrite to replace them.")


def _shown_command() -> str:
    return shlex.join(["vae-anomaly", *sys.argv[1:]]) if Path(sys.argv[0]).stem == "vae-anomaly" else "-"


def _metrics(contents: "Contents") -> dict[str, Any]:
    """What metrics.json holds."""
    from vae_anomaly.by_type import recall_by_type_json
    from vae_anomaly.metrics import Unlabelled, to_json
    from vae_anomaly.paired import compared_json
    from vae_anomaly.pixel_metrics import to_json as pixel_json

    given = contents.evaluation
    guard = {"is_test_result": contents.is_test_result, "seen_rows": dict(contents.seen_rows)}
    if isinstance(given, Unlabelled):
        return {
            **guard,
            "n_rows": given.n_rows,
            "n_flagged": given.n_flagged,
            "flagged_share": given.n_flagged / given.n_rows,
            "threshold": given.threshold if abs(given.threshold) < float("inf") else None,
        }
    metrics = {**guard, **to_json(given)}
    if contents.types:
        metrics["types"] = recall_by_type_json(list(contents.types))
    if contents.localised:
        metrics |= pixel_json(contents.localised)
    if contents.compared:
        metrics["compared"] = compared_json(list(contents.compared))
    return metrics


def _write(outputs: Outputs, contents: "Contents", metrics: dict[str, Any], plots: str | None) -> None:
    """Write all files of the report."""
    import pandas as pd

    from vae_anomaly.atomic import replacing
    from vae_anomaly.metrics import Evaluation, pr_table, roc_table
    from vae_anomaly.report import render_contents, save_plots

    page = render_contents(contents)
    if plots is not None:
        save_plots(contents, plots)
    outputs.html.parent.mkdir(exist_ok=True)
    given = contents.evaluation
    # All files appear together, or none does.
    with ExitStack() as stack:
        stack.enter_context(replacing(outputs.html)).write_text(page, encoding="utf-8", newline="\n")
        stack.enter_context(replacing(outputs.metrics)).write_text(
            json.dumps(metrics, indent=2) + "\n", encoding="utf-8"
        )
        if isinstance(given, Evaluation):
            for path, table in ((outputs.roc, roc_table(given)), (outputs.pr, pr_table(given))):
                pd.DataFrame(table).to_csv(stack.enter_context(replacing(path)), index=False, lineterminator="\n")
    if not isinstance(given, Evaluation):
        # Those of an earlier report would pass as curves of this one.
        for path in (outputs.roc, outputs.pr):
            path.unlink(missing_ok=True)


def _tell_summary(quiet: bool, contents: "Contents", outputs: Outputs, plots: str | None, several: bool) -> None:
    from vae_anomaly.metrics import Unlabelled

    for caution in contents.cautions:
        tell(quiet, caution)
    given = contents.evaluation
    asked = "" if contents.asked_fpr is None else f", asked for at most {100 * contents.asked_fpr:g} %"
    if isinstance(given, Unlabelled):
        share = given.n_flagged / given.n_rows
        tell(quiet, f"Flagged {given.n_flagged} of {given.n_rows} rows ({share:.2%}){asked} of normal rows.")
        adding = "--label COLUMN, or --normal-class CLASS for folders of images"
        tell(quiet, f"There are no labels: the report shows what needs none. Add {adding}, for ROC and rates.")
        beside = outputs.metrics.name
    else:
        tell(quiet, f"{given.n_normal} normal rows, {given.n_anomalies} anomalies.")
        tell(quiet, f"ROC-AUC            {_shown(given.roc_auc)}")
        tell(quiet, f"Average precision  {_shown(given.average_precision)}")
        tell(quiet, f"Anomalies caught   {_percent(given.recall)}")
        tell(quiet, f"False alarms       {_percent(given.false_alarm_rate)}{asked}")
        beside = f"{outputs.metrics.name}, {outputs.roc.name}, {outputs.pr.name}"
    _tell_parts(quiet, contents, several)
    for note in given.notes:
        tell(quiet, note)
    tell(quiet, f"Wrote {outputs.html}, and {beside} beside it{'' if plots is None else f'; charts in {plots}'}.")


def _tell_parts(quiet: bool, contents: "Contents", several: bool) -> None:
    """How well the maps point at the defects, the kind that is caught least, and how other models compare."""
    if contents.localised:
        found = contents.localised
        tell(quiet, f"Pixel ROC-AUC      {found.roc_auc:.4f}")
        tell(quiet, f"AUPRO              {found.aupro:.4f} (up to {100 * found.max_fpr:g} % false-positive pixels)")
    for note in contents.localised_notes:
        tell(quiet, note)
    if contents.types:
        least = contents.types[0]
        tell(quiet, f"Caught least: {least.name}, {least.n_caught} of {least.n_anomalies} ({_percent(least.recall)}).")
    for note in contents.compared_notes:
        tell(quiet, note)
    own = contents.compared[0].name if several else ""
    for other in contents.compared[1:] if several else ():
        difference = other.difference
        assert difference.low is not None
        assert difference.high is not None
        if math.isnan(other.p_value):
            tell(quiet, f"{other.name} and {own} rank each anomaly against each normal row alike.")
            continue
        how = "better" if difference.low > 0 else "worse" if difference.high < 0 else "neither better nor worse"
        tell(
            quiet,
            f"{other.name} ranks these rows {how} than {own}: ROC-AUC {difference.value:+.4f} "
            f"({difference.low:+.4f} to {difference.high:+.4f}; DeLong, p = {other.p_value:.2g}).",
        )


def _shown(figure: "Interval") -> str:
    return f"{figure.value:.4f} (95 % interval {figure.low:.4f} to {figure.high:.4f})"


def _percent(figure: "Interval") -> str:
    if figure.value is None or figure.low is None or figure.high is None:
        return f"not defined ({figure.method})"
    return f"{100 * figure.value:.2f} % (95 % interval {100 * figure.low:.2f} to {100 * figure.high:.2f} %)"
