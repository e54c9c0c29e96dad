"""Programs by which a GPU learns, by Triton's interpreter where there is none."""

import sys

import compiled
import numpy as np
import pytest
import torch
from tables import TINY, numbers

from vae_anomaly import training
from vae_anomaly.adamw import BETAS, EPS, PlainAdamW
from vae_anomaly.detector import VAEDetector
from vae_anomaly.ensemble import Ensemble
from vae_anomaly.kernels import learning
from vae_anomaly.likelihoods import Bernoulli, Gaussian
from vae_anomaly.objective import objective_of
from vae_anomaly.optimizer import FlatParameters
from vae_anomaly.pullbacks import WRITTEN_OUT, sampled
from vae_anomaly.supply import LaidOut
from vae_anomaly.training import Plan

adamw = pytest.importorskip("vae_anomaly.kernels.adamw", reason="needs Triton")
launch = pytest.importorskip("vae_anomaly.kernels.launch")
supply = pytest.importorskip("vae_anomaly.kernels.supply")
terms = pytest.importorskip("vae_anomaly.kernels.terms")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
pytestmark = [pytest.mark.filterwarnings("ignore:overflow encountered")]
if DEVICE.type == "cuda":
    pytestmark.append(pytest.mark.gpu)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


# The optimiser -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_numbers", [700, 2500])
@pytest.mark.parametrize("most_parts", [2, 1024])
def test_a_step_is_that_of_torch_with_the_gradient_of_each_member_clipped(n_numbers, most_parts, monkeypatch):
    """Of three members, one has a gradient below the limit."""
    monkeypatch.setattr(adamw, "MAX_PARTS", most_parts)
    start, limit = normal(3, n_numbers), 5.0
    flats, gradients = [start.clone(), start.clone()], [torch.zeros_like(start), torch.zeros_like(start)]
    kinds = (PlainAdamW, adamw.FusedAdamW)
    plain, fused = (
        kind(flat, gradient, limit, 0.1) for kind, flat, gradient in zip(kinds, flats, gradients, strict=True)
    )
    for seed, rate in enumerate((0.01, 0.02, 0.005)):
        found = normal(3, n_numbers, seed=seed) * torch.tensor([[0.01], [1.0], [10.0]], device=DEVICE)
        for gradient in gradients:
            gradient.copy_(found)
        plain.step(rate)
        fused.step(torch.tensor(rate, device=DEVICE))
    assert not torch.equal(flats[1], start)
    torch.testing.assert_close(flats[1], flats[0], rtol=1e-5, atol=1e-6)


# Terms of the ELBO ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent_dim", [1, 3, 20])
def test_a_draw_and_its_way_back_are_those_of_the_formulas(latent_dim):
    raw, eps, of_z = 3.0 * normal(3, 37, 2 * latent_dim), normal(3, 37, latent_dim), normal(3, 37, latent_dim, seed=1)
    plain, fused = sampled(raw, eps), terms.fused_sampled(raw, eps)
    torch.testing.assert_close(fused[:2], plain[:2], **CLOSE)
    for weights, beta in ((normal(1, 1).abs(), 0.3), (normal(3, 37).abs(), torch.tensor(2.0, device=DEVICE))):
        wanted = plain.pullback(of_z.clone(), weights, beta)
        torch.testing.assert_close(fused.pullback(of_z, weights, beta), wanted, **CLOSE)


@pytest.mark.parametrize("n_entries", [5, 1100])
@pytest.mark.parametrize("kind", [Bernoulli, Gaussian])
def test_a_density_and_its_way_back_are_those_of_the_formulas(kind, n_entries):
    """Some of the values lie beyond the ends of the unit interval, some of what a decoder says at its bounds."""
    assert kind in terms.FUSED
    likelihood, phi = kind((n_entries,)), 5.0 * normal(3, 7, n_entries, kind.n_params)
    likelihood.min_scale, x = 0.05 + normal(3, 1, n_entries).abs(), normal(3, 7, n_entries, seed=1)
    entries, plain = WRITTEN_OUT[kind](likelihood, phi, x)
    log_px, fused = terms.FusedDensity(likelihood, 3, n_entries)(phi, x)
    torch.testing.assert_close(log_px, entries.sum(dim=-1), **CLOSE)
    for weights in (normal(1, 1).abs(), normal(3, 7).abs()):
        wanted = plain(-weights.unsqueeze(-1).expand_as(entries).clone())[0]
        torch.testing.assert_close(fused(weights), wanted, **CLOSE)
        at_once, known = terms.FusedDensity(likelihood, 3, n_entries)(phi, x, weights)
        assert torch.equal(at_once, log_px)
        assert torch.equal(known(weights), fused(weights))


@pytest.mark.parametrize("left_out", [0, 3])
@pytest.mark.parametrize("holes", [0, 1])
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "student_t"])
def test_steps_are_those_of_the_operations(likelihood, holes, left_out, make_vae):
    """Of densities that are among the programs, and of such as are not; a hole keeps them all from it."""
    x, eps = torch.sigmoid(normal(2, 19, 5)), normal(1, 2, 19, 2)
    x[0, :holes, 0] = torch.nan

    def after_steps(*, fused):
        ensemble = Ensemble([make_vae(likelihood=likelihood, seed=seed) for seed in range(2)]).to(DEVICE)
        weights = FlatParameters(ensemble, Plan(1), fused=fused)
        objective = objective_of(ensemble, x[0], weights.places if fused else None, fused=fused)
        for rate in (0.01, 0.02):
            beta, rate = (torch.tensor(value, device=DEVICE) for value in (0.7, rate))
            reconstruction, kl, gradients = objective.learned(x, eps, beta, left_out)
            weights.step(gradients, rate if fused or DEVICE.type == "cuda" else float(rate))
        return reconstruction, kl, weights.flat

    torch.testing.assert_close(after_steps(fused=True), after_steps(fused=False), rtol=1e-3, atol=1e-3)


