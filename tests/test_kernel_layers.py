"""By Triton's interpreter where there is no GPU."""

import compiled
import pytest
import torch

from vae_anomaly.fused import LearnedLayers
from vae_anomaly.nets import Layers, linear, trunk
from vae_anomaly.replay import Branch

kernels = pytest.importorskip("vae_anomaly.kernels.layers", reason="needs Triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MODULE = "vae_anomaly.kernels.layers"
HIDDEN = [(), (7, 6), (8, 8, 8), (40, 36)]
N_NETWORKS = 3
# Three times TF32 has the digits of float32, and the sums are others.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
pytestmark = [pytest.mark.filterwarnings("ignore:overflow encountered")]
if DEVICE.type == "cuda":
    pytestmark.append(pytest.mark.gpu)


def layers_of(hidden, n_in=5, n_out=4):
    """Steps of layers, and weights and biases of several networks, as views of one tensor, as they are learned."""
    generator = torch.Generator().manual_seed(0)
    layers = Layers(*trunk(n_in, hidden, generator), linear((n_in, *hidden)[-1], n_out, generator))
    shapes = [value.shape for layer in layers.affine for value in (layer.weight, layer.bias)]
    flat = 0.5 * torch.randn(N_NETWORKS, sum(shape.numel() for shape in shapes), generator=generator)
    parts = torch.split(flat.to(DEVICE), [shape.numel() for shape in shapes], dim=1)
    return layers.steps, [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def both_ways(layers, x, g):
    out, pullback = layers(x)
    branch = Branch(x.device)
    # It may be written over.
    of_x, of_weights = pullback(g.clone(), branch)
    branch.join()
    return [out, of_x, *of_weights]


@pytest.mark.parametrize("n_rows", [1, 37])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_results_and_gradients_are_those_of_the_operations(hidden, n_rows, generator):
    """Rows and columns of all kinds of lengths: fewer than a tile, ragged, and no multiple of four."""
    steps, weights = layers_of(hidden)
    x, g = (torch.randn(N_NETWORKS, n_rows, n, generator=generator).to(DEVICE) for n in (5, 4))
    into = [torch.full_like(value, torch.nan) for value in weights]
    found = both_ways(kernels.FusedLayers(steps, weights, into), x, g)
    torch.testing.assert_close(found, both_ways(LearnedLayers(steps, weights), x, g), **CLOSE)
    assert all(own is place for own, place in zip(found[2:], into, strict=True))


def test_rows_that_begin_where_a_gpu_reads_four_numbers_give_the_same(generator):
    steps, weights = layers_of((24, 24), n_in=12, n_out=8)
    x, g = (torch.randn(N_NETWORKS, 20, n, generator=generator).to(DEVICE) for n in (12, 8))
    found = both_ways(kernels.FusedLayers(steps, weights, [torch.empty_like(value) for value in weights]), x, g)
    wide = [torch.nn.functional.pad(value, (1, 0))[..., 1:] for value in weights]
    assert kernels._options(kernels.OF_SAMPLES, 20, 24, x, weights[0])[1]["QUAD"] == 4
    assert kernels._options(kernels.OF_SAMPLES, 20, 24, x, wide[0])[1]["QUAD"] == 1
    torch.testing.assert_close(found, both_ways(LearnedLayers(steps, weights), x, g), **CLOSE)


def test_the_gradient_of_samples_may_be_left_out(generator):
    steps, weights = layers_of((8, 8))
    x, g = (torch.randn(N_NETWORKS, 9, n, generator=generator).to(DEVICE) for n in (5, 4))
    into = [torch.empty_like(value) for value in weights]
    out, pullback = kernels.FusedLayers(steps, weights, into, wanted=False)(x)
    branch = Branch(x.device)
    nothing, found = pullback(g, branch)
    branch.join()
    assert nothing is None
    torch.testing.assert_close([out, *found], both_ways(LearnedLayers(steps, weights), x, g)[:1] + found)
    torch.testing.assert_close(found, both_ways(LearnedLayers(steps, weights), x, g)[2:], **CLOSE)


def test_columns_become_rows(generator):
    x = torch.randn(2, 37, 70, generator=generator).to(DEVICE)
    assert torch.equal(kernels._turned(x), x.mT)


def test_they_compile_for_a_gpu():
    def program(name, quad, products):
        tile = kernels.OF_WEIGHTS if name == "_learn" else kernels.OF_SAMPLES
        sizes = {"SPLITS": tile.n_warps, "ROWS": tile.rows, "COLUMNS": tile.columns, "FACTORS": tile.factors}
        constants = {**sizes, "QUAD": quad, "PRECISION": products, "EARLY": True}
        options = {"num_warps": tile.n_warps, "num_stages": tile.n_stages, "launch_pdl": True}
        return compiled.Program(MODULE, name, dict.fromkeys(kernels.OF_LAYER, "i32"), constants, options)

    kinds = [("tf32", 4), ("tf32", 1), ("tf32x3", 4)]
    products = [program(name, quad, kind) for name in ("_affine", "_back", "_learn") for kind, quad in kinds]
    lengths = dict.fromkeys(kernels.OF_LAYER, "i32")
    compiled.check(
        [*products, compiled.Program(MODULE, "_turn", lengths, {"SIDE": kernels.TURNED, "EARLY": False}, {})]
    )
