import pytest
import torch

from vae_anomaly import neighbours
from vae_anomaly.neighbours import _nearest_at_once, _nearest_on_gpu, _row_by_row, half_squared_lengths, nearest


@pytest.mark.parametrize("n_rows", [1, 7, 40])
@pytest.mark.parametrize("n_points", [1, 5, 53])
def test_nearest_is_the_least_of_all_distances(n_rows, n_points, generator, monkeypatch):
    """The points come in tiles, the last one ragged."""
    monkeypatch.setattr(neighbours, "MAX_DISTANCES", 100)
    x, points = torch.randn(n_rows, 3, generator=generator), torch.randn(n_points, 3, generator=generator)
    torch.testing.assert_close(nearest(x, points), torch.cdist(x, points).argmin(dim=1))


def test_entries_that_are_not_observed_count_for_nothing(generator, monkeypatch):
    monkeypatch.setattr(neighbours, "MAX_DISTANCES", 100)
    x, points = torch.randn(20, 4, generator=generator), torch.randn(30, 4, generator=generator)
    observed = (torch.rand(20, 4, generator=generator) < 0.6).float()
    distances = ((x[:, None] - points).square() * observed[:, None]).sum(dim=-1)
    torch.testing.assert_close(nearest(x * observed, points, observed), distances.argmin(dim=1))


def test_entries_may_be_left_out_for_all_rows_at_once(generator, monkeypatch):
    monkeypatch.setattr(neighbours, "MAX_DISTANCES", 100)
    x, points = torch.randn(20, 4, generator=generator), torch.randn(30, 4, generator=generator)
    kept = torch.tensor([1.0, 0.0, 1.0, 1.0])
    expected = torch.cdist(x[:, kept > 0], points[:, kept > 0]).argmin(dim=1)
    assert (expected != torch.cdist(x, points).argmin(dim=1)).any()
    torch.testing.assert_close(nearest(x * kept, points, kept), expected)


def test_a_point_far_out_does_not_hide_a_near_one():
    """Only the difference of large squares counts."""
    points = torch.tensor([[1000.0, 0.0], [1000.0, 2.0], [-1000.0, 0.0]])
    assert nearest(torch.tensor([[1000.0, 1.5]]), points).tolist() == [1]


@pytest.mark.parametrize("n_entries", [3, 8, 30])
def test_of_equally_distant_points_few_rows_find_those_that_many_find(n_entries, generator):
    """Where columns take few values, rounding decides."""
    points = 0.3 * torch.randint(0, 3, (4000, n_entries), generator=generator).float()
    x = 0.3 * torch.randint(0, 3, (1024, n_entries), generator=generator).float() + 0.15
    many = nearest(x, points)
    constant = half_squared_lengths(points, torch.ones(n_entries))
    products = torch.addmm(constant[:, None], points, x.T, alpha=-1.0)
    if not torch.equal(_row_by_row(constant, points, x[:8]), products[:, :8].T):
        pytest.skip("this processor multiplies few rows in another order; scoring tries it, and takes larger blocks")
    for n_rows in (8, 32, 128):
        assert torch.equal(nearest(x[:n_rows], points), many[:n_rows])


@pytest.mark.parametrize("holed", [False, True])
def test_rows_that_come_in_pieces_find_what_they_find_together(holed, generator, monkeypatch):
    """The last piece is a ragged one."""
    x, points = torch.randn(300, 4, generator=generator), torch.randn(533, 4, generator=generator)
    observed = (torch.rand(300 if holed else 1, 4, generator=generator) < 0.7).float().squeeze(0)
    monkeypatch.setattr(neighbours, "MAX_LEAST", 10**9)
    together = nearest(x * observed, points, observed)
    monkeypatch.setattr(neighbours, "MAX_LEAST", 1)
    monkeypatch.setattr(neighbours, "ROWS", 128)
    assert torch.equal(nearest(x * observed, points, observed), together)


@pytest.mark.parametrize("observed", ["all", "some", "of each row"])
@pytest.mark.parametrize("at_once", [1, 10**9])
def test_all_distances_at_once_find_the_same(observed, at_once, generator, monkeypatch):
    """As a GPU looks, some rows at a time."""
    monkeypatch.setattr(neighbours, "MAX_DISTANCES_AT_ONCE", at_once)
    x, points = torch.randn(50, 4, generator=generator), torch.randn(30, 4, generator=generator)
    counted = {"all": torch.ones(4), "some": torch.tensor([1.0, 0.0, 1.0, 1.0])}.get(observed)
    if counted is None:
        counted = (torch.rand(50, 4, generator=generator) < 0.6).float()
    lengths = half_squared_lengths(points, counted) if counted.ndim == 1 else None
    wanted = nearest(x * counted, points, counted)
    assert torch.equal(_nearest_at_once(x * counted, points, counted, lengths), wanted)
    assert torch.equal(_nearest_on_gpu(x * counted, points, counted, lengths), wanted)


@pytest.mark.parametrize(("search", "n_rows"), [(nearest, 5), (_nearest_on_gpu, 50)])
@pytest.mark.parametrize("holed", [False, True])
def test_several_searches_at_once_find_what_each_finds(holed, search, n_rows, generator):
    x, points = torch.randn(3, n_rows, 4, generator=generator), torch.randn(3, 40, 4, generator=generator)
    counted = (torch.rand(3, n_rows if holed else 1, 4, generator=generator) < 0.7).float()
    lengths = None if holed else half_squared_lengths(points, counted.mT).mT
    found = search(x * counted, points, counted, lengths)
    for own in range(3):
        alone = nearest(x[own] * counted[own], points[own], counted[own].expand(n_rows, 4))
        assert torch.equal(found[own], alone)


@pytest.mark.parametrize("in_dims", [(0, 0), (None, 0), (0, None)])
def test_many_rows_are_looked_for_under_vmap_and_gradients(in_dims, generator, monkeypatch):
    monkeypatch.setattr(neighbours, "MIN_GROUPED", 100)
    monkeypatch.setattr(neighbours, "MAX_DISTANCES", 1000)
    monkeypatch.setattr(neighbours, "MAX_LEAST", 1)
    monkeypatch.setattr(neighbours, "ROWS", 40)
    x, points = torch.randn(3, 50, 4, generator=generator), torch.randn(3, 533, 4, generator=generator)
    some = [value if dim == 0 else value[0] for value, dim in zip((x, points), in_dims, strict=True)]
    own = zip(*(value if dim == 0 else [value] * 3 for value, dim in zip(some, in_dims, strict=True)), strict=True)
    wanted = torch.stack([torch.cdist(*pair).argmin(dim=1) for pair in own])

    def distance(x, points):
        return (x - points[nearest(x, points)]).square().sum()

    assert torch.equal(torch.func.vmap(nearest, in_dims)(*some), wanted)
    assert torch.func.vmap(torch.func.grad(distance), in_dims)(*some).shape == x.shape
