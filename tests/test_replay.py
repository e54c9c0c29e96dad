"""Steps that are laid out beforehand, and recorded on a GPU: what they learn is what steps one by one learn."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tables import TINY, mixed, numbers

from vae_anomaly import fitting, replay, replayed_steps, training
from vae_anomaly.data.batches import open_batches
from vae_anomaly.detector import VAEDetector
from vae_anomaly.likelihoods import LIKELIHOODS
from vae_anomaly.memory import fits
from vae_anomaly.priors import PRIORS
from vae_anomaly.replay import Replayed
from vae_anomaly.replayed_steps import ReplayedSteps
from vae_anomaly.score_file import ScoreRun
from vae_anomaly.streaming import RowsOnDisk
from vae_anomaly.supply import Supply

STEPS = {**TINY, "max_steps": 150, "batch_size": 32}


@pytest.fixture
def laid_out(monkeypatch):
    """Steps as a GPU takes them, on the CPU, and so many at once."""

    def at_once(n):
        monkeypatch.setattr(training, "REPLAYED_ON", ("cpu", "cuda"))
        monkeypatch.setattr(replayed_steps, "MAX_LAID_OUT", n)

    return at_once


@pytest.fixture
def not_recorded(monkeypatch):
    """A GPU told each operation by itself."""
    return lambda: monkeypatch.setattr(replay, "N_WARM", 10**9)


def curves(**options):
    """Held-out ELBO over the course of training."""
    return VAEDetector(**{**STEPS, **options}).fit(numbers(300)).history_.val_elbo


# Supply --------------------------------------------------------------------------------------------------------------


def generators_from(seed):
    return [torch.Generator().manual_seed(seed + member) for member in range(2)]


def supply(n_rows=10, batch_size=3, **options):
    generators = generators_from(0)
    train_rows = torch.stack([torch.arange(n_rows), torch.arange(n_rows) + 100])
    return Supply(train_rows, batch_size, 4, generators, **options)


def test_each_epoch_brings_each_row_once_less_the_ragged_end():
    rows = supply().rows(0, 9)
    assert rows.shape == (9, 2, 3)
    for epoch in rows.split(3):
        for member, first in enumerate((0, 100)):
            seen = epoch[:, member].flatten().tolist()
            assert len(set(seen)) == 9
            assert set(seen) <= set(range(first, first + 10))
    assert not torch.equal(rows[:3], rows[3:6])


@pytest.mark.parametrize("at_once", [1, 2, 5, 9])
def test_rows_are_the_same_however_many_steps_are_asked_for_at_once(at_once):
    wanted, parts = supply().rows(0, 9), supply()
    found = [parts.rows(first, min(first + at_once, 9)) for first in range(0, 9, at_once)]
    assert torch.equal(torch.cat(found), wanted)


def test_members_draw_base_samples_of_their_own():
    noise = supply().noise(5, 3)
    assert noise.shape == (2, 5, 3, 4)
    assert torch.equal(noise[1], torch.randn(15, 4, generator=torch.Generator().manual_seed(1)).reshape(5, 3, 4))


# Laid out ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"robust": 0.2}, {"prior": "vamp"}], ids=["usual", "robust", "vamp"])
def test_steps_laid_out_one_by_one_are_those_not_laid_out(options, laid_out):
    wanted = curves(**options)
    # The learning rate is in single precision on the device.
    laid_out(1)
    np.testing.assert_allclose(curves(**options), wanted, rtol=1e-3, atol=1e-3)


def test_steps_laid_out_together_learn_as_much(laid_out):
    wanted = curves()
    laid_out(10**9)
    # Other base samples for the same steps.
    found = curves()
    assert not np.array_equal(found, wanted)
    assert abs(found[-1].mean() - wanted[-1].mean()) < 0.2 * (wanted[-1].mean() - wanted[0].mean())


class Fetched(RowsOnDisk):
    """Rows that count for how many steps they were fetched."""

    n_steps = 0

    def fetch(self, chosen):
        self.n_steps += len(chosen)
        return super().fetch(chosen)


def steps_on_disk(n_steps, seen, most=10):
    rows = Fetched(np.arange(220, dtype=np.float32).reshape(110, 2), torch.device("cpu"))

    def step(batch, eps, beta, rate, left_out):
        seen.append((batch.clone(), float(beta), float(rate), left_out))
        return batch[:, :1, 0], eps[0, :, :1, 0]

    def schedule(step):
        return step / 4, float(step), step // 20

    return rows, ReplayedSteps(
        step, rows, supply(noise=generators_from(2)), schedule, n_steps, most, torch.device("cpu")
    )


@pytest.mark.parametrize("at_once", [1, 100, 10**9])
def test_rows_that_do_not_lie_on_the_device_are_fetched_ahead(at_once, laid_out):
    laid_out(at_once)
    seen = []
    rows, steps = steps_on_disk(25, seen)
    terms = torch.cat([steps.advance(0, 10), steps.advance(10, 20), steps.advance(20, 25)], dim=1)
    wanted = rows.rows[supply().rows(0, 25)]
    assert torch.equal(torch.stack([batch for batch, _, _, _ in seen]), wanted)
    assert [values[1:] for values in seen] == [(step / 4, step, step // 20) for step in range(25)]
    assert torch.equal(terms[0], wanted[:, :, 0, 0])
    assert rows.n_steps == 25


def test_no_more_rows_are_fetched_once_training_has_stopped(laid_out):
    laid_out(1)
    rows, steps = steps_on_disk(10**6, [])
    steps.advance(0, 5)
    steps.close()
    fetched = rows.n_steps
    assert fetched < 20
    assert not any("_make" in thread.name for thread in threading.enumerate())


class Stream:
    """What torch makes anew each time, from 32 that it has."""

    def __init__(self, device, priority):
        self.device, self.priority = device, priority


@pytest.fixture
def few_streams(monkeypatch):
    monkeypatch.setattr(replay, "_new_stream", Stream)
    for known in ("_IDLE", "_SHARED"):
        monkeypatch.setattr(replay, known, {})


@pytest.mark.usefixtures("few_streams")
def test_a_stream_is_lent_to_one_at_a_time_and_used_again():
    device = torch.device("cuda:0")
    with replay.lent_stream(device) as first, replay.lent_stream(device) as second:
        assert first is not second
    with pytest.raises(RuntimeError), replay.lent_stream(device) as again:
        raise RuntimeError
    assert again in (first, second)
    with replay.lent_stream(device) as one, replay.lent_stream(device) as other, replay.lent_stream(device) as third:
        assert {one, other} == {first, second}
        assert third not in (first, second)
    with replay.lent_stream(torch.device("cuda:1")) as elsewhere:
        assert elsewhere.device.index == 1


@pytest.mark.usefixtures("few_streams")
def test_what_is_recorded_is_in_no_stream_of_copies():
    device = torch.device("cuda:0")
    with replay.lent_stream(device, replay.RECORDED) as recorded:
        assert recorded.priority != replay.COPIED
    with replay.lent_stream(device) as copied:
        assert copied.priority == replay.COPIED
    with ThreadPoolExecutor(8) as pool:
        shared = set(pool.map(replay.shared_stream, [device] * 50))
    assert len(shared) == 1
    assert shared.pop().priority == replay.RECORDED


# On a GPU ------------------------------------------------------------------------------------------------------------

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def on_gpu(test):
    for mark in gpu:
        test = mark(test)
    return test


@on_gpu
def test_a_recorded_function_is_replayed():
    device, calls = torch.device("cuda"), []
    count = torch.zeros((), device=device)

    def step():
        calls.append(1)
        return count.add_(1.0)

    with replay.own_stream(device):
        replayed = Replayed(step, device)
        assert [float(replayed()) for _ in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    # Three times to warm up, and once to record.
    assert len(calls) == 4


def same_recorded(not_recorded, X, **options):
    recorded = Replayed._recorded
    graphs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replayed, "_recorded", lambda replayed: graphs.append(recorded(replayed)) or graphs[-1])
        found = VAEDetector(**{**STEPS, **options}, device="cuda").fit(X)
    assert len(graphs) >= 1
    assert None not in graphs
    not_recorded()
    wanted = VAEDetector(**{**STEPS, **options}, device="cuda").fit(X)
    np.testing.assert_allclose(found.history_.val_elbo, wanted.history_.val_elbo, rtol=1e-3, atol=1e-3)


@on_gpu
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_recorded_steps_learn_what_others_do(name, not_recorded):
    columns = {"numbers": ["flow", "pressure", "count"], "categories": ["valve", "mode"]}
    kind = LIKELIHOODS[name].columns
    frame = mixed(300)
    same_recorded(not_recorded, frame[columns.get(kind, list(frame.columns))], likelihood=name)


@on_gpu
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("robust", [0.0, 0.1])
def test_recorded_steps_know_every_prior(prior, robust, not_recorded):
    same_recorded(not_recorded, numbers(300), prior=prior, robust=robust)


@on_gpu
def test_recorded_steps_know_holes(not_recorded):
    X = numbers(300)
    X[np.random.default_rng(0).random(X.shape) < 0.1] = np.nan
    same_recorded(not_recorded, X)


@on_gpu
def test_recorded_steps_know_convolutions(not_recorded):
    images = np.random.default_rng(0).random((60, 1, 12, 12)).astype(np.float32)
    same_recorded(not_recorded, images, net="conv", hidden=(8,), max_steps=60)


@on_gpu
def test_a_gpu_fetches_rows_that_do_not_lie_on_it(monkeypatch):
    monkeypatch.setattr(fitting, "on_disk", lambda encoded: True)
    found, again = (curves(device="cuda") for _ in range(2))
    assert np.array_equal(found, again)
    monkeypatch.undo()
    assert abs(found[-1].mean() - curves(device="cuda")[-1].mean()) < 0.3


@on_gpu
def test_equal_seeds_give_equal_scores_on_a_gpu():
    X = numbers(300)
    first, again = (VAEDetector(**STEPS, device="cuda").fit(X).anomaly_score(X) for _ in range(2))
    assert np.array_equal(first, again)


@on_gpu
def test_a_file_is_scored_on_a_gpu_as_a_table_is(tmp_path):
    frame = mixed(3000)
    detector = VAEDetector(**STEPS, device="cuda").fit(frame)
    frame.to_csv(tmp_path / "new.csv", index=False)
    run = ScoreRun(detector, open_batches(str(tmp_path / "new.csv")))
    run.to_file(str(tmp_path / "scores.csv"), ".csv", task={})
    found = np.genfromtxt(tmp_path / "scores.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    np.testing.assert_allclose(found["anomaly_score"], detector.anomaly_score(frame), rtol=1e-4, atol=1e-4)


@on_gpu
def test_what_cannot_be_recorded_is_called():
    device = torch.device("cuda")
    count = torch.zeros((), device=device)
    with replay.own_stream(device):
        # It waits for its result.
        waiting = Replayed(lambda: float(count.add_(1.0)), device)
        assert [waiting() for _ in range(6)] == [1, 2, 3, 4, 5, 6]


@on_gpu
def test_a_gpu_multiplies_as_before_once_training_is_over():
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [setting.fp32_precision for setting in settings]
    VAEDetector(**STEPS, device="cuda").fit(numbers(300))
    assert [setting.fp32_precision for setting in settings] == before


def test_a_table_fits_onto_a_gpu_if_it_takes_half_of_what_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 10**9))
    assert [fits(n_bytes, torch.device("cuda")) for n_bytes in (500, 501)] == [True, False]


@on_gpu
def test_a_gpu_fetches_rows_that_it_has_no_memory_for(monkeypatch):
    wanted = curves(device="cuda")
    monkeypatch.setattr(fitting, "fits", lambda n_bytes, device: False)
    found = curves(device="cuda")
    assert abs(found[-1].mean() - wanted[-1].mean()) < 0.3
