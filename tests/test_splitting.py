import numpy as np
import pytest
import torch

from vae_anomaly.splitting import MIN_ROWS_TO_SET_ASIDE, leave_out_entries, rows_to_fit, split_rows


def split(n_rows, n_estimators, n_needed=19):
    return split_rows(n_rows, n_needed, [torch.Generator().manual_seed(k) for k in range(n_estimators + 1)])


SIZES = [2, 3, 4, 5, 7, 20, 59, 250, 1999, 2000, 5000]


@pytest.mark.parametrize("n_estimators", [1, 2, 4, 6, 9])
@pytest.mark.parametrize("n_rows", SIZES)
def test_no_member_trains_on_what_it_is_watched_on(n_rows, n_estimators):
    found = split(n_rows, n_estimators)
    assert found.train.shape[0] == found.held_out.shape[0] == n_estimators
    assert found.train.shape[1] >= 1
    for train, held_out in zip(found.train.tolist(), found.held_out.tolist(), strict=True):
        assert not set(train) & set(held_out)
        assert len(set(train)) == len(train)
    everything = np.concatenate([found.fitted, found.calibration])
    assert set(everything.tolist()) == set(range(n_rows))


@pytest.mark.parametrize("n_estimators", [1, 2, 4, 6, 9])
@pytest.mark.parametrize("n_rows", [size for size in SIZES if size < MIN_ROWS_TO_SET_ASIDE])
def test_few_rows_are_all_trained_on_and_calibrate_once(n_rows, n_estimators):
    found = split(n_rows, n_estimators)
    assert found.aside is None
    assert len(np.unique(found.calibration)) == len(found.calibration)
    # A fold is a fifth at most: five members or more calibrate with all rows, but for what the division leaves.
    assert len(found.calibration) > n_rows * min(1.0, n_estimators / 5) - max(n_estimators, 5)
    assert found.train.shape[1] + found.held_out.shape[1] == n_rows


@pytest.mark.parametrize("n_rows", [2000, 5000, 20_000, 200_000])
def test_of_many_rows_some_are_set_aside(n_rows):
    found = split(n_rows, 3)
    assert not set(found.calibration.tolist()) & set(found.fitted.tolist())
    assert len(found.calibration) == {2000: 400, 5000: 1000, 20_000: 2000, 200_000: 10_000}[n_rows]


def test_a_strict_promise_sets_more_rows_aside():
    assert len(split(3000, 3, n_needed=999).calibration) == 999


@pytest.mark.parametrize("n_estimators", [1, 2, 6, 9])
@pytest.mark.parametrize("n_needed", [1, 4, 19, 99, 999, 9999])
def test_rows_to_fit_is_the_least_number_that_is_enough(n_needed, n_estimators):
    least = rows_to_fit(n_needed, n_estimators)
    assert split(least, n_estimators, n_needed).enough
    assert least == 2 or not split(least - 1, n_estimators, n_needed).enough


@pytest.mark.parametrize("n_rows", [50, 3000])
def test_first_keeps_some_of_the_calibration_rows(n_rows):
    found = split(n_rows, 5)
    few = found.first(20)
    assert len(few.calibration) == 20
    assert set(few.calibration.tolist()) <= set(found.calibration.tolist())


def test_same_generators_give_the_same_split():
    for n_rows in (50, 3000):
        one, other = split(n_rows, 4), split(n_rows, 4)
        assert torch.equal(one.train, other.train)
        assert np.array_equal(one.calibration, other.calibration)


@pytest.mark.parametrize("n_entries", [6, 7, 30])
def test_each_entry_is_left_out_by_one_of_six_members(n_entries, generator):
    compared = leave_out_entries(n_entries, 6, generator)
    assert compared.shape == (6, n_entries)
    assert ((compared == 0).sum(dim=0) == 1).all()
    assert set((compared == 0).sum(dim=1).tolist()) <= {n_entries // 6, n_entries // 6 + 1}


@pytest.mark.parametrize(("n_entries", "n_estimators"), [(5, 6), (1, 6), (30, 1)])
def test_few_entries_and_a_single_member_compare_by_all(n_entries, n_estimators, generator):
    assert (leave_out_entries(n_entries, n_estimators, generator) == 1).all()


def test_more_members_than_parts_leave_out_the_same_again(generator):
    compared = leave_out_entries(12, 8, generator)
    assert torch.equal(compared[6:], compared[:2])
    assert (compared.sum(dim=1) == 10).all()
