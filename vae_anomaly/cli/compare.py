"""vae-anomaly compare: labelled tables in, the detector and the usual baselines side by side out."""

import json
import shlex
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from vae_anomaly.cli.common import (
    NameType,
    check_device,
    device_option,
    overwrite_option,
    print_json,
    progress,
    read_data,
    run_options,
    table_options,
    tell,
)
from vae_anomaly.cli.images import check_there
from vae_anomaly.cli.names import NAMES
from vae_anomaly.cli.outputs import check_folder, check_output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vae_anomaly.comparison import PairedDifference, Result
    from vae_anomaly.data import Data
    from vae_anomaly.detector import VAEDetector
    from vae_anomaly.metrics import Interval
    from vae_anomaly.report.comparison import Compared

AREAS = ("roc_auc", "average_precision")


class Outputs(NamedTuple):
    """Where the files of a comparison go."""

    json: Path
    csv: Path
    html: Path


@click.command("compare")
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@click.option("-o", "--output", metavar="FOLDER", help="Folder for compare.html, compare.csv and compare.json.")
@table_options(label=True)
@click.option(
    "--baseline",
    "baselines",
    type=NameType("baseline"),
    multiple=True,
    help="Only this one (repeatable) [default: all].",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the split and the detector."
)
@click.option(
    "--max-rows", type=click.IntRange(8), default=50_000, show_default=True, help="Rows kept of a larger table."
)
@click.option("--max-steps", type=click.IntRange(1), help="Optimiser steps [default: those of fit].")
@device_option
@overwrite_option
@run_options
def command(
    data: tuple[str, ...],
    output: str | None,
    baselines: tuple[str, ...],
    seed: int,
    max_rows: int,
    max_steps: int | None,
    device: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **columns: Any,
) -> None:
    """Compare the default detector with the usual ones on each table DATA, whose rows are labelled.

    The normal rows are shuffled; the first half trains, the other half and every anomaly test. All detectors get the
    same rows, standardised; text goes to the baselines one-hot, a missing value as 0, the mean of a column of numbers.
    """
    if columns["label"] is None:
        raise click.UsageError(
            "A comparison needs labels: name the column that says which rows are normal with --label."
        )
    outputs = None if output is None else _outputs(output, overwrite, data)
    check_there(*data)
    check_device(device)
    names = baselines or NAMES["baseline"]
    # A table that can't be used is found before the work on those before it is done.
    tables = [read_data(path, **columns) for path in data]
    splits = [_split(table, seed, max_rows) for table in tables]
    options = {"max_steps": max_steps, "random_state": seed, "device": device}
    compared = []
    for table, split in zip(tables, splits, strict=True):
        compared.append(_compare(table, split, names, quiet, seed, options))
        _tell_table(quiet, compared[-1])
    if outputs is not None:
        _write(outputs, compared, seed)
        tell(quiet, f"Wrote {outputs.html}, and {outputs.csv.name}, {outputs.json.name} beside it.")
    if as_json:
        print_json(_document(compared, seed))


def _outputs(output: str, overwrite: bool, reads: Sequence[str]) -> Outputs:
    check_folder(output)
    folder = Path(output)
    outputs = Outputs(folder / "compare.json", folder / "compare.csv", folder / "compare.html")
    if folder.is_dir():
        for target in outputs:
            check_output(str(target), overwrite, reads)
    return outputs


def _split(table: "Data", seed: int, max_rows: int) -> "tuple[NDArray[Any], NDArray[Any]]":
    from vae_anomaly.comparison import split_rows
    from vae_anomaly.errors import DataError

    assert table.y is not None
    try:
        return split_rows(table.y, seed, max_rows=max_rows)
    except DataError as error:
        raise DataError(f"{table.name}: {error}") from None


class _Shown:
    """The detector, with a progress bar, and with errors that name the file and the row of a cell."""

    def __init__(self, detector: "VAEDetector", train: "Data", test: "Data", quiet: bool) -> None:
        self.detector, self.train, self.test, self.quiet = detector, train, test, quiet

    def __repr__(self) -> str:
        return repr(self.detector)

    @property
    def schema_(self) -> Any:
        return self.detector.schema_

    def fit(self, X: Any) -> None:
        from vae_anomaly.errors import CalibrationWarning
        from vae_anomaly.predictions import located

        with warnings.catch_warnings(), located(self.train), progress(self.quiet) as on_check:
            # Nothing is flagged here, so too few rows for a threshold are enough.
            warnings.simplefilter("ignore", CalibrationWarning)
            self.detector.fit(X, on_check=on_check)

    def anomaly_score(self, X: Any) -> Any:
        from vae_anomaly.predictions import located

        with located(self.test):
            return self.detector.anomaly_score(X)


