"""What scoring a file costs beside its floor: the larger of reading the file alone and the bare forward passes.

    python reports/benchmarks/streaming.py --rows 5000000
    python reports/benchmarks/streaming.py --rows 5000000 20000000 --score-name neg_log_px_z
    python reports/benchmarks/streaming.py --table

Makes a table of 30 correlated columns as CSV and as Parquet, fits the default model on 20,000 rows of the same kind,
and times, one after the other: pyarrow reading the columns and dropping them; the score of the model, called block by
block on tensors that are in memory, with nothing around it (of more than 500,000 rows on so many, times the rest); and
`vae-anomaly score FILE -o SCORES.csv`, a process of its own. Of that process' time, the time that it takes for 1,000
rows (imports, model; the shorter one of a run before and a run after it) is left out of the ratio and shown beside it;
its peak memory is the most that it ever held, and that for 1,000 rows shows how much of it is libraries and model.

Each size and format adds one JSON line to streaming.jsonl; the newest of each goes to the table in streaming.md.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet
from adbench import HERE
from records import append, machines, provenance, read_runs

from vae_anomaly import VAEDetector
from vae_anomaly.detector import load
from vae_anomaly.scores import SCORES
from vae_anomaly.scoring import SCORING_BATCH, map_rows

RUNS, PAGE = HERE / "streaming.jsonl", HERE / "streaming.md"
N_LATENT, NOISE = 8, 0.3
CHUNK = 1 << 17
FEW = 1_000
# Where less than this share of the start is left, the difference of two starts decides a ratio.
LEAST_SHARE = 0.5
# Every block takes as long as the one before.
MAX_FORWARD_ROWS = 500_000
# The peak that the system keeps of a child begins with the memory of its parent; that in /proc begins with the program.
SCORE = """
import sys
from vae_anomaly.cli import main
peak = sys.argv.pop(1)
try:
    main()
finally:
    lines = open("/proc/self/status").read().splitlines()
    print(*[line.split()[1] for line in lines if line.startswith("VmHWM")], file=open(peak, "w"))
