"""Small real data sets that come with scikit-learn, split for anomaly detection."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from vae_anomaly.errors import DataError

__all__ = ["SAMPLES", "SampleInfo", "breast_cancer", "digits", "split_sample"]


class SampleInfo(NamedTuple):
    """What the card of a data set says."""

    title: str
    source: str
    licence: str
    rows: str
    normal: str
    anomaly: str
    label: str
    normal_value: str


def breast_cancer() -> tuple[pd.DataFrame, SampleInfo]:
    """569 tumours by 30 measurements, with a column ``anomaly``: 0 for benign, 1 for malignant.

    Examples
    --------
    >>> frame, info = breast_cancer()
    >>> frame.shape, int(frame[info.label].sum())
    ((569, 31), 212)
    """
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    frame = pd.DataFrame(bunch.data, columns=[name.replace(" ", "_") for name in bunch.feature_names])
    # scikit-learn counts the other way: its 0 is malignant.
    frame["anomaly"] = 1 - bunch.target
    return frame, SampleInfo(
        title="Breast Cancer Wisconsin (Diagnostic), by W. Wolberg, O. Mangasarian, N. Street and W. Street",
        source="https://doi.org/10.24432/C5DW2B",
        licence="CC-BY-4.0",
        rows="Measurements of the cell nuclei in a digitised image of a fine needle aspirate of a breast mass",
        normal="benign tumours",
        anomaly="malignant tumours",
        label="anomaly",
        normal_value="0",
    )


def digits() -> tuple[pd.DataFrame, SampleInfo]:
    """1,797 images of handwritten digits by 64 pixels from 0 to 16, with a column ``digit``.

    Examples
    --------
    >>> frame, info = digits()
    >>> frame.shape, list(frame.columns[[0, 63, 64]])
    ((1797, 65), ['pixel_0_0', 'pixel_7_7', 'digit'])
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    names = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]
    frame = pd.DataFrame(bunch.data.astype(np.int64), columns=names)
    frame["digit"] = bunch.target
    return frame, SampleInfo(
        title="Optical Recognition of Handwritten Digits (test set), by E. Alpaydin and C. Kaynak",
        source="https://doi.org/10.24432/C50P49",
        licence="CC-BY-4.0",
        rows="Images of 8 by 8 pixels, each the number of dark dots, 0 to 16, in a block of 4 by 4",
        normal="zeros",
        anomaly="digits from 1 to 9",
        label="digit",
        normal_value="0",
    )


SAMPLES: dict[str, Callable[[], tuple[pd.DataFrame, SampleInfo]]] = {
    "breast-cancer": breast_cancer,
    "digits": digits,
}


def split_sample(name: str, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two thirds of the normal rows to train on, without labels; all other rows, with ``anomaly`` 0 or 1, to test on.

    Examples
    --------
    >>> train, test = split_sample("breast-cancer")
    >>> len(train), len(test), int(test["anomaly"].sum())
    (238, 331, 212)
    """
    if name not in SAMPLES:
        raise DataError(f"Unknown sample {name!r}. Choose from {', '.join(map(repr, sorted(SAMPLES)))}.")
    frame, info = SAMPLES[name]()
    X = frame.drop(columns=info.label)
    anomaly = (frame[info.label].astype(str) != info.normal_value).to_numpy()
    rng = np.random.default_rng(seed)
    normal = rng.permutation(np.flatnonzero(~anomaly))
    n_train = round(len(normal) * 2 / 3)
    test = rng.permutation(np.concatenate([normal[n_train:], np.flatnonzero(anomaly)]))
    labelled = X.assign(anomaly=anomaly.astype(np.int64))
    return X.iloc[normal[:n_train]].reset_index(drop=True), labelled.iloc[test].reset_index(drop=True)
