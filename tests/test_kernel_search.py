"""By Triton's interpreter where there is no GPU."""

import sys

import compiled
import pytest
import torch

from vae_anomaly import neighbours
from vae_anomaly.neighbours import GROUP, half_squared_lengths, nearest

search_kernel = pytest.importorskip("vae_anomaly.kernels.search", reason="needs Triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
N_SEARCHES, N_ROWS = 2, 150
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []


def search(x, points, counted, lengths=None):
    there = [None if value is None else value.to(DEVICE) for value in (x * counted, points, counted, lengths)]
    return search_kernel.fused_nearest(*there, GROUP)


@pytest.fixture(params=[3, 16, 30])
def tables(request, generator):
    """Rows and points of several searches, and which entries count: of all rows, and of each."""

    def some(n_rows):
        return torch.randn(N_SEARCHES, n_rows, request.param, generator=generator)

    x, points = some(N_ROWS), some(333)
    return x, points, (some(1) < 0.8).float(), (some(N_ROWS) < 0.8).float()


def lengths_of(points, counted):
    """Of shape (n_searches, n_points)."""
    return torch.stack([half_squared_lengths(*own) for own in zip(points, counted[:, 0], strict=True)])


def wanted(x, points, counted):
    distances = ((x[:, None] - points).square() * counted[:, None]).sum(dim=-1)
    return distances.argmin(dim=1)


@pytest.mark.parametrize("n_points", [1, 5, 64, 333])
@pytest.mark.parametrize("holed", [False, True])
def test_nearest_is_the_least_of_all_distances(holed, n_points, tables):
    """The last tile is a ragged one, as is the last group."""
    x, points, of_all, of_each = (value[0] for value in tables)
    points = points[:n_points]
    counted = of_each if holed else of_all[0]
    lengths = None if holed else half_squared_lengths(points, counted)
    found = search(x, points, counted, lengths)
    assert torch.equal(found.cpu(), wanted(x, points, counted.expand_as(x)))


@pytest.mark.parametrize("holed", [False, True])
def test_several_searches_at_once_find_what_each_finds(holed, tables):
    x, points, of_all, of_each = tables
    counted = of_each if holed else of_all
    found = search(x, points, counted, None if holed else lengths_of(points, of_all)[:, None])
    assert torch.equal(found.cpu(), torch.stack(list(map(wanted, x, points, counted.expand_as(x)))))


@pytest.mark.parametrize("holed", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_searches_may_be_mapped_over_members(holed, shared, tables):
    x, points, of_all, of_each = tables
    x = x[:1].expand_as(x) if shared else x
    counted = of_each if holed else of_all[:, 0]
    lengths = None if holed else lengths_of(points, of_all)
    dims = (None if shared else 0, 0, 0, None if holed else 0)
    found = torch.func.vmap(search, dims)(x[0] if shared else x, points, counted, lengths)
    assert torch.equal(found.cpu(), torch.stack(list(map(wanted, x, points, counted.reshape(2, -1, x.shape[2])))))


def test_no_gradient_passes_the_search(tables):
    x, points, of_all, _ = (value.to(DEVICE) for value in tables)
    lengths, counted = lengths_of(points, of_all), of_all[:, 0]

    def distance(x, points, counted, lengths):
        place = search(x.detach(), points, counted, lengths)
        return ((x - points[place]) * counted).square().sum()

    place = torch.func.vmap(search)(x, points, counted, lengths)
    nearest_points = torch.stack([own[there] for own, there in zip(points, place, strict=True)])
    found = torch.func.vmap(torch.func.grad(distance))(x, points, counted, lengths)
    torch.testing.assert_close(found, 2 * (x - nearest_points) * of_all)


def test_a_point_far_out_does_not_hide_a_near_one():
    points = torch.tensor([[1000.0, 0.0], [1000.0, 2.0], [-1000.0, 0.0]])
    row, counted = torch.tensor([[1000.0, 1.5]]), torch.ones(2)
    assert search(row, points, counted, half_squared_lengths(points, counted)).tolist() == [1]


def test_of_equal_distances_the_first_is_found():
    points = torch.tensor([[0.0], [1.0]]).repeat(40, 1)
    row, counted = torch.tensor([[0.9]]), torch.ones(1)
    assert int(search(row, points, counted, half_squared_lengths(points, counted))) == 1


def test_rows_that_are_no_numbers_get_some_point():
    points, counted = torch.zeros(70, 2), torch.ones(2)
    assert 0 <= int(search(torch.full((1, 2), torch.nan), points, counted, torch.zeros(70))) < 70


def test_it_compiles_for_a_gpu():
    numbers = dict.fromkeys(("n_rows", "n_points", "n_entries", "step", "per_search"), "i32")
    sizes = {"ENTRIES": 32, "ROWS": search_kernel.ROWS, "POINTS": search_kernel.POINTS, "GROUP": GROUP}
    options = {"num_warps": search_kernel.N_WARPS, "num_stages": search_kernel.N_STAGES}
    compiled.check(
        [
            compiled.Program(
                "vae_anomaly.kernels.search",
                "_search",
                {"found": "*i64", **numbers},
                {**sizes, "HOLED": holed, "PRECISION": "tf32x3"},
                options,
            )
            for holed in (False, True)
        ]
    )


def test_short_rows_and_many_distances_are_fused(monkeypatch):
    monkeypatch.setattr(neighbours, "_fuses", lambda device, n_entries, holed: True)
    many, few = torch.empty(8192, 30, device="meta"), torch.empty(100, 30, device="meta")
    wide = torch.empty(8192, 784, device="meta")
    assert neighbours._is_fused(many, many, holed=False)
    assert not neighbours._is_fused(many, few, holed=False)
    assert not neighbours._is_fused(wide, wide, holed=False)


def test_without_triton_there_is_another_way(monkeypatch):
    neighbours._fuses.cache_clear()
    monkeypatch.setitem(sys.modules, "vae_anomaly.kernels.search", None)
    assert not neighbours._fuses(DEVICE, 4, holed=False)
    monkeypatch.undo()
    neighbours._fuses.cache_clear()
    assert neighbours._fuses(DEVICE, 4, holed=False)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")
@pytest.mark.parametrize("holed", [False, True])
def test_a_gpu_finds_by_both_ways_what_a_processor_finds(holed, generator, monkeypatch):
    x, points = torch.randn(8192, 30, generator=generator), torch.randn(5000, 30, generator=generator)
    counted = (torch.rand(8192 if holed else 1, 30, generator=generator) < 0.8).float().squeeze(0)
    there = [value.to(DEVICE) for value in (x * counted, points, counted)]
    assert neighbours._is_fused(*there[:2], holed=holed)
    fused = nearest(*there)
    monkeypatch.setattr(neighbours, "MAX_FUSED", 0)
    other = nearest(*there)
    here = nearest(x * counted, points, counted)
    assert torch.equal(fused.cpu(), here)
    assert torch.equal(other.cpu(), here)
