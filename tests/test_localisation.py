import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from tables import run
from test_pixels import SMALL, discs

from vae_anomaly.data.decoding import UndecodableError
from vae_anomaly.data.images import read_images
from vae_anomaly.data.masks import read_mask
from vae_anomaly.detector import VAEDetector
from vae_anomaly.heat_maps import anomaly_maps
from vae_anomaly.localisation import localisation


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    """Model and images in the layout of MVTec AD; each hole has a mask."""
    folder = tmp_path_factory.mktemp("plant")
    for number, image in enumerate(discs(12, 1)):
        save(folder / f"disc/test/good/{number:03}.png", (image[0] * 255).astype(np.uint8))
    mask = np.zeros((12, 12), np.uint8)
    mask[5:8, 5:8] = 255
    for number, image in enumerate(discs(6, 2, holes=True)):
        save(folder / f"disc/test/hole/{number:03}.png", (image[0] * 255).astype(np.uint8))
        save(folder / f"disc/ground_truth/hole/{number:03}_mask.png", mask)
    (folder / "disc/train/good").mkdir(parents=True)
    shutil.copy(folder / "disc/test/good/000.png", folder / "disc/train/good/000.png")
    VAEDetector(net="mlp", **SMALL).fit(discs(120)).save(folder / "disc.safetensors")
    return folder


@pytest.fixture
def detector(plant):
    from vae_anomaly import load

    return load(plant / "disc.safetensors")


@pytest.fixture
def disc(plant, tmp_path):
    """A copy of the images that a test may spoil."""
    shutil.copytree(plant / "disc", tmp_path / "disc")
    return tmp_path / "disc"


def of_the_test(folder):
    images = read_images(folder, size=(12, 12), channels=1)
    return images.take(images.splits == "test")


def test_maps_find_the_holes(detector, disc):
    images = of_the_test(disc)
    found = localisation(detector, images)
    assert found.notes == []
    assert (found.evaluation.n_images, found.evaluation.n_regions) == (18, 6)
    assert found.evaluation.n_defect_pixels == 6 * 9
    maps = anomaly_maps(detector, images.X.load()[0])
    masks = np.zeros(maps.shape, bool)
    masks[12:, 5:8, 5:8] = True
    expected = roc_auc_score(masks.ravel(), maps.ravel().astype(np.float32))
    assert abs(found.evaluation.roc_auc - expected) <= found.evaluation.roc_auc_tolerance + 1e-9
    assert found.evaluation.roc_auc > 0.9
    assert found.evaluation.aupro > 0.7


def test_masks_count_at_the_size_of_the_image(detector, disc):
    for path in disc.rglob("*.png"):
        with Image.open(path) as image:
            image.resize((36, 24), Image.Resampling.NEAREST).save(path)
    found = localisation(detector, of_the_test(disc))
    assert found.evaluation.n_pixels == 18 * 24 * 36
    assert found.evaluation.n_defect_pixels == 6 * 9 * 6
    assert found.evaluation.roc_auc > 0.9


def test_masks_that_can_not_be_used_are_named_and_left_out(detector, disc):
    masks = disc / "ground_truth/hole"
    (masks / "000_mask.png").unlink()
    save(masks / "001_mask.png", np.zeros((12, 12), np.uint8))
    save(masks / "002_mask.png", np.full((6, 12), 255, np.uint8))
    (masks / "003_mask.png").write_bytes(b"")
    (disc / "test/hole/004.png").unlink()
    (disc / "test/hole/005.png").write_bytes(b"\x89PNG no")
    save(masks / "lost_mask.png", np.full((12, 12), 255, np.uint8))
    images = of_the_test(disc)
    found = localisation(detector, images)
    assert found.evaluation is None
    assert found.notes[0] == "1 anomaly has no mask: left out of pixel figures."
    assert found.notes[1].startswith("3 masks can't be used, such as ")
    assert "001_mask.png: it is black throughout, so it marks nothing" in found.notes[1]
    assert found.notes[2].startswith("2 masks have no image, such as ")
    assert len(found.notes) == 3


def test_without_masks_nothing_is_said(detector, disc):
    shutil.rmtree(disc / "ground_truth")
    assert localisation(detector, of_the_test(disc)) is None


def test_the_report_has_the_figures(plant, disc, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (disc / "ground_truth/hole/000_mask.png").rename(disc / "ground_truth/hole/lost_mask.png")
    result = run("report", plant / "disc.safetensors", disc, "-o", "out", "--no-scores")
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["pixels"]["n_regions"] == 5
    assert 0.9 < metrics["pixel_roc_auc"]["value"] <= 1
    assert f"AUPRO              {metrics['aupro']['value']:.4f}" in result.stderr
    assert "1 mask has no image, such as" in result.stderr
    page = Path("out/report.html").read_text()
    assert "Do the maps point at the defects?" in page
    assert "1 anomaly has no mask" in page
    assert "lost_mask.png" in page
    assert f"{metrics['aupro']['value']:.3f}" in page


@pytest.mark.parametrize(("pixels", "sentence"), [
    (np.zeros((4, 6), np.uint8), "black throughout"),
    (np.ones((6, 4), np.uint8), "it has 4 x 6 pixels, and its image has 6 x 4"),
])  # fmt: skip
def test_masks_that_mark_nothing(tmp_path, pixels, sentence):
    save(tmp_path / "m.png", pixels)
    with pytest.raises(UndecodableError, match=sentence):
        read_mask(tmp_path / "m.png", (4, 6))


@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_white_is_the_brightest(tmp_path, white, channels):
    where = np.array([[True, False, True], [False, False, True]])
    grey = where.astype(np.uint8) * white
    save(tmp_path / "m.png", grey if channels == 1 else np.stack([grey, 0 * grey, 0 * grey], axis=-1))
    assert np.array_equal(read_mask(tmp_path / "m.png", (2, 3)), where)
