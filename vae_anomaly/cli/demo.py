"""vae-anomaly demo: the tour, on data that scikit-learn brings along."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vae_anomaly.cli.common import Fraction, tell

if TYPE_CHECKING:
    import pandas as pd


@click.command("demo")
@click.argument("samples", nargs=-1, metavar="[SAMPLE]...")
@click.option(
    "-o", "--output", default="vae-anomaly-demo", show_default=True, metavar="FOLDER", help="Folder for all files."
)
@click.option(
    "--fpr", type=Fraction(), default=0.05, show_default=True, help="Share of normal rows that may be flagged."
)
@click.pass_context
def command(ctx: click.Context, samples: tuple[str, ...], output: str, fpr: float) -> None:
    """Fit, score and report on bundled data: digits (0 is normal) and breast-cancer (benign is normal), or one of them.

    The rest of the command line does the work; each command is shown as it is run.
    """
    from vae_anomaly.data.samples import SAMPLES
    from vae_anomaly.errors import look_up

    for sample in samples:
        look_up("sample", sample, SAMPLES)
    if not Path(output).resolve().parent.is_dir():
        raise click.UsageError(f"-o {output}: the folder {str(Path(output).parent)!r} does not exist. Create it first.")
    for folder in (Path(output), *(Path(output, sample) for sample in samples or SAMPLES)):
        if folder.exists() and not folder.is_dir():
            raise click.UsageError(f"-o {output}: {folder} is a file; name a folder.")
    for sample in samples or sorted(SAMPLES):
        _tour(ctx.find_root().command, sample, Path(output) / sample, str(fpr))


def _tour(group: click.Command, sample: str, folder: Path, fpr: str) -> None:
    from vae_anomaly.atomic import replacing
    from vae_anomaly.data.samples import SAMPLES, split_sample
    from vae_anomaly.data.writers import write_table

    folder.mkdir(parents=True, exist_ok=True)
    info = SAMPLES[sample]()[1]
    train, test = split_sample(sample)
    for name, frame in (("train.csv", train), ("test.csv", test)):
        with replacing(folder / name) as temporary:
            write_table(frame, temporary, format=".csv")
    tell(False, f"\n{info.title}: {len(train)} normal rows to train on, {len(test)} rows to test on.")
    model, test_csv = str(folder / "model.safetensors"), str(folder / "test.csv")
    for arguments in (
        ["fit", str(folder / "train.csv"), "-o", model, "--fpr", fpr, "--overwrite"],
        ["score", model, test_csv, "--drop", "anomaly", "-o", str(folder / "scores.csv"), "--overwrite"],
        ["report", model, test_csv, "--label", "anomaly", "--title", info.title, "-o", str(folder), "--overwrite"],
    ):
        tell(False, f"\n$ vae-anomaly {shlex.join(arguments)}")
        group.main(arguments, prog_name="vae-anomaly", standalone_mode=False)
    _tell_baselines(train, test)
    tell(False, f"\nOpen {folder / 'report.html'} in a browser.")


def _tell_baselines(train: "pd.DataFrame", test: "pd.DataFrame") -> None:
    from sklearn.metrics import roc_auc_score

    from vae_anomaly.baselines import BASELINES, baseline_scores

    X, y = test.drop(columns="anomaly"), test["anomaly"]
    areas = [f"{name} {roc_auc_score(y, baseline_scores(name, train, X)):.4f}" for name in BASELINES]
    tell(False, f"ROC-AUC of baselines on the same rows: {', '.join(areas)}.")
