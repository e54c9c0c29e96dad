"""What holes in new rows cost: false alarms and ROC-AUC with and without imputation.

    python reports/benchmarks/holes.py --data FOLDER > reports/benchmarks/holes.md

FOLDER holds ADBench's .npz files (arrays X and y). Half of the normal rows trains (complete rows, and rows with 20 % of
their cells emptied); the other half and all anomalies test, with a growing share of their cells emptied at random.
"""

import argparse
import platform
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

import vae_anomaly.scoring
from vae_anomaly import VAEDetector, __version__

SETS = ("6_cardio", "12_fault", "20_letter", "22_magic.gamma", "38_thyroid")
SHARES = (0.0, 0.05, 0.2, 0.5)
STEPS = (0, 1, 3, 10, 30)


def split(path: Path, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows, test rows and test labels; at most 4,000 rows train."""
    with np.load(path) as file:
        X, y = file["X"].astype(float), file["y"].ravel().astype(int)
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(y == 0))
    half = len(normal) // 2
    test = np.concatenate([normal[half:], np.flatnonzero(y == 1)])
    return X[normal[:half]][:4000], X[test], y[test]


def punched(X: np.ndarray, share: float, seed: int) -> np.ndarray:
    """``X`` with a share of its cells emptied."""
    return np.where(np.random.default_rng(seed).random(X.shape) < share, np.nan, X)


def figures(detector: VAEDetector, X: np.ndarray, y: np.ndarray) -> str:
    """Realised false-alarm rate and ROC-AUC, in percent."""
    scores = detector.anomaly_score(X)
    known = ~np.isnan(scores)
    flagged = scores[known & (y == 0)] > detector.threshold_
    return f"{100 * flagged.mean():.1f} / {100 * roc_auc_score(y[known], scores[known]):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print("# Holes in new rows\n")
    print(f"False alarms (5 % asked) / ROC-AUC, in percent, seed {arguments.seed}; defaults of VAEDetector but for the")
    print(f"number of imputation steps. vae-anomaly {__version__}, torch {torch.__version__}, {platform.machine()}.\n")
    print(
        "| set | holes in training rows | steps | " + " | ".join(f"{100 * share:g} % holes" for share in SHARES) + " |"
    )
    print("|---" * (3 + len(SHARES)) + "|")
    for name in SETS:
        train, test, y = split(arguments.data / f"{name}.npz", arguments.seed)
        for in_training in (0.0, 0.2):
            detector = VAEDetector().fit(punched(train, in_training, seed=1))
            for steps in STEPS:
                vae_anomaly.scoring.IMPUTATION_STEPS = steps
                cells = [figures(detector, punched(test, share, seed=2), y) for share in SHARES]
                print(f"| {name} | {100 * in_training:g} % | {steps} | " + " | ".join(cells) + " |", flush=True)
            vae_anomaly.scoring.IMPUTATION_STEPS = 10


if __name__ == "__main__":
    main()
