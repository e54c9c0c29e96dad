"""vae-anomaly report: model and labelled rows in, one HTML page and the figures behind it out."""

import json
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np

from vae_anomaly.cli.common import (
    Fraction,
    check_output,
    device_option,
    load_detector,
    overwrite_option,
    print_json,
    read_data,
    run_options,
    table_options,
    tell,
    text_columns,
)

if TYPE_CHECKING:
    import pandas as pd

    from vae_anomaly.data import Data
    from vae_anomaly.detector import VAEDetector
    from vae_anomaly.metrics import Evaluation, Interval

GATE_FAILED = 6
N_WORST = 20
N_TOP = 3


class Outputs(NamedTuple):
    """Where the files of a report go."""

    html: Path
    metrics: Path
    roc: Path
    pr: Path


@click.command("report")
@click.argument("model", metavar="MODEL")
@click.argument("data", metavar="DATA")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="PATH",
    help="Folder for report.html, metrics.json, roc.csv and pr.csv; or an .html file, with the others beside it.",
)
@click.option("--title", help="Heading of the page [default: the name of the data].")
@click.option("--min-auroc", type=Fraction(), help="Exit with 6 if the area under the ROC curve is smaller.")
@table_options(label=True)
@device_option
@overwrite_option
@run_options
def command(
    model: str,
    data: str,
    output: str,
    title: str | None,
    min_auroc: float | None,
    device: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **columns: Any,
) -> None:
    """Evaluate MODEL on the labelled rows of DATA: ROC, precision-recall, rates at the threshold, worst rows."""
    from vae_anomaly.metrics import to_json

    if columns["label"] is None:
        raise click.UsageError("A report needs labels: name the column that says which rows are normal with --label.")
    outputs = _outputs(output, overwrite)
    detector = load_detector(model, device)
    table = read_data(data, **columns, text_columns=text_columns(detector))
    predictions, evaluation = _evaluate(detector, table, quiet)
    facts = _facts(detector, table, evaluation, model)
    worst = _worst(detector, table, predictions)
    _write(outputs, evaluation, title or f"{Path(model).stem} on {Path(table.name).name}", facts, worst, detector)
    metrics = to_json(evaluation)
    _tell_summary(quiet, evaluation, detector.threshold_rule_["fpr"], outputs)
    if as_json:
        print_json({"report": str(outputs.html), **metrics})
    if min_auroc is not None and metrics["roc_auc"]["value"] < min_auroc:
        tell(
            False, f"The area under the ROC curve is {evaluation.roc_auc.value:.4f}, less than --min-auroc {min_auroc}."
        )
        raise click.exceptions.Exit(GATE_FAILED)


def _outputs(output: str, overwrite: bool) -> Outputs:
    path = Path(output)
    if path.suffix.lower() in (".html", ".htm"):
        folder, html = path.parent, path
    else:
        folder, html = path, path / "report.html"
        if folder.exists() and not folder.is_dir():
            raise click.UsageError(f"-o {output}: name a folder, or a file that ends in .html.")
        if not folder.parent.is_dir():
            raise click.UsageError(f"-o {output}: the folder {str(folder.parent)!r} does not exist. Create it first.")
    outputs = Outputs(html, folder / "metrics.json", folder / "roc.csv", folder / "pr.csv")
    if folder.is_dir() or html is path:
        for target in outputs:
            check_output(str(target), overwrite)
    return outputs


def _evaluate(detector: "VAEDetector", table: "Data", quiet: bool) -> tuple["pd.DataFrame", "Evaluation"]:
    """Predictions, with a column "label", of the rows that have a label and a score; and their evaluation."""
    from vae_anomaly.errors import DataError
    from vae_anomaly.metrics import evaluate
    from vae_anomaly.predictions import predict_table

    assert table.y is not None
    predictions, _ = predict_table(detector, table, n_top=0)
    predictions["position"], predictions["label"] = np.arange(len(predictions)), table.y
    usable = (predictions["label"] >= 0) & predictions["anomaly_score"].notna()
    if not usable.all():
        tell(quiet, f"Left out {int((~usable).sum())} rows without a label or a score.")
    predictions = predictions[usable]
    y, scores = predictions["label"].to_numpy(), predictions["anomaly_score"].to_numpy(dtype=float)
    try:
        return predictions, evaluate(y, scores, detector.threshold_)
    except DataError as error:
        raise DataError(f"{table.name}: {error}") from None


def _facts(
    detector: "VAEDetector", table: "Data", evaluation: "Evaluation", model: str
) -> dict[str, dict[str, object]]:
    import vae_anomaly

    rule = detector.threshold_rule_
    return {
        "model": {
            "File": Path(model).name,
            "Score": detector.score_name,
            "Likelihood": detector.likelihood,
            "Prior": detector.prior,
            "Members": detector.n_estimators,
            "Latent variables": detector.architecture_["latent_dim"],
            "Active units, by member": ", ".join(str(int(count)) for count in detector.active_units_),
            "Rows trained on": detector.n_rows_["train"],
            "Calibration rows": len(detector.calibration_scores_),
            "Threshold": detector.threshold_,
            "Threshold rule": rule["name"],
            "Asked false-alarm rate": f"{100 * rule['fpr']:g} %",
            "Training data": detector.notes_.get("data", "-"),
            "Training fingerprint": detector.fingerprint_[:16],
        },
        "data": {
            "File": table.name,
            "Rows": evaluation.n_normal + evaluation.n_anomalies,
            "Normal rows": evaluation.n_normal,
            "Anomalies": evaluation.n_anomalies,
            "Features": len(detector.schema_.columns),
            "Fingerprint": table.fingerprint()[:16],
        },
        "provenance": {
            "Command": shlex.join(["vae-anomaly", *sys.argv[1:]]) if Path(sys.argv[0]).stem == "vae-anomaly" else "-",
            "vae-anomaly": vae_anomaly.__version__,
            "Seed": str(detector.seed_),
        },
    }


