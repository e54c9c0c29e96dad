"""In which precision training multiplies, and that all is as before once it is over."""

import pytest
import torch
from tables import TINY, numbers

from vae_anomaly import training
from vae_anomaly.detector import VAEDetector
from vae_anomaly.products import PRECISIONS, multiplied, precision_fault, products_for

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def capable(monkeypatch):
    """A processor that says which instructions it has."""
    return lambda **has: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)


def now():
    return [setting.fp32_precision for setting in (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)]


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


def test_a_processor_multiplies_as_before_once_training_is_over(capable, monkeypatch):
    capable(amx_bf16=True)
    before, during = now(), []

    class Watched(training._Run):
        def check(self):
            during.append(now())
            super().check()

    monkeypatch.setattr(training, "_Run", Watched)
    detector = VAEDetector(**TINY, precision="bfloat16", device="cpu").fit(numbers(60))
    assert during[0] == ["bf16", "bf16"]
    assert now() == before
    scores = detector.anomaly_score(numbers(60))
    # A model that was trained so scores, and is scored, where there are no such instructions.
    capable()
    assert (detector.anomaly_score(numbers(60)) == scores).all()
    with pytest.raises(ZeroDivisionError), multiplied(CPU, "bf16"):
        1 / 0  # noqa: B018
    assert now() == before
