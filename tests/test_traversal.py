from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tables import TINY, numbers, run
from test_pixels import SMALL, discs

from vae_anomaly.detector import VAEDetector
from vae_anomaly.errors import DataError
from vae_anomaly.traversal import between, traverse


@pytest.fixture(scope="module")
def detector():
    return VAEDetector(net="mlp", **SMALL).fit(discs(120))


@pytest.fixture(scope="module")
def table():
    return VAEDetector(**TINY).fit(numbers())


@pytest.fixture
def folder(tmp_path, monkeypatch, detector):
    """Where two images, the model and a model of a table are."""
    monkeypatch.chdir(tmp_path)
    for name, image in zip("ab", discs(2, 7), strict=True):
        Image.fromarray((image[0] * 255).astype(np.uint8)).save(f"{name}.png")
    detector.save("disc.safetensors")
    return tmp_path


@pytest.mark.parametrize("member", [0, 1])
def test_each_row_moves_one_active_unit(detector, member):
    found = traverse(detector, member=member, n_steps=5)
    variances = detector.training_codes(member=member).var(axis=0)
    assert len(found.units) == (variances > 0.01).sum() == detector.active_units_[member]
    assert found.variances.tolist() == sorted(variances[variances > 0.01], reverse=True)
    assert found.images.shape == (len(found.units), 5, 1, 12, 12)
    assert 0 <= found.images.min() <= found.images.max() <= 1
    # In the middle of each row stands the prior's mean.
    assert (found.images[:, 2] == found.images[0, 2]).all()
    for row, unit in enumerate(found.units):
        codes = np.zeros((1, 4))
        codes[0, unit] = 1.5
        np.testing.assert_allclose(found.images[row, 3], detector.decode(codes, member=member)[0], atol=1e-6)
    # The most active unit changes more than nothing.
    assert np.ptp(found.images[0], axis=0).max() > 0.05


def test_the_number_of_units_is_bounded(detector):
    assert len(traverse(detector, max_units=2).units) == 2


@pytest.mark.parametrize("prior", ["gaussian_mixture", "vamp"])
def test_the_scale_is_that_of_the_prior(prior):
    detector = VAEDetector(net="mlp", prior=prior, **SMALL).fit(discs(60))
    pz = next(iter(detector.ensemble_.members())).pz()
    found = traverse(detector, n_steps=3)
    mean, scale = pz.mean.detach().numpy(), pz.variance.sqrt().detach().numpy()
    codes = np.array([mean - 3 * scale * (np.arange(4) == found.units[0])])
    np.testing.assert_allclose(found.images[0, 0], detector.decode(codes)[0], atol=1e-5)


def test_the_ends_of_the_line_are_the_reconstructions(detector):
    ends = discs(2, 7)
    found = between(detector, *ends, n_images=5)
    np.testing.assert_allclose(found[[0, -1]], detector.reconstruct(ends), atol=1e-5)
    assert np.array_equal(between(detector, *ends[::-1], n_images=5)[2], found[2])
    distances = np.abs(found - found[:1]).mean(axis=(1, 2, 3))
    assert (np.diff(distances) > 0).all()


def test_codes_and_decoding_are_those_of_reconstruct(detector):
    images = discs(5, 8)
    decoded = [detector.decode(detector.latent(images, member=member), member=member) for member in range(2)]
    np.testing.assert_allclose(np.mean(decoded, axis=0), detector.reconstruct(images), atol=1e-5)


def test_tables_are_decoded_too(table):
    X = numbers(5, 1)
    decoded = [table.decode(table.latent(X, member=member), member=member) for member in range(2)]
    wanted = table.reconstruct(X).to_numpy()
    spread = np.std(numbers(), axis=0)
    assert (np.abs(np.mean(decoded, axis=0) - wanted) <= 0.1 * spread + 0.1 * np.abs(wanted)).all()
    with pytest.raises(ValueError, match=r"codes has shape \(3,\), expected \(n_samples, 4\)"):
        table.decode([1, 2, 3])


