import math

import numpy as np
import pytest
import torch
from scipy import stats

from vae_anomaly.likelihoods import LIKELIHOODS, MAX_LOGIT, Blocks, OneHotBlocks, softplus

N_ENTRIES = 8
MIN_SCALE = 0.05
BLOCKS = {"categories": Blocks(0, 0, (3, 5)), "any": Blocks(2, 1, (3, 2)), "numbers": None}
UNIT = [name for name, kind in LIKELIHOODS.items() if kind.scaling == "unit"]
SCALED = [name for name, kind in LIKELIHOODS.items() if kind.columns == "numbers" and kind.scaling == "standard"]


def make(name, **options):
    kind = LIKELIHOODS[name]
    likelihood = kind((N_ENTRIES,), BLOCKS[kind.columns], **options)
    for index, value in enumerate(likelihood.parameters()):
        torch.nn.init.normal_(value, generator=torch.Generator().manual_seed(index))
    return likelihood.double()


def phi_for(likelihood, generator, *batch_shape, spread=1.0):
    shape = (*batch_shape, N_ENTRIES, likelihood.n_params)
    return spread * torch.randn(shape, generator=generator, dtype=torch.float64)


def one_hot_rows(sizes):
    """A row for each category of each block, the other blocks at their first category."""
    starts = np.cumsum([0, *sizes[:-1]])
    rows = []
    for start, size in zip(starts, sizes, strict=True):
        for k in range(size):
            row = np.zeros(sum(sizes))
            row[[start + k, *(other for other in starts if other != start)]] = 1.0
            rows.append(row)
    return torch.from_numpy(np.stack(rows))


def integral_over_reals(log_density):
    """Integral of each column's density; x = sinh(u), so that the grid is fine at 0 and reaches far."""
    u = torch.linspace(-14.0, 14.0, 40_001, dtype=torch.float64)
    density = log_density(u.sinh()[:, None].expand(-1, N_ENTRIES)).exp()
    return torch.trapezoid(density * u.cosh()[:, None], u, dim=0)


def integral_over_unit_interval(log_density):
    nodes, weights = np.polynomial.legendre.leggauss(40)
    x = torch.from_numpy((nodes + 1.0) / 2.0)[:, None].expand(-1, N_ENTRIES)
    return (log_density(x).exp() * torch.from_numpy(weights / 2.0)[:, None]).sum(dim=0)


def sum_over_bits(log_density):
    bits = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None].expand(-1, N_ENTRIES)
    return log_density(bits).exp().sum(dim=0)


def sums_over_categories(log_density, sizes, first=0):
    """Total probability of the categories of each block."""
    rows = one_hot_rows(sizes)
    padded = torch.zeros(len(rows), N_ENTRIES, dtype=torch.float64)
    padded[:, first : first + rows.shape[1]] = rows
    entries = log_density(padded)
    totals, row, column = [], 0, first
    for size in sizes:
        block = entries[row : row + size, column : column + size]
        totals.append(block.sum(dim=1).exp().sum())
        row, column = row + size, column + size
    return torch.stack(totals)


def total_probability(name, likelihood, log_density):
    n_real, n_binary, categories = likelihood.blocks
    if likelihood.columns == "categories":
        return sums_over_categories(log_density, categories)
    if likelihood.columns == "any":
        real, binary = integral_over_reals(log_density)[:n_real], sum_over_bits(log_density)[n_real:][:n_binary]
        return torch.cat([real, binary, sums_over_categories(log_density, categories, n_real + n_binary)])
    if name == "bernoulli":
        return sum_over_bits(log_density)
    if name == "discretised_logistic":
        levels = torch.arange(256, dtype=torch.float64) / 255.0
        return log_density(levels[:, None].expand(-1, N_ENTRIES)).exp().sum(dim=0)
    if likelihood.scaling == "unit":
        return integral_over_unit_interval(log_density)
    return integral_over_reals(log_density)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_total_probability_is_one(name, generator):
    likelihood = make(name)
    px = likelihood(phi_for(likelihood, generator))
    total = total_probability(name, likelihood, px.base_dist.log_prob)
    # Quadrature in double precision; torch's constant of the continuous Bernoulli is a series near one half.
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_prob_is_the_sum_of_its_entries(name, generator, seeded_torch):
    likelihood = make(name)
    px = likelihood(phi_for(likelihood, generator, 6))
    x = px.sample()
    assert px.batch_shape == (6,)
    assert px.event_shape == (N_ENTRIES,)
    torch.testing.assert_close(px.log_prob(x), px.base_dist.log_prob(x).sum(dim=-1))


