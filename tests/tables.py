"""Small tables and the smallest detectors that still learn, for the tests."""

import warnings

import numpy as np
import pandas as pd
from click.testing import CliRunner

from vae_anomaly.cli import cli

TINY = {"max_steps": 30, "n_estimators": 2, "hidden": (16,)}
TINY_OPTIONS = ("--max-steps", "30", "--estimators", "2", "--hidden", "16")


def numbers(n=200, seed=0, n_columns=4):
    """Normal rows: correlated columns of different units, as an array."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 2))
    mixing = np.random.default_rng(99).normal(size=(2, n_columns))
    return (z @ mixing + 0.1 * rng.normal(size=(n, n_columns))) * 10.0 ** np.arange(n_columns) + 5.0


def mixed(n=200, seed=0):
    """Normal rows with columns of every kind, as a frame."""
    rng = np.random.default_rng(seed)
    flow = rng.normal(5.0, 1.0, size=n)
    return pd.DataFrame(
        {
            "flow": flow,
            "pressure": 20.0 * flow + rng.normal(size=n),
            "count": rng.poisson(20, size=n),
            "valve": rng.choice(["open", "shut"], size=n),
            "mode": rng.choice(["idle", "run", "wash"], size=n),
            "on": rng.random(n) < 0.5,
        }
    )


def labelled(n=200, n_anomalies=40, seed=1):
    """Rows as in :func:`mixed` with a column ``anomaly``; among the anomalies flow and pressure disagree by degrees."""
    frame = mixed(n, seed)
    frame["anomaly"] = (np.arange(n) < n_anomalies).astype(int)
    frame.loc[frame["anomaly"] == 1, "pressure"] += np.linspace(0.0, 80.0, n_anomalies)
    return frame.sample(frac=1.0, random_state=seed).reset_index(drop=True)


def holed(frame, share=0.2, seed=0):
    """Copy of a frame of numbers or an array with a share of the values missing."""
    holes = np.random.default_rng(seed).random(np.shape(frame)) < share
    return frame.mask(holes) if isinstance(frame, pd.DataFrame) else np.where(holes, np.nan, frame)


def run(*arguments, exit_code=0, input=None):
    """Result of ``vae-anomaly ARGUMENTS``, which must end with the exit code."""
    result = CliRunner().invoke(cli, list(map(str, arguments)), input=input, prog_name="vae-anomaly")
    assert result.exit_code == exit_code, f"exit code {result.exit_code}: {result.output}"
    return result


def read_predictions(path):
    """Predictions table with every float as it was written."""
    with warnings.catch_warnings():
        # Newer versions of pandas do so by themselves, and say that the option will go.
        warnings.simplefilter("ignore", DeprecationWarning)
        return pd.read_csv(path, float_precision="round_trip")
