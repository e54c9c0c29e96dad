"""The default detector and three usual ones on ADBench's tables: ROC-AUC, average precision and time.

    python reports/benchmarks/adbench.py --data FOLDER --seeds 0 1 2
    python reports/benchmarks/adbench.py --data FOLDER --seeds 0 1 2 --set beta=0.5 --only cardio
    python reports/benchmarks/adbench.py --data FOLDER --set planning.MAX_REFERENCE_ROWS=500 --runs ablation.jsonl
    python reports/benchmarks/adbench.py --data FOLDER --scores kl neg_elbo --runs ablation.jsonl
    python reports/benchmarks/adbench.py --data FOLDER --contamination 0.05 --runs contamination.jsonl
    python reports/benchmarks/adbench.py --table --published published.csv

FOLDER holds .npz files with arrays X and y (1 for an anomaly). Protocol B: the normal rows are shuffled with the seed;
the first half trains, the other half and every anomaly test; sets over 50,000 rows are subsampled after the shuffle.
Baselines get columns standardised on the training rows. With --contamination C, anomalies are moved from the test rows
to the training rows until they are the share C of these (half of all anomalies at most).

Each run adds one JSON line to --runs; what stands there already is not run again. --table runs nothing and turns these
lines into a Markdown file beside them, with --note below its title. A CSV of published figures in percent has columns
dataset, method, auc_roc and auc_pr.
"""

import argparse
import csv
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

import numpy as np
from records import append, constants, heading_lines, machines, provenance, read_runs, setting, table_line, write_page
from sklearn.metrics import average_precision_score, roc_auc_score

from vae_anomaly import VAEDetector
from vae_anomaly.baselines import make_baseline
from vae_anomaly.comparison import split_rows
from vae_anomaly.errors import CalibrationWarning

HERE = Path(__file__).parent
MAX_ROWS = 50_000
BASELINES = ("knn", "lof", "isolation_forest")
DEFAULT = "default"


