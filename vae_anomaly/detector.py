"""VAEDetector: the scikit-learn estimator that ties training, scores and thresholds together."""

import hashlib
import math
import os
import warnings
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from vae_anomaly import model_state
from vae_anomaly.ensemble import Ensemble
from vae_anomaly.errors import CalibrationWarning, CellError, DataError, PosteriorCollapseWarning, look_up
from vae_anomaly.likelihoods import LIKELIHOODS, Blocks, Likelihood
from vae_anomaly.parameters import check_params, find_device
from vae_anomaly.preprocessing import Schema
from vae_anomaly.scores import REFERENCES, SCORES, Score, shares
from vae_anomaly.thresholds import THRESHOLDS, check_fpr, p_values
from vae_anomaly.training import OnCheck, Plan, active_units, train
from vae_anomaly.vae import VAE

__all__ = ["VAEDetector", "load"]

# Rows are scored in blocks of this size, the last one padded: with one shape, the arithmetic of a row is the same
# whichever rows come with it.
SCORING_BATCH = 512
# Rows that the references (latent covariance, usual scores) are computed from.
MAX_REFERENCE_ROWS = 5000
MAX_CALIBRATION_ROWS = 10_000
MAX_LATENT_DIM = 128
# Passes that fill the holes of a row before it is scored; measured: 10 do what 30 do, 3 do not.
IMPUTATION_STEPS = 10

Floats = NDArray[np.float64]


class VAEDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Anomaly detector that learns what normal data look like with an ensemble of variational autoencoders.

    Parameters
    ----------
    likelihood : str, default="auto"
        p(x | z), one of ``LIKELIHOODS``. "auto" takes "gaussian" for real columns, and "mixed" as soon as there are
        binary or categorical ones.
    prior : str, default="standard_normal"
        p(z), one of ``PRIORS``.
    score_name : str, default="novelty"
        Score to detect with, one of ``SCORES``; higher is more anomalous.
    threshold : str, default="conformal"
        Rule from scores of held-out normal rows to a threshold, one of ``THRESHOLDS``.
    fpr : float, default=0.05
        Allowed false-positive rate: the share of new normal rows that may be flagged.
    n_estimators : int, default=4
        Members of the ensemble; their scores are averaged.
    latent_dim : int, optional
        Number of latent variables; by default as many as encoded columns, at most 128.
    hidden : tuple of int, default=(128, 128)
        Widths of the encoder's layers; the decoder mirrors them.
    beta : float, default=1.0
        Weight of the KL term in training.
    min_scale : float, default=0.05
        Floor under the likelihood's scales, in standard deviations of a column.
    n_mc : int, default=16
        Draws of z for the scores that need them.
    max_steps : int, optional
        Optimiser steps; by default 1500, more for more rows, up to 6000.
    batch_size : int, default=256
    learning_rate : float, default=3e-3
        Peak of the one-cycle schedule.
    weight_decay : float, default=1e-4
    warmup : float, default=0.1
        Share of the steps over which the KL term is phased in.
    patience : float, default=0.3
        Share of the steps without a better held-out ELBO after which a member stops.
    categorical_features : sequence of str, default=()
        Columns to take as categories although they hold numbers.
    device : str, default="auto"
        "auto" takes CUDA, then Apple's MPS, then the CPU.
    random_state : int, RandomState or None, default=0
        Seed of everything random: equal seeds give equal scores.

    Attributes
    ----------
    threshold_ : float
        A row with a higher anomaly score is flagged. Infinite when there were too few rows to keep ``fpr``.
    offset_ : float
        ``-threshold_``, for scikit-learn's sign.
    calibration_scores_ : ndarray of shape (n_calibration,)
        Anomaly scores of held-out normal rows, sorted.
    history_ : History
        Terms of the ELBO over the course of training.
    active_units_ : ndarray of shape (n_estimators,)
        Latent variables that carry information.
    usual_shares_ : ndarray of shape (n_features,)
        Mean of :meth:`explain` over held-out normal rows.
    n_rows_ : dict
        Rows trained on and rows held out for calibration.
    notes_ : dict
        Plain data that the model file carries along.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Only when ``X`` was a data frame.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(400, 2))
    >>> X = z @ rng.normal(size=(2, 6)) + 0.1 * rng.normal(size=(400, 6))
    >>> detector = VAEDetector(max_steps=200).fit(X)
    >>> detector.predict(np.vstack([X[:2], [[3, -3, 3, -3, 3, -3]]])).tolist()
    [1, 1, -1]
    """

    def __init__(
        self,
        *,
        likelihood: str = "auto",
        prior: str = "standard_normal",
        score_name: str = "novelty",
        threshold: str = "conformal",
        fpr: float = 0.05,
        n_estimators: int = 4,
        latent_dim: int | None = None,
        hidden: tuple[int, ...] = (128, 128),
        beta: float = 1.0,
        min_scale: float = 0.05,
        n_mc: int = 16,
        max_steps: int | None = None,
        batch_size: int = 256,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-4,
        warmup: float = 0.1,
        patience: float = 0.3,
        categorical_features: tuple[str, ...] = (),
        device: str = "auto",
        random_state: Any = 0,
    ) -> None:
        self.likelihood = likelihood
        self.prior = prior
        self.score_name = score_name
        self.threshold = threshold
        self.fpr = fpr
        self.n_estimators = n_estimators
        self.latent_dim = latent_dim
        self.hidden = hidden
        self.beta = beta
        self.min_scale = min_scale
        self.n_mc = n_mc
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.patience = patience
        self.categorical_features = categorical_features
        self.device = device
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    # -- fitting ------------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, *, on_check: OnCheck | None = None) -> Self:
        """Learn from normal data.

        A part of the rows is held out and never trained on: the threshold is computed from their scores.

        Parameters
        ----------
        X : DataFrame or array-like of shape (n_samples, n_features)
            Normal data; missing values as NaN (None in a column of text).
        y : ignored
        on_check : callable, optional
            Told of the progress: share of the steps done, epoch, held-out ELBO.

        Raises
        ------
        DataError
            If the table can't be learned from.
        ValueError
            If a parameter can't be used.
        TrainingError
            If a loss is not finite.
        """
        check_params(self.get_params())
        frame = self._frame(X, reset=True)
        self.from_frame_ = isinstance(X, pd.DataFrame)
        self._check_categorical(frame)
        self.seed_ = self._seed()
        generators = [_generator(self.seed_, member) for member in range(self.n_estimators + 1)]
        n_calibration, enough = self._n_calibration(len(frame))
        order = torch.randperm(len(frame), generator=generators[-1])
        rest, calibration = order[n_calibration:], order[:n_calibration]
        self.schema_ = self._infer_schema(frame, np.sort(rest.numpy()))
        encoded = self.schema_.encode(frame)
        self.fingerprint_ = hashlib.sha256(encoded.tobytes()).hexdigest()
        self._train(torch.from_numpy(encoded), rest, generators, on_check)
        self.n_rows_ = {"train": len(rest), "calibration": n_calibration}
        held_out = encoded[calibration.numpy()]
        self._set_threshold(self._scores(held_out, SCORES[self.score_name]), self.threshold, self.fpr, strict=enough)
        self.usual_shares_ = self._shares(held_out[:MAX_REFERENCE_ROWS]).mean(axis=0)
        self.notes_: dict[str, Any] = {}
        return self

    def _check_categorical(self, frame: pd.DataFrame) -> None:
        unknown = sorted(set(map(str, self.categorical_features)) - set(map(str, frame.columns)))
        if unknown:
            raise ValueError(f"categorical_features names {unknown[0]!r}, and X has no such column.")

    def _infer_schema(self, frame: pd.DataFrame, rows: NDArray[np.intp]) -> Schema:
        """Schema of the training rows alone.

        Were the calibration rows among them, no value of theirs could ever be an unseen one, and new rows would look
        less normal than they do.
        """
        kind = LIKELIHOODS["mixed" if self.likelihood == "auto" else self.likelihood]
        try:
            return Schema.infer(
                frame.iloc[rows], kinds=kind.columns, scaling=kind.scaling, categorical=self.categorical_features
            )
        except CellError as error:
            raise CellError(int(rows[error.row]), error.detail) from None

    def _seed(self) -> int:
        if isinstance(self.random_state, (int, np.integer)):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _frame(self, X: Any, *, reset: bool) -> pd.DataFrame:
        """``X`` as a data frame with the columns seen in ``fit``."""
        if isinstance(X, pd.DataFrame):
            if not X.columns.is_unique:
                raise DataError(f"Duplicated column names: {sorted(set(X.columns[X.columns.duplicated()].map(str)))}.")
            validate_data(self, X, skip_check_array=True, reset=reset)
            _check_rows(X, 2 if reset else 1)
            return X.reset_index(drop=True)
        array = validate_data(
            self,
            X,
            dtype="numeric",
            ensure_all_finite="allow-nan",
            ensure_min_samples=2 if reset else 1,
            reset=reset,
        )
        return pd.DataFrame(array, columns=[f"x{index}" for index in range(array.shape[1])])

    def _n_calibration(self, n_rows: int) -> tuple[int, bool]:
        """How many rows to hold out for the threshold, and whether these keep the promise."""
        needed = THRESHOLDS[self.threshold].rows_needed(self.fpr)
        fifth = min(math.ceil(0.2 * n_rows), MAX_CALIBRATION_ROWS)
        if needed <= n_rows // 2:
            return max(fifth, needed), True
        warnings.warn(
            f"fpr={self.fpr} needs at least {needed} calibration rows, and {n_rows} rows can spare only {n_rows // 2}. "
            f"No row will be flagged until calibrate() gets {needed} normal rows. Or fit on at least {2 * needed} "
            "rows, or raise fpr.",
            CalibrationWarning,
            stacklevel=3,
        )
        return max(fifth, 1), False

    def _train(
        self, x: torch.Tensor, rest: torch.Tensor, generators: list[torch.Generator], on_check: OnCheck | None
    ) -> None:
        device = find_device(self.device)
        latent_dim = int(self.latent_dim or min(max(x.shape[1], 2), MAX_LATENT_DIM))
        self.architecture_: dict[str, Any] = {
            "n_entries": x.shape[1],
            "latent_dim": latent_dim,
            "mask_input": bool(torch.isnan(x[rest]).any()),
        }
        folds = _folds(rest, generators[:-1])
        self.architecture_["n_codes"] = min(folds[0].shape[1], MAX_REFERENCE_ROWS)
        members = [self._build(generator) for generator in generators[:-1]]
        for member, generator in zip(members, generators, strict=False):
            some = rest[torch.randint(len(rest), (member.prior.n_components,), generator=generator)]
            member.prior.start_from(x[some])
        self.ensemble_ = Ensemble(members).to(device)
        self.eps_ = torch.randn(self.n_mc, 1, latent_dim, generator=generators[-1])
        train_rows, held_out_rows = folds
        x = x.to(device)
        self.history_ = train(
            self.ensemble_,
            x,
            train_rows.to(device),
            held_out_rows.to(device),
            self._plan(train_rows.shape[1]),
            generators[:-1],
            on_check,
        )
        self._fill_references(x[train_rows[:, :MAX_REFERENCE_ROWS]], x[held_out_rows[:, :MAX_REFERENCE_ROWS]])

    def _plan(self, n_rows: int) -> Plan:
        steps_per_epoch = max(1, n_rows // self.batch_size)
        n_steps = int(self.max_steps or min(max(1500, 5 * steps_per_epoch), 6000))
        return Plan(
            n_steps,
            batch_size=int(self.batch_size),
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            beta=self.beta,
            warmup=self.warmup,
            patience=self.patience,
        )

    def _build(self, generator: torch.Generator | None) -> VAE:
        """One member, without weights worth the name if ``generator`` is None."""
        shape = (self.architecture_["n_entries"],)
        blocks = Blocks(*self.schema_.block_sizes())
        kind = "gaussian" if blocks.n_binary == 0 and not blocks.categories else "mixed"
        name = kind if self.likelihood == "auto" else self.likelihood
        likelihood: Likelihood = LIKELIHOODS[name](shape, blocks, min_scale=self.min_scale)
        return VAE(
            shape,
            self.architecture_["latent_dim"],
            likelihood=likelihood,
            prior=self.prior,
            hidden=self.hidden,
            mask_input=self.architecture_["mask_input"],
            n_codes=self.architecture_["n_codes"],
            generator=generator,
        )

    @torch.no_grad()
    def _fill_references(self, train_x: torch.Tensor, held_out_x: torch.Tensor) -> None:
        ensemble, eps = self.ensemble_, self.eps_.to(train_x.device)
        ensemble.skeleton.imputation_steps = IMPUTATION_STEPS if self.architecture_["mask_input"] else 0
        for fill in REFERENCES:
            ensemble.buffers.update(ensemble.map(fill, train_x, held_out_x, eps, in_dims=(0, 0, None)))
        self.active_units_ = ensemble.map(active_units, train_x, in_dims=(0,)).cpu().numpy()
        if (self.active_units_ == 0).any():
            warnings.warn(
                f"Posterior collapse: {int((self.active_units_ == 0).sum())} of {self.n_estimators} members ignore "
                "their latent variables, so they see each column on its own. Lower beta or raise warmup.",
                PosteriorCollapseWarning,
                stacklevel=4,
            )

    def _set_threshold(self, scores: Floats, threshold: str, fpr: float, *, strict: bool) -> None:
        # Everything that may fail comes before the first change of state.
        scores = np.sort(scores[~np.isnan(scores)])
        rule = look_up("threshold", threshold, THRESHOLDS)
        value = rule.function(scores, check_fpr(fpr)) if strict else math.inf
        self.calibration_scores_, self.threshold_, self.offset_ = scores, value, -value
        self.threshold_rule_: dict[str, Any] = {"name": threshold, "fpr": float(fpr)}

    def calibrate(self, X: Any, *, threshold: str | None = None, fpr: float | None = None) -> Self:
        """New threshold from further normal data; the weights stay as they are.

        Parameters
        ----------
        X : DataFrame or array-like of shape (n_samples, n_features)
            Normal data that the detector was not trained on.
        threshold, fpr : optional
            By default those of the last calibration.

        Raises
        ------
        ValueError
            If there are too few rows for ``fpr``; the message says how many it takes.
        """
        check_is_fitted(self)
        last = self.threshold_rule_
        fpr = last["fpr"] if fpr is None else fpr
        threshold = last["name"] if threshold is None else threshold
        self._set_threshold(self.anomaly_score(X), threshold, fpr, strict=True)
        return self

    # -- scoring ------------------------------------------------------------------------------------------------------

    def anomaly_score(self, X: Any, *, score_name: str | None = None) -> Floats:
        """Anomaly score of each row, shape (n_samples,); higher is more anomalous.

        A row without any value gets NaN.

        Parameters
        ----------
        X : DataFrame or array-like of shape (n_samples, n_features)
        score_name : str, optional
            Another one of ``SCORES`` than the detector's own.
        """
        check_is_fitted(self)
        return self._scores(self._encode(X), look_up("score", score_name or self.score_name, SCORES))

    def score_samples(self, X: Any) -> Floats:
        """Negative anomaly score: scikit-learn's sign, lower is more anomalous."""
        return -self.anomaly_score(X)

    def decision_function(self, X: Any) -> Floats:
        """``score_samples(X) - offset_``: negative for rows that are flagged."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """+1 for normal rows, -1 for anomalies; a row that can't be scored is not flagged."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_value(self, X: Any) -> Floats:
        """Conformal p-value of each row: how often a normal row scores as high or higher."""
        return self.p_values_of(self.anomaly_score(X))

    def p_values_of(self, scores: ArrayLike) -> Floats:
        """Conformal p-values of anomaly scores that are known already."""
        check_is_fitted(self)
        return p_values(self.calibration_scores_, scores)

    def explain(self, X: Any, *, score_name: str | None = None) -> Floats:
        """Contribution of each feature to the anomaly score, shape (n_samples, n_features); each row sums to its score.

        What a feature adds differs from feature to feature among normal rows, too: compare with ``usual_shares_``.
        """
        check_is_fitted(self)
        encoded = self._encode(X)
        explained = self._shares(encoded, look_up("score", score_name or self.score_name, SCORES))
        explained[np.isnan(encoded).all(axis=1)] = np.nan
        return explained

    def sample(self, n_samples: int = 1, *, random_state: int = 0) -> Any:
        """New rows drawn from the prior, in the units and types of the training data; the members take turns.

        Returns
        -------
        DataFrame, or ndarray if the detector was fitted on an array
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"n_samples={n_samples} must be at least 1.")
        blocks = np.array_split(np.arange(n_samples), self.n_estimators)
        draws = []
        # The distributions draw from the global generator of the CPU, whose state is left as it was.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(random_state)
            for member, rows in zip(self.ensemble_.members(), blocks, strict=True):
                vae = member.to("cpu")
                draws.append(vae.decode(vae.pz().sample((len(rows),))).sample())
        frame = self.schema_.decode(torch.cat(draws).numpy())
        return frame if self.from_frame_ else frame.to_numpy(dtype=np.float64)

    def _encode(self, X: Any) -> NDArray[np.float32]:
        return self.schema_.encode(self._frame(X, reset=False))

    def _scores(self, encoded: NDArray[np.float32], score: Score) -> Floats:
        scores = self._map_rows(score.function, encoded)
        scores[np.isnan(encoded).all(axis=1)] = np.nan
        return scores

    def _shares(self, encoded: NDArray[np.float32], score: Score | None = None) -> Floats:
        chosen = score or SCORES[self.score_name]

        def function(vae: VAE, x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
            return shares(chosen, vae, x, eps)

        return self.schema_.fold(self._map_rows(function, encoded))

    def _map_rows(self, function: Callable[..., torch.Tensor], encoded: NDArray[np.float32]) -> Floats:
        """``function`` of every row, mean over the members."""
        holed = np.isnan(encoded).any(axis=1)
        if not holed.any():
            return self._map_blocks(function, encoded, imputation_steps=0)
        # Imputation changes nothing for a complete row, so only the others pay for it.
        some = self._map_blocks(function, encoded[holed], imputation_steps=IMPUTATION_STEPS)
        results = np.empty((len(encoded), *some.shape[1:]))
        results[holed] = some
        if not holed.all():
            results[~holed] = self._map_blocks(function, encoded[~holed], imputation_steps=0)
        return results

    def _map_blocks(
        self, function: Callable[..., torch.Tensor], encoded: NDArray[np.float32], *, imputation_steps: int
    ) -> Floats:
        device = self.ensemble_.device
        eps = self.eps_.to(device)
        results = []
        self.ensemble_.skeleton.imputation_steps = imputation_steps
        for start in range(0, len(encoded), SCORING_BATCH):
            block = encoded[start : start + SCORING_BATCH]
            padded = np.zeros((SCORING_BATCH, encoded.shape[1]), dtype=np.float32)
            padded[: len(block)] = block
            with torch.no_grad():
                values = self.ensemble_.map(function, torch.from_numpy(padded).to(device), eps)
            results.append(values.double().mean(dim=0)[: len(block)].cpu().numpy())
        return np.concatenate(results)

    # -- saving -------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, notes: dict[str, Any] | None = None) -> None:
        """Write the fitted detector to one .safetensors file, whole or not at all.

        Parameters
        ----------
        path : path-like
        notes : dict, optional
            Plain data to keep in the header; by default ``notes_``.
        """
        check_is_fitted(self)
        model_state.save(self, path, self.notes_ if notes is None else notes)


def load(path: str | os.PathLike[str], *, device: str = "auto") -> VAEDetector:
    """Detector that was saved with :meth:`VAEDetector.save`; its scores are those of the saved one.

    Raises
    ------
    ModelFileError
        If the file can't be read, or was damaged or changed.
    """
    detector = model_state.restore(VAEDetector, path)
    detector.ensemble_.to(find_device(device))
    return detector


def _check_rows(frame: pd.DataFrame, at_least: int) -> None:
    if len(frame) < at_least:
        raise DataError(f"Found {len(frame)} sample(s), and at least {at_least} are needed.")


def _generator(seed: int, member: int) -> torch.Generator:
    """Generator of one member, independent of those of its siblings."""
    state = np.random.SeedSequence([seed, member]).generate_state(1, dtype=np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))


def _folds(rows: torch.Tensor, generators: list[torch.Generator]) -> tuple[torch.Tensor, torch.Tensor]:
    """For each member, rows to train on and a tenth of all rows, its own, to stop on."""
    n_held_out = max(1, round(0.1 * len(rows)))
    orders = torch.stack([rows[torch.randperm(len(rows), generator=generator)] for generator in generators])
    if len(rows) < 4:
        return orders, orders
    return orders[:, n_held_out:], orders[:, :n_held_out]