@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if LIKELIHOODS[name].columns == "numbers"])
def test_samples_of_any_rank_are_described(name, generator, seeded_torch):
    likelihood = LIKELIHOODS[name]((2, 3, 4))
    px = likelihood(torch.randn(5, 2, 3, 4, likelihood.n_params, generator=generator))
    assert px.event_shape == (2, 3, 4)
    assert px.log_prob(px.sample()).shape == (5,)


def scale_of(raw):
    return np.logaddexp(0.0, np.asarray(raw) + math.log(math.e - 1.0)) + np.float32(MIN_SCALE)


@pytest.mark.parametrize("name", ["gaussian", "gaussian_per_feature", "gaussian_shared"])
def test_gaussians_are_those_of_scipy(name, generator, rng):
    likelihood = make(name)
    phi, x = phi_for(likelihood, generator, 4), rng.normal(size=(4, N_ENTRIES))
    raw = phi[..., 1] if name == "gaussian" else likelihood.raw_scale.detach()
    expected = stats.norm(phi[..., 0].numpy(), scale_of(raw)).logpdf(x).sum(axis=1)
    np.testing.assert_allclose(likelihood(phi).log_prob(torch.from_numpy(x)).detach(), expected, rtol=1e-9)


def test_student_t_is_that_of_scipy(generator, rng):
    likelihood = make("student_t")
    phi, x = phi_for(likelihood, generator, 4), 3.0 * rng.normal(size=(4, N_ENTRIES))
    df = 2.0 + np.logaddexp(0.0, likelihood.raw_df.detach().numpy())
    expected = stats.t(df, phi[..., 0].numpy(), scale_of(phi[..., 1])).logpdf(x).sum(axis=1)
    np.testing.assert_allclose(likelihood(phi).log_prob(torch.from_numpy(x)).detach(), expected, rtol=1e-9)


def test_bernoulli_is_that_of_scipy(generator, rng):
    likelihood = make("bernoulli")
    phi, x = phi_for(likelihood, generator, 4), rng.integers(0, 2, size=(4, N_ENTRIES))
    logits = MAX_LOGIT * np.tanh(phi[..., 0].numpy() / MAX_LOGIT)
    expected = stats.bernoulli(1.0 / (1.0 + np.exp(-logits))).logpmf(x).sum(axis=1)
    np.testing.assert_allclose(likelihood(phi).log_prob(torch.from_numpy(x).double()), expected, rtol=1e-9)


def test_discretised_logistic_is_that_of_scipy(generator, rng):
    likelihood = make("discretised_logistic")
    phi, levels = phi_for(likelihood, generator, 4), rng.integers(0, 256, size=(4, N_ENTRIES))
    levels[0, :2] = 0, 255
    law = stats.logistic(0.5 + np.tanh(phi[..., 0].numpy()), 0.1 * scale_of(phi[..., 1]) - 0.005 + 0.5 / 255)
    upper = np.where(levels == 255, 1.0, law.cdf((levels + 0.5) / 255))
    lower = np.where(levels == 0, 0.0, law.cdf((levels - 0.5) / 255))
    found = likelihood(phi).base_dist.log_prob(torch.from_numpy(levels / 255.0)).exp()
    # The naive difference cancels to some digits.
    np.testing.assert_allclose(found, upper - lower, rtol=1e-6, atol=1e-12)


def test_categorical_is_the_softmax_of_each_block(generator):
    likelihood = make("categorical")
    phi = phi_for(likelihood, generator)
    logits = MAX_LOGIT / 2 * np.tanh(phi[..., 0].numpy() / (MAX_LOGIT / 2))
    expected = np.concatenate([np.exp(block) / np.exp(block).sum() for block in (logits[:3], logits[3:])])
    np.testing.assert_allclose(likelihood(phi).mean, expected, rtol=1e-9)


def test_categorical_without_a_layout_is_one_category(generator):
    likelihood = LIKELIHOODS["categorical"]((6,))
    px = likelihood(torch.randn(6, 1, generator=generator))
    torch.testing.assert_close(px.log_prob(torch.eye(6)).exp().sum(), torch.tensor(1.0))