# What a step takes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_entries", [3, 1500])
def test_a_step_takes_and_says_what_was_laid_out_for_it(n_entries):
    n_steps, n_members, n_rows, n_latent = 4, 2, 5, 3
    x, eps = normal(30, n_entries), normal(n_steps, n_members, n_rows, n_latent)
    chosen = torch.randint(30, (n_steps, n_members, n_rows), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    rates = normal(n_steps, 2)

    def walk(kind):
        terms = torch.zeros(n_steps, 2, n_members, device=DEVICE)
        supply, taken = kind(x, chosen, eps, rates, terms, torch.zeros(1, dtype=torch.int64, device=DEVICE)), []
        for _ in range(n_steps):
            taken += [value.clone() for value in supply.take()]
            supply.note(taken[-3][..., 0], taken[-3][..., 1].square())
        return [*taken, terms, supply.place]

    torch.testing.assert_close(walk(supply.FusedLaidOut), walk(LaidOut))


@pytest.mark.parametrize("likelihood", ["gaussian", "student_t"])
def test_a_fit_by_programs_is_the_fit_by_operations(likelihood, monkeypatch):
    """On a GPU with steps that are recorded, which the interpreter would take long for."""
    n_steps = 100 if DEVICE.type == "cuda" else 4

    def fit(*, fused):
        monkeypatch.setattr(training, "REPLAYED_ON", ("cpu", "cuda"))
        monkeypatch.setattr(training, "is_fused", lambda ensemble, n_steps: fused)
        small = {
            **TINY,
            "n_estimators": 2,
            "hidden": (8, 8),
            "max_steps": n_steps,
            "batch_size": 16,
            "likelihood": likelihood,
        }
        detector = VAEDetector(**small, precision="float32").fit(numbers(60))
        return detector.history_.train_elbo, detector.history_.val_elbo, detector.anomaly_score(numbers(20))

    for found, wanted in zip(fit(fused=True), fit(fused=False), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


# Whether --------------------------------------------------------------------------------------------------------------


def test_only_many_steps_of_a_gpu_are_fused(make_vae):
    ensemble = Ensemble([make_vae()])
    assert not learning.is_fused(ensemble, 10**6)
    if DEVICE.type == "cuda":
        ensemble.to(DEVICE)
        assert learning.is_fused(ensemble, learning.MIN_STEPS)
        assert not learning.is_fused(ensemble, learning.MIN_STEPS - 1)
        assert not learning.is_fused(Ensemble([make_vae(prior="vamp")]).to(DEVICE), 10**6)
        assert not learning.is_fused(Ensemble([make_vae(dtype=torch.float64)]).to(DEVICE), 10**6)


@pytest.mark.parametrize(
    ("capability", "wanted"), [((8, 0), {"EARLY": False}), ((9, 0), {"EARLY": True, "launch_pdl": True})]
)
def test_programs_are_begun_early_where_a_gpu_can(capability, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    find = launch.early.__wrapped__
    assert find(torch.device("cuda")) == wanted
    assert find(torch.device("cpu")) == {"EARLY": False}


def test_without_triton_there_are_the_operations(monkeypatch):
    learning._works.cache_clear()
    monkeypatch.setitem(sys.modules, "vae_anomaly.kernels.layers", None)
    assert not learning._works(DEVICE)
    monkeypatch.undo()
    learning._works.cache_clear()
    assert learning._works(DEVICE)


def test_they_compile_for_a_gpu():
    def program(module, name, types, numbers=(), **constants):
        types = {**types, **dict.fromkeys(numbers, "i32")}
        return compiled.Program(
            f"vae_anomaly.kernels.{module}", name, types, {**constants, "EARLY": True}, {"launch_pdl": True}
        )

    moments = {"FIRST": BETAS[0], "SECOND": BETAS[1]}
    of_step = {"decays": "*fp64", **dict.fromkeys(("limit", "weight_decay"), "fp32")}
    places = dict.fromkeys(("place", "now", "chosen"), "*i64")
    latent = {"BOUND": 10.0, "ROWS": 32, "LATENT": 32}
    density = {"BOUND": 10.0, "RAW_ONE": 0.5, "LOG_ROOT": 0.9, "NUMBERS": 1024}
    lengths = adamw.LENGTHS
    compiled.check(
        [
            program("adamw", "_squares", of_step, lengths, **moments, NUMBERS=1024),
            program("adamw", "_update", of_step, lengths, **moments, EPS=EPS, NUMBERS=1024, PARTS=1024),
            program("supply", "_take", places, ("n_rows", "n_entries", "n_latent"), NUMBERS=1024),
            program("supply", "_note", places, ("n_rows",), NUMBERS=1024),
            program("terms", "_draw", {}, ("n_rows", "n_latent"), **latent),
            program("terms", "_draw_back", {}, ("n_rows", "n_latent", "per_row"), **latent),
            *(
                program("terms", "_density", {}, ("n_rows", "n_entries", "per_row"), **kind, **density)
                for kind in (
                    {"BINARY": binary, "THERE": there, "BACK": back}
                    for binary in (True, False)
                    for there, back in ((True, False), (False, True), (True, True))
                )
            ),
        ]
    )
