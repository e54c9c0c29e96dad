"""In which precision training multiplies."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tables import TINY, numbers

from vae_anomaly import affine
from vae_anomaly.detector import VAEDetector
from vae_anomaly.products import PRECISIONS, precision_fault, products_for

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


@pytest.fixture
def rounding(monkeypatch, capable):
    """Any product counts as large, on a processor that multiplies bfloat16."""
    capable(avx512_bf16=True)
    monkeypatch.setattr(affine, "MIN_ROUNDED", 0)


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