class Task(NamedTuple):
    """One line of the runs."""

    dataset: str
    seed: int
    method: str
    variant: str
    contamination: float = 0.0


Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def protocol_b(path: Path, seed: int, contamination: float = 0.0) -> Rows:
    """Training rows, test rows and test labels."""
    with np.load(path) as file:
        X, y = file["X"].astype(float), file["y"].ravel().astype(int)
    train, test = split_rows(y, seed, max_rows=MAX_ROWS)
    anomalies = np.random.default_rng(seed).permutation(test[y[test] == 1])
    n_moved = min(round(contamination / (1 - contamination) * len(train)), len(anomalies) // 2)
    moved = anomalies[:n_moved]
    train, test = np.concatenate([train, moved]), np.setdiff1d(test, moved)
    return X[train], X[test], y[test]


PROTOCOLS = {"B": protocol_b}


class Fitted(NamedTuple):
    """A detector that is ready to score, and what it took."""

    score: Callable[..., np.ndarray]
    seconds: float
    vae: VAEDetector | None = None


def fit(method: str, overrides: dict[str, Any], train: np.ndarray) -> Fitted:
    """One detector on the training rows."""
    started = time.perf_counter()
    if method == "vae":
        with warnings.catch_warnings():
            # Too few rows for a threshold are enough for a score.
            warnings.simplefilter("ignore", CalibrationWarning)
            parameters = {name: value for name, value in overrides.items() if "." not in name}
            detector = VAEDetector(**parameters).fit(train)
        return Fitted(detector.anomaly_score, time.perf_counter() - started, detector)
    baseline = make_baseline(method).fit(train)
    return Fitted(lambda X: -baseline.score_samples(X), time.perf_counter() - started)


def measure(task: Task, fitted: Fitted, rows: Rows, score_name: str | None) -> dict[str, Any]:
    """Figures of one score on the test rows."""
    train, test, y = rows
    started = time.perf_counter()
    scores = fitted.score(test) if score_name is None else fitted.score(test, score_name=score_name)
    seconds = time.perf_counter() - started
    extra = {}
    if fitted.vae is not None and score_name is None:
        # How many normal test rows the threshold flags that was promised to flag a share of `fpr`.
        extra = {
            "fpr": fitted.vae.fpr,
            "false_positive_rate": float((scores[y == 0] > fitted.vae.threshold_).mean()),
            "n_calibration": fitted.vae.n_rows_["calibration"],
        }
    return {
        **task._asdict(),
        "roc_auc": float(roc_auc_score(y, scores)),
        "average_precision": float(average_precision_score(y, scores)),
        **extra,
        "fit_seconds": round(fitted.seconds, 4),
        "score_seconds": round(seconds, 4),
        "n_train": len(train),
        "n_test": len(test),
        "d": train.shape[1],
        **provenance(),
    }


def key(run: dict[str, Any]) -> Task:
    """What a line is about."""
    return Task(*(run.get(name, 0.0) if name == "contamination" else run[name] for name in Task._fields))


def run_all(arguments: argparse.Namespace) -> int:
    """Do what is left to do; the number of runs made."""
    overrides = dict(arguments.set)
    variant = _variant(overrides)
    files = [
        path
        for path in sorted(arguments.data.glob("*.npz"))
        if not arguments.only or any(part in path.stem for part in arguments.only)
    ]
    if not files:
        raise SystemExit(f"--data {arguments.data}: there is no such .npz file.")
    # Overrides concern the VAE alone, so the baselines are the same in all variants.
    methods: dict[tuple[str, str], str | None] = {(name, DEFAULT): None for name in BASELINES}
    methods |= {("vae", variant): None}
    methods |= {("vae", _variant({**overrides, "score_name": name})): name for name in arguments.scores}
    tasks = {
        path: [
            Task(path.stem, seed, *method, arguments.contamination) for seed in arguments.seeds for method in methods
        ]
        for path in files
    }
    done = {key(run) for run in read_runs(arguments.runs)}
    left = {path: [task for task in some if task not in done] for path, some in tasks.items()}
    n_all, n_left = (sum(map(len, some.values())) for some in (tasks, left))
    print(f"{n_all - n_left} of {n_all} runs are there, {n_left} are left.")
    started, n_made = time.perf_counter(), 0
    for path, some, rows in _splits(left, PROTOCOLS[arguments.protocol], arguments.contamination):
        fitted: dict[str, Fitted] = {}
        for task in some:
            if task.method not in fitted:
                fitted[task.method] = fit(task.method, overrides if task.method == "vae" else {}, rows[0])
            run = measure(task, fitted[task.method], rows, methods[task.method, task.variant])
            append(arguments.runs, run)
            n_made += 1
            print(
                f"{path.stem}, seed {task.seed}, {_method(run)}: {100 * run['roc_auc']:.1f} / "
                f"{100 * run['average_precision']:.1f}; {n_left - n_made} left, {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    return n_made


def _variant(overrides: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in sorted(overrides.items())) or DEFAULT


def _splits(
    left: dict[Path, list[Task]], split: Callable[[Path, int, float], Rows], contamination: float
) -> Iterator[tuple[Path, list[Task], Rows]]:
    """The tasks of each set and seed, with their rows."""
    for path, tasks in left.items():
        for seed in dict.fromkeys(task.seed for task in tasks):
            yield path, [task for task in tasks if task.seed == seed], split(path, seed, contamination)


def table(runs: Sequence[dict[str, Any]], published: Sequence[dict[str, str]]) -> str:
    """The runs as a Markdown page."""
    names = {key(run): _method(run) for run in runs}
    order = {_method(run): _order(run) for run in runs}
    methods = sorted(order, key=lambda name: order[name])
    figures: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        figures.setdefault((run["dataset"], names[key(run)]), []).append(run)
    datasets = sorted({run["dataset"] for run in runs}, key=str.lower)
    whole = [name for name in datasets if all((name, method) in figures for method in methods)]

    def mean(dataset: str, method: str, what: str) -> float | None:
        some = figures.get((dataset, method))
        return 100 * fmean(run[what] for run in some) if some else None

    said = {(line["dataset"], line["method"]): line for line in published}
    others = sorted({method for dataset, method in said if dataset in datasets})
    seeds = sorted({run["seed"] for run in runs})
    lines = [
        "# ADBench, protocol B",
        "",
        f"{len(datasets)} sets, seeds {', '.join(map(str, seeds))}; percent, means over the seeds.",
        "The normal rows are shuffled; the first half trains, the other half and every anomaly test (`adbench.py`).",
        f"Overall means are over the {len(whole)} sets that all methods ran on.",
        *machines(runs),
        "",
        *_summary(methods, whole, figures, mean),
    ]
    for what, column, heading in (
        ("roc_auc", "auc_roc", "ROC-AUC"),
        ("average_precision", "auc_pr", "Average precision"),
    ):
        columns: list[dict[str, float | None]] = [
            {dataset: mean(dataset, method, what) for dataset in datasets} for method in methods
        ]
        columns += [
            {dataset: _number(said.get((dataset, method), {}).get(column)) for dataset in datasets} for method in others
        ]
        lines += ["", f"## {heading}", ""]
        if others:
            lines += [
                "Columns in italics are published figures, not re-run here; a star marks a mean over fewer sets.",
                "",
            ]
        lines += heading_lines(["set", *methods, *(f"*{method}*" for method in others)])
        lines += [table_line([dataset, *(_shown(values[dataset]) for values in columns)]) for dataset in datasets]
        if whole:
            lines.append(
                table_line(["**mean**", *(_overall([values[dataset] for dataset in whole]) for values in columns)])
            )
    return "\n".join(lines) + "\n"


def _summary(
    methods: Sequence[str],
    whole: Sequence[str],
    figures: dict[tuple[str, str], list[dict[str, Any]]],
    mean: Callable[[str, str, str], float | None],
) -> list[str]:
    """One line for each method, over the sets that all of them ran on."""
    if not whole:
        return ["No set was run with all methods yet."]
    lines = heading_lines(
        [
            "method",
            "ROC-AUC",
            "average precision",
            "SD over seeds, mean; median",
            "normal rows flagged, 5 % asked",
            "sets won against knn",
            "largest loss against the better of knn and isolation_forest",
            "fit, s",
            "score, s",
        ]
    )
    for method in methods:
        roc = {dataset: mean(dataset, method, "roc_auc") or 0.0 for dataset in whole}
        precision = fmean(mean(dataset, method, "average_precision") or 0.0 for dataset in whole)
        spreads = [
            100 * stdev(run["roc_auc"] for run in figures[dataset, method])
            for dataset in whole
            if len(figures[dataset, method]) > 1
        ]
        alarms = [
            fmean(rates)
            for dataset in whole
            if (
                rates := [
                    run["false_positive_rate"] for run in figures[dataset, method] if "false_positive_rate" in run
                ]
            )
        ]
        knn, forest = (f"{name}{_contamination(method)}" for name in ("knn", "isolation_forest"))
        rivals = [name for name in (knn, forest) if name in methods and name != method]
        loss, lost = (
            min(
                (roc[dataset] - max(mean(dataset, rival, "roc_auc") or 0.0 for rival in rivals), dataset)
                for dataset in whole
            )
            if rivals
            else (0.0, "")
        )
        won = sum(roc[dataset] > (mean(dataset, knn, "roc_auc") or 0.0) for dataset in whole)
        lines.append(
            table_line(
                [
                    method,
                    f"{fmean(roc.values()):.2f}",
                    f"{precision:.2f}",
                    f"{fmean(spreads):.2f}; {median(spreads):.2f}" if spreads else "-",
                    f"{100 * fmean(alarms):.1f} % ({100 * min(alarms):.1f} to {100 * max(alarms):.1f})"
                    if alarms
                    else "-",
                    "-" if method == knn or knn not in methods else f"{won} of {len(whole)}",
                    f"{loss:+.1f} ({lost})" if loss < 0 else "-",
                    *(
                        f"{fmean(median(run[name] for run in figures[dataset, method]) for dataset in whole):.2f}"
                        for name in ("fit_seconds", "score_seconds")
                    ),
                ]
            )
        )
    return lines


def _method(run: dict[str, Any]) -> str:
    name = run["method"] if run["variant"] == DEFAULT else f"{run['method']} ({run['variant']})"
    share = run.get("contamination", 0.0)
    return f"{name}, {share:.0%} contaminated" if share else name


def _contamination(name: str) -> str:
    """What the name of a method says about its training rows."""
    found = re.search(r", \d+% contaminated$", name)
    return found.group() if found else ""


def _order(run: dict[str, Any]) -> tuple[float, int, str]:
    """Clean training rows first, then the VAE and its variants, then the baselines."""
    base = run["method"]
    return run.get("contamination", 0.0), 1 + BASELINES.index(base) if base in BASELINES else 0, run["variant"]


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _overall(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"**{fmean(known):.1f}**{'' if len(known) == len(values) else ' *'}" if known else "-"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of .npz files")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="B")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", metavar="SUBSTR", help="sets whose name holds one of these")
    parser.add_argument(
        "--set",
        type=setting,
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="detector parameters, or constants of modules",
    )
    parser.add_argument("--scores", nargs="+", default=[], metavar="NAME", help="further scores of the same fits")
    parser.add_argument("--contamination", type=float, default=0.0, metavar="SHARE", help="anomalies in training rows")
    parser.add_argument("--runs", type=Path, default=HERE / "adbench.jsonl")
    parser.add_argument("--published", type=Path, metavar="CSV")
    parser.add_argument("--table", action="store_true", help="write the page of the runs, and run nothing")
    parser.add_argument("--note", default="", metavar="TEXT", help="a sentence to set below the title")
    arguments = parser.parse_args(argv)
    if arguments.table:
        published = []
        if arguments.published:
            with arguments.published.open(newline="", encoding="utf-8") as file:
                published = list(csv.DictReader(file))
        write_page(arguments.runs, lambda runs: table(runs, published), arguments.note)
        return
    if arguments.data is None:
        parser.error("--data is needed, the folder of the .npz files")
    with constants(dict(arguments.set)):
        run_all(arguments)


if __name__ == "__main__":
    main()
