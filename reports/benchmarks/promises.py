"""Whether false-alarm rates and false discovery rates hold: promised and realised, over at least 20 splits a table.

    python reports/benchmarks/promises.py --data FOLDER --splits 20
    python reports/benchmarks/promises.py --table

FOLDER holds .npz files with arrays X and y (1 for an anomaly). Half of the normal rows trains (protocol B; see
adbench.py); the others and all anomalies test. No anomaly is trained on, and no label sets a threshold.

From 2,000 training rows on, the detector sets rows aside for its threshold. It is fitted once, and those rows and the
normal test rows, none of which it has seen, are dealt anew to calibration and test for each split: the promise is then
exact. Of fewer rows, each split is a new fit on another half, with thresholds from scores out of fold: proven for a
little more than twice the rate, and expected to hold.

For each rate, the mean over the splits is set beside the upper end of its 99 % interval, were the promise kept to the
letter: normal with the variance of the Beta-binomial law of each split (calibration and test rows both vary). False
discovery rates are means of the share of normal rows among those flagged by Benjamini and Hochberg's rule.

Each split adds one JSON line to promises.jsonl; what stands there is not run again.
"""

import argparse
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from adbench import HERE, protocol_b
from records import append, heading_lines, machines, provenance, read_runs, table_line, write_page
from scipy import stats

from vae_anomaly import VAEDetector
from vae_anomaly.discoveries import adjusted_p_values
from vae_anomaly.errors import CalibrationWarning
from vae_anomaly.splitting import MIN_ROWS_TO_SET_ASIDE
from vae_anomaly.thresholds import conformal, conformal_rows_needed, p_values

FPRS = (0.1, 0.05, 0.01)
FDRS = (0.1, 0.2)
RUNS = HERE / "promises.jsonl"


def fit(train: np.ndarray, seed: int) -> VAEDetector:
    """The default detector; too few rows for its own threshold are enough here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        return VAEDetector(random_state=seed).fit(train)


def measure(calibration: np.ndarray, normal: np.ndarray, anomalous: np.ndarray) -> dict[str, Any]:
    """Realised rates of scores of calibration rows, normal test rows and anomalies."""
    rates = {
        f"{fpr:g}": float((normal > conformal(calibration, fpr)).mean())
        for fpr in FPRS
        if len(calibration) >= conformal_rows_needed(fpr)
    }
    adjusted = adjusted_p_values(p_values(calibration, np.concatenate([normal, anomalous])))
    discoveries = {}
    for fdr in FDRS:
        flagged = adjusted <= fdr
        discoveries[f"{fdr:g}"] = float(flagged[: len(normal)].sum() / max(flagged.sum(), 1))
    return {
        "n_calibration": len(calibration),
        "n_normal": len(normal),
        "n_anomalies": len(anomalous),
        "false_positive_rate": rates,
        "false_discovery_rate": discoveries,
    }


def refits(path: Path, splits: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A new half and a new fit for each split, calibrated out of fold."""
    for split in splits:
        train, test, y = protocol_b(path, split)
        detector = fit(train, split)
        scores = detector.anomaly_score(test)
        yield {"split": split, "exact": False, **measure(detector.calibration_scores_, scores[y == 0], scores[y == 1])}