def _worst(detector: "VAEDetector", table: "Data", predictions: "pd.DataFrame") -> dict[str, list[dict[str, object]]]:
    """The flagged rows with the highest scores, and the missed anomalies with the lowest, with their top features."""
    from vae_anomaly.predictions import align, top_features

    flagged = predictions[predictions["is_anomaly"] == 1].nlargest(N_WORST, "anomaly_score")
    missed = predictions[(predictions["is_anomaly"] == 0) & (predictions["label"] == 1)]
    missed = missed.nsmallest(N_WORST, "anomaly_score")
    worst: dict[str, list[dict[str, object]]] = {}
    for name, rows in (("worst_flagged", flagged), ("worst_missed", missed)):
        if len(rows) == 0:
            worst[name] = []
            continue
        X = align(detector, table.take(rows["position"].to_numpy())).X
        names, contributions = top_features(detector, X, N_TOP)
        worst[name] = [
            {
                "row": row[table.id_name],
                "anomaly_score": float(row["anomaly_score"]),
                "p_value": float(row["p_value"]),
                "label": int(row["label"]),
                "is_anomaly": int(row["is_anomaly"]),
                "features": [
                    (feature, float(contribution), _seen(X[feature].iloc[index]))
                    for feature, contribution in zip(names[index], contributions[index], strict=True)
                ],
            }
            for index, (_, row) in enumerate(rows.iterrows())
        ]
    return worst


def _seen(value: Any) -> str:
    if value is None or value != value:
        return "missing"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _write(
    outputs: Outputs,
    evaluation: "Evaluation",
    title: str,
    facts: dict[str, dict[str, object]],
    worst: dict[str, list[dict[str, object]]],
    detector: "VAEDetector",
) -> None:
    """Write all files of the report."""
    import pandas as pd

    from vae_anomaly.atomic import replacing
    from vae_anomaly.metrics import pr_table, roc_table, to_json
    from vae_anomaly.report import render_report

    page = render_report(
        evaluation,
        title=title,
        asked_fpr=detector.threshold_rule_["fpr"],
        history=_mean_history(detector),
        model=facts["model"],
        data=facts["data"],
        provenance=facts["provenance"],
        worst_flagged=worst["worst_flagged"],
        worst_missed=worst["worst_missed"],
    )
    outputs.html.parent.mkdir(exist_ok=True)
    # All four files appear together, or none does.
    with ExitStack() as stack:
        html, metrics, roc, pr = (stack.enter_context(replacing(path)) for path in outputs)
        html.write_text(page, encoding="utf-8", newline="\n")
        metrics.write_text(json.dumps(to_json(evaluation), indent=2) + "\n", encoding="utf-8")
        pd.DataFrame(roc_table(evaluation)).to_csv(roc, index=False, lineterminator="\n")
        pd.DataFrame(pr_table(evaluation)).to_csv(pr, index=False, lineterminator="\n")


def _mean_history(detector: "VAEDetector") -> Mapping[str, Any]:
    """Training curves, mean over the members."""
    history = vars(detector.history_)
    curves = {name: values.mean(axis=1) for name, values in history.items() if values.ndim == 2}
    return {"epoch": history["epoch"], **curves}


def _tell_summary(quiet: bool, evaluation: "Evaluation", fpr: float, outputs: Outputs) -> None:
    tell(quiet, f"{evaluation.n_normal} normal rows, {evaluation.n_anomalies} anomalies.")
    tell(quiet, f"ROC-AUC            {_shown(evaluation.roc_auc)}")
    tell(quiet, f"Average precision  {_shown(evaluation.average_precision)}")
    tell(quiet, f"Anomalies caught   {_percent(evaluation.recall)}")
    tell(quiet, f"False alarms       {_percent(evaluation.false_alarm_rate)}, asked for at most {100 * fpr:g} %")
    for note in evaluation.notes:
        tell(quiet, note)
    tell(quiet, f"Wrote {outputs.html}, and {outputs.metrics.name}, {outputs.roc.name}, {outputs.pr.name} beside it.")


def _shown(figure: "Interval") -> str:
    return f"{figure.value:.4f} (95 % interval {figure.low:.4f} to {figure.high:.4f})"


def _percent(figure: "Interval") -> str:
    if figure.value is None or figure.low is None or figure.high is None:
        return f"not defined ({figure.method})"
    return f"{100 * figure.value:.2f} % (95 % interval {100 * figure.low:.2f} to {100 * figure.high:.2f} %)"
