"""Make the CSV files in this folder and manifest.json anew, or check them: ``python datasets/make.py [--check]``."""

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path

from vae_anomaly.data.samples import SAMPLES, split_sample
from vae_anomaly.data.writers import write_table

HERE = Path(__file__).parent
SEED = 0


def make(folder: Path) -> None:
    """Write train.csv and test.csv of each sample, and the manifest."""
    manifest = {}
    for name in SAMPLES:
        (folder / name).mkdir(exist_ok=True)
        train, test = split_sample(name, seed=SEED)
        write_table(train, folder / name / "train.csv")
        write_table(test, folder / name / "test.csv")
        _, info = SAMPLES[name]()
        anomalies = int(test["anomaly"].sum())
        manifest[name] = {
            "title": info.title,
            "source": info.source,
            "licence": info.licence,
            "rows": info.rows,
            "normal": info.normal,
            "anomaly": info.anomaly,
            "features": train.shape[1],
            "label": "anomaly",
            "split": f"two thirds of the normal rows train, all others test, seed {SEED}",
            "files": {
                "train.csv": {"rows": len(train), "anomalies": 0, "sha256": sha256(folder / name / "train.csv")},
                "test.csv": {"rows": len(test), "anomalies": anomalies, "sha256": sha256(folder / name / "test.csv")},
            },
        }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8", newline="\n")


def sha256(path: Path) -> str:
    """Checksum of a file in hex; empty if there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def differing(folder: Path) -> list[str]:
    """Files in ``folder`` that are not what ``make`` writes, and checksums that the cards lack."""
    with tempfile.TemporaryDirectory() as fresh:
        make(Path(fresh))
        names = [f"{name}/{part}.csv" for name in SAMPLES for part in ("train", "test")]
        wrong = [name for name in [*names, "manifest.json"] if sha256(folder / name) != sha256(Path(fresh) / name)]
    cards = (folder / "README.md").read_text(encoding="utf-8")
    return wrong + [f"README.md: the checksum of {name}" for name in names if sha256(folder / name) not in cards]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the CSV files in this folder and manifest.json anew.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file would change")
    if not parser.parse_args(arguments).check:
        make(HERE)
    wrong = differing(HERE)
    for name in wrong:
        print(f"differs: {name}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
