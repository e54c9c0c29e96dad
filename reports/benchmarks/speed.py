"""What fitting and scoring cost, beside what they could cost.

    python reports/benchmarks/speed.py --data FOLDER --mnist FOLDER --pyod-python PATH
    python reports/benchmarks/speed.py --device cuda --data FOLDER --mnist FOLDER --pyod-python PATH
    python reports/benchmarks/speed.py --only bare growth --quick --runs /tmp/speed.jsonl
    python reports/benchmarks/speed.py --table

--data holds ADBench's .npz files (arrays X and y), --mnist the IDX files of MNIST (without them, scikit-learn's digits
are enlarged), --pyod-python an interpreter that can import PyOD (without it, this one must). What can't be measured
for lack of one of them is left out, with a line that says so.

Both sides of a comparison run in turn, in this process (PyOD in one of its own, which times itself), with as many
threads; the figure is the median over the pairs. Each case adds one JSON line to --runs; what stands there already, for
the same processor and number of threads, is not run again. --table runs nothing and turns the lines into a Markdown
file and a plot beside them. --quick takes small sizes, to see that all works; its lines are marked, and no table shows
them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from adbench import protocol_b
from records import append, constants, provenance, read_runs
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from speed_measuring import N_COLUMNS, Case, Figures, fitted, in_turn, n_learned, row_visits, seconds, table_of
from speed_report import write_report
from speed_textbook import textbook
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from vae_anomaly import VAEDetector
from vae_anomaly.planning import training_plan
from vae_anomaly.scores import MAX_NATS, NEARBY_SHARE
from vae_anomaly.scoring import SCORING_BATCH
from vae_anomaly.vae import VAE

HERE = Path(__file__).parent
# From 800 to 6,200 rows to train on.
PYOD_SETS = ("6_cardio", "38_thyroid", "23_mammography", "22_magic.gamma", "26_optdigits")
QUALITY_SETS = ("6_cardio", "12_fault", "38_thyroid", "39_vertebral", "20_letter")
# Steps of a fit whose speed is not what is measured.
FEW_STEPS = 200

# -- against PyOD's VAE ------------------------------------------------------------------------------------------------


def pyod_runs(options: argparse.Namespace, rows: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Figures:
    train, test, y = rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.npz"
        np.savez(path, train=train, test=test, y=y)
        command = [options.pyod_python, HERE / "speed_pyod.py", path, str(torch.get_num_threads()), options.device]
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        found = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    if found.returncode:
        raise SystemExit(f"{options.pyod_python} could not run PyOD:\n{found.stderr}")
    return dict(json.loads(found.stdout.splitlines()[-1]))


def pyod(options: argparse.Namespace) -> Iterator[Case]:
    """Wall time of fit and score, and ROC-AUC; PyOD trains one network, we train six.

    PyOD's score is the error of the reconstruction; so our default one is timed, and this one, too.
    """
    if options.data is None:
        return

    def measure(name: str) -> Figures:
        train, test, y = rows = protocol_b(options.data / f"{name}.npz", 0)
        mine: list[Figures] = []
        theirs: list[Figures] = []
        for _ in range(options.pairs):
            fit_seconds, detector = seconds(lambda: fitted(options, train), options.device)
            score_seconds, scores = seconds(partial(detector.anomaly_score, test), options.device)
            alike = partial(detector.anomaly_score, test, score_name="reconstruction_error")
            alike_seconds, _ = seconds(alike, options.device)
            mine.append({"fit_seconds": fit_seconds, "score_seconds": score_seconds, "alike_seconds": alike_seconds})
            theirs.append(pyod_runs(options, rows))
        ours_fit, their_fit = (median(run["fit_seconds"] for run in runs) for runs in (mine, theirs))
        ours_score, their_score = (median(run["score_seconds"] for run in runs) for runs in (mine, theirs))
        return {
            "n_train": len(train),
            "n_test": len(test),
            "d": train.shape[1],
            "ours_seconds": ours_fit,
            "theirs_seconds": their_fit,
            "ratio": their_fit / ours_fit,
            "ours_auroc": float(roc_auc_score(y, scores)),
            "theirs_auroc": theirs[-1]["roc_auc"],
            "ours_visits": row_visits(detector) / ours_fit,
            "theirs_visits": len(train) * theirs[-1]["epochs"] / their_fit,
            "ours_rows": len(test) / ours_score,
            "ours_alike_rows": len(test) / median(run["alike_seconds"] for run in mine),
            "theirs_rows": len(test) / their_score,
            "pyod": theirs[-1]["pyod"],
        }

    for name in PYOD_SETS[:1] if options.quick else PYOD_SETS:
        yield Case("pyod", name, lambda name=name: measure(name))


# -- score against the bare network ------------------------------------------------------------------------------------


def bare_layers(weights: list[Tensor], x: Tensor) -> Tensor:
    """Encoder or decoder with ``hidden=(96, 96)``: a layer, a residual block, a layer."""
    first, inner, outer, last = zip(weights[::2], weights[1::2], strict=True)
    h = F.silu(F.linear(x, *first))
    h = h + F.linear(F.silu(F.linear(F.silu(h), *inner)), *outer)
    return F.linear(h, *last)


def bare_unexplained(vae: VAE, x: Tensor) -> Tensor:
    """-log p(x | z) of each entry at the posterior mean, by hand."""
    encoder, decoder = (list(net.parameters()) or _plain(net) for net in (vae.encoder, vae.decoder))
    mean = bare_layers(encoder, x)[:, : vae.latent_dim]
    centre, raw = bare_layers(decoder, mean).reshape(len(x), -1, 2).unbind(-1)
    scale = F.softplus(raw + 0.5413248546) + vae.likelihood.min_scale
    return 0.5 * ((x - centre) / scale).square() + scale.log() + 0.9189385332


def _plain(net: nn.Module) -> list[Tensor]:
    return [value for layer in net.affine for value in (layer.weight, layer.bias)]


def bare_score(vae: VAE, x: Tensor, name: str) -> Tensor:
    unexplained = bare_unexplained(vae, x)
    if name == "neg_log_px_z":
        return unexplained.sum(dim=1)
    here, points = x * vae.compared, vae.exemplars * vae.compared
    half = 0.5 * points.square().sum(dim=1)
    place = torch.addmm(half, here, points.T, alpha=-1.0).argmin(dim=1)
    distance = (here - points[place]).square().sum(dim=1).sqrt()
    excess = unexplained.clamp(max=MAX_NATS).sum(dim=1) - NEARBY_SHARE * vae.exemplar_costs[place]
    terms = ((excess, vae.usual_unexplained), (distance, vae.usual_unseen))
    return torch.maximum(*((value - usual[0]) / usual[1] for value, usual in terms))


@torch.inference_mode()
def bare(detector: VAEDetector, x: Tensor, name: str, size: int) -> Tensor:
    members = detector.ensemble_.views()
    blocks = x.split(size)
    return torch.cat([torch.stack([bare_score(vae, block, name) for vae in members]).mean(dim=0) for block in blocks])


def bare_network(options: argparse.Namespace) -> Iterator[Case]:
    """Our score of a table, from the array to the scores, and the same sums by hand on encoded rows."""
    n_rows = 5_000 if options.quick else 50_000
    detector = fitted(options, table_of(20_000), max_steps=FEW_STEPS)
    X = table_of(n_rows, seed=1)
    x = torch.from_numpy(detector.schema_.encode(X)).to(options.device)

    def measure(name: str) -> Figures:
        wanted = detector.anomaly_score(X, score_name=name)
        np.testing.assert_allclose(bare(detector, x, name, 512).cpu(), wanted, rtol=1e-3, atol=1e-3)
        sizes = (512, 2048) if options.device == "cpu" else (2048, 16_384)
        trials = {size: seconds(lambda size=size: bare(detector, x, name, size), options.device)[0] for size in sizes}
        size = min(trials, key=trials.__getitem__)
        mine, by_hand = in_turn(
            lambda: detector.anomaly_score(X, score_name=name),
            lambda: bare(detector, x, name, size),
            3 * options.pairs,
            options.device,
        )
        return {
            "rows": n_rows,
            "bare_block": size,
            "ours_seconds": mine,
            "theirs_seconds": by_hand,
            "ratio": mine / by_hand,
            "ours_rows": n_rows / mine,
        }

    for name in ("neg_log_px_z", "novelty"):
        yield Case("bare", name, lambda name=name: measure(name))

    def single() -> Figures:
        row, times = X[:1], []
        for _ in range(20):
            detector.anomaly_score(row)
        for _ in range(200):
            times.append(seconds(lambda: detector.anomaly_score(row), options.device)[0])
        return {"milliseconds": 1000 * median(times), "slow_milliseconds": 1000 * float(np.quantile(times, 0.95))}

    yield Case("single row", f"{N_COLUMNS} columns, default model", single)


# -- growth ------------------------------------------------------------------------------------------------------------


def growth(options: argparse.Namespace) -> Iterator[Case]:
    """Fit with the defaults, and score as many rows (200,000 at most), by rows, columns and members."""

    def measure(n_rows: int, n_columns: int = N_COLUMNS, **parameters: Any) -> Figures:
        X = table_of(n_rows, n_columns)
        fit_seconds, detector = seconds(lambda: fitted(options, X, **parameters), options.device)
        some = X[:200_000]
        score_seconds, _ = seconds(lambda: detector.anomaly_score(some), options.device)
        plan = training_plan(detector, detector.schema_, detector.architecture_["n_entries"], n_learned(detector))
        return {
            "rows": n_rows,
            "columns": n_columns,
            "members": detector.n_estimators,
            "fit_seconds": fit_seconds,
            "score_rows_per_second": len(some) / score_seconds,
            "batch": plan.batch_size,
            "steps": round(float(detector.history_.epoch[-1]) * max(1, n_learned(detector) // plan.batch_size)),
            "passes": float(detector.history_.epoch[-1]),
        }

    quick: dict[str, Any] = {"max_steps": FEW_STEPS} if options.quick else {}
    rows = [300, 2_000] if options.quick else [300, 10**4, 10**5, 10**6] + [10**7] * options.large
    for n_rows in rows:
        yield Case("growth", f"{n_rows:,} rows", lambda n_rows=n_rows: measure(n_rows, **quick))
    for n_columns in (10, 100) if options.quick else (10, 100, 1000):
        yield Case("growth", f"{n_columns:,} columns", lambda n=n_columns: measure(10**4, n, **quick))
    some = 2_000 if options.quick else 10**4
    for n_members in (1, 4, 16):
        yield Case("growth", f"{n_members} members", lambda n=n_members: measure(some, n_estimators=n, **quick))


# -- the limit ---------------------------------------------------------------------------------------------------------


def rate(function: Callable[[], Any], flops: float, device: str) -> float:
    """GFLOP/s of a call, median over some two seconds."""
    function()
    times: list[float] = []
    while sum(times) < 2.0 or len(times) < 5:
        times.append(seconds(function, device)[0])
    return flops / median(times) / 1e9


def in_one_thread() -> AbstractContextManager[None]:
    """Scores are computed by the caller's own thread, the only one that counters, profiles and autocast know of."""
    return constants({"scoring.side_by_side": map})


