r"""p(x | z): modules that turn the decoder's output ``phi`` into a distribution over one sample.

Every likelihood returns an :class:`~torch.distributions.Independent` whose base distribution gives one log-density per
entry of ``x``, constants included, so that ``px.log_prob(x)`` is their sum and ``px.base_dist.log_prob(x)`` says where
it came from. Densities are learned, and each has a floor under its scale (or a bound on its logits): without one, a
column that the decoder predicts exactly would drive the ELBO to infinity and outvote every other column.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, distributions, nn
from torch.distributions import Distribution, Independent
from torch.nn import functional as F

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Blocks",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretisedLogistic",
    "Gaussian",
    "GaussianPerFeature",
    "GaussianShared",
    "Likelihood",
    "Mixed",
    "StudentT",
]

# softplus(RAW_ONE) == 1, the scale of a standardised column: the scale that training starts from.
RAW_ONE = math.log(math.e - 1.0)

# Two values of a binary column, or two categories, never differ by more than this in log-probability, in nats.
MAX_LOGIT = 10.0

# How far beyond the ends of the range a discretised logistic may have its middle: there an end gets all the weight.
MAX_OFF_RANGE = 0.5

LOG_ROOT_2PI = 0.5 * math.log(2.0 * math.pi)

Floor = float | Sequence[float]


class Blocks(NamedTuple):
    """Which entries of a table's encoded row are what: reals first, then binaries, then one-hot categories."""

    n_real: int
    n_binary: int = 0
    categories: tuple[int, ...] = ()


def softplus(h: Tensor) -> Tensor:
    """log(1 + exp(h)): on a processor, where no gradient is asked for, in a quarter of the time that torch takes.

    Torch computes log1p, which takes as long as all other operations here; an error of 6e-8, that of float32 near 1,
    is below that of what is done with scales and logits.

    Examples
    --------
    >>> with torch.no_grad():
    ...     softplus(torch.tensor([-200.0, 0.0, 200.0])).tolist()
    [0.0, 0.6931471824645996, 200.0]
    """
    if h.device.type != "cpu" or torch.is_grad_enabled():
        return F.softplus(h)
    return torch.relu(h).sub_(h.abs().sigmoid_().log_())


def bounded(raw: Tensor, bound: float) -> Tensor:
    """bound * tanh(raw / bound), by a sigmoid, which a processor computes in an eighth of the time.

    Examples
    --------
    >>> [round(value, 4) for value in bounded(torch.tensor([-1e6, 0.0, 20.0]), 10.0).tolist()]
    [-10.0, 0.0, 9.6403]
    """
    return torch.mul(raw, 2.0 / bound).sigmoid_().sub(0.5).mul_(2.0 * bound)


class Likelihood(nn.Module):
    """Distribution of one sample given the decoder's output.

    Parameters
    ----------
    event_shape : sequence of int
        Shape of one sample.
    blocks : Blocks, optional
        What each entry of a row is; only the likelihoods of categories need it.
    min_scale : float or sequence of float, default=0.05
        Floor under every scale, in units of the (scaled) data; for all real entries, or one for each of them.
    """

    name: ClassVar[str]
    n_params: ClassVar[int]
    # Which columns of a table it can describe ("numbers", "categories" or "any"), and how numbers are scaled for it:
    # "standard" to mean 0 and deviation 1, "unit" to the interval [0, 1].
    columns: ClassVar[str] = "numbers"
    scaling: ClassVar[str] = "standard"

    min_scale: Tensor

    def __init__(self, event_shape: Sequence[int], blocks: Blocks | None = None, *, min_scale: Floor = 0.05) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.blocks = blocks or Blocks(math.prod(self.event_shape))
        # A buffer, so that the members of an ensemble may differ in it.
        self.register_buffer("min_scale", torch.tensor(min_scale, dtype=torch.get_default_dtype()))

    def forward(self, phi: Tensor) -> Distribution:
        """Distribution p(x | z) for ``phi`` of shape (..., \\*event_shape, n_params)."""
        raise NotImplementedError

    def _scale(self, raw: Tensor) -> Tensor:
        return softplus(raw + RAW_ONE) + self.min_scale

    def _independent(self, base: Distribution) -> Distribution:
        return Independent(base, len(self.event_shape), validate_args=False)


class _Normal(distributions.Normal):
    def log_prob(self, value: Tensor) -> Tensor:
        # What torch computes, in half the operations.
        u = (value - self.loc) / self.scale
        return torch.addcmul(-(self.scale.log() + LOG_ROOT_2PI), u, u, value=-0.5)