def test_mixed_is_its_parts_side_by_side(generator, seeded_torch):
    mixed, (n_real, n_binary, categories) = make("mixed"), BLOCKS["any"]
    phi = phi_for(mixed, generator, 4)
    px = mixed(phi)
    x = px.sample()
    real, binary, onehot = x.split([n_real, n_binary, sum(categories)], dim=-1)
    phi_real, phi_binary, phi_onehot = phi.split([n_real, n_binary, sum(categories)], dim=-2)
    parts = [
        LIKELIHOODS["gaussian"]((n_real,))(phi_real).log_prob(real),
        LIKELIHOODS["bernoulli"]((n_binary,))(phi_binary[..., :1]).log_prob(binary),
        LIKELIHOODS["categorical"]((5,), Blocks(0, 0, categories))(phi_onehot[..., :1]).log_prob(onehot),
    ]
    torch.testing.assert_close(px.log_prob(x), torch.stack(parts).sum(dim=0))


@pytest.mark.parametrize(
    "blocks", [Blocks(3), Blocks(0, 3), Blocks(0, 0, (3,)), Blocks(0, 1, (2,)), Blocks(1, 0, (2,))]
)
def test_mixed_may_lack_any_of_its_parts(blocks, generator, seeded_torch):
    px = LIKELIHOODS["mixed"]((3,), blocks)(torch.randn(4, 3, 2, generator=generator))
    x = px.sample()
    assert px.mean.shape == x.shape == (4, 3)
    assert torch.isfinite(px.log_prob(x)).all()


