import errno
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from tables import numbers, read_predictions, run
from test_cli_bad_images import save
from test_pixels import SMALL, discs

from vae_anomaly import predictions, scoring, scratch
from vae_anomaly.data.decode_once import decode_once
from vae_anomaly.data.image_set import ImageSet
from vae_anomaly.data.images import read_images
from vae_anomaly.detector import VAEDetector, load
from vae_anomaly.pixels import PixelSchema, pixels
from vae_anomaly.scratch import blocks, on_disk, scratch_array
from vae_anomaly.streaming import RowsOnDisk, rows_of

OPTIONS = ("--net", "mlp", "--latent-dim", 2, "--max-steps", 20, "--estimators", 2, "--hidden", "8", "--fpr", 0.2)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows, so that small sets are walked through in parts."""
    monkeypatch.setattr(scratch, "ENTRIES_AT_ONCE", 30_000)
    monkeypatch.setattr(scoring, "MAX_SCORING_ENTRIES", 10_000)
    monkeypatch.setattr(predictions, "MAX_PIXELS_AT_ONCE", 1000)


def stored(array):
    """A copy on disk."""
    copy = scratch_array(array.shape)
    copy[:] = array
    return copy


def test_a_scratch_array_holds_what_is_written_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    array = scratch_array((1000, 7))
    array[:] = np.arange(7000).reshape(1000, 7)
    assert array[999, 6] == 6999
    assert array.dtype == np.float32
    assert list(tmp_path.iterdir()) == []
    assert on_disk(array)
    assert on_disk(array[3:5])
    assert not on_disk(array[[3, 5]])
    assert scratch_array((0, 7)).shape == (0, 7)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the room is not reserved here")
def test_no_room_ends_in_a_sentence(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"0\.028 GB do not fit into .*; set TMPDIR to another folder"):
        scratch_array((1000, 7000))
    monkeypatch.chdir(tmp_path)
    save("parts", n=20)
    result = run("fit", "parts", "-o", "m.safetensors", "--cache-gb", 0, *OPTIONS, exit_code=1)
    assert "GB do not fit into" in result.stderr
    assert not Path("m.safetensors").exists()


@pytest.mark.parametrize("multiple", [1, 3, 512])
@pytest.mark.parametrize("n_rows", [0, 1, 700, 2000])
def test_blocks_cover_all_rows_once(n_rows, multiple, small_blocks):
    found = list(blocks(n_rows, 10, multiple))
    assert [row for block in found for row in range(n_rows)[block]] == list(range(n_rows))
    assert all((block.stop - block.start) % multiple == 0 for block in found[:-1])


def test_rows_on_disk_answer_as_a_tensor_does(rng):
    array = rng.random((9, 3)).astype(np.float32)
    rows, tensor = RowsOnDisk(stored(array), torch.device("cpu")), torch.from_numpy(array)
    chosen = torch.tensor([[8, 0], [3, 3]])
    assert torch.equal(rows_of(rows, chosen), tensor[chosen])
    assert torch.equal(rows_of(tensor, chosen), tensor[chosen])
    assert torch.equal(rows[2:5], tensor[2:5])
    assert (rows.shape, len(rows), rows.device) == (tensor.shape, 9, tensor.device)


@pytest.mark.parametrize("scaling", ["standard", "unit"])
def test_images_on_disk_are_encoded_alike(scaling, small_blocks):
    images = discs(60, channels=3)
    images[7] = np.nan
    schema = PixelSchema.infer(images, scaling=scaling, rows=np.arange(50))
    kept = images[:50][~np.isnan(images[:50]).any(axis=(1, 2, 3))].astype(np.float64)
    if scaling == "standard":
        np.testing.assert_allclose(schema.center, kept.mean(axis=(0, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(schema.scale, kept.std(axis=(0, 2, 3)), rtol=1e-6)
    on_file = stored(images)
    assert PixelSchema.infer(on_file, scaling=scaling, rows=np.arange(50)) == schema
    encoded = schema.encode(on_file)
    assert on_disk(encoded)
    assert np.array_equal(encoded, schema.encode(images), equal_nan=True)


def test_other_numbers_on_disk_stay_there(tmp_path, small_blocks):
    whole = (discs(60) * 255).round().astype(np.uint8)
    np.save(tmp_path / "x.npy", whole)
    found = pixels(np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert on_disk(found)
    assert np.array_equal(found, pixels(whole))
    assert not on_disk(pixels(whole))


@pytest.mark.parametrize("n", [80, 2000])
def test_a_fit_from_disk_is_that_from_memory(n, small_blocks):
    images = discs(n)
    options = {"net": "mlp", **SMALL, "max_steps": 20}
    in_memory, from_disk = (VAEDetector(**options).fit(x) for x in (images, stored(images)))
    new = discs(20, 3)
    assert np.array_equal(from_disk.anomaly_score(new), in_memory.anomaly_score(new))
    assert np.array_equal(from_disk.anomaly_score(stored(new)), in_memory.anomaly_score(new))
    assert np.array_equal(from_disk.calibration_scores_, in_memory.calibration_scores_)
    assert from_disk.fingerprint_ == in_memory.fingerprint_
    assert from_disk.seen_rows(images) == in_memory.seen_rows(images)
    assert from_disk.seen_rows(images)["training"] == in_memory.n_rows_["train"]
    assert np.array_equal(from_disk.usual_shares_, in_memory.usual_shares_)


@pytest.mark.parametrize("fit_on", ["images", "table"])
def test_parts_change_no_score(fit_on, monkeypatch):
    X = discs(80) if fit_on == "images" else numbers(200)
    whole = VAEDetector(**SMALL).fit(X)
    monkeypatch.setattr(scratch, "ENTRIES_AT_ONCE", 500)
    in_parts = VAEDetector(**SMALL).fit(X)
    np.testing.assert_allclose(in_parts.calibration_scores_, whole.calibration_scores_, rtol=1e-4)


def test_what_is_on_disk_takes_no_memory():
    images = stored(np.random.default_rng(0).random((400, 1, 48, 48)).astype(np.float32))

    def peak(x):
        tracemalloc.start()
        VAEDetector(net="mlp", max_steps=2, n_estimators=1, hidden=(4,), latent_dim=2).fit(x)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    saved = scratch.ENTRIES_AT_ONCE
    try:
        scratch.ENTRIES_AT_ONCE = 48 * 48 * 20
        assert peak(np.array(images)) - peak(images) > 0.8 * images.nbytes
    finally:
        scratch.ENTRIES_AT_ONCE = saved


def test_images_are_decoded_once_and_broken_ones_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("parts", n=7)
    Path("parts/0_003.png").write_bytes(b"")
    images = read_images("parts").X
    seen = []
    in_memory = decode_once(images, cache_gb=1, on_part=seen.append)
    on_file = decode_once(images, cache_gb=1e-9)
    assert sum(seen) == 7
    assert (on_disk(in_memory.x), on_disk(on_file.x)) == (False, True)
    expected, reasons = images.load()
    for found in (in_memory, on_file):
        assert found.reasons.tolist() == reasons.tolist()
        assert np.array_equal(found.x, expected[reasons == ""])


def test_the_limit_is_that_of_the_decoded_images():
    images = ImageSet.from_array(np.zeros((10, 8, 8), np.uint8))
    n_bytes = 10 * 8 * 8 * 4
    assert not on_disk(decode_once(images, cache_gb=n_bytes / 1e9).x)
    assert on_disk(decode_once(images, cache_gb=(n_bytes - 1) / 1e9).x)


def test_the_command_line_streams_and_says_how_fast(tmp_path, monkeypatch, small_blocks):
    monkeypatch.chdir(tmp_path)
    save("parts", n=30)
    result = run("fit", "parts", "-o", "a.safetensors", *OPTIONS)
    assert "Decoded 30 images, " in result.stderr
    assert "a second." in result.stderr
    assert "images" not in run("fit", "parts", "-o", "b.safetensors", "--cache-gb", 0, "-q", *OPTIONS).stderr
    for name in "ab":
        result = run("score", f"{name}.safetensors", "parts", "-o", f"{name}.csv", "--maps", f"maps_{name}")
        assert "Scored 30 images, " in result.stderr
    a, b = (read_predictions(f"{name}.csv") for name in "ab")
    assert a.equals(b)
    assert np.array_equal(np.load("maps_a/0_003.npy"), np.load("maps_b/0_003.npy"))


def test_calibration_streams_too(tmp_path, monkeypatch, small_blocks):
    monkeypatch.chdir(tmp_path)
    VAEDetector(net="mlp", **SMALL).fit(discs(60)).save("m.safetensors")
    save("more", n=40, seed=3)
    Path("more/3_007.png").write_bytes(b"")
    for name, gigabytes in (("a", 2), ("b", 0)):
        run("calibrate", "m.safetensors", "more", "-o", f"{name}.safetensors", "--fpr", 0.1, "--cache-gb", gigabytes)
    a, b = (load(f"{name}.safetensors") for name in "ab")
    assert len(a.calibration_scores_) == 39
    assert np.array_equal(a.calibration_scores_, b.calibration_scores_)
    assert a.seen_rows(discs(60)) == b.seen_rows(discs(60))


def test_a_report_in_parts_is_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("parts/good", n=30)
    save("parts/other", n=20, seed=5)
    run("fit", "parts/good", "-o", "m.safetensors", *OPTIONS)
    options = ("m.safetensors", "parts", "--normal-class", "good", "-q")
    run("report", *options, "-o", "whole")
    monkeypatch.setattr(predictions, "MAX_PIXELS_AT_ONCE", 2000)
    largest = []
    monkeypatch.setattr(predictions, "_decoded", recording(predictions._decoded, largest))
    run("report", *options, "-o", "parts_of_it", "--cache-gb", 0)
    # No more than 13 at a time, but for the 20 that are shown.
    assert max(largest) <= 20
    whole, in_parts = (json.loads(Path(f, "metrics.json").read_text()) for f in ("whole", "parts_of_it"))
    assert whole["seen_rows"]["training"] == 30
    assert whole == in_parts


def recording(function, sizes):
    def counting(images):
        sizes.append(len(images))
        return function(images)

    return counting
