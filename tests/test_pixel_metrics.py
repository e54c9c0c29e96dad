import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from vae_anomaly.pixel_metrics import evaluate_pixels, stretched, to_json


def naive_aupro(maps, masks, max_fpr):
    """Per-region overlap at every threshold there is, one after the other, and the area under it by trapezoids."""
    regions = []
    for number, mask in enumerate(masks):
        labels, n = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(number, labels == region) for region in range(1, n + 1)]
    normal = ~masks
    points = [(0.0, 0.0)]
    for threshold in sorted(set(maps.ravel()), reverse=True):
        flagged = maps >= threshold
        fpr = (flagged & normal).sum() / normal.sum()
        points.append((fpr, np.mean([flagged[number][region].mean() for number, region in regions])))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= max_fpr or x1 == x0:
            continue
        end = min(x1, max_fpr)
        area += (end - x0) * (y0 + 0.5 * (end - x0) / (x1 - x0) * (y1 - y0))
    return area / max_fpr


def random_maps(seed, n=6, size=14, levels=None):
    """Maps and masks with regions of several sizes; the maps of defects are a little higher."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, size, size), bool)
    for mask in masks[1:]:
        for _ in range(2):
            y, x, side = *rng.integers(0, size - 4, 2), rng.integers(1, 5)
            mask[y : y + side, x : x + side] = True
    maps = rng.normal(size=masks.shape) + 0.8 * masks
    return np.round(maps * levels) / levels if levels else maps, masks


@pytest.mark.parametrize("max_fpr", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize("seed", range(3))
def test_areas_are_those_of_a_naive_implementation(seed, levels, max_fpr):
    maps, masks = random_maps(seed, levels=levels)
    found = evaluate_pixels(zip(maps, masks, strict=True), max_fpr=max_fpr)
    assert abs(found.aupro - naive_aupro(maps, masks, max_fpr)) <= found.aupro_tolerance + 1e-9
    assert abs(found.roc_auc - roc_auc_score(masks.ravel(), maps.ravel())) <= found.roc_auc_tolerance + 1e-9
    assert found.aupro_tolerance < 2e-3
    assert found.roc_auc_tolerance < 1e-3
    if levels:
        # Quarters have bins of their own, so that nothing is lost, ties or not.
        assert found.roc_auc_tolerance == found.aupro_tolerance == 0.0


def test_a_small_defect_counts_as_much_as_a_large_one():
    anomaly_map, mask = np.zeros((10, 10)), np.zeros((10, 10), bool)
    mask[:4, :5] = mask[8, 8] = True
    anomaly_map[8, 8] = 1.0  # the one pixel is found before all, the 20 others come with all normal pixels
    found = evaluate_pixels([(anomaly_map, mask)])
    # The overlap goes straight from (0, 1/2) to (1, 1).
    assert found.aupro == pytest.approx(0.5 + 0.5 * 0.3 / 2)
    assert found.roc_auc == pytest.approx(1 / 21 + 20 / 21 / 2)
    assert (found.n_regions, found.n_defect_pixels, found.n_pixels, found.n_images) == (2, 21, 100, 1)


def test_corners_join_a_region_and_a_gap_does_not():
    mask = np.eye(4, dtype=bool)
    assert evaluate_pixels([(mask * 1.0, mask)]).n_regions == 1
    mask = np.array([[True, False, True]])
    assert evaluate_pixels([(mask * 1.0, mask)]).n_regions == 2


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, 0.0), (0, None)])
def test_perfect_inverted_and_constant_maps(sign, expected):
    _, masks = random_maps(0)
    found = evaluate_pixels((sign * mask, mask) for mask in masks)
    assert found.roc_auc == pytest.approx(0.5 if expected is None else expected)
    assert found.aupro == pytest.approx(0.15 if expected is None else expected)
    assert found.roc_auc_tolerance == 0.0


def test_the_uniform_case_in_closed_form():
    # Defects 1 - u**2 and normal pixels u, u even in (0, 1): recall at false-positive rate x is sqrt(x).
    u = (np.arange(40_000) + 0.5) / 40_000
    values = np.stack([1 - u**2, 1 - u])
    found = evaluate_pixels([(values, np.array([[True], [False]]).repeat(len(u), axis=1))])
    assert found.roc_auc == pytest.approx(2 / 3, abs=1e-4)
    assert found.aupro == pytest.approx(2 / 3 * 0.3**0.5, abs=1e-4)
    np.testing.assert_allclose(found.recall, np.sqrt(found.fpr), atol=5e-3)
    np.testing.assert_allclose(found.overlap, found.recall, atol=1e-9)


def test_neither_order_nor_a_rising_change_of_the_values_matters():
    maps, masks = random_maps(3)
    found = evaluate_pixels(zip(maps, masks, strict=True))
    again = evaluate_pixels(zip(1000 * maps[::-1], masks[::-1], strict=True))
    assert again.aupro == pytest.approx(found.aupro, abs=found.aupro_tolerance + again.aupro_tolerance)
    assert again.roc_auc == pytest.approx(found.roc_auc, abs=found.roc_auc_tolerance + again.roc_auc_tolerance)


def test_infinite_values_are_the_highest_and_the_lowest():
    found = evaluate_pixels([(np.array([[np.inf, 3e38, -np.inf, -0.0]]), np.array([[True, True, False, False]]))])
    assert found.roc_auc == 1.0


def test_memory_does_not_grow_with_the_images():
    maps, masks = random_maps(0, n=4, size=64)

    def peak(repeats):
        tracemalloc.start()
        evaluate_pixels((m, mask) for _ in range(repeats) for m, mask in zip(maps, masks, strict=True))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(10) < peak(1) + 1_000_000


def test_without_a_defect_or_a_normal_pixel_there_is_nothing_to_say():
    assert evaluate_pixels([]) is None
    assert evaluate_pixels([(np.ones((2, 2)), np.zeros((2, 2), bool))]) is None
    assert evaluate_pixels([(np.ones((2, 2)), np.ones((2, 2), bool))]) is None


@pytest.mark.parametrize(("anomaly_map", "mask", "sentence"), [
    (np.ones((2, 2)), np.ones((2, 3), bool), r"shape \(2, 2\) and its mask \(2, 3\)"),
    (np.full((2, 2), np.nan), np.ones((2, 2), bool), "A map holds NaN"),
])  # fmt: skip
def test_what_can_not_be_counted_is_refused(anomaly_map, mask, sentence):
    with pytest.raises(ValueError, match=sentence):
        evaluate_pixels([(anomaly_map, mask)])


@pytest.mark.parametrize("max_fpr", [0.0, -1.0, 1.5, float("nan")])
def test_rates_that_are_none(max_fpr):
    with pytest.raises(ValueError, match="must lie above 0"):
        evaluate_pixels([], max_fpr=max_fpr)


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (5, 3), (1, 1)])
def test_a_stretched_map_is_that_of_torch(size):
    import torch

    rng = np.random.default_rng(0)
    anomaly_map = rng.random((8, 6)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(anomaly_map)[None, None], size, mode="bilinear")
    np.testing.assert_allclose(stretched(anomaly_map, size), expected[0, 0].numpy(), atol=1e-6)


def test_figures_say_how_exact_they_are():
    maps, masks = random_maps(1)
    found = evaluate_pixels(zip(maps, masks, strict=True))
    figures = to_json(found)
    assert figures["aupro"]["value"] == found.aupro
    assert "up to 30 %" in figures["aupro"]["method"]
    assert f"off by at most {found.roc_auc_tolerance:.1g}" in figures["pixel_roc_auc"]["method"]
    assert figures["pixels"]["n_regions"] == found.n_regions