@pytest.mark.parametrize("min_scale", [0.05, 0.5])
@pytest.mark.parametrize("name", [*SCALED, "mixed"])
def test_no_scale_falls_below_its_floor(name, min_scale, generator):
    """The density is nowhere above the peak of a Gaussian whose scale is the floor."""
    likelihood = make(name, min_scale=min_scale)
    phi = phi_for(likelihood, generator)
    phi[..., 1:] = -100.0
    with torch.no_grad():
        for value in likelihood.parameters():
            value.fill_(-100.0)
    px = likelihood(phi)
    peaks = px.base_dist.log_prob(phi[..., 0])[: likelihood.blocks.n_real]
    highest = -math.log(min_scale * math.sqrt(2.0 * math.pi))
    assert (peaks <= highest + 1e-6).all()
    if name != "student_t":  # its peak is lower than a Gaussian's of the same scale
        torch.testing.assert_close(peaks, torch.full_like(peaks, highest), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_sure_bernoulli_rates_the_other_value_at_exp_minus_ten(sign):
    px = LIKELIHOODS["bernoulli"]((1,))(torch.full((1, 1), sign * 1e6))
    worst = min(float(px.log_prob(torch.tensor([value]))) for value in (0.0, 1.0))
    # log(1 + exp(-10)) below -10.
    assert worst == pytest.approx(-MAX_LOGIT, abs=1e-4)


@pytest.mark.parametrize("sizes", [(2,), (3,), (4, 2, 7)])
def test_a_sure_categorical_never_rates_a_category_below_exp_minus_ten_of_the_others(sizes, generator):
    """Two categories of a block differ by ten nats at most, so the least likely has at least exp(-10) / size."""
    n = sum(sizes)
    likelihood = LIKELIHOODS["categorical"]((n,), Blocks(0, 0, sizes))
    log_pi = likelihood(1e6 * torch.randn(200, n, 1, generator=generator)).mean.log()
    for block, size in zip(log_pi.split(list(sizes), dim=-1), sizes, strict=True):
        spread = block.amax(dim=-1) - block.amin(dim=-1)
        assert (spread <= MAX_LOGIT + 1e-4).all()
        assert (block >= -MAX_LOGIT - math.log(size) - 1e-4).all()


@pytest.mark.parametrize("logit", [-1e6, -3.0, -0.1, 0.0, 0.1, 3.0, 1e6])
@pytest.mark.parametrize("name", UNIT)
def test_outside_the_unit_interval_is_worse_the_farther_out(name, logit):
    """Below the nearest end, falling with the distance, and never above the mirror image inside the interval."""
    phi = torch.zeros(1, LIKELIHOODS[name].n_params, dtype=torch.float64)
    phi[0, 0] = logit
    px = LIKELIHOODS[name]((1,))(phi)
    distance = torch.linspace(0.0, 1.0, 51, dtype=torch.float64)[:, None]
    for outside, inside in ((1.0 + distance, 1.0 - distance), (-distance, distance)):
        log_px = px.log_prob(outside)
        assert (log_px.diff() < 0.0).all()
        assert (log_px <= px.log_prob(inside) + 1e-9).all()


@pytest.mark.parametrize("name", UNIT)
def test_two_units_outside_is_worse_than_everything_inside(name, generator):
    px = LIKELIHOODS[name]((1,))(10.0 * torch.randn(50, 1, LIKELIHOODS[name].n_params, generator=generator))
    inside = torch.stack([px.log_prob(torch.full((50, 1), value)) for value in np.linspace(0, 1, 21)]).amin(dim=0)
    for outside in (-2.0, 3.0):
        assert (px.log_prob(torch.full((50, 1), outside)) < inside).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_lie_in_the_support(name, generator, seeded_torch):
    likelihood = make(name)
    x = likelihood(phi_for(likelihood, generator, 3)).sample((100,))
    assert x.shape == (100, 3, N_ENTRIES)
    assert torch.isfinite(x).all()
    n_real, n_binary, categories = likelihood.blocks
    if likelihood.scaling == "unit":
        assert ((x >= 0.0) & (x <= 1.0)).all()
    if name == "bernoulli":
        n_real, n_binary = 0, N_ENTRIES
    assert torch.isin(x[..., n_real:], torch.tensor([0.0, 1.0], dtype=x.dtype)).all()
    for block in x[..., n_real + n_binary :].split(list(categories) or [0], dim=-1):
        assert not categories or (block.sum(dim=-1) == 1.0).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_have_the_mean(name, generator, seeded_torch):
    likelihood = make(name)
    px = likelihood(phi_for(likelihood, generator))
    x = px.sample((20_000,))
    standard_error = x.std(dim=0) / math.sqrt(len(x))
    assert ((x.mean(dim=0) - px.mean).abs() < 5.0 * standard_error).all()


def test_one_hot_blocks_draw_exactly_one_entry_of_each_block(generator, seeded_torch):
    sizes = (1, 4, 2)
    likelihood = LIKELIHOODS["categorical"]((7,), Blocks(0, 0, sizes))
    base = likelihood(torch.randn(5, 7, 1, generator=generator)).base_dist
    assert isinstance(base, OneHotBlocks)
    for block in base.sample((2000,)).split(list(sizes), dim=-1):
        torch.testing.assert_close(block.sum(dim=-1), torch.ones(2000, 5))
        torch.testing.assert_close(block.amax(dim=-1), torch.ones(2000, 5))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_vmap_over_phi_is_the_loop(name, generator, seeded_torch):
    likelihood = make(name)
    phi = phi_for(likelihood, generator, 3, 4)
    x = likelihood(phi[0]).sample()

    def describe(inner):
        px = likelihood(inner)
        return px.base_dist.log_prob(x), px.mean

    looped = [torch.stack(values) for values in zip(*map(describe, phi), strict=True)]
    torch.testing.assert_close(list(torch.func.vmap(describe)(phi)), looped)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_far_away_values_have_finite_gradients(name, generator):
    likelihood = make(name)
    phi = phi_for(likelihood, generator, 4, spread=100.0).requires_grad_()
    x = torch.full((4, N_ENTRIES), 1e3, dtype=torch.float64)
    likelihood(phi).log_prob(x).sum().backward()
    assert torch.isfinite(phi.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_is_that_of_numpy(dtype):
    ends = [-1e30, -torch.inf, torch.inf, 1e30, -0.0]
    raw = torch.cat([torch.linspace(-120.0, 120.0, 10_001, dtype=dtype), torch.tensor(ends, dtype=dtype)])
    with torch.no_grad():
        found = softplus(raw)
        assert torch.isnan(softplus(torch.tensor([torch.nan]))).all()
    near_one = torch.finfo(dtype).eps
    np.testing.assert_allclose(found, np.logaddexp(0.0, raw.double().numpy()), rtol=near_one, atol=near_one)


def test_softplus_has_the_slope_of_a_sigmoid():
    raw = torch.linspace(-30.0, 30.0, 601, dtype=torch.float64).requires_grad_()
    softplus(raw).sum().backward()
    np.testing.assert_allclose(raw.grad, raw.detach().sigmoid(), rtol=1e-6)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_densities_are_the_same_where_nothing_is_learned(name, generator, seeded_torch):
    likelihood = make(name)
    phi = phi_for(likelihood, generator, 40, spread=3.0)
    learned = likelihood(phi)
    x = learned.sample()
    with torch.no_grad():
        scored = likelihood(phi)
        torch.testing.assert_close(scored.mean, learned.mean, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            scored.base_dist.log_prob(x), learned.base_dist.log_prob(x).detach(), rtol=1e-6, atol=1e-8
        )
