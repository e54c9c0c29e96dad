"""In which precision training multiplies."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tables import TINY, numbers

from vae_anomaly import products
from vae_anomaly.detector import VAEDetector
from vae_anomaly.fused import affine_maps
from vae_anomaly.products import PRECISIONS, ProcessorProducts, Products, RoundedProducts, precision_fault, products_for

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def capable(monkeypatch):
    """A processor that says which instructions it has."""
    return lambda **has: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)


@pytest.mark.parametrize("instructions", ["amx_bf16", "avx512_bf16"])
def test_bfloat16_is_for_processors_that_have_it(capable, instructions):
    capable(avx2=True)
    assert "has no instructions for bfloat16" in precision_fault("bfloat16", CPU)
    with pytest.raises(ValueError, match=r"precision='bfloat16': this processor has no .* Use 'auto'\."):
        VAEDetector(**TINY, precision="bfloat16", device="cpu").fit(numbers(60))
    capable(avx2=True, **{instructions: True})
    assert precision_fault("bfloat16", CPU) == ""
    assert "a GPU takes TF32" in precision_fault("bfloat16", GPU)


def test_an_older_torch_that_does_not_tell_is_taken_at_its_word(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert precision_fault("bfloat16", CPU)
    assert not any(precision_fault(name, CPU) for name in ("auto", "float32"))


@pytest.mark.parametrize(("name", "on_cpu", "on_gpu"), [
    ("auto", "ieee", "tf32"), ("float32", "ieee", "ieee"), ("bfloat16", "bf16", "ieee"),
])  # fmt: skip
def test_products_of_each_device(name, on_cpu, on_gpu):
    wide = [torch.empty(1, 1024, 1024, device="meta")]
    assert (products_for(name, CPU, 256, wide), products_for(name, GPU, 256, wide)) == (on_cpu, on_gpu)
    assert len(PRECISIONS) == 3


@pytest.mark.parametrize("n_networks", [1, 3])
@pytest.mark.parametrize("width", [1, 6, 11, 12])
def test_narrow_results_come_the_other_way_round(width, n_networks, generator):
    (own,) = affine_maps([torch.randn(n_networks, *shape, generator=generator) for shape in ((96, width), (96,))])
    x, g = (torch.randn(n_networks, 50, n, generator=generator) for n in (width, 96))
    plain, turning = Products(), ProcessorProducts()
    of_x, of_weight = turning.back(g, own), turning.of_weight(g, x, None)
    as_they_are = width in (1, 12)
    assert (of_x.is_contiguous(), of_weight.is_contiguous()) == (as_they_are, as_they_are)
    torch.testing.assert_close([of_x, of_weight], [plain.back(g, own), plain.of_weight(g, x, None)])
    into = torch.empty_like(own.weight)
    assert turning.of_weight(g, x, into) is into
    torch.testing.assert_close(into, of_weight)


@pytest.mark.parametrize("n_networks", [1, 3])
def test_large_products_are_of_rounded_numbers(n_networks, generator):
    """And small ones are what they always are, bit for bit."""
    few, many = (torch.randn(n_networks, n, 200, generator=generator) for n in (4, 300))
    (own,) = affine_maps([torch.randn(n_networks, *shape, generator=generator) for shape in ((200, 200), (200,))])
    g, plain, rounded = torch.randn_like(many), ProcessorProducts(), RoundedProducts()

    def found(by, x, g):
        inputs, factors = by.factors(x, own)
        factor = by.factor(g, inputs)
        return [by.mapped(inputs, factors), by.back(factor, factors), by.of_weight(factor, inputs, None)]

    torch.testing.assert_close(found(rounded, few, g[:, :4]), found(plain, few, g[:, :4]), rtol=0, atol=0)
    for low, full, length in zip(found(rounded, many, g), found(plain, many, g), (200, 200, 300), strict=True):
        assert low.dtype == full.dtype
        error = (low - full).std() / length**0.5
        # Half a unit of the eighth binary digit, at most, of each factor and of the sum.
        assert 0.0 < error < 2**-8
    into, inputs = torch.empty_like(own.weight), many.bfloat16()
    factor = rounded.factor(g, inputs)
    assert rounded.of_weight(factor, inputs, into) is into
    assert torch.equal(into, rounded.of_weight(factor, inputs, None))


@pytest.fixture
def rounding(monkeypatch, capable):
    """Any product counts as large, on a processor that multiplies bfloat16."""
    capable(avx512_bf16=True)
    monkeypatch.setattr(products, "MIN_ROUNDED", 0)


@pytest.mark.parametrize("options", [{}, {"likelihood": "gaussian_per_feature"}, {"prior": "vamp"}])
def test_a_model_learned_by_rounded_products_scores_much_the_same(options, rounding):
    x, new = numbers(200), numbers(300, seed=1)
    found = {}
    for precision in ("float32", "bfloat16"):
        detector = VAEDetector(**{**TINY, **options}, precision=precision, device="cpu").fit(x)
        assert all(value.dtype == torch.float32 for value in detector.ensemble_.params.values())
        found[precision] = detector.anomaly_score(new)
    assert spearmanr(*found.values()).statistic > 0.99
    # A prior that learns has autograd do it, which rounds convolutions alone.
    assert np.array_equal(*found.values()) == ("prior" in options)


def test_convolutions_learn_by_rounded_products_too(rounding, rng):
    x = rng.random((60, 1, 8, 8)).astype(np.float32)
    options = {**TINY, "net": "conv", "score_name": "neg_elbo", "device": "cpu"}
    found = [
        VAEDetector(**options, precision=precision).fit(x).anomaly_score(x) for precision in ("float32", "bfloat16")
    ]
    assert spearmanr(*found).statistic > 0.99
    assert not np.array_equal(*found)


def test_a_model_that_was_trained_so_is_scored_by_any_processor(rounding, capable):
    detector = VAEDetector(**TINY, precision="bfloat16", device="cpu").fit(numbers(60))
    scores = detector.anomaly_score(numbers(60))
    capable()
    assert (detector.anomaly_score(numbers(60)) == scores).all()
