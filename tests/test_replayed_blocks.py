"""Blocks that a GPU scores by what it recorded of one of them."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tables import numbers

from vae_anomaly import neighbours, replayed_blocks, scoring
from vae_anomaly.detector import VAEDetector
from vae_anomaly.ensemble import Ensemble
from vae_anomaly.replayed_blocks import blocks_of
from vae_anomaly.scores import SCORES

# No more is asked of the networks than that they exist.
STEPS = {"n_estimators": 3, "max_steps": 20, "hidden": (16,)}


@pytest.fixture
def ensemble(make_vae):
    return Ensemble([make_vae(seed=seed) for seed in range(3)])


def test_other_devices_are_asked_each_time(ensemble, monkeypatch):
    monkeypatch.setattr(replayed_blocks, "N_BEFORE", 2)
    eps, calls = torch.ones(1), []
    blocks = blocks_of(ensemble, "sum", eps)

    def function(x, eps):
        calls.append(1)
        return x + eps

    found = [float(blocks(function, torch.tensor(float(value)))) for value in range(5)]
    assert found == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert len(calls) == 5


def test_blocks_are_known_by_what_is_done_and_by_what_is_read(ensemble):
    eps = torch.ones(1)
    blocks = blocks_of(ensemble, "sum", eps)
    assert blocks_of(ensemble, "sum", eps) is blocks
    assert blocks_of(ensemble, "mean", eps) is not blocks
    assert blocks_of(ensemble, "sum", torch.ones(1)) is not blocks
    blocks = blocks_of(ensemble, "sum", eps)
    # As the end of `fit` does.
    ensemble.buffers.update({name: value.clone() for name, value in ensemble.buffers.items()})
    assert blocks_of(ensemble, "sum", eps) is not blocks


def test_blocks_go_with_their_ensemble(make_vae):
    ensemble = Ensemble([make_vae()])
    gone = weakref.ref(blocks_of(ensemble, "sum", torch.ones(1)))
    del ensemble
    gc.collect()
    assert gone() is None


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def graphs():
    return [one.graph for known in replayed_blocks._KNOWN.values() for one in known.values()]


@pytest.fixture
def nothing_known():
    replayed_blocks._KNOWN.clear()
    yield
    # What could not be recorded would leave these behind in ruins.
    torch.randn(1, device="cuda")
    torch.cuda.empty_cache()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("nothing_known")
@pytest.mark.parametrize("least", [1, 10**18], ids=["fused", "not fused"])
@pytest.mark.parametrize("holed", [False, True])
@pytest.mark.parametrize("name", [name for name, score in SCORES.items() if not score.images])
def test_replayed_blocks_have_the_bits_of_others(name, holed, least, monkeypatch):
    """By more threads than there are streams; scores that need vmap are not recorded."""
    monkeypatch.setattr(scoring, "GPU_TIMES", 1)
    monkeypatch.setattr(neighbours, "MIN_FUSED", least)
    X = numbers(2500)
    if holed:
        X[np.random.default_rng(0).random(X.shape) < 0.2] = np.nan
    detector = VAEDetector(**STEPS, score_name=name, device="cuda").fit(X[:300])
    monkeypatch.setattr(replayed_blocks, "N_BEFORE", 10**9)
    wanted, explained = detector.anomaly_score(X), detector.explained_score(X)
    replayed_blocks._KNOWN.clear()
    monkeypatch.setattr(replayed_blocks, "N_BEFORE", 2)
    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(lambda _: detector.anomaly_score(X), range(80)))
        parts = list(pool.map(lambda _: detector.explained_score(X), range(80)))
    assert all(np.array_equal(some, wanted, equal_nan=True) for some in found)
    assert all(np.array_equal(pair[part], explained[part], equal_nan=True) for pair in parts for part in (0, 1))
    assert None not in graphs()
    assert bool(graphs()) == (name in ("novelty", "neg_log_px_z"))
    n_graphs = len(graphs())
    # A function that is made anew each time leaves nothing behind.
    detector.explain(X)
    assert len(graphs()) == n_graphs


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("nothing_known")
@pytest.mark.parametrize("name", [name for name, score in SCORES.items() if score.images])
def test_scores_of_images_are_not_recorded(name, monkeypatch):
    """Those that look at the bytes of a file wait for the GPU."""
    monkeypatch.setattr(replayed_blocks, "N_BEFORE", 1)
    images = np.random.default_rng(0).random((100, 1, 12, 12)).astype(np.float32)
    detector = VAEDetector(**STEPS, device="cuda").fit(images)
    found = [detector.anomaly_score(images, score_name=name) for _ in range(3)]
    assert all(np.array_equal(found[0], again) for again in found[1:])
    assert not graphs()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.usefixtures("nothing_known")
def test_replayed_blocks_read_the_model_that_is_fitted_now(monkeypatch):
    monkeypatch.setattr(replayed_blocks, "N_BEFORE", 1)
    X = numbers(300)
    detector = VAEDetector(**STEPS, device="cuda").fit(X)
    first = [detector.anomaly_score(X) for _ in range(3)]
    again = VAEDetector(**STEPS, device="cuda", random_state=1).fit(X)
    wanted = again.anomaly_score(X)
    detector.set_params(random_state=1).fit(X)
    assert np.array_equal(first[0], first[2])
    assert np.array_equal(detector.anomaly_score(X), wanted)
