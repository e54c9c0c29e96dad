r"""Anomaly scores: pure functions ``(vae, x, eps) -> one number per sample``; higher is more anomalous.

``eps`` holds the standard-normal base samples of shape (n_mc, 1, latent_dim), shared by all rows, so that the score of
a row depends on that row alone. An ensemble scores with the **mean of its members' scores**. For the log-densities that
is the log of the geometric mean of the members' models: a row counts as normal only as far as the members agree on it,
whereas the arithmetic mean of densities would let one over-confident member speak for all. The mean is also linear, so
the shares that :func:`shares` gives to each entry still sum to the score.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from vae_anomaly.image_scores import (
    input_complexity,
    likelihood_regret,
    patch_error,
    patch_error_entries,
    path_statistics,
    usual_path,
)
from vae_anomaly.neighbours import half_squared_lengths, nearest, taken
from vae_anomaly.patches import patch_entries, patch_novelty, usual_contrast, usual_patches, usual_views
from vae_anomaly.usual import upper_tail
from vae_anomaly.vae import VAE

__all__ = [
    "AVERAGED",
    "IMAGE_REFERENCES",
    "PATCH_REFERENCES",
    "REFERENCES",
    "SCORES",
    "Score",
    "kl",
    "latent_novelty",
    "mahalanobis",
    "nearest_neighbour",
    "neg_elbo",
    "neg_log_px",
    "neg_log_px_z",
    "novelty",
    "reconstruction_error",
    "reconstruction_probability",
    "scores_for",
    "shares",
    "typicality",
    "with_shares",
]

# Twice what the least likely value of a binary column costs: next to impossible, and not more than that.
MAX_NATS = 20.0
# How much of what its nearest sample costs is no news of a sample: at 0.5 and at 1 the means over ADBench are the same
# within 0.1.
NEARBY_SHARE = 0.75

ScoreFunction = Callable[[VAE, Tensor, Tensor], Tensor]
F = TypeVar("F", bound=Callable[..., Any])


def for_all_members(function: F) -> F:
    """Mark a score or its parts that need no :func:`torch.func.vmap`: it takes a VAE that is all members, too.

    Samples, and what is returned, then have an axis over the members before that over the samples (``Ensemble.joint``).
    """
    function.for_all_members = True  # type: ignore[attr-defined]
    return function


def light(function: F) -> F:
    """Mark a score or its parts that take next to no time for a row: one pass through the networks, and no search."""
    function.light = True  # type: ignore[attr-defined]
    return function


def _sum(vae: VAE, entries: Tensor) -> Tensor:
    """Over the entries of each sample."""
    return entries.flatten(-len(vae.event_shape)).sum(dim=-1)


@light
def reconstruction_error(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    r"""Squared error of the reconstruction, :math:`\sum_i (x_i - E[x_i \mid z])^2` at the posterior mean z.

    Squared units of the scaled data. It ignores how well each entry is known: :func:`neg_log_px_z` does not.
    """
    return _sum(vae, _squared_errors(vae, x, eps))


@light
@for_all_members
def neg_log_px_z(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    r"""Reconstruction in nats, :math:`-\log p(x \mid z)` at the posterior mean z; one decoder pass, no sampling."""
    return _sum(vae, _neg_log_entries(vae, x, eps))


def reconstruction_probability(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    r"""Expected reconstruction in nats, :math:`E_{q(z \mid x)}[-\log p(x \mid z)]` over the draws [1]_.

    The source calls it a probability and flags low values; it is a negative log-density here, and high values are
    flagged.

    References
    ----------
    .. [1] An and Cho, "Variational autoencoder based anomaly detection using reconstruction probability", SNU Data
       Mining Center, 2015
    """
    return _sum(vae, _expected_neg_log_entries(vae, x, eps))


def kl(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    r"""Divergence of the posterior from the prior, :math:`KL(q(z \mid x) \| p(z))`, in nats."""
    return vae.kl(x, eps)


def neg_elbo(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    r"""Negative evidence lower bound, :math:`KL(q \| p) - E_q[\log p(x \mid z)]`, in nats (Kingma and Welling 2013)."""
    return -vae.elbo(x, eps)


def neg_log_px(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    r"""Negative importance-weighted bound of the log marginal likelihood, in nats [1]_.

    .. math:: -\log \frac{1}{K} \sum_{k=1}^{K} \frac{p(x \mid z_k)\, p(z_k)}{q(z_k \mid x)}

    with K = ``n_mc`` draws; in expectation it falls towards -log p(x) as K grows.

    References
    ----------
    .. [1] Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2016, https://arxiv.org/abs/1509.00519
    """
    terms = vae.terms(x, eps)
    log_weights = terms.log_px_z + terms.log_pz - terms.log_qz
    return math.log(log_weights.shape[0]) - log_weights.logsumexp(dim=0)


def typicality(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """Distance of ``neg_elbo`` from its mean over held-out normal samples, either way, in nats [1]_.

    In many dimensions normal samples lie where the density is typical, not where it is highest; what is rated far
    *more* likely than normal data is not normal either.

    References
    ----------
    .. [1] Nalisnick et al., "Detecting out-of-distribution inputs to deep generative models using typicality", 2019,
       https://arxiv.org/abs/1906.02994
    """
    return (neg_elbo(vae, x, eps) - vae.usual_neg_elbo).abs()


def mahalanobis(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """Mahalanobis distance, squared, of the posterior mean from the posterior means of the training samples."""
    centred: Tensor = vae.encode(x).mean - vae.code_mean
    return ((centred @ vae.code_precision) * centred).sum(dim=-1)


def latent_novelty(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """Distance of the posterior mean from the nearest code of a training sample, each latent variable divided by its
    spread over those codes.

    The prior says little about where the codes of normal samples are; the codes themselves do.
    """
    here, codes = vae.encode(x).mean / vae.code_spread, vae.codes / vae.code_spread
    # The search says which one is nearest, one difference a sample how far it is: no gradient has to pass the large
    # matrix, and nothing cancels.
    squared: Tensor = (here - codes[nearest(here, codes)]).square().sum(dim=-1)
    # The floor keeps the gradient of the root finite where a code is met exactly.
    return squared.clamp(min=1e-12).sqrt()


def nearest_neighbour(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """Euclidean distance to the nearest of the training samples that the model keeps, in units of the scaled data.

    Missing entries are left out, and the distance over the others is scaled up to all, as scikit-learn's
    ``nan_euclidean_distances`` does.
    """
    return _sum(vae, _nearest_entries(vae, x, eps))


@for_all_members
def novelty(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    r"""The higher of two standardised scores: the model does not explain the sample, or has seen none like it.

    Both come from the nearest of the training samples that the model keeps. What is **unexplained** is
    ``neg_log_px_z``, to which no entry adds more than 20 nats (how far off it is says the second score), less three
    quarters of what the nearest sample costs: where normal samples are hard to explain, that a sample is, too, says
    little. **Unseen** is the distance to it. Each member of an ensemble looks for the nearest by five sixths of the
    entries, so that no single one decides. Each term is measured from where the upper fifth of held-out normal samples
    begins, in units of how far that goes on beyond. A sample that breaks the dependence between entries has a high
    first term, one far from everything seen a high second. Their sum would let the term that sees nothing unusual, and
    is noise then, speak against the other.
    """
    return _sum(vae, _novelty_entries(vae, x, eps))


@for_all_members
def _novelty_entries(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    n_entries = math.prod(vae.event_shape)
    unexplained, unseen = (
        (entries - usual[..., :1] / n_entries) / usual[..., 1:]
        for entries, usual in zip(_novelty_terms(vae, x, eps), (vae.usual_unexplained, vae.usual_unseen), strict=True)
    )
    axes = tuple(range(-len(vae.event_shape), 0))
    higher = unexplained.sum(dim=axes, keepdim=True) > unseen.sum(dim=axes, keepdim=True)
    return torch.where(higher, unexplained, unseen)


def _novelty_terms(vae: VAE, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """What each entry adds to what is unexplained, and to the distance from what was seen."""
    place, squares = _nearest(vae, x, vae.compared.flatten(-len(vae.event_shape)))
    costs = vae.exemplar_costs[place] if place.ndim == 1 else vae.exemplar_costs.squeeze(-2).gather(-1, place)
    nearby = NEARBY_SHARE * costs / math.prod(vae.event_shape)
    unexplained = _bounded_entries(vae, x, eps) - nearby.reshape(*place.shape, *(1 for _ in vae.event_shape))
    return unexplained, _parts_of_distance(squares).reshape(x.shape)


def _bounded_entries(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """Without a bound, one column with a scale near its floor would outvote all others.

    Entries beyond it share what it leaves them by what each costs: one that is far off bends the code, and others with
    it, and were all of them alike, none would be named as the one that is off.
    """
    costs = _neg_log_entries(vae, x, eps)
    axes = tuple(range(-len(vae.event_shape), 0))
    beyond = costs > MAX_NATS
    left = MAX_NATS * beyond.sum(dim=axes, keepdim=True)
    total = torch.where(beyond, costs, 0.0).sum(dim=axes, keepdim=True)
    return torch.where(beyond, left * (costs / total.clamp(min=MAX_NATS)), costs)


def _nearest_entries(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    """What each entry adds to the distance, its square over the distance."""
    return _parts_of_distance(_nearest(vae, x)[1]).reshape(x.shape)


def _nearest(vae: VAE, x: Tensor, compared: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which of the samples that the model keeps is nearest, and squared differences from it.

    By the entries that ``compared`` is 1 for; the squares of what is seen of them are scaled up for what is missing.
    """
    axis = -len(vae.event_shape)
    here, exemplars = x.flatten(axis), vae.exemplars.flatten(axis)
    counted = torch.ones_like(exemplars[0]) if compared is None else compared
    if vae.complete:
        return _from_nearest(here, exemplars, counted, None if compared is None else vae.exemplar_lengths)
    seen = ~torch.isnan(here)
    here, n_entries = torch.where(seen, here, 0.0), counted.sum(dim=-1, keepdim=True)
    counted = counted * seen
    place, squares = _from_nearest(here, exemplars, counted, None)
    return place, squares * (n_entries / counted.sum(dim=-1, keepdim=True).clamp(min=1.0))