class Gaussian(Likelihood):
    r"""Gaussian whose mean and scale both depend on z.

    .. math:: \log p(x \mid z) = -\sum_i \left( \frac{(x_i - \mu_i)^2}{2 \sigma_i^2} + \log \sigma_i
              + \tfrac{1}{2} \log 2\pi \right)
    """

    name = "gaussian"
    n_params = 2

    def forward(self, phi: Tensor) -> Distribution:
        mu, raw_scale = phi.unbind(dim=-1)
        return self._independent(_Normal(mu, self._scale(raw_scale), validate_args=False))


class GaussianPerFeature(Likelihood):
    """Gaussian with one learned scale for each entry of x, the same for every z."""

    name = "gaussian_per_feature"
    n_params = 1

    def __init__(self, event_shape: Sequence[int], blocks: Blocks | None = None, *, min_scale: Floor = 0.05) -> None:
        super().__init__(event_shape, blocks, min_scale=min_scale)
        self.raw_scale = nn.Parameter(torch.zeros(self._scale_shape()))

    def _scale_shape(self) -> tuple[int, ...]:
        return self.event_shape

    def forward(self, phi: Tensor) -> Distribution:
        mu = phi.squeeze(dim=-1)
        scale = self._scale(self.raw_scale).expand_as(mu)
        return self._independent(_Normal(mu, scale, validate_args=False))


class GaussianShared(GaussianPerFeature):
    """Gaussian with a single learned scale for all entries: the likelihood of probabilistic PCA."""

    name = "gaussian_shared"

    def _scale_shape(self) -> tuple[int, ...]:
        return ()


def log_normaliser(df: Tensor) -> Tensor:
    """Logarithm of what the density of Student's t of scale 1 is divided by.

    Examples
    --------
    >>> round(float(log_normaliser(torch.tensor(1.0)).exp()), 4)
    3.1416
    """
    return 0.5 * (df.log() + math.log(math.pi)) + torch.lgamma(0.5 * df) - torch.lgamma(0.5 * (df + 1.0))