def one_by_one() -> AbstractContextManager[None]:
    """The same, and a GPU told each operation by itself: nobody counts what it replays, or what Triton compiled."""
    never = {"replay.N_WARM": sys.maxsize, "replayed_blocks.N_BEFORE": sys.maxsize, "neighbours.MAX_FUSED": 0}
    return constants({"scoring.side_by_side": map, **never})


def product_rates(n_members: int, n_rows: int, width: int, device: str) -> tuple[float, float]:
    """Rate of a product of 2048 x 2048 matrices, and of the products in the middle of our networks."""
    large = torch.randn(2048, 2048, device=device)
    rows, weights = (torch.randn(n_members, n, width, device=device) for n in (n_rows, width))
    return (
        rate(lambda: large @ large, 2 * 2048**3, device),
        rate(lambda: torch.bmm(rows, weights), 2 * n_members * n_rows * width**2, device),
    )


def limit(options: argparse.Namespace) -> Iterator[Case]:
    """Which share of the machine's own products training and scoring reach, and what the rest is spent on."""
    X = table_of(2_500 if options.quick else 20_000)
    n_steps = FEW_STEPS // 10 if options.quick else 5 * FEW_STEPS

    def measure(what: str) -> Figures:
        detector = fitted(options, X, max_steps=FEW_STEPS)
        calls: dict[str, Callable[[], Any]] = {
            "fit": lambda: fitted(options, X, max_steps=n_steps),
            "score, neg_log_px_z": lambda: detector.anomaly_score(X, score_name="neg_log_px_z"),
            "score, novelty": lambda: detector.anomaly_score(X, score_name="novelty"),
        }
        call, short = calls[what], lambda: fitted(options, X, max_steps=FEW_STEPS // 10)
        with one_by_one(), FlopCounterMode(display=False) as counter:
            call()
        took = median(seconds(call, options.device)[0] for _ in range(options.pairs))
        members, rows = (6, 256) if what == "fit" else (1, SCORING_BATCH)
        large, alike = product_rates(members, rows, 96, options.device)
        achieved = counter.get_total_flops() / took / 1e9
        return {
            "seconds": took,
            "gflops": achieved,
            "large_product_gflops": large,
            "like_product_gflops": alike,
            "share_of_large": achieved / large,
            "share_of_like": achieved / alike,
            # A profile of a thousand steps takes longer than all else.
            "profile": top_operations(short if what == "fit" else call, options.device),
        }

    for what in ("fit", "score, neg_log_px_z", "score, novelty"):
        yield Case("limit", what, lambda what=what: measure(what))


def top_operations(call: Callable[[], Any], device: str) -> list[tuple[str, float]]:
    """The operations that take the longest themselves, with their shares of all that torch's profiler sees."""
    kinds = [ProfilerActivity.CPU if device == "cpu" else ProfilerActivity.CUDA]
    with in_one_thread(), profile(activities=kinds) as profiled:
        call()
    column = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    events = sorted(profiled.key_averages(), key=lambda event: -getattr(event, column))
    total = sum(getattr(event, column) for event in events) or 1.0
    return [(event.key[:72], round(getattr(event, column) / total, 4)) for event in events[:8]]


# -- quality -----------------------------------------------------------------------------------------------------------


def quality(options: argparse.Namespace) -> Iterator[Case]:
    """ROC-AUC of the default beside the committed record, and whether bfloat16 ranks rows as float32 does."""
    if options.data is None:
        return
    record = {
        run["dataset"]: run["roc_auc"]
        for run in read_runs(HERE / "adbench.jsonl")
        if (run["method"], run["variant"], run["seed"]) == ("vae", "default", 0)
    }

    def measure(name: str) -> Figures:
        train, test, y = protocol_b(options.data / f"{name}.npz", 0)
        detector = fitted(options, train)
        scores = detector.anomaly_score(test)
        kind = torch.device(options.device).type
        with in_one_thread(), torch.autocast(kind, dtype=torch.bfloat16):
            low = {name: detector.anomaly_score(test, score_name=name) for name in ("novelty", "neg_log_px_z")}
        plain = detector.anomaly_score(test, score_name="neg_log_px_z")
        return {
            "ours_auroc": float(roc_auc_score(y, scores)),
            "recorded_auroc": record[name],
            "spearman_novelty": float(spearmanr(scores, low["novelty"]).statistic),
            "spearman_neg_log_px_z": float(spearmanr(plain, low["neg_log_px_z"]).statistic),
            "bfloat16_auroc": float(roc_auc_score(y, low["novelty"])),
        }

    for name in QUALITY_SETS[:1] if options.quick else QUALITY_SETS:
        yield Case("quality", name, lambda name=name: measure(name))


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Case]]] = {
    "textbook": textbook,
    "pyod": pyod,
    "bare": bare_network,
    "growth": growth,
    "limit": limit,
    "quality": quality,
}