def test_what_can_not_be_looked_at(detector, table):
    with pytest.raises(DataError, match="fitted on a table"):
        traverse(table)
    with pytest.raises(DataError, match="fitted on a table"):
        between(table, *discs(2))
    with pytest.raises(DataError, match=r"Images of shape \(1, 12, 5\) were given, and the model knows"):
        between(detector, *discs(2)[..., :5])
    with pytest.raises(DataError, match="holds NaN"):
        between(detector, *np.full((2, 1, 12, 12), np.nan))
    with pytest.raises(ValueError, match="n_images=1 must be at least 2"):
        between(detector, *discs(2), n_images=1)


def test_a_collapsed_model_has_nothing_to_move():
    with pytest.warns(UserWarning, match="Posterior collapse"):
        detector = VAEDetector(net="mlp", beta=1000.0, warmup=0.0, **SMALL).fit(discs(60))
    with pytest.raises(DataError, match="No latent unit of member 0 is active"):
        traverse(detector)


def test_sheets(folder, detector):
    result = run("sample", "disc.safetensors", "--traverse", "-n", 3, "-o", "t.png")
    n_units = min(3, detector.active_units_[0])
    assert Image.open("t.png").size == (7 * 14 + 2, n_units * 14 + 2)
    assert "Columns go from -3 to 3 scales of the prior." in result.stderr
    run("sample", "disc.safetensors", "--between", "a.png", "b.png", "-n", 4, "-o", "b.npy")
    first, second = (np.asarray(Image.open(f"{name}.png"), np.float32)[None] / 255 for name in "ab")
    np.testing.assert_allclose(np.load("b.npy")[..., 0], between(detector, first, second, n_images=4)[:, 0], atol=1e-6)
    run("sample", "disc.safetensors", "--between", "a.png", "b.png", "-o", "b.png", "-q", "--overwrite", exit_code=2)
    assert run("sample", "disc.safetensors", "--between", "a.png", "b.png", "-o", "t.png", "-q", "--overwrite")
    # Images of any size are resized, as score does it.
    Image.open("a.png").resize((40, 30)).save("large.png")
    run("sample", "disc.safetensors", "--between", "large.png", "a.png", "-o", "l.png")
    assert Image.open("l.png").size == (10 * 14 + 2, 14 + 2)


@pytest.mark.parametrize(("arguments", "exit_code", "sentence"), [
    (("--between", "a.png", "gone.png"), 3, "gone.png does not exist."),
    (("--between", "a.png", "broken.png"), 3, "broken.png: the file is empty."),
    (("--between", "a.png", "many.npy"), 3, "many.npy holds 3 images. Name a file with one."),
    (("--between", "a.png", "a.png", "-n", 1), 2, "-n 1: between two images there are at least 2"),
    (("--between", "a.png", "a.png", "--traverse"), 2, "--traverse and --between are two sheets"),
])  # fmt: skip
def test_bad_input_ends_in_a_sentence(folder, arguments, exit_code, sentence):
    Path("broken.png").touch()
    np.save("many.npy", np.zeros((3, 12, 12), np.uint8))
    result = run("sample", "disc.safetensors", *arguments, "-o", "x.png", exit_code=exit_code)
    assert sentence in result.stderr
    assert not Path("x.png").exists()


def test_tables_and_other_outputs_are_refused(folder, table):
    table.save("table.safetensors")
    result = run("sample", "table.safetensors", "--traverse", "-o", "x.png", exit_code=2)
    assert "--traverse is for images, and table.safetensors was fitted on a table." in result.stderr
    result = run("sample", "table.safetensors", "--between", "a.png", "b.png", "-o", "x.png", exit_code=2)
    assert "--between is for images" in result.stderr
    result = run("sample", "disc.safetensors", "--traverse", exit_code=2)
    assert "images go to a file that ends in .png" in result.stderr


def test_features_have_no_way_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).random((40, 1, 16, 16)).astype(np.float32)
    detector = VAEDetector(backbone="gabor", fpr=0.2, **{**TINY, "max_steps": 5}).fit(images)
    detector.save("gabor.safetensors")
    for arguments in (("--traverse",), ("--between", "a.png", "b.png")):
        for name in "ab":
            Image.fromarray((images[0, 0] * 255).astype(np.uint8)).save(f"{name}.png")
        result = run("sample", "gabor.safetensors", *arguments, "-o", "x.png", exit_code=2)
        assert "features" in result.stderr
        assert not Path("x.png").exists()
