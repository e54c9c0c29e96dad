"""PyOD's VAE with its defaults on one table, for speed.py: runs where PyOD is installed, which needs not be here.

    python reports/benchmarks/speed_pyod.py TABLE.npz THREADS DEVICE

TABLE.npz holds the arrays train, test and y. Prints one line of JSON.
"""

import json
import sys
import time
from importlib.metadata import version

import numpy as np
import torch
from pyod.models.vae import VAE
from sklearn.metrics import roc_auc_score


def main(path: str, threads: str, device: str) -> None:
    torch.set_num_threads(int(threads))
    with np.load(path) as file:
        train, test, y = file["train"], file["test"], file["y"]
    # The first call of each sort pays for what is loaded late.
    VAE(verbose=0, epoch_num=1, device=device).fit(train[:64]).decision_function(test[:64])
    detector = VAE(verbose=0, device=device)
    started = time.perf_counter()
    detector.fit(train)
    fitted = time.perf_counter()
    scores = detector.decision_function(test)
    scored = time.perf_counter()
    found = {
        "fit_seconds": fitted - started,
        "score_seconds": scored - fitted,
        "roc_auc": float(roc_auc_score(y, scores)),
        "epochs": detector.epoch_num,
        "pyod": version("pyod"),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