def run(options: argparse.Namespace) -> None:
    """Measure what does not stand in the runs yet."""
    threads = torch.get_num_threads()

    def key(line: dict[str, Any]) -> tuple[Any, ...]:
        return line["section"], line["name"], line["processor"], line["machine"]["threads"], line["quick"]

    done = {key(line) for line in read_runs(options.runs)}
    for section in options.only:
        if section in ("pyod", "quality") and options.data is None:
            print(f"{section}: left out, as it needs --data.", file=sys.stderr)
        for case in SECTIONS[section](options):
            if (case.section, case.name, processor(options.device), threads, options.quick) in done:
                continue
            figures = case.measure()
            head = {"section": case.section, "name": case.name, "device": options.device, "quick": options.quick}
            head |= {"pairs": options.pairs}
            line = {**head, **figures, **provenance(), "processor": processor(options.device)}
            append(options.runs, line)
            shown = {name: round(value, 4) for name, value in figures.items() if isinstance(value, float)}
            print(f"{case.section}, {case.name}: {shown}", flush=True)


def processor(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    wide = " with AMX" if known.get("amx_bf16") else ""
    return f"{torch.backends.cpu.get_cpu_capability()}{wide}, {os.cpu_count()} processors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of ADBench's .npz files")
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's IDX files")
    parser.add_argument("--pyod-python", default=sys.executable, help="interpreter that can import PyOD")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="[default: as many as there are processors]")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side of a comparison")
    parser.add_argument(
        "--large", action="store_true", help="grow to ten million rows, and to as many images as MNIST has"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all works")
    parser.add_argument("--runs", type=Path, default=HERE / "speed.jsonl")
    parser.add_argument("--table", action="store_true", help="only write the table and the plot")
    options = parser.parse_args()
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    if not options.table:
        run(options)
    write_report([line for line in read_runs(options.runs) if not line["quick"]], options.runs)


if __name__ == "__main__":
    main()
