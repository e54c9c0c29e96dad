"""Thin scikit-learn detectors to compare with, at their usual settings: fit on normal rows, higher score = worse."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import config_context
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity, LocalOutlierFactor, NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

__all__ = ["BASELINES", "KNN", "Mixture", "PCAReconstruction", "baseline_scores", "describe", "make_baseline"]


class KNN(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Distance to the k-th nearest training row, or to the farthest one where there are fewer than k."""

    def __init__(self, n_neighbors: int = 5) -> None:
        self.n_neighbors = n_neighbors

    def fit(self, X: ArrayLike, y: Any = None) -> "KNN":
        """Keep the training rows."""
        self.index_ = NearestNeighbors(n_neighbors=min(self.n_neighbors, len(np.asarray(X)))).fit(X)
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


class Mixture(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Log-density under a mixture of Gaussians with full covariances.

    A covariance takes many rows: with fewer than 5 d rows of d entries for each component, there are fewer components.
    """

    def __init__(self, n_components: int = 4, reg_covar: float = 1e-3, random_state: int = 0) -> None:
        self.n_components = n_components
        self.reg_covar = reg_covar
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None) -> "Mixture":
        """Find the components."""
        n_rows, n_columns = np.shape(X)
        affordable = max(1, n_rows // (5 * n_columns))
        self.mixture_ = GaussianMixture(
            min(self.n_components, affordable), reg_covar=self.reg_covar, random_state=self.random_state
        ).fit(X)
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Log-density: lower is more anomalous."""
        return np.asarray(self.mixture_.score_samples(X))


BASELINES: dict[str, Callable[[], Any]] = {
    "knn": lambda: KNN(n_neighbors=5),
    "lof": lambda: LocalOutlierFactor(n_neighbors=20, novelty=True),
    "isolation_forest": lambda: IsolationForest(random_state=0),
    "one_class_svm": lambda: OneClassSVM(),
    "pca": lambda: PCAReconstruction(),
    "gaussian_mixture": lambda: Mixture(),
    "kde": lambda: KernelDensity(bandwidth="scott"),
}


def make_baseline(name: str) -> Pipeline:
    """Unfitted pipeline that standardises the columns and then detects; its ``score_samples`` is lower for worse."""
    return make_pipeline(StandardScaler(), BASELINES[name]())


def describe(name: str) -> str:
    """Settings of a baseline, all of them, as text.

    Examples
    --------
    >>> describe("knn")
    'KNN(n_neighbors=5)'
    >>> describe("gaussian_mixture")
    'Mixture(n_components=4, random_state=0, reg_covar=0.001)'
    """
    with config_context(print_changed_only=False):
        return " ".join(repr(BASELINES[name]()).split())


def baseline_scores(name: str, train: ArrayLike, test: ArrayLike) -> NDArray[np.float64]:
    """Anomaly scores of ``test`` by a baseline fitted on standardised ``train``; no missing values.

    Examples
    --------
    >>> train = np.random.default_rng(0).normal(size=(50, 2))
    >>> near, far = baseline_scores("knn", train, [[0.0, 0.0], [9.0, 9.0]])
    >>> bool(far > near)
    True
    """
    detector = make_baseline(name).fit(np.asarray(train))
    return np.asarray(-detector.score_samples(np.asarray(test)), dtype=np.float64)
