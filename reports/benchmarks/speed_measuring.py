"""What the comparisons of speed.py share: clocks, tables, and fits to be timed."""

import argparse
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from vae_anomaly import VAEDetector
from vae_anomaly.errors import CalibrationWarning, PosteriorCollapseWarning
from vae_anomaly.splitting import split_rows
from vae_anomaly.thresholds import THRESHOLDS

N_COLUMNS = 30

Figures = dict[str, Any]


class Case(NamedTuple):
    """One line of the runs."""

    section: str
    name: str
    measure: Callable[[], Figures]


def seconds(function: Callable[[], Any], device: str) -> tuple[float, Any]:
    """How long a call takes, with all that it leaves the device to do."""
    wait = torch.cuda.synchronize if device != "cpu" else lambda: None
    wait()
    started = time.perf_counter()
    result = function()
    wait()
    return time.perf_counter() - started, result


def in_turn(ours: Callable[[], Any], theirs: Callable[[], Any], n_pairs: int, device: str) -> tuple[float, float]:
    """Median seconds of both, run one after the other; whichever is first changes from pair to pair."""
    found: dict[Callable[[], Any], list[float]] = {ours: [], theirs: []}
    for pair in range(n_pairs):
        for side in (ours, theirs) if pair % 2 == 0 else (theirs, ours):
            found[side].append(seconds(side, device)[0])
    return median(found[ours]), median(found[theirs])


def table_of(n_rows: int, n_columns: int = N_COLUMNS, seed: int = 0) -> np.ndarray:
    """Rows near a curved surface, with skewed and rounded columns among them."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(7).normal(size=(8, n_columns))
    X = np.tanh(rng.normal(size=(n_rows, 8))) @ mix + 0.2 * rng.normal(size=(n_rows, n_columns))
    X[:, ::5] = np.exp(0.5 * X[:, ::5])
    X[:, 1::10] = X[:, 1::10].round(1)
    return X


def fitted(options: argparse.Namespace, X: np.ndarray, **parameters: Any) -> VAEDetector:
    with warnings.catch_warnings():
        # Fits of a few steps are here to be timed.
        warnings.simplefilter("ignore", PosteriorCollapseWarning)
        warnings.simplefilter("ignore", CalibrationWarning)
        return VAEDetector(device=options.device, **parameters).fit(X)


def n_learned(detector: VAEDetector) -> int:
    """Rows that one member learns from; which ones it leaves out follows from their number alone."""
    n_rows = detector.n_rows_["train"]
    if not detector.threshold_rule_["out_of_fold"]:
        n_rows += detector.n_rows_["calibration"]
    generators = [torch.Generator() for _ in range(detector.n_estimators + 1)]
    needed = THRESHOLDS[detector.threshold].rows_needed(detector.fpr)
    return split_rows(n_rows, needed, generators).train.shape[1]


def row_visits(detector: VAEDetector) -> float:
    """Rows that training looked at, times members: rows x epochs x members."""
    return float(detector.history_.epoch[-1]) * detector.n_estimators * n_learned(detector)