class _StudentT(distributions.StudentT):
    def __init__(self, df: Tensor, loc: Tensor, scale: Tensor) -> None:
        # As it comes, which may be once for all samples: three special functions of it make up most of a density.
        self._own_df = df
        # Torch's own makes what it draws with at once, from a number that it copies to a GPU each time.
        self.df, self.loc, self.scale = torch.broadcast_tensors(df, loc, scale)  # type: ignore[no-untyped-call]
        Distribution.__init__(self, self.df.shape, validate_args=False)

    @cached_property
    def _chi2(self) -> distributions.Chi2:  # type: ignore[override]
        return distributions.Chi2(self.df, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        df, y = self._own_df, (value - self.loc) / self.scale
        return -0.5 * (df + 1.0) * torch.log1p(y.square() / df) - self.scale.log() - log_normaliser(df)

    @property
    def mean(self) -> Tensor:
        # There is one, as df > 1; torch's own property looks for that with an operation that vmap can't run.
        loc: Tensor = self.loc
        return loc


class StudentT(Likelihood):
    r"""Student's t with mean and scale that depend on z, and degrees of freedom learned for each entry.

    Its tails are heavier than a Gaussian's, so one extreme entry weighs less. The degrees of freedom stay above 2,
    where the variance is finite.
    """

    name = "student_t"
    n_params = 2

    def __init__(self, event_shape: Sequence[int], blocks: Blocks | None = None, *, min_scale: Floor = 0.05) -> None:
        super().__init__(event_shape, blocks, min_scale=min_scale)
        self.raw_df = nn.Parameter(torch.full(self.event_shape, 3.0))

    @property
    def df(self) -> Tensor:
        """Degrees of freedom of each entry."""
        return 2.0 + F.softplus(self.raw_df)

    def forward(self, phi: Tensor) -> Distribution:
        mu, raw_scale = phi.unbind(dim=-1)
        return self._independent(_StudentT(self.df, mu, self._scale(raw_scale)))


class _UnitInterval(Distribution):
    """Gives values outside [0, 1] the log-density of the nearest end, less MAX_LOGIT for each unit of distance.

    A new value may lie outside the range seen in training; the formulas of the Bernoulli families, taken literally,
    would rate it above everything inside.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        inside = value.clamp(0.0, 1.0)
        log_prob: Tensor = super().log_prob(inside)
        return log_prob - MAX_LOGIT * (value - inside).abs()


class _Logits(distributions.Bernoulli):
    def log_prob(self, value: Tensor) -> Tensor:
        # What torch computes, in half the operations.
        log_prob: Tensor = value * self.logits - softplus(self.logits)
        return log_prob


class _UnitBernoulli(_UnitInterval, _Logits):
    pass


class _UnitContinuousBernoulli(_UnitInterval, distributions.ContinuousBernoulli):
    pass


class Bernoulli(Likelihood):
    r"""Bernoulli for binary data, :math:`\log p(x \mid z) = \sum_i x_i \log \pi_i + (1 - x_i) \log (1 - \pi_i)`.

    Values between 0 and 1 are allowed, as is usual for grey-scale images; they then give the cross-entropy, which is
    not a normalised density: :class:`ContinuousBernoulli` is.
    """

    name = "bernoulli"
    n_params = 1
    scaling = "unit"

    def forward(self, phi: Tensor) -> Distribution:
        logits = bounded(phi.squeeze(dim=-1), MAX_LOGIT)
        return self._independent(_UnitBernoulli(logits=logits, validate_args=False))


class ContinuousBernoulli(Likelihood):
    """Continuous Bernoulli on [0, 1] [1]_, the Bernoulli formula with the constant that makes it a density.

    References
    ----------
    .. [1] Loaiza-Ganem and Cunningham, "The continuous Bernoulli: fixing a pervasive error in variational
       autoencoders", 2019, https://arxiv.org/abs/1907.06845
    """

    name = "continuous_bernoulli"
    n_params = 1
    scaling = "unit"

    def forward(self, phi: Tensor) -> Distribution:
        logits = bounded(phi.squeeze(dim=-1), MAX_LOGIT)
        return self._independent(_UnitContinuousBernoulli(logits=logits, validate_args=False))


class _Levels(Distribution):
    """Logistic rounded to the 256 levels k / 255; the first and the last one hold what lies beyond them."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        self.loc, self.scale = loc, scale
        super().__init__(batch_shape=loc.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """That of the logistic, clipped to [0, 1]; rounding to levels moves it by less than a thousandth."""
        ends = softplus(self.loc / self.scale) - softplus((self.loc - 1.0) / self.scale)
        return self.scale * ends

    def log_prob(self, value: Tensor) -> Tensor:
        half = 0.5 / 255.0
        level = (value.clamp(0.0, 1.0) * 255.0).round() / 255.0
        upper, lower = (level + half - self.loc) / self.scale, (level - half - self.loc) / self.scale
        # The difference of two values of the distribution function, as a product in which nothing cancels.
        below = torch.where(level >= 1.0, 0.0, -softplus(-upper))
        above = torch.where(level <= 0.0, 0.0, -softplus(lower))
        width = torch.log(-torch.expm1(-2.0 * half / self.scale))
        inside = below + above + torch.where((level <= 0.0) | (level >= 1.0), 0.0, width)
        # Beyond the ends there is no level: less likely than all of them.
        distance = (value - value.clamp(0.0, 1.0)).abs()
        least = width - 2.0 * softplus((1.0 + MAX_OFF_RANGE + half) / self.scale) - MAX_LOGIT * distance
        return torch.where(distance > half, least, inside)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        uniform = torch.rand(*sample_shape, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
        drawn = (self.loc + self.scale * uniform.logit()).clamp(0.0, 1.0)
        return (drawn * 255.0).round() / 255.0


class DiscretisedLogistic(Likelihood):
    r"""Logistic rounded to the 256 levels of 8-bit pixels, a probability for each of them [1]_.

    .. math:: p(x_i \mid z) = \sigma\left(\frac{x_i + 1/510 - \mu_i}{s_i}\right)
              - \sigma\left(\frac{x_i - 1/510 - \mu_i}{s_i}\right)

    with :math:`\pm\infty` in place of the outer edges of the first and the last level. Values between two levels count
    as the nearer one. So -log p(x) over n log 2 is the number of bits that it takes to write down an entry.

    No probability exceeds one, so there is no need for ``min_scale``; the scale has a floor of half a level.

    References
    ----------
    .. [1] Kingma et al., "Improving variational inference with inverse autoregressive flow", 2016, appendix,
       https://arxiv.org/abs/1606.04934
    """

    name = "discretised_logistic"
    n_params = 2
    scaling = "unit"

    def forward(self, phi: Tensor) -> Distribution:
        raw_mean, raw_scale = phi.unbind(dim=-1)
        middle = 0.5 + (0.5 + MAX_OFF_RANGE) * torch.tanh(raw_mean)
        # It starts from a tenth of the range, as the data are scaled to the unit interval, not to a deviation of one.
        scale = 0.1 * softplus(raw_scale + RAW_ONE) + 0.5 / 255.0
        return self._independent(_Levels(middle, scale))


class OneHotBlocks(Distribution):
    """One categorical distribution for each block of a row of one-hot codes, laid side by side.

    ``log_prob`` gives one number per entry, x_k log pi_k; the sum over a block is the log-probability of its category.

    Parameters
    ----------
    logits : Tensor of shape (..., n_entries)
    owner : LongTensor of shape (n_entries,)
        The block that each entry belongs to.
    padded : LongTensor of shape (n_blocks, max_size)
        The entries of each block; ``n_entries`` stands for none.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, logits: Tensor, owner: Tensor, padded: Tensor) -> None:
        self.owner, self.padded = owner, padded
        nothing = torch.full_like(logits[..., :1], -math.inf)
        normaliser = torch.cat([logits, nothing], dim=-1)[..., padded].logsumexp(dim=-1)
        self.log_pi = logits - normaliser[..., owner]
        super().__init__(batch_shape=logits.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.log_pi.exp()

    def log_prob(self, value: Tensor) -> Tensor:
        return value * self.log_pi

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        log_pi = self.log_pi.expand(*sample_shape, *self.log_pi.shape)
        # The largest of Gumbel-perturbed log-probabilities is a draw from the categorical.
        perturbed = log_pi - torch.empty_like(log_pi).exponential_().log()
        nothing = torch.full_like(perturbed[..., :1], -math.inf)
        largest = torch.cat([perturbed, nothing], dim=-1)[..., self.padded].argmax(dim=-1, keepdim=True)
        chosen = torch.take_along_dim(self.padded.expand(*largest.shape[:-1], -1), largest, dim=-1).squeeze(dim=-1)
        return torch.zeros_like(log_pi).scatter(-1, chosen, 1.0)


class Categorical(Likelihood):
    """One categorical distribution for each column of a table, over its one-hot code."""

    name = "categorical"
    n_params = 1
    columns = "categories"

    owner: Tensor
    padded: Tensor

    def __init__(self, event_shape: Sequence[int], blocks: Blocks | None = None, *, min_scale: Floor = 0.05) -> None:
        # Without a layout, the whole row is the one-hot code of one category.
        super().__init__(event_shape, blocks or Blocks(0, 0, (math.prod(event_shape),)), min_scale=min_scale)
        sizes = self.blocks.categories
        n_entries, largest = sum(sizes), max(sizes, default=1)
        owner = [block for block, size in enumerate(sizes) for _ in range(size)]
        starts = [sum(sizes[:block]) for block in range(len(sizes))]
        padded = [
            [start + k if k < size else n_entries for k in range(largest)]
            for start, size in zip(starts, sizes, strict=True)
        ]
        self.register_buffer("owner", torch.tensor(owner, dtype=torch.long))
        self.register_buffer("padded", torch.tensor(padded, dtype=torch.long).reshape(len(sizes), largest))

    def forward(self, phi: Tensor) -> Distribution:
        # Two bounded logits differ by at most MAX_LOGIT.
        logits = bounded(phi.squeeze(dim=-1), MAX_LOGIT / 2)
        return self._independent(OneHotBlocks(logits, self.owner, self.padded))


class SideBySide(Distribution):
    """Distributions over neighbouring slices of the last axis, as one."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, parts: Sequence[Distribution]) -> None:
        self.parts = [part for part in parts if part.batch_shape[-1] > 0]
        self.sizes = [part.batch_shape[-1] for part in self.parts]
        batch_shape = torch.Size([*self.parts[0].batch_shape[:-1], sum(self.sizes)])
        super().__init__(batch_shape=batch_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return torch.cat([part.mean for part in self.parts], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        slices = torch.split(value, self.sizes, dim=-1)
        terms = [part.log_prob(x) for part, x in zip(self.parts, slices, strict=True)]
        return torch.cat(terms, dim=-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        return torch.cat([part.sample(shape) for part in self.parts], dim=-1)


class Mixed(Categorical):
    """A table whose columns are real, binary or categorical: Gaussian, Bernoulli and categorical side by side."""

    name = "mixed"
    n_params = 2
    columns = "any"

    def __init__(self, event_shape: Sequence[int], blocks: Blocks | None = None, *, min_scale: Floor = 0.05) -> None:
        super().__init__(event_shape, blocks or Blocks(math.prod(event_shape)), min_scale=min_scale)

    def forward(self, phi: Tensor) -> Distribution:
        first, second = phi.unbind(dim=-1)
        n_real, n_binary, categories = self.blocks
        mu, binary, onehot = torch.split(first, [n_real, n_binary, sum(categories)], dim=-1)
        parts: list[Distribution] = [
            _Normal(mu, self._scale(second[..., :n_real]), validate_args=False),
            _UnitBernoulli(logits=bounded(binary, MAX_LOGIT), validate_args=False),
        ]
        if categories:
            parts.append(OneHotBlocks(bounded(onehot, MAX_LOGIT / 2), self.owner, self.padded))
        return self._independent(SideBySide(parts))


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "gaussian": Gaussian,
    "gaussian_per_feature": GaussianPerFeature,
    "gaussian_shared": GaussianShared,
    "student_t": StudentT,
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "discretised_logistic": DiscretisedLogistic,
    "categorical": Categorical,
    "mixed": Mixed,
}