"""


def chunk(n_rows: int, n_columns: int, seed: int) -> pd.DataFrame:
    """Rows near a plane."""
    rng = np.random.default_rng([seed, 1])
    mixing = np.random.default_rng(0).normal(size=(N_LATENT, n_columns))
    values = rng.normal(size=(n_rows, N_LATENT)) @ mixing + NOISE * rng.normal(size=(n_rows, n_columns))
    return pd.DataFrame(values, columns=[f"sensor_{column}" for column in range(n_columns)])


def make(path: Path, n_rows: int, n_columns: int) -> None:
    """Write the table, a chunk at a time."""
    schema = pa.Schema.from_pandas(chunk(1, n_columns, 0), preserve_index=False).remove_metadata()
    writer = pyarrow.csv.CSVWriter if path.suffix == ".csv" else pyarrow.parquet.ParquetWriter
    with writer(path, schema) as file:
        for seed, start in enumerate(range(0, n_rows, CHUNK), start=2):
            rows = chunk(min(CHUNK, n_rows - start), n_columns, seed)
            file.write_table(pa.Table.from_pandas(rows, schema=schema, preserve_index=False))


@contextmanager
def timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    """Wall time of a block."""
    start = time.perf_counter()
    yield
    seconds[what] = time.perf_counter() - start


def read_alone(path: Path) -> int:
    """Read all columns by all threads and drop them; the number of rows."""
    data = pyarrow.dataset.dataset(path, format=path.suffix[1:])
    return sum(batch.num_rows for batch in data.to_batches())


def bare_forward(detector: VAEDetector, encoded: np.ndarray, n_rows: int) -> None:
    """The score of as many encoded rows in memory, the same ones over and over again, as fast as the package can."""
    function = SCORES[detector.score_name_].function
    for start in range(0, n_rows, len(encoded)):
        map_rows(detector.ensemble_, detector.eps_, function, encoded[: n_rows - start])


def score(model: Path, source: Path, output: Path, device: str) -> tuple[float, float]:
    """Seconds and peak MiB of the command."""
    arguments = ["score", str(model), str(source), "-o", str(output), "--overwrite", "--quiet", "--device", device]
    peak, start = output.with_suffix(".peak"), time.perf_counter()
    subprocess.run([sys.executable, "-c", SCORE, str(peak), *arguments], check=True)
    return time.perf_counter() - start, int(peak.read_text()) / 1024


def measure(model: Path, folder: Path, suffix: str, n_rows: int, n_columns: int, device: str) -> dict[str, Any]:
    """All figures of one size and format."""
    source, few, output = folder / f"rows{suffix}", folder / f"few{suffix}", folder / "scores.csv"
    make(source, n_rows, n_columns)
    make(few, FEW, n_columns)
    detector = load(model, device=device)
    encoded = detector.schema_.encode(chunk(SCORING_BATCH * 128, n_columns, 2))
    seconds: dict[str, float] = {}
    bare_forward(detector, encoded, SCORING_BATCH)
    with timed(seconds, "read"):
        assert read_alone(source) == n_rows
    with timed(seconds, "forward"):
        bare_forward(detector, encoded, min(n_rows, MAX_FORWARD_ROWS))
    seconds["forward"] *= max(1.0, n_rows / MAX_FORWARD_ROWS)
    before, start_memory = score(model, few, output, device)
    seconds["score"], memory = score(model, source, output, device)
    seconds["start"] = min(before, score(model, few, output, device)[0])
    floor = max(seconds["read"], seconds["forward"])
    return {
        "rows": n_rows,
        "columns": n_columns,
        "format": suffix[1:],
        "device": device,
        "score": detector.score_name_,
        "file_mb": source.stat().st_size / 1e6,
        "seconds": seconds,
        "ratio": (seconds["score"] - seconds["start"]) / floor,
        "memory_mib": memory,
        "start_memory_mib": start_memory,
        **provenance(),
    }


def table(runs: list[dict[str, Any]]) -> str:
    """The page."""
    lines = [
        "# Scoring a file",
        "",
        "Made by `python reports/benchmarks/streaming.py`, which says at its top what is measured. Seconds of the",
        "command are those beyond its start; the ratio is to the larger of reading alone and bare forward passes. A",
        "dash: the start takes so much more than the rest that its own variation would decide the ratio.",
        "",
        *machines(runs),
        "",
        "| rows x columns | format | score | device | reading alone, s | forward passes, s | score, s | ratio | rows/s "
        "| start, s | peak MiB | peak MiB of 1,000 rows |",
        "|---|---|---|---|" + "---:|" * 8,
    ]
    for run in runs:
        seconds = run["seconds"]
        net = seconds["score"] - seconds["start"]
        known = net > LEAST_SHARE * seconds["start"]
        ratio, rate = (f"{run['ratio']:.2f}", f"{run['rows'] / net:,.0f}") if known else ("-", "-")
        lines.append(
            f"| {run['rows']:,} x {run['columns']} | {run['format']} | {run['score']} | {run['device']} "
            f"| {seconds['read']:.1f} | {seconds['forward']:.1f} | {net:.1f} | {ratio} "
            f"| {rate} | {seconds['start']:.1f} | {run['memory_mib']:.0f} "
            f"| {run['start_memory_mib']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def newest(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was measured again on such a machine in place of what it was, in the order of the first."""

    def case(run: dict[str, Any]) -> tuple[Any, ...]:
        return *(run[name] for name in ("rows", "columns", "format", "score", "device")), run["machine"]["cpus"]

    return list({case(run): run for run in runs}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000_000])
    parser.add_argument("--columns", type=int, default=30)
    parser.add_argument("--formats", nargs="+", choices=["csv", "parquet"], default=["csv", "parquet"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--score-name", default="auto")
    parser.add_argument("--max-steps", type=int, help="Of the fit; what a score costs does not hang on it.")
    parser.add_argument("--folder", type=Path, help="Where the large files go, for as long as they are needed.")
    parser.add_argument("--table", action="store_true", help="Write the page anew, and measure nothing.")
    arguments = parser.parse_args()
    if not arguments.table:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            folder = Path(name)
            model = folder / "model.safetensors"
            detector = VAEDetector(max_steps=arguments.max_steps, score_name=arguments.score_name)
            detector.fit(chunk(20_000, arguments.columns, 1)).save(model)
            for n_rows in arguments.rows:
                for kind in arguments.formats:
                    run = measure(model, folder, f".{kind}", n_rows, arguments.columns, arguments.device)
                    append(RUNS, run)
                    print(f"{n_rows:,} rows of {kind}: {run['ratio']:.2f} times the floor, {run['memory_mib']:.0f} MiB")
                    (folder / f"rows.{kind}").unlink()
    PAGE.write_text(table(newest(read_runs(RUNS))), encoding="utf-8")


if __name__ == "__main__":
    main()