def redeals(path: Path, splits: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One fit, and its unseen normal rows dealt anew to calibration and test for each split."""
    train, test, y = protocol_b(path, 0)
    detector = fit(train, 0)
    scores = detector.anomaly_score(test)
    unseen = np.concatenate([detector.calibration_scores_, scores[y == 0]])
    n_calibration = len(detector.calibration_scores_)
    for split in splits:
        dealt = np.random.default_rng(split).permutation(unseen)
        figures = measure(dealt[:n_calibration], dealt[n_calibration:], scores[y == 1])
        yield {"split": split, "exact": True, **figures}


def run_all(data: Path, n_splits: int, only: Sequence[str]) -> None:
    """Do what is left to do, small tables first."""
    done = {(run["dataset"], run["split"]) for run in read_runs(RUNS)}
    files = [path for path in data.glob("*.npz") if not only or any(part in path.stem for part in only)]
    if not files:
        raise SystemExit(f"--data {data}: there is no such .npz file.")
    started = time.perf_counter()
    for path in sorted(files, key=lambda path: path.stat().st_size):
        left = [split for split in range(n_splits) if (path.stem, split) not in done]
        print(f"{path.stem}: {n_splits - len(left)} of {n_splits} splits are there, {len(left)} are left.", flush=True)
        if not left:
            continue
        n_train = len(protocol_b(path, 0)[0])
        for figures in (refits if n_train < MIN_ROWS_TO_SET_ASIDE else redeals)(path, left):
            append(RUNS, {"dataset": path.stem, **figures, **provenance()})
            print(
                f"{path.stem}, split {figures['split']}: {figures['false_positive_rate']}, "
                f"{time.perf_counter() - started:.0f} s",
                flush=True,
            )


def upper_end(runs: Sequence[dict[str, Any]], fpr: float) -> float:
    """Upper end of the 99 % interval of the mean rate, had each split the promised one on average."""
    variances = []
    for run in runs:
        n, m = run["n_calibration"], run["n_normal"]
        above = np.floor((n + 1) * fpr + 1e-9)
        variances.append(stats.betabinom(m, above, n + 1 - above).var() / m**2)
    return float(fpr + stats.norm.ppf(0.995) * np.sqrt(np.sum(variances)) / len(runs))


def table(runs: Sequence[dict[str, Any]]) -> str:
    """The runs as a Markdown page."""
    datasets = sorted({run["dataset"] for run in runs}, key=str.lower)
    lines = [
        "# Promised and realised rates",
        "",
        "Mean over the splits, percent; in brackets the upper end of the 99 % interval, were the promise kept to the",
        "letter. A rate above it is in bold; a dash: so few calibration rows can flag nothing at that rate.",
        "How: the head of `promises.py`.",
        *machines(runs),
    ]
    for exact, heading in (
        (True, "Rows set aside: the promise is exact"),
        (False, "Out of fold (fewer than 2,000 training rows): proven for little more than twice the rate"),
    ):
        chosen = {name: [run for run in runs if run["dataset"] == name and run["exact"] == exact] for name in datasets}
        chosen = {name: some for name, some in chosen.items() if some}
        if not chosen:
            continue
        heads = [f"{100 * fpr:g} % false alarms" for fpr in FPRS] + [
            f"{100 * fdr:g} % false discoveries" for fdr in FDRS
        ]
        lines += [
            "",
            f"## {heading}",
            "",
            *heading_lines(["set", "splits", "calibration rows", "normal test rows", *heads]),
        ]
        for name, some in chosen.items():
            lines.append(
                table_line(
                    [
                        name,
                        str(len(some)),
                        f"{some[0]['n_calibration']:,}",
                        f"{some[0]['n_normal']:,}",
                        *(_rate(some, fpr) for fpr in FPRS),
                        *(_discoveries(some, fdr) for fdr in FDRS),
                    ]
                )
            )
        lines.append(table_line(["**mean**", "", "", "", *(_mean(chosen, "false_positive_rate", fpr) for fpr in FPRS),
                            *(_mean(chosen, "false_discovery_rate", fdr) for fdr in FDRS)]))  # fmt: skip
    return "\n".join(lines) + "\n"


def _rate(runs: Sequence[dict[str, Any]], fpr: float) -> str:
    some = [run for run in runs if f"{fpr:g}" in run["false_positive_rate"]]
    if not some:
        return "-"
    rate, most = fmean(run["false_positive_rate"][f"{fpr:g}"] for run in some), upper_end(some, fpr)
    text = f"{100 * rate:.2f}"
    return f"{f'**{text}**' if rate > most else text} ({100 * most:.2f})"


def _discoveries(runs: Sequence[dict[str, Any]], fdr: float) -> str:
    shares = [run["false_discovery_rate"][f"{fdr:g}"] for run in runs]
    rate, error = fmean(shares), float(np.std(shares, ddof=1) / np.sqrt(len(shares))) if len(shares) > 1 else 0.0
    text = f"{100 * rate:.1f}"
    return f"**{text}**" if rate - stats.norm.ppf(0.995) * error > fdr else text


def _mean(chosen: dict[str, list[dict[str, Any]]], what: str, level: float) -> str:
    means = [
        fmean(run[what][f"{level:g}"] for run in runs if f"{level:g}" in run[what])
        for runs in chosen.values()
        if any(f"{level:g}" in run[what] for run in runs)
    ]
    return f"{100 * fmean(means):.2f}" if means else "-"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of .npz files")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--only", nargs="+", default=(), metavar="SUBSTR", help="sets whose name holds one of these")
    parser.add_argument("--table", action="store_true", help="write the page of the runs, and run nothing")
    parser.add_argument("--note", default="", metavar="TEXT", help="a sentence to set below the title")
    arguments = parser.parse_args(argv)
    if arguments.table:
        write_page(RUNS, table, arguments.note)
        return
    if arguments.data is None:
        parser.error("--data is needed, the folder of the .npz files")
    run_all(arguments.data, arguments.splits, arguments.only)


if __name__ == "__main__":
    main()
