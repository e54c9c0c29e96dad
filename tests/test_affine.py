"""Products of affine maps of several networks, by any device, by a processor, and rounded."""

import pytest
import torch

from vae_anomaly.affine import ProcessorProducts, Products, RoundedProducts, affine_maps


@pytest.mark.parametrize("n_networks", [1, 3])
@pytest.mark.parametrize("width", [1, 6, 11, 12])
def test_narrow_results_come_the_other_way_round(width, n_networks, generator):
    (own,) = affine_maps([torch.randn(n_networks, *shape, generator=generator) for shape in ((96, width), (96,))])
    x, g = (torch.randn(n_networks, 50, n, generator=generator) for n in (width, 96))
    plain, turning = Products(), ProcessorProducts()
    of_x, of_weight = turning.back(g, own), turning.of_weight(g, x, None)
    as_they_are = width in (1, 12)
    assert (of_x.is_contiguous(), of_weight.is_contiguous()) == (as_they_are, as_they_are)
    torch.testing.assert_close([of_x, of_weight], [plain.back(g, own), plain.of_weight(g, x, None)])
    into = torch.empty_like(own.weight)
    assert turning.of_weight(g, x, into) is into
    torch.testing.assert_close(into, of_weight)


@pytest.mark.parametrize("n_networks", [1, 3])
def test_large_products_are_of_rounded_numbers(n_networks, generator):
    """And small ones are what they always are, bit for bit."""
    few, many = (torch.randn(n_networks, n, 200, generator=generator) for n in (4, 300))
    (own,) = affine_maps([torch.randn(n_networks, *shape, generator=generator) for shape in ((200, 200), (200,))])
    g, plain, rounded = torch.randn_like(many), ProcessorProducts(), RoundedProducts()

    def found(by, x, g):
        inputs, factors = by.factors(x, own)
        factor = by.factor(g, inputs)
        return [by.mapped(inputs, factors), by.back(factor, factors), by.of_weight(factor, inputs, None)]

    torch.testing.assert_close(found(rounded, few, g[:, :4]), found(plain, few, g[:, :4]), rtol=0, atol=0)
    for low, full, length in zip(found(rounded, many, g), found(plain, many, g), (200, 200, 300), strict=True):
        assert low.dtype == full.dtype
        error = (low - full).std() / length**0.5
        # Half a unit of the eighth binary digit, at most, of each factor and of the sum.
        assert 0.0 < error < 2**-8
    into, inputs = torch.empty_like(own.weight), many.bfloat16()
    factor = rounded.factor(g, inputs)
    assert rounded.of_weight(factor, inputs, into) is into
    assert torch.equal(into, rounded.of_weight(factor, inputs, None))