def _from_nearest(here: Tensor, exemplars: Tensor, counted: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    place = nearest(here * counted, exemplars, counted, lengths)
    # The search says which one is nearest, one difference a sample how far it is: nothing cancels.
    return place, ((here - taken(exemplars, place)) * counted).square()


def _parts_of_distance(squares: Tensor) -> Tensor:
    # The floor keeps the quotient defined where a sample is met exactly.
    return squares / squares.sum(dim=-1, keepdim=True).sqrt().clamp(min=1e-12)


@light
def _squared_errors(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    missing = torch.isnan(x)
    error = (torch.where(missing, 0.0, x) - vae.decode(vae.encode(x).mean).mean).square()
    return torch.where(missing, vae.missing_error, error)


@light
@for_all_members
def _neg_log_entries(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    return -vae.entries(vae.decode(vae.encode(x).mean), x)


def _expected_neg_log_entries(vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    return -vae.expected_entries(x, eps)


class Score(NamedTuple):
    """A score, and the part of it that falls to each entry of x, where there is such a part.

    ``entries(vae, x, eps)`` has the shape of x. If it is ``complete``, it sums to the score; else the difference is a
    remainder, which no entry owns. One of ``images`` needs a VAE that knows of a picture.
    A ``costly`` one takes so long that it is computed where it is asked for by name, and in no comparison. One that
    ``draws`` decodes a sample n_mc times, which takes long where a sample is wide.
    """

    function: ScoreFunction
    entries: ScoreFunction | None = None
    complete: bool = False
    images: bool = False
    costly: bool = False
    draws: bool = False


def scores_for(*, images: bool) -> list[str]:
    """Names of the scores of images on pixels, or of those of anything else.

    Examples
    --------
    >>> set(scores_for(images=True)) - set(scores_for(images=False)) >= {"patch_novelty", "patch_error"}
    True
    """
    return [name for name, score in SCORES.items() if images or not score.images]


def shares(score: Score, vae: VAE, x: Tensor, eps: Tensor) -> Tensor:
    r"""Contribution of each entry of ``x`` to the score; they sum to it.

    What falls to an entry by the formula of the score is exact. The remainder r (a KL divergence, say) is spread in
    proportion to :math:`|x_i \, \partial r / \partial x_i|`, the first-order effect of setting the entry to its
    average.
    """
    entries = torch.zeros_like(x) if score.entries is None else score.entries(vae, x, eps)
    if score.complete:
        return entries
    seen = torch.nan_to_num(x)
    missing = torch.isnan(x)

    def remainder(inner: Tensor) -> tuple[Tensor, Tensor]:
        holed = torch.where(missing, torch.nan, inner)
        rest = score.function(vae, holed, eps)
        if score.entries is not None:
            rest = rest - _sum(vae, score.entries(vae, holed, eps))
        return rest.sum(), rest

    gradient, rest = torch.func.grad(remainder, has_aux=True)(seen)
    # The constant keeps the division defined, and spreads the remainder evenly, where no entry has any effect.
    weights: Tensor = torch.where(missing, 0.0, (seen * gradient).abs()) + 1e-20
    axes = tuple(range(1, x.ndim))
    spread: Tensor = weights / weights.sum(dim=axes, keepdim=True)
    total: Tensor = entries + rest.reshape(-1, *(1 for _ in axes)) * spread
    return total


@functools.cache
def with_shares(score: Score) -> Callable[..., tuple[Tensor, Tensor]]:
    """Score of each sample and the :func:`shares` in it, in one pass where the shares are the whole of the score.

    The same function each time, so that what is found out about it is known.
    """
    entries = score.entries
    # Those of images find their score without a map, and the sum of the map differs from it in the last digits.
    if entries is None or not score.complete or score.images:
        return lambda vae, x, eps: (score.function(vae, x, eps), shares(score, vae, x, eps))

    def function(vae: VAE, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        found = entries(vae, x, eps)
        return _sum(vae, found), found

    # As its parts are.
    functools.update_wrapper(function, entries)
    return function


def usual_entries(vae: VAE, train: Tensor, held_out: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """What each entry contributes on average to the scores of held-out normal samples."""
    observed = (~torch.isnan(held_out)).to(held_out.dtype)
    n_observed = observed.sum(dim=0).clamp(min=1.0)
    return {
        "missing_log_px": -(_neg_log_entries(vae, held_out, eps) * observed).sum(dim=0) / n_observed,
        "missing_error": (_squared_errors(vae, held_out, eps) * observed).sum(dim=0) / n_observed,
    }


def usual_codes(vae: VAE, train: Tensor, held_out: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """Training samples to compare with, and their posterior means with mean, spread and inverse covariance.

    Where fewer samples are to be kept than there are, the most likely ones are.
    """
    n_codes = vae.codes.shape[0]
    if n_codes < train.shape[0]:
        likely = neg_log_px_z(vae, train, eps).topk(n_codes, largest=False).indices.sort().values
        train = train.index_select(0, likely)
    codes: Tensor = vae.encode(train).mean
    centred = codes - codes.mean(dim=0)
    covariance = centred.T @ centred / codes.shape[0]
    exemplars = vae.filled(train)
    # A latent variable that the model does not use has next to no spread; without a floor it would decide the distance.
    ridge = 1e-3 * torch.eye(codes.shape[1], device=codes.device)
    return {
        "code_mean": codes.mean(dim=0),
        "code_precision": torch.linalg.inv(covariance + ridge),
        "exemplars": exemplars,
        "exemplar_lengths": half_squared_lengths(exemplars.flatten(1), vae.compared.flatten()),
        "exemplar_costs": _sum(vae, _bounded_entries(vae, train, eps)),
        "codes": codes,
        "code_spread": codes.std(dim=0, correction=0) + 1e-6,
    }


def usual_scores(vae: VAE, train: Tensor, held_out: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """Where the scores of held-out normal samples lie."""
    unexplained, unseen = (_sum(vae, entries) for entries in _novelty_terms(vae, held_out, eps))
    return {
        "usual_neg_elbo": neg_elbo(vae, held_out, eps).mean(),
        "usual_unexplained": upper_tail(unexplained),
        "usual_unseen": upper_tail(unseen),
    }


# What the end of `fit` fills into the buffers of a VAE, in this order: each step sees the buffers of the one before.
REFERENCES = (usual_entries, usual_codes, usual_scores)

# The same, of VAEs that know of a picture.
IMAGE_REFERENCES = (usual_contrast, usual_path)
# Of these, after all others: from held-out images and what `patch_distances` says of them.
PATCH_REFERENCES = (usual_patches, usual_views)

# References that all members share, as the mean of what each found.
AVERAGED = (
    "usual_neg_elbo",
    "usual_unexplained",
    "usual_unseen",
    "patch_contrast",
    "usual_patches",
    "usual_views",
    "usual_path",
)

SCORES: dict[str, Score] = {
    "novelty": Score(novelty, _novelty_entries, complete=True),
    "neg_log_px_z": Score(neg_log_px_z, _neg_log_entries, complete=True),
    "neg_elbo": Score(neg_elbo, _expected_neg_log_entries, draws=True),
    "neg_log_px": Score(neg_log_px, _expected_neg_log_entries, draws=True),
    "reconstruction_probability": Score(
        reconstruction_probability, _expected_neg_log_entries, complete=True, draws=True
    ),
    "reconstruction_error": Score(reconstruction_error, _squared_errors, complete=True),
    "kl": Score(kl),
    "typicality": Score(typicality, draws=True),
    "nearest_neighbour": Score(nearest_neighbour, _nearest_entries, complete=True),
    "latent_novelty": Score(latent_novelty),
    "mahalanobis": Score(mahalanobis),
    "patch_novelty": Score(patch_novelty, patch_entries, complete=True, images=True),
    "patch_error": Score(patch_error, patch_error_entries, complete=True, images=True),
    "likelihood_regret": Score(likelihood_regret, images=True, costly=True),
    "input_complexity": Score(input_complexity, _expected_neg_log_entries, images=True, draws=True),
    "path_statistics": Score(path_statistics, images=True),
}
