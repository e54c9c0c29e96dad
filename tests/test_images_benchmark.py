"""The benchmark of images runs what is left, and writes its page."""

import gzip
import json
import struct

import numpy as np
import pytest
from benchmarks import load_benchmark


@pytest.fixture(scope="module")
def benchmark():
    return load_benchmark("images")


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """Digits of noise, each with a bright bar in a row of its own."""
    folder, rng = tmp_path_factory.mktemp("mnist"), np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 60).astype(np.uint8)
    images = rng.integers(0, 40, (180, 28, 28)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 + 8 * label :][:3] = 250
    for name, array in (("x-images-idx3-ubyte.gz", images), ("x-labels-idx1-ubyte.gz", labels)):
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (folder / name).write_bytes(gzip.compress(header + array.tobytes()))
    return folder


def test_each_digit_is_told_from_the_others_once(benchmark, mnist, tmp_path, capsys):
    runs = tmp_path / "images.jsonl"
    arguments = ["--mnist", str(mnist), "--parts", "classes", "--digits", "0", "2", "--max-steps", "1"]
    benchmark.main([*arguments, "--runs", str(runs)])
    lines = [json.loads(line) for line in runs.read_text().splitlines()]
    assert {(line["task"], line["method"]) for line in lines} == {
        (f"digit {digit}", method)
        for digit in (0, 2)
        for method in ("pca", "knn", "isolation_forest", "default (max_steps=1)")
    }
    assert all(line["roc_auc"] > 0.95 for line in lines if line["method"].startswith("default"))
    capsys.readouterr()
    benchmark.main([*arguments, "--runs", str(runs)])
    assert capsys.readouterr().out == ""
    benchmark.main(["--table", "--runs", str(runs)])
    assert "| digit 2 | 100.0 |" in runs.with_suffix(".md").read_text()


def test_foreign_images_are_images(benchmark):
    digits = np.zeros((4, 1, 28, 28), np.uint8)
    digits[:, :, 4:24, 12:16] = 255
    found = dict(benchmark.foreign_images(digits, 0))
    assert len(found) == 6
    for name, images in found.items():
        assert images.shape == digits.shape, name
        assert images.dtype == np.uint8
        assert not np.array_equal(images, digits)
    erased = found["a quarter of the strokes erased"]
    share = 1 - (erased > 0).sum(axis=(1, 2, 3)) / (digits > 0).sum(axis=(1, 2, 3))
    assert ((share > 0.2) & (share < 0.45)).all()
