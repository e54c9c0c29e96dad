"""Images of two tones are told from photographs, and come with few pixels."""

import numpy as np
import pytest
from pictures import save
from tables import run

from vae_anomaly.data.drawings import fewer_pixels, is_drawing
from vae_anomaly.data.image_set import ImageSet
from vae_anomaly.detector import load


def strokes(n, height=100, width=100, *, noise=0.0, ground=0, ink=255, seed=0):
    """Crosses of bars on plain ground."""
    rng = np.random.default_rng(seed)
    images = np.full((n, height, width), float(ground))
    for image in images:
        top, left = rng.integers(30, 50, 2)
        image[top : top + 8, 20:80] = ink
        image[20:80, left : left + 8] = ink
    images += noise * rng.normal(size=images.shape)
    return images.clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize(("ground", "ink"), [(0, 255), (255, 0), (200, 40)])
def test_strokes_on_plain_ground_are_a_drawing(ground, ink):
    assert is_drawing(strokes(5, ground=ground, ink=ink).astype(np.float32) / 255)


def test_photographs_are_none():
    rng = np.random.default_rng(0)
    shaded = strokes(5).astype(np.float32) / 255 * np.linspace(0.2, 1, 100, dtype=np.float32)
    noisy = strokes(5, noise=10, ground=128).astype(np.float32) / 255
    assert not is_drawing(np.maximum(shaded, np.linspace(0, 0.5, 100, dtype=np.float32)))
    assert not is_drawing(noisy)
    assert not is_drawing(rng.random((5, 40, 40), np.float32))


def test_a_pattern_that_fills_the_image_is_none():
    """Its small parts count."""
    traces = np.zeros((4, 120, 120), np.float32)
    traces[:, ::12] = traces[:, 1::12] = traces[:, 2::12] = 1.0
    traces[:, :, 60:64] = 1.0
    assert not is_drawing(traces)
    framed = np.pad(traces[:, 20:-20, 20:-20], ((0, 0), (20, 20), (20, 20)))
    assert is_drawing(framed)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((100, 100), (1, 48, 48)),
        ((120, 90), (1, 48, 36)),
        ((64, 64), (1, 64, 64)),
        ((28, 28), (1, 28, 28)),
        ((90, 2000), (1, 8, 48)),
    ],
)
def test_drawings_have_48_pixels_where_they_are_larger(shape, expected):
    page = np.zeros((3, *shape), np.uint8)
    page[:, shape[0] // 4 : shape[0] // 3, 10:-10] = 255
    assert fewer_pixels(ImageSet.from_array(page, size=shape), more_than=4096).shape[1:] == expected


def test_colour_that_is_none_is_dropped_and_other_colour_kept():
    grey = np.repeat(strokes(4)[..., None], 3, axis=3)
    red = grey.copy()
    red[..., 1:] = 0
    assert fewer_pixels(ImageSet.from_array(grey), more_than=4096).shape[1:] == (1, 48, 48)
    assert fewer_pixels(ImageSet.from_array(red), more_than=4096).shape[1:] == (3, 36, 36)


def test_what_can_not_be_decoded_decides_nothing(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"")
    broken = ImageSet.from_files([str(tmp_path / "broken.png")] * 3, size=100, channels=1)
    assert fewer_pixels(broken, more_than=4096) is broken


@pytest.mark.parametrize(
    ("options", "shape"),
    [([], (1, 48, 48)), (["--size", "80"], (1, 80, 80)), (["--backbone", "gabor"], (1, 100, 100))],
)
def test_fit_takes_few_pixels_unless_told_otherwise(options, shape, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index, image in enumerate(strokes(24)):
        save(f"good/{index}.png", image)
    small = ["--estimators", "2", "--max-steps", "2", "--fpr", "0.2", "--hidden", "8"]
    result = run("fit", "good", "-o", "m.safetensors", *small, *options)
    assert load("m.safetensors").schema_.shape == shape
    assert ("few tones" in result.stderr) == (not options)
    run("score", "m.safetensors", "good", "-o", "s.csv", "--maps", "maps")