def _compare(
    table: "Data",
    split: "tuple[NDArray[Any], NDArray[Any]]",
    names: Sequence[str],
    quiet: bool,
    seed: int,
    options: dict[str, Any],
) -> "Compared":
    from vae_anomaly.comparison import compare, paired_differences, verdict
    from vae_anomaly.detector import VAEDetector
    from vae_anomaly.errors import DataError
    from vae_anomaly.report.comparison import Compared

    train, test = (table.take(rows) for rows in split)
    assert test.y is not None
    try:
        results = compare(train.X, test.X, test.y, _Shown(VAEDetector(**options), train, test, quiet), names)
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(table.name) else f"{table.name}: {text}") from None
    differences = paired_differences(test.y, results)
    scored = results[0].scores == results[0].scores
    facts = {
        "File": table.name,
        "Rows": len(table),
        "Rows trained on": len(train),
        "Normal rows tested": int((test.y[scored] == 0).sum()),
        "Anomalies tested": int((test.y[scored] == 1).sum()),
        "Tested rows without a score": int((~scored).sum()),
        "Rows left out": len(table) - len(train) - len(test),
        "Features": table.X.shape[1],
        "Seed of the split": seed,
        "Fingerprint": table.fingerprint()[:16],
    }
    return Compared(table.name, facts, results, differences, verdict(results, differences))


def _tell_table(quiet: bool, compared: "Compared") -> None:
    facts = compared.facts
    tell(
        quiet,
        f"\n{compared.name}: {facts['Rows trained on']} normal rows to train on, {facts['Normal rows tested']} normal "
        f"rows and {facts['Anomalies tested']} anomalies to test on.",
    )
    width = max(len(result.name) for result in compared.results)
    tell(
        quiet,
        f"{'':{width}}  {'ROC-AUC (95 % interval)':25}  {'Average precision':25}  {'fit':>8}  {'score':>8}",
    )
    for result in compared.results:
        areas = "  ".join(f"{_shown(getattr(result, name)):25}" for name in AREAS)
        tell(quiet, f"{result.name:{width}}  {areas}  {result.fit_seconds:6.2f} s  {result.score_seconds:6.2f} s")
    tell(quiet, compared.verdict)


def _shown(figure: "Interval") -> str:
    return f"{figure.value:.4f} ({figure.low:.4f} to {figure.high:.4f})"


def _document(compared: "Sequence[Compared]", seed: int) -> dict[str, Any]:
    """Everything that came out, ready for compare.json."""
    import vae_anomaly

    return {
        "vae_anomaly": vae_anomaly.__version__,
        "seed": seed,
        "tables": [
            {
                "data": table.name,
                "facts": dict(table.facts),
                "verdict": table.verdict,
                "detectors": [
                    {
                        "name": result.name,
                        "settings": result.settings,
                        **{name: asdict(getattr(result, name)) for name in AREAS},
                        "fit_seconds": result.fit_seconds,
                        "score_seconds": result.score_seconds,
                    }
                    for result in table.results
                ],
                "differences": [
                    {"name": difference.name, **{name: asdict(getattr(difference, name)) for name in AREAS}}
                    for difference in table.differences
                ],
            }
            for table in compared
        ],
    }


def _rows(table: "Compared") -> list[dict[str, Any]]:
    """One flat row for each detector."""
    differences = {difference.name: difference for difference in table.differences}
    return [
        {
            "data": table.name,
            "detector": result.name,
            **_flat(result),
            **_flat(differences.get(result.name), "_difference"),
            "fit_seconds": result.fit_seconds,
            "score_seconds": result.score_seconds,
            "settings": result.settings,
        }
        for result in table.results
    ]


def _flat(areas: "Result | PairedDifference | None", suffix: str = "") -> dict[str, float | None]:
    ends = {"": "value", "_low": "low", "_high": "high"}
    return {
        f"{name}{suffix}{end}": None if areas is None else getattr(getattr(areas, name), attribute)
        for name in AREAS
        for end, attribute in ends.items()
    }


def _write(outputs: Outputs, compared: "Sequence[Compared]", seed: int) -> None:
    """Write all files of the comparison."""
    import pandas as pd

    import vae_anomaly
    from vae_anomaly.atomic import replacing
    from vae_anomaly.report import render_comparison

    names = ", ".join(Path(table.name).name for table in compared)
    command = shlex.join(["vae-anomaly", *sys.argv[1:]]) if Path(sys.argv[0]).stem == "vae-anomaly" else "-"
    page = render_comparison(
        compared,
        title=f"The VAE and the usual detectors on {names}",
        provenance={"Command": command, "vae-anomaly": vae_anomaly.__version__, "Seed": str(seed)},
    )
    table = pd.DataFrame([row for one in compared for row in _rows(one)])
    outputs.html.parent.mkdir(exist_ok=True)
    # All three files appear together, or none does.
    with ExitStack() as stack:
        document, csv, html = (stack.enter_context(replacing(path)) for path in outputs)
        document.write_text(json.dumps(_document(compared, seed), indent=2) + "\n", encoding="utf-8")
        table.to_csv(csv, index=False, lineterminator="\n")
        html.write_text(page, encoding="utf-8", newline="\n")
