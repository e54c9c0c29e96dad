import numpy as np
import pytest

from vae_anomaly.row_hashes import all_hashes, check_sketch, overlap, row_hashes, sketch


def rows(n_rows, seed=0, n_entries=5):
    return np.random.default_rng(seed).normal(size=(n_rows, n_entries)).astype(np.float32)


@pytest.mark.parametrize("n_entries", [5, 257])
def test_equal_rows_have_equal_hashes_and_others_do_not(n_entries):
    X = rows(1000, n_entries=n_entries)
    X[3] = X[7]
    hashes = row_hashes(X)
    assert len(np.unique(hashes)) == 999
    assert hashes[3] == hashes[7]
    assert np.array_equal(row_hashes(X[::-1]), hashes[::-1])
    assert row_hashes(X[:1]) == hashes[0]


def test_hashes_are_those_that_model_files_hold():
    assert row_hashes(np.array([[1, 0], [0, 1]], np.float32)).tolist() == [5927057881499942193, 1253402174216928257]


def test_hashes_fall_evenly_as_the_smallest_stand_for_all():
    """Also of rows that follow a rule; each of 64 parts within five standard errors."""
    numbers = np.arange(20_000, dtype=np.float32)
    for X in (numbers[:, None], np.stack([numbers % 100, numbers // 100], axis=1)):
        hashes = row_hashes(X)
        assert len(np.unique(hashes)) == len(X)
        expected = len(X) / 64
        counts = np.bincount((hashes >> np.uint64(58)).astype(int), minlength=64)
        assert np.abs(counts - expected).max() < 5.0 * np.sqrt(expected)


@pytest.mark.parametrize("n_entries", [5, 257])
def test_the_order_in_memory_does_not_count(n_entries):
    X = rows(9, n_entries=n_entries)
    assert np.array_equal(row_hashes(np.asfortranarray(X)), row_hashes(X))


def test_the_order_of_the_entries_counts():
    assert len(set(row_hashes(np.array([[1, 2], [2, 1]], np.float32)).tolist())) == 2


@pytest.mark.parametrize("repeats", [1, 300])
def test_all_missing_values_are_one_and_so_are_the_zeros(repeats):
    other = np.array([0x7FC00001], np.uint32).view(np.float32)[0]
    one, two, three = row_hashes(
        np.tile(np.array([[0.0, np.nan], [-0.0, other], [1.0, np.nan]], np.float32), (1, repeats))
    )
    assert one == two
    assert one != three


def test_rows_without_a_value_have_no_hash():
    assert len(row_hashes(np.array([[np.nan, np.nan], [1.0, np.nan]], np.float32))) == 1
    assert len(row_hashes(np.zeros((0, 3), np.float32))) == 0


@pytest.mark.parametrize("n_entries", [5, 257])
def test_all_hashes_say_which_rows_have_one(n_entries):
    X = rows(6, n_entries=n_entries)
    X[[1, 4]] = np.nan
    X[2, 1:] = np.nan
    hashes, known = all_hashes(X)
    assert known.tolist() == [True, False, True, True, False, True]
    assert np.array_equal(hashes[known], row_hashes(X))
    assert np.array_equal(hashes[known], row_hashes(X[known]))


@pytest.mark.parametrize("max_kept", [1000, 1001, 5000])
def test_a_sketch_that_holds_all_rows_counts_exactly(max_kept):
    old, new = rows(1000), rows(300, seed=1)
    kept = sketch(row_hashes(old), max_kept)
    table = row_hashes(np.concatenate([old[:70], new, old[:30]]))
    assert overlap(kept, table, max_kept) == 100


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_a_sketch_of_some_rows_estimates(share):
    """Within four standard errors of a binomial sample of the rows."""
    n_rows, max_kept = 20_000, 2000
    old = rows(n_rows)
    kept = sketch(row_hashes(old), max_kept)
    assert len(kept) == max_kept + 1
    n_seen = int(share * n_rows)
    table = row_hashes(np.concatenate([old[:n_seen], rows(n_rows - n_seen, seed=1)]))
    assert overlap(kept, table, max_kept) == pytest.approx(n_seen, abs=4.0 * np.sqrt(n_seen * n_rows / max_kept))


def test_an_empty_sketch_holds_nothing():
    empty = sketch(row_hashes(rows(0)))
    assert check_sketch(empty) is empty
    assert overlap(empty, row_hashes(rows(9))) == 0


@pytest.mark.parametrize("kept", [[2, 1], [1, 1], [1.0, 2.0], [[1], [2]]])
def test_what_is_no_sketch_is_refused(kept):
    array = np.array(kept)
    with pytest.raises(ValueError, match="its hashes of rows are not sorted, or are none"):
        check_sketch(array if array.dtype.kind == "f" else array.astype(np.uint64))
