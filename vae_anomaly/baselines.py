"""Thin scikit-learn detectors to compare with, at their usual settings: fit on normal rows, higher score = worse."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

__all__ = ["BASELINES", "KNN", "PCAReconstruction", "baseline_scores"]


class KNN(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Distance to the k-th nearest training row."""

    def __init__(self, n_neighbors: int = 5) -> None:
        self.n_neighbors = n_neighbors

    def fit(self, X: ArrayLike, y: Any = None) -> "KNN":
        """Keep the training rows."""
        self.index_ = NearestNeighbors(n_neighbors=self.n_neighbors).fit(X)
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Negative distance: lower is more anomalous."""
        return np.asarray(-self.index_.kneighbors(X)[0][:, -1])


class PCAReconstruction(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Squared error of the projection on the principal components that hold a share of the variance."""

    def __init__(self, share: float = 0.95) -> None:
        self.share = share

    def fit(self, X: ArrayLike, y: Any = None) -> "PCAReconstruction":
        """Find the principal components."""
        self.pca_ = PCA(n_components=self.share, svd_solver="full").fit(X)
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Negative error: lower is more anomalous."""
        projected = self.pca_.inverse_transform(self.pca_.transform(X))
        return np.asarray(-np.square(np.asarray(X) - projected).sum(axis=1))


BASELINES: dict[str, Callable[[], Any]] = {
    "knn": lambda: KNN(n_neighbors=5),
    "lof": lambda: LocalOutlierFactor(n_neighbors=20, novelty=True),
    "isolation_forest": lambda: IsolationForest(random_state=0),
    "one_class_svm": lambda: OneClassSVM(),
    "pca": lambda: PCAReconstruction(),
}


def baseline_scores(name: str, train: ArrayLike, test: ArrayLike) -> NDArray[np.float64]:
    """Anomaly scores of ``test`` by a baseline fitted on standardised ``train``; no missing values.

    Examples
    --------
    >>> train = np.random.default_rng(0).normal(size=(50, 2))
    >>> near, far = baseline_scores("knn", train, [[0.0, 0.0], [9.0, 9.0]])
    >>> bool(far > near)
    True
    """
    detector = make_pipeline(StandardScaler(), BASELINES[name]()).fit(np.asarray(train))
    return np.asarray(-detector.score_samples(np.asarray(test)), dtype=np.float64)
