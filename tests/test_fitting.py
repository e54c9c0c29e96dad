import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch
from tables import TINY, numbers

from vae_anomaly import detector as detecting
from vae_anomaly import fitting
from vae_anomaly.detector import VAEDetector
from vae_anomaly.fitting import fingerprint_of, fit_ensemble, generator_of, map_calibration, marks_of
from vae_anomaly.row_hashes import row_hashes, sketch
from vae_anomaly.scores import neg_log_px_z
from vae_anomaly.splitting import split_rows


@pytest.fixture
def detector():
    return VAEDetector(**TINY).fit(numbers())


def generators(detector):
    return [generator_of(0, member) for member in range(detector.n_estimators + 1)]


def test_members_draw_from_generators_of_their_own():
    draws = [torch.rand(3, generator=generator_of(seed, member)) for seed in (0, 1) for member in (0, 1)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4
    assert torch.equal(torch.rand(3, generator=generator_of(1, 1)), draws[-1])


def test_a_second_ensemble_is_the_first_and_leaves_the_detector_as_it_is(detector):
    encoded = detector._encode(numbers())
    before = dict(vars(detector))
    drawn = generators(detector)
    fitted = fit_ensemble(detector, encoded, split_rows(len(encoded), 19, drawn), drawn, None)
    assert all(before[name] is value for name, value in vars(detector).items())
    for name, value in detector.ensemble_.tensors().items():
        assert torch.equal(fitted.ensemble.tensors()[name], value), name
    assert np.array_equal(fitted.active_units, detector.active_units_)


@pytest.mark.parametrize("n_rows", [60, 2400])
def test_calibration_rows_are_scored_by_members_that_did_not_learn_from_them(detector, n_rows):
    encoded = np.random.default_rng(0).normal(size=(n_rows, detector.architecture_["n_entries"])).astype(np.float32)
    split = split_rows(n_rows, 19, generators(detector))
    ensemble, eps = detector.ensemble_, detector.eps_
    found = map_calibration(ensemble, eps, neg_log_px_z, encoded, split, n_parts=1)
    with torch.no_grad():
        alone = np.array([neg_log_px_z(vae, torch.from_numpy(encoded), eps).numpy() for vae in ensemble.views()])
    for score, row in zip(found, split.calibration, strict=True):
        foreign = [own for own, learned in zip(alone[:, row], split.train, strict=True) if row not in learned]
        assert any(np.isclose(score, [*foreign, np.mean(foreign)], rtol=1e-4))


@pytest.mark.parametrize("hashed", [1, 40, 10**6])
@pytest.mark.parametrize("n_rows", [60, 2500])
def test_marks_are_the_hashes_of_rows_by_what_they_are_for(n_rows, hashed, rng, monkeypatch):
    """Of few rows each serves both; rows without a value have no hash."""
    monkeypatch.setattr(fitting, "HASHED", hashed if n_rows == 60 else 10**3)
    encoded = rng.normal(size=(n_rows, 3)).astype(np.float32)
    encoded[::7] = np.nan
    split = split_rows(n_rows, 19, [generator_of(0, member) for member in range(4)])
    marks = marks_of(encoded, split, threading.Event())
    for name, chosen in (("training", split.fitted), ("calibration", split.calibration)):
        assert np.array_equal(marks[name], sketch(row_hashes(encoded[chosen])))
    assert len(marks["labels"]) == 0


def test_marks_that_nobody_wants_any_more_are_left():
    encoded, unwanted = np.zeros((60, 3), np.float32), threading.Event()
    split = split_rows(60, 19, [generator_of(0, member) for member in range(4)])
    assert len(fingerprint_of(encoded, unwanted)) == 64
    assert sorted(marks_of(encoded, split, unwanted)) == ["calibration", "labels", "training"]
    unwanted.set()
    with pytest.raises(CancelledError):
        fingerprint_of(encoded, unwanted)
    with pytest.raises(CancelledError):
        marks_of(encoded, split, unwanted)


def test_rows_are_marked_by_threads_that_bring_none_of_torch_along(monkeypatch):
    """With these, more would wait for the next operation than there are processors, and OpenMP's would fall asleep."""
    seen = []

    def watched(function):
        def told(*args):
            seen.append((threading.get_ident(), torch.get_num_threads()))
            return function(*args)

        return told

    for name in ("fingerprint_of", "marks_of"):
        monkeypatch.setattr(detecting, name, watched(getattr(detecting, name)))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        VAEDetector(**TINY).fit(numbers())
    finally:
        torch.set_num_threads(before)
    assert [number for _, number in seen] == [1, 1]
    assert threading.get_ident() not in {thread for thread, _ in seen}
