"""VAEDetector: the scikit-learn estimator that ties training, scores and thresholds together."""

import copy
import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from numbers import Integral
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted

from vae_anomaly import model_state
from vae_anomaly.calibration import (
    Calibration,
    calibrated,
    chosen_on_labels,
    first_calibration,
    groups_of,
    split_to_calibrate,
)
from vae_anomaly.encoding import encode_rows
from vae_anomaly.errors import look_up
from vae_anomaly.features import FeatureSchema
from vae_anomaly.fitting import fingerprint_of, fit_ensemble, generator_of, map_calibration, marks_of
from vae_anomaly.groups import row_groups
from vae_anomaly.in_parts import TableInParts
from vae_anomaly.inputs import to_fit, to_score
from vae_anomaly.label_thresholds import LABEL_THRESHOLDS
from vae_anomaly.parameters import Limits, check_params, check_precision, find_device, seed_of
from vae_anomaly.pixels import ImageSchema, PixelSchema
from vae_anomaly.planning import (
    check_score,
    default_score,
    n_share_rows,
    with_changed_copies,
)
from vae_anomaly.row_hashes import overlap, row_hashes, sketch
from vae_anomaly.schemas import check_table, infer_schema
from vae_anomaly.scores import (
    SCORES,
    Score,
    scores_for,
    shares,
    with_shares,
)
from vae_anomaly.scoring import IMPUTATION_STEPS, SCORING_BATCH, by_blocks, has_holes, map_rows
from vae_anomaly.splitting import Split
from vae_anomaly.thresholds import p_values
from vae_anomaly.tiles import TileSchema
from vae_anomaly.training import OnCheck
from vae_anomaly.vae import VAE
from vae_anomaly.workers import beside

__all__ = ["VAEDetector", "load"]

Floats = NDArray[np.float64]

_DRAWING = threading.Lock()


class VAEDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Anomaly detector that learns what normal data look like with an ensemble of variational autoencoders.

    Once fitted, it may be asked from several threads at once. A process that is forked afterwards, as multiprocessing
    does on Linux, computes in one thread: those of its parent are not there.

    Parameters
    ----------
    likelihood : str, default="auto"
        p(x | z), one of ``LIKELIHOODS``. "auto" takes "gaussian" for real columns, and "mixed" as soon as there are
        binary or categorical ones.
    prior : str, default="standard_normal"
        p(z), one of ``PRIORS``.
    score_name : str, default="auto"
        Score to detect with, one of ``SCORES``; higher is more anomalous. "auto" takes "novelty", and for
        images on pixels "patch_novelty"; the attribute ``score_name_`` says which.
    threshold : str, default="conformal"
        Rule from scores of held-out normal rows to a threshold, one of ``THRESHOLDS``.
    fpr : float, default=0.05
        Allowed false-positive rate: the share of new normal rows that may be flagged.
    n_estimators : int, default=6
        Members of the ensemble; their scores are averaged.
    latent_dim : int, optional
        Number of latent variables; by default as many as encoded columns, at most 128.
    hidden : tuple of int, default=(96, 96)
        Widths of the encoder's layers; the decoder mirrors them. The widest is the number of channels at the bottom of
        a convolutional network.
    net : {"auto", "mlp", "conv"}, default="auto"
        Networks: fully connected ones, and convolutional ones for images of more than 4,096 numbers. On two cores, a
        step on images of 28 x 28 pixels took 0.02 s with the first and 0.8 s with the second.
    backbone : str or None, default="auto"
        Model features of the patches of images instead of pixels, by one of ``BACKBONES``: "gabor", a fixed bank of
        filters, or one of torchvision's residual networks, such as "resnet18". "auto" takes "gabor" for images of more
        than 4,096 numbers, and pixels, as "pixels" and None do, for smaller ones and where ``net`` or ``likelihood`` is
        for pixels alone. Features can't be drawn or reconstructed.
    backbone_weights : path-like, optional
        File of the residual network's weights (a ``state_dict``, or ``.safetensors``); by default torchvision's own,
        which it downloads. The part that is used goes into the model file.
    beta : float, default=1.0
        Weight of the KL term in training.
    min_scale : float, default=0.05
        Floor under the likelihood's scales, in standard deviations of a column. Where a column's values are rounded so
        coarsely that most of them repeat, the floor is at least half a step from one value to the next.
    n_mc : int, default=16
        Draws of z for the scores that need them.
    max_steps : int, optional
        Optimiser steps; by default 300, of images 1500, more for more rows, up to 6000.
    batch_size : int, optional
        By default 256; an eighth of the rows of a table, 128 at least, where that is fewer; fewer still (64 at least)
        where rows have more than some 600 encoded columns; and up to eight times as many where 6000 steps would not see
        each of millions of rows once.
    learning_rate : float, optional
        Peak of the one-cycle schedule; by default 0.004, and on tables more for less than 1500 steps, up to 0.012.
    weight_decay : float, default=1e-4
    warmup : float, default=0.1
        Share of the steps over which the KL term is phased in.
    patience : float, default=0.3
        Share of the steps without a better held-out ELBO after which training stops.
    robust : float, default=0.0
        Share of the training rows that may be anomalies, below 0.5: so many of the least likely rows are left out of
        each step, and of the rows to compare with. Costs some accuracy where all rows are normal.
    rank_share : float, default=0.15
        Weight of a value's rank beside its standardised value, from 0 to below 1: with 0 a column is standardised
        and no more, towards 1 its values are spread evenly.
    tile : int, optional
        Of images larger than that: cut each into overlapping squares of so many pixels a side (8 at least), half a
        square from each to the next and the last ones at the edges. The networks are those of such squares, an image is
        as odd as its oddest tiles (mean of their scores, weighted by rank), and threshold and p-values are those of
        images, not of tiles. Each member learns from 500,000 tiles, or patches of tiles, at most, drawn by the seed.
    categorical_features : sequence of str, default=()
        Columns to take as categories although they hold numbers.
    flips : sequence of {"h", "v"}, default=()
        Of images: each image that is learned from is flipped left-right ("h"), upside-down ("v") or both ways, half of
        the time. For parts that are as good the other way round. Scores never see a changed image, and the neighbours
        that ``nearest_neighbour`` looks for are unchanged ones; of patches, features of two changed copies of each
        image are learned with it, and its neighbours are any of them.
    shift : int, default=0
        Of images: largest shift along each side, in pixels.
    brightness : float, default=0.0
        Of images: largest change of the brightness, as a share from 0 to 1.
    device : str or torch.device, default="auto"
        "auto" takes CUDA where there is some, else the CPU.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Of products in training. "auto" takes TF32 where they are large, or the steps many, and the device is CUDA's,
        which for layers of 1,024 is twice as fast, and float32 elsewhere. "bfloat16" is for processors with
        instructions for it (AMX or AVX512-BF16): large products, and convolutions, are of numbers that are rounded to
        it. Parameters, sums and scores are in float32.
    random_state : int, RandomState or None, default=0
        Seed of everything random: equal seeds give equal scores.

    Attributes
    ----------
    threshold_ : float
        A row with a higher anomaly score is flagged. Infinite when there were too few rows to keep ``fpr``.
    offset_ : float
        ``-threshold_``, for scikit-learn's sign.
    groups_ : Groups or None
        Groups of the calibration scores, where there are any.
    group_thresholds_ : dict of str to float
        Threshold of each group; empty without groups. ``threshold_`` is that of all calibration rows together.
    calibration_scores_ : ndarray of shape (n_calibration,)
        Anomaly scores of held-out normal rows, sorted.
    history_ : History
        Terms of the ELBO over the course of training.
    active_units_ : ndarray of shape (n_estimators,)
        Latent variables that carry information.
    usual_shares_ : ndarray of shape (n_features,)
        Mean of :meth:`explain` over held-out normal rows.
    n_rows_ : dict
        Rows trained on and rows that calibrate; of fewer than 2,000 rows, these are the same ones, but for the few left
        over when folds of one size are made, and with a single member, which trains on all but its fold.
    threshold_rule_ : dict
        The rule behind the threshold: its ``name``; its ``fpr``, None where no rate was asked for; its further
        ``parameters``; ``out_of_fold``, whether the calibration scores are; ``extrapolation``, the fields of
        :class:`~vae_anomaly.tails.Extrapolation` where it goes beyond the scores; and ``labels``, what labelled rows
        it was chosen on, if any, with ``n_normal``, ``n_anomalies``, and how many of each it flags.
    row_hashes_ : dict of ndarray of uint64
        Hashes of the rows trained on (``training``), of those that calibrated last (``calibration``), and of those on
        whose labels the threshold was chosen (``labels``, mostly empty).
    notes_ : dict
        Plain data that the model file carries along.
    fitted_params_ : dict
        Parameters that it was fitted with, the seed as ``random_state``. What is set by ``set_params`` afterwards
        counts for the next fit alone.
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
        score_name: str = "auto",
        threshold: str = "conformal",
        fpr: float = 0.05,
        n_estimators: int = 6,
        latent_dim: int | None = None,
        hidden: tuple[int, ...] = (96, 96),
        net: str = "auto",
        backbone: str | None = "auto",
        backbone_weights: str | os.PathLike[str] | None = None,
        tile: int | None = None,
        beta: float = 1.0,
        min_scale: float = 0.05,
        n_mc: int = 16,
        max_steps: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float = 1e-4,
        warmup: float = 0.1,
        patience: float = 0.3,
        robust: float = 0.0,
        rank_share: float = 0.15,
        categorical_features: tuple[str, ...] = (),
        flips: tuple[str, ...] = (),
        shift: int = 0,
        brightness: float = 0.0,
        device: str | torch.device = "auto",
        precision: str = "auto",
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
        self.net = net
        self.backbone = backbone
        self.backbone_weights = backbone_weights
        self.tile = tile
        self.beta = beta
        self.min_scale = min_scale
        self.n_mc = n_mc
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup = warmup
        self.patience = patience
        self.robust = robust
        self.rank_share = rank_share
        self.categorical_features = categorical_features
        self.flips = flips
        self.shift = shift
        self.brightness = brightness
        self.device = device
        self.precision = precision
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    # -- fitting ------------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, *, groups: Any = None, on_check: OnCheck | None = None) -> Self:
        """Learn from normal data.

        The threshold is computed from scores of rows by members that did not train on them. Of 2,000 rows or more,
        some are set aside for that; of fewer, each member leaves out a fold of its own, so that every row is trained
        on by all others, if there are any [1]_.

        Which promise the conformal threshold then keeps: with rows set aside, at most ``fpr`` of new normal rows are
        flagged on average, whatever their distribution (split conformal prediction [2]_), and rows flagged together
        under an ``fdr`` keep it [3]_. Out of fold, for one model in place of an ensemble, twice the rate and
        2 (1 - 1/K) / (n/K + 1) is proven for K folds of n rows [1]_, and about the rate is seen. With
        ``groups``, the same holds within each. All of it is for new rows like these: a shift of the inputs, even a
        known one, is not corrected for.

        Parameters
        ----------
        X : DataFrame or array-like of shape (n_samples, n_features), or images of shape (n_samples, channels, h, w)
            Normal data; missing values as NaN (None in a column of text) or masked. Images hold values in [0, 1], or
            unsigned integers. A table larger than memory comes as a :class:`~vae_anomaly.in_parts.TableInParts`.
        y : ignored
        groups : array-like of shape (n_samples,), optional
            Group of each row, such as its machine: each gets a threshold of its own, from its own calibration rows, and
            keeps ``fpr`` by itself. The groups are no feature.
        on_check : callable, optional
            Told of the progress: share of the steps done, epoch, held-out ELBO.

        Raises
        ------
        DataError
            If the table can't be learned from, or a group has too few calibration rows.
        ValueError
            If a parameter can't be used.
        TrainingError
            If a loss is not finite.

        References
        ----------
        .. [1] Barber, Candes, Ramdas and Tibshirani, "Predictive inference with the jackknife+", 2021,
           https://arxiv.org/abs/1905.02928
        .. [2] Vovk, "Conditional validity of inductive conformal predictors", ACML 2012,
           https://arxiv.org/abs/1209.2673
        .. [3] Bates et al., "Testing for outliers with conformal p-values", Annals of Statistics 51(1), 2023,
           https://arxiv.org/abs/2104.08279
        """
        check_params(self.get_params())
        check_precision(self.precision, self.device)
        frame = to_fit(self, X)
        self.from_frame_ = isinstance(X, pd.DataFrame | TableInParts)
        check_table(self, frame)
        self.seed_ = seed_of(self.random_state)
        generators = [generator_of(self.seed_, member) for member in range(self.n_estimators + 1)]
        split = split_to_calibrate(self.threshold, self.fpr, len(frame), generators)
        rows = None if groups is None else row_groups(groups, len(frame)).take(split.calibration)
        if rows is not None:
            # Before the training, which takes long.
            groups_of(rows, self.threshold, self.fpr)
        self.schema_ = infer_schema(self, frame, split.fitted)
        check_score(self.score_name, self.schema_)
        encoded = frame.encode(self.schema_) if isinstance(frame, TableInParts) else encode_rows(self.schema_, frame)
        self.fitted_params_: dict[str, Any] = copy.deepcopy({**self.get_params(), "random_state": self.seed_})
        learned = with_changed_copies(self, self.schema_, frame, encoded, split, generators[-1])
        unwanted = threading.Event()
        # Of images this takes as long as a GPU takes to train, and asks for nothing that it makes.
        fingerprint: Future[Any] = beside(fingerprint_of, encoded, unwanted)
        marks: Future[Any] = beside(marks_of, encoded, split, unwanted)
        try:
            fitted = fit_ensemble(self, *learned, generators, on_check)
        except BaseException:
            unwanted.set()
            wait([fingerprint, marks])
            raise
        self.ensemble_, self.eps_, self.architecture_, self.history_, self.active_units_ = fitted
        self.n_rows_ = {"train": len(split.fitted), "calibration": len(split.calibration)}
        scores = self._calibration_map(self._score_function(self._score()), encoded, split)
        scores[by_blocks(_is_empty, encoded, split.calibration)] = np.nan
        self._set_calibration(first_calibration(scores, self.threshold, self.fpr, rows, split))
        self.fingerprint_, self.row_hashes_ = fingerprint.result(), marks.result()
        self.usual_shares_ = self._usual_shares(encoded, split)
        self.notes_: dict[str, Any] = {}
        return self

    def fit_predict(
        self, X: Any, y: Any = None, *, groups: Any = None, on_check: OnCheck | None = None
    ) -> NDArray[np.int64]:
        """:meth:`fit`, then :meth:`predict` of the same rows by the thresholds of their groups."""
        return self.fit(X, y, groups=groups, on_check=on_check).predict(X, groups=groups)

    def _calibration_map(
        self,
        function: Callable[..., torch.Tensor],
        encoded: NDArray[np.float32],
        split: Split,
        at_once: int | None = None,
    ) -> Floats:
        n_parts = self.schema_.n_parts
        return map_calibration(self.ensemble_, self.eps_, function, encoded, split, n_parts=n_parts, at_once=at_once)

    def _usual_shares(self, encoded: NDArray[np.float32], split: Split) -> Floats:
        n_rows, at_once = n_share_rows(encoded.shape[1], self.ensemble_.device)
        entries = self._calibration_map(self._share_function(self._score()), encoded, split.first(n_rows), at_once)
        usual: Floats = self.schema_.fold(entries).mean(axis=0)
        return usual

    def _set_calibration(self, calibration: Calibration) -> None:
        self.calibration_scores_, self.threshold_ = calibration.scores, calibration.threshold
        self.offset_ = -calibration.threshold
        self.groups_, self.group_thresholds_ = calibration.groups, calibration.group_thresholds
        self.threshold_rule_: dict[str, Any] = calibration.rule

    def calibrate(self, X: Any, *, threshold: str | None = None, fpr: float | None = None, groups: Any = None) -> Self:
        """New threshold from further normal data; the weights stay as they are.

        Parameters
        ----------
        X : DataFrame or array-like of shape (n_samples, n_features)
            Normal data that the detector was not trained on.
        threshold, fpr : optional
            By default those of the last calibration. A threshold that was chosen on labels is none: then name the rule.
        groups : array-like of shape (n_samples,), optional
            Group of each row, as in :meth:`fit`. Without them, one threshold holds for all rows from now on.

        Raises
        ------
        ValueError
            If there are too few rows for ``fpr``; the message says how many it takes.
        """
        check_is_fitted(self)
        last = self.threshold_rule_
        if threshold is None and last["labels"] is not None:
            raise ValueError(
                f"The threshold was chosen on labels, by {last['name']!r}. Name a rule for normal data, such as "
                "'conformal', to calibrate anew."
            )
        fpr = (last["fpr"] or self.fitted_params_["fpr"]) if fpr is None else fpr
        threshold = last["name"] if threshold is None else threshold
        encoded = self._encode(X)
        rows = None if groups is None else row_groups(groups, len(encoded))
        self._set_calibration(calibrated(self._scores(encoded, self._score()), threshold, fpr, rows))
        hashes = by_blocks(row_hashes, encoded)
        self.row_hashes_ = {**self.row_hashes_, "calibration": sketch(hashes), "labels": sketch(hashes[:0])}
        return self

    def choose_threshold(self, X: Any, y: ArrayLike, rule: str = "youden", **parameters: float) -> Self:
        """New threshold from labelled data, for all groups; weights, calibration scores and p-values stay as they are.

        It promises nothing for new rows, and figures on the rows that it was chosen on are no test result.

        Parameters
        ----------
        X : DataFrame or array-like of shape (n_samples, n_features)
            Rows that the detector was not trained on.
        y : array-like of shape (n_samples,)
            1 for an anomaly, 0 for a normal row.
        rule : str, default="youden"
            One of ``LABEL_THRESHOLDS``.
        **parameters
            Those of the rule: ``beta`` (default 1) of ``f_beta``, ``cost_miss`` and ``cost_alarm`` (default 1) of
            ``cost``, ``fpr`` (default 0.05) of ``recall_at_fpr``.

        Raises
        ------
        DataError
            If the rows that can be scored are of one class only, or all have one score.
        """
        check_is_fitted(self)
        known = look_up("threshold", rule, LABEL_THRESHOLDS)
        parameters = known.complete(rule, parameters)
        encoded = self._encode(X)
        labels, scores = np.asarray(y), self._scores(encoded, self._score())
        if labels.shape != scores.shape:
            raise ValueError(f"y has shape {labels.shape}, expected one label for each of the {len(scores)} rows of X.")
        out_of_fold = self.threshold_rule_["out_of_fold"]
        value, said = chosen_on_labels(labels, scores, rule, parameters, out_of_fold=out_of_fold)
        self.threshold_, self.offset_ = value, -value
        self.group_thresholds_ = {}
        self.row_hashes_ = {**self.row_hashes_, "labels": sketch(row_hashes(encoded))}
        self.threshold_rule_ = said
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
        return self._scores(self._encode(X), self._score(score_name))

    def score_samples(self, X: Any) -> Floats:
        """Negative anomaly score: scikit-learn's sign, lower is more anomalous."""
        return -self.anomaly_score(X)

    def decision_function(self, X: Any) -> Floats:
        """``score_samples(X) - offset_``: negative for rows that are flagged."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any, groups: Any = None) -> NDArray[np.int64]:
        """+1 for normal rows, -1 for anomalies; a row that can't be scored is not flagged.

        Parameters
        ----------
        X : DataFrame or array-like of shape (n_samples, n_features)
        groups : array-like of shape (n_samples,), optional
            Group of each row, of a detector that was calibrated by group. Rows whose group is missing or was never
            calibrated are judged by all calibration rows; without ``groups``, all rows are.
        """
        scores = self.anomaly_score(X)
        return np.where(scores > self.thresholds_of(groups, len(scores)), -1, 1)

    def p_value(self, X: Any, groups: Any = None) -> Floats:
        """Conformal p-value of each row: how often a normal row, of its group, scores as high or higher."""
        return self.p_values_of(self.anomaly_score(X), groups)

    def p_values_of(self, scores: ArrayLike, groups: Any = None) -> Floats:
        """Conformal p-values of anomaly scores that are known already."""
        check_is_fitted(self)
        if groups is None or self.groups_ is None:
            return p_values(self.calibration_scores_, scores)
        return self.groups_.p_values(self.calibration_scores_, scores, row_groups(groups, len(np.asarray(scores))))

    def thresholds_of(self, groups: Any, n_samples: int) -> Floats:
        """Threshold of each of ``n_samples`` rows, that of its group where it was calibrated by group."""
        check_is_fitted(self)
        thresholds = np.full(n_samples, self.threshold_)
        if groups is not None and self.groups_ is not None and self.group_thresholds_:
            codes = self.groups_.codes_of(row_groups(groups, n_samples))
            by_code = np.array([self.group_thresholds_[name] for name in self.groups_.names])
            thresholds[codes >= 0] = by_code[codes[codes >= 0]]
        return thresholds

    def seen_rows(self, X: Any) -> dict[str, int]:
        """How many rows of ``X`` equal a row of each kind in ``row_hashes_``; figures on such rows are too good.

        Rows are equal when they are encoded alike, whatever came of columns that say nothing. Of more than 100,000
        rows of a kind a sample is kept, and the number is an estimate. In a table with few distinct rows, new ones
        equal old ones by chance.

        Returns
        -------
        dict of str to int
            ``training``, ``calibration`` (the last one) and ``labels`` (rows that the threshold was chosen on).
        """
        check_is_fitted(self)
        encoded = self._encode(X)
        hashes = by_blocks(row_hashes, encoded)
        return {kind: overlap(kept, hashes) for kind, kept in self.row_hashes_.items()}

    def explain(self, X: Any, *, score_name: str | None = None) -> Floats:
        """Contribution of each feature to the anomaly score, in the shape of ``X``; each sample sums to its score.

        What a feature adds differs from feature to feature among normal rows, too: compare with ``usual_shares_``.
        """
        check_is_fitted(self)
        encoded = self._encode(X)
        explained = self._shares(encoded, self._score(score_name))
        explained[np.isnan(encoded).all(axis=1)] = np.nan
        return explained.reshape(-1, *self.schema_.shape) if isinstance(self.schema_, ImageSchema) else explained

    def explained_score(self, X: Any) -> tuple[Floats, Floats]:
        """:meth:`anomaly_score` and :meth:`explain` of each row, the same numbers in little more than the time of one.

        Returns
        -------
        scores : ndarray of shape (n_samples,)
        contributions : ndarray in the shape of ``X``
        """
        check_is_fitted(self)
        encoded, score = self._encode(X), self._score()
        scores, entries = self._map_rows(self._explained_function(score), encoded, again=True)
        contributions = self.schema_.fold(entries)
        empty = by_blocks(_is_empty, encoded)
        scores[empty], contributions[empty] = np.nan, np.nan
        shape = self.schema_.shape if isinstance(self.schema_, ImageSchema) else contributions.shape[1:]
        return scores, contributions.reshape(-1, *shape)

    def sample(self, n_samples: int = 1, *, random_state: Any = 0) -> Any:
        """New rows drawn from the prior, in the units and types of the training data; the members take turns.

        Parameters
        ----------
        n_samples : int, default=1
        random_state : int, RandomState or None, default=0
            Equal seeds give equal rows.

        Returns
        -------
        DataFrame, or ndarray if the detector was fitted on an array or on images
        """
        check_is_fitted(self)
        self._check_can_generate()
        Limits(Integral, 1).check("n_samples", n_samples)
        seed = seed_of(random_state)
        # A mixture can't be asked for no rows at all.
        blocks = np.array_split(np.arange(n_samples), min(n_samples, self.ensemble_.n_estimators))
        draws = []
        # The distributions draw from the global generator of the CPU, whose state is left as it was; one thread at a
        # time, or the draws of one would be missing in another's.
        with _DRAWING, torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            for member, rows in zip(self.ensemble_.members(), blocks, strict=False):
                vae = member.to("cpu")
                draws.append(vae.decode(vae.pz().sample((len(rows),))).sample())
        decoded = self.schema_.decode(torch.cat(draws).numpy())
        if isinstance(decoded, np.ndarray) or self.from_frame_:
            return decoded
        return decoded.to_numpy(dtype=np.float64)

    def reconstruct(self, X: Any) -> pd.DataFrame | NDArray[np.float32]:
        """What the model expects in each cell, given the row: the decoder's mean at the posterior mean.

        Mean over the members, in the units and types of the training data.

        Returns
        -------
        DataFrame of shape (n_samples, n_features), or ndarray in the shape of images
        """
        check_is_fitted(self)
        self._check_can_generate()

        def expected(vae: VAE, x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
            mean: torch.Tensor = vae.decode(vae.encode(x).mean).mean
            return mean

        return self.schema_.decode(self._map_rows(expected, self._encode(X)))

    def latent(self, X: Any, *, member: int = 0) -> Floats:
        """Posterior means of one member, shape (n_samples, latent_dim); members have latent spaces of their own.

        With a backbone, of each image the mean over its patches.
        """
        check_is_fitted(self)
        encoded = self._encode(X)
        vae = self._member(member)
        vae.imputation_steps = IMPUTATION_STEPS if has_holes(encoded) else 0
        with torch.no_grad():
            rows = torch.from_numpy(encoded).to(self.ensemble_.device)
            rows = rows.reshape(len(rows) * self.schema_.n_parts, -1)
            starts = range(0, len(rows), SCORING_BATCH)
            codes = [vae.encode(rows[start : start + SCORING_BATCH]).mean for start in starts]
        joined = torch.cat(codes).double()
        return joined.reshape(len(encoded), self.schema_.n_parts, -1).mean(dim=1).cpu().numpy()

    def decode(self, codes: ArrayLike, *, member: int = 0) -> pd.DataFrame | NDArray[np.float32]:
        """What one member expects at codes as :meth:`latent` gives them: the decoder's mean.

        Parameters
        ----------
        codes : array-like of shape (n_samples, latent_dim)
        member : int

        Returns
        -------
        DataFrame of shape (n_samples, n_features), or ndarray in the shape of images
        """
        check_is_fitted(self)
        self._check_can_generate()
        vae, latent_dim = self._member(member), self.architecture_["latent_dim"]
        # A copy, as torch knows neither reversed nor read-only arrays.
        z = torch.from_numpy(np.array(codes, dtype=np.float32, order="C"))
        if z.ndim != 2 or z.shape[1] != latent_dim or not len(z):
            raise ValueError(
                f"codes has shape {tuple(z.shape)}, expected (n_samples, {latent_dim}) and one row or more."
            )
        with torch.no_grad():
            starts = range(0, len(z), SCORING_BATCH)
            blocks = [z[start : start + SCORING_BATCH].to(self.ensemble_.device) for start in starts]
            means = [vae.decode(block).mean.cpu() for block in blocks]
        return self.schema_.decode(torch.cat(means).numpy())

    def training_codes(self, *, member: int = 0) -> Floats:
        """Posterior means of the training rows that one member keeps, shape (n_codes, latent_dim).

        With a backbone, of single patches.
        """
        check_is_fitted(self)
        return self._member(member).codes.double().cpu().numpy()

    @property
    def score_name_(self) -> str:
        """Name of the score that it detects with."""
        check_is_fitted(self)
        name: str = self.fitted_params_["score_name"]
        return default_score(self.schema_) if name == "auto" else name

    @property
    def score_names_(self) -> list[str]:
        """Names of the scores that it can give."""
        check_is_fitted(self)
        return scores_for(images=isinstance(self.schema_.core, PixelSchema))

    def _score(self, name: str | None = None) -> Score:
        name = self.score_name_ if name is None else name
        score = look_up("score", name, SCORES)
        check_score(name, self.schema_)
        return score

    @property
    def holds_images(self) -> bool:
        """Whether the detector was fitted on images."""
        check_is_fitted(self)
        return isinstance(self.schema_, ImageSchema)

    @property
    def can_generate(self) -> bool:
        """Whether :meth:`sample` and :meth:`reconstruct` can give something back: from features or tiles they can't."""
        check_is_fitted(self)
        return not isinstance(self.schema_, FeatureSchema | TileSchema)

    def _check_can_generate(self) -> None:
        if not self.can_generate:
            # It knows why not, and says so.
            self.schema_.decode(np.empty(0))

    def _member(self, index: int) -> VAE:
        if not 0 <= index < self.ensemble_.n_estimators:
            raise ValueError(f"member={index} must lie between 0 and {self.ensemble_.n_estimators - 1}.")
        return next(itertools.islice(self.ensemble_.members(), index, None))

    def _encode(self, X: Any) -> NDArray[np.float32]:
        return encode_rows(self.schema_, to_score(self, X), self.ensemble_.device)

    def _scores(self, encoded: NDArray[np.float32], score: Score) -> Floats:
        scores: Floats = self._map_rows(self._score_function(score), encoded, again=True)
        scores[by_blocks(_is_empty, encoded)] = np.nan
        return scores

    def _shares(self, encoded: NDArray[np.float32], score: Score) -> Floats:
        return self.schema_.fold(self._map_rows(self._share_function(score), encoded))

    def _score_function(self, score: Score) -> Callable[..., torch.Tensor]:
        if isinstance(self.schema_, FeatureSchema | TileSchema):
            return self.schema_.score_function(score.function)
        return score.function

    def _explained_function(self, score: Score) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
        if isinstance(self.schema_, TileSchema):
            return self.schema_.explained_function(score.function, with_shares(score))
        if isinstance(self.schema_, FeatureSchema):
            return self.schema_.explained_function(score.function)
        return with_shares(score)

    def _share_function(self, score: Score) -> Callable[..., torch.Tensor]:
        if isinstance(self.schema_, FeatureSchema | TileSchema):
            explained = self._explained_function(score)
            return lambda vae, x, eps: explained(vae, x, eps)[1]

        def function(vae: VAE, x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
            return shares(score, vae, x, eps)

        return function

    def _map_rows(
        self,
        function: Callable[..., Any],
        encoded: NDArray[np.float32],
        *,
        again: bool = False,
        at_once: int | None = None,
    ) -> Any:
        n_parts = self.schema_.n_parts
        # With these, the function is a new one each time.
        again = again and not isinstance(self.schema_, FeatureSchema | TileSchema)
        return map_rows(self.ensemble_, self.eps_, function, encoded, n_parts=n_parts, again=again, at_once=at_once)

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
        notes = self.notes_ if notes is None else notes
        if not isinstance(notes, dict):
            raise TypeError(f"notes={notes!r} must be a dict of plain data, such as {{'data': 'pump.csv'}}.")
        model_state.save(self, path, notes)


def load(path: str | os.PathLike[str], *, device: str | torch.device = "auto") -> VAEDetector:
    """Detector that was saved with :meth:`VAEDetector.save`; its scores are those of the saved one.

    Raises
    ------
    ModelFileError
        If the file can't be read, or was damaged or changed.
    """
    detector = model_state.restore(VAEDetector, path)
    detector.ensemble_.to(find_device(device))
    seen = detector.schema_.core
    if isinstance(seen, FeatureSchema):
        seen.to(find_device(device))
    return detector


def _is_empty(encoded: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Rows without any value."""
    if not has_holes(encoded):
        return np.zeros(len(encoded), dtype=bool)
    return np.asarray(np.isnan(encoded).all(axis=1))
