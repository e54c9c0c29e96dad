import json

import numpy as np
import pytest
from PIL import Image
from tables import mixed, read_predictions, run
from test_features import cloth

from vae_anomaly import scoring, splitting, tiles
from vae_anomaly.detector import VAEDetector, load
from vae_anomaly.errors import DataError, ModelFileError
from vae_anomaly.heat_maps import anomaly_maps
from vae_anomaly.persistence import load_model, save_model
from vae_anomaly.pixels import PixelSchema
from vae_anomaly.scores import SCORES
from vae_anomaly.tiles import TileSchema, some_tiles, starts

SMALL = {"tile": 16, "max_steps": 40, "n_estimators": 2, "hidden": (16,), "latent_dim": 4, "fpr": 0.2}
OPTIONS = ("--tile", 32, "--latent-dim", 4, "--max-steps", 40, "--estimators", 2, "--hidden", "16", "--fpr", 0.2)
KINDS = {"pixels": {}, "features": {"backbone": "gabor"}}


def large(n, seed=0, *, spot=None, shape=(1, 28, 36)):
    """Stripes with a phase of their own, and a square without any at a place."""
    channels, height, width = shape
    images = cloth(n, seed, channels=channels, size=max(height, width))[:, :, :height, :width].copy()
    if spot is not None:
        y, x = spot
        images[:, :, y : y + 6, x : x + 6] = 0.5
    return images


def schema_of(images, tile):
    return TileSchema(
        images.shape[1:], PixelSchema.infer(some_tiles(images, np.arange(len(images)), tile, 0), scaling="unit")
    )


@pytest.fixture(scope="module", params=KINDS)
def detector(request):
    return VAEDetector(**SMALL, **KINDS[request.param]).fit(large(40))


@pytest.mark.parametrize("tile", [8, 9, 16])
@pytest.mark.parametrize("side", [16, 17, 23, 24, 40, 41])
def test_tiles_cover_each_side_and_overlap(side, tile):
    found = starts(side, tile)
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (0, side - tile)
    assert max(np.diff([*found, found[-1]])) <= tile // 2
    covered = np.zeros(side, dtype=int)
    for start in found:
        covered[start : start + tile] += 1
    assert covered.min() >= 1
    # Whatever lies away from the edges is whole in some tile, if it has half the size of one.
    for place in range(side - tile // 2):
        assert any(start <= place and place + tile // 2 <= start + tile for start in found)


@pytest.mark.parametrize("shape", [(1, 40, 50), (3, 33, 20), (1, 16, 16), (2, 16, 31)])
def test_what_all_tiles_say_alike_is_the_same_everywhere(shape):
    schema = schema_of(large(3, shape=shape), 16)
    n_entries = len(schema.places) * schema.inner.n_features
    found = schema.fold(np.column_stack([np.full((2, n_entries), 3.0), [7.0, -1.0]]))
    np.testing.assert_allclose(found, np.array([[7.0], [-1.0]]) / schema.n_features * np.ones_like(found), atol=1e-12)


def test_the_map_is_a_weighted_mean_and_sums_to_the_score():
    schema = schema_of(large(3), 16)
    rng = np.random.default_rng(0)
    entries = rng.normal(size=(4, len(schema.places) * 256 + 1))
    found = schema.fold(entries)
    np.testing.assert_allclose(found.sum(axis=1), entries[:, -1], atol=1e-12)
    sums, weights = np.zeros((28, 36)), np.zeros((28, 36))
    for number, (y, x) in enumerate(schema.places):
        for i in range(16):
            for j in range(16):
                weight = min(i + 1, 16 - i) * min(j + 1, 16 - j)
                sums[y + i, x + j] += weight * entries[0, number * 256 + i * 16 + j]
                weights[y + i, x + j] += weight
    assert weights.min() > 0
    mean = sums / weights
    np.testing.assert_allclose(found[0].reshape(28, 36), mean + (entries[0, -1] - mean.sum()) / mean.size, atol=1e-12)


def test_a_row_holds_the_tiles_one_after_the_other():
    images = large(3)
    schema = schema_of(images, 16)
    rows = schema.encode(images).reshape(3, -1, 1, 16, 16)
    for number, (y, x) in enumerate(schema.places):
        np.testing.assert_array_equal(rows[:, number], images[:, :, y : y + 16, x : x + 16])


def test_rows_of_many_tiles_lie_on_disk(monkeypatch):
    images = large(3)
    schema = schema_of(images, 16)
    inside = schema.encode(images)
    monkeypatch.setattr(tiles, "MAX_BYTES_IN_MEMORY", 1000)
    outside = schema.encode(images)
    assert isinstance(outside, np.memmap)
    np.testing.assert_array_equal(inside, outside)
    options = {**SMALL, "max_steps": 5}
    detector = VAEDetector(**options).fit(large(20))
    monkeypatch.undo()
    np.testing.assert_array_equal(
        detector.anomaly_score(images), VAEDetector(**options).fit(large(20)).anomaly_score(images)
    )


def test_the_schema_comes_from_some_tiles_drawn_by_the_seed(monkeypatch):
    images, rows = large(5), np.arange(5)
    images[2] = np.nan
    assert some_tiles(images, rows, 16, seed=0).shape == (4 * 3 * 4, 1, 16, 16)
    monkeypatch.setattr(tiles, "MAX_SHOWN_ENTRIES", 30 * 256)
    few = some_tiles(images, rows, 16, seed=0)
    assert few.shape == (30, 1, 16, 16)
    assert not np.isnan(few).any()
    np.testing.assert_array_equal(few, some_tiles(images, rows, 16, seed=0))
    assert not np.array_equal(few, some_tiles(images, rows, 16, seed=1))
    with pytest.raises(DataError, match="None of the images can be decoded"):
        some_tiles(images, np.array([2]), 16, seed=0)


def test_maps_sum_to_scores_for_every_score(detector):
    images = large(2, 1)
    for name in (name for name in detector.score_names_ if not SCORES[name].costly):
        scores = detector.anomaly_score(images, score_name=name)
        shares = detector.explain(images, score_name=name)
        assert shares.shape == images.shape
        np.testing.assert_allclose(shares.sum(axis=(1, 2, 3)), scores, rtol=1e-6, atol=1e-6)
    scores, shares = detector.explained_score(images)
    np.testing.assert_array_equal(scores, detector.anomaly_score(images))
    np.testing.assert_array_equal(shares, detector.explain(images))
    assert detector.usual_shares_.shape == (images[0].size,)


def test_a_score_hangs_on_its_image_alone_and_survives_a_file(detector, tmp_path):
    images = large(7, 1)
    scores = detector.anomaly_score(images)
    np.testing.assert_array_equal(detector.anomaly_score(images[::-1])[::-1], scores)
    for place in (0, 5):
        np.testing.assert_array_equal(detector.anomaly_score(images[[place]]), scores[[place]])
    detector.save(tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors")
    assert loaded.get_params() == detector.get_params() | {"backbone": loaded.backbone}
    np.testing.assert_array_equal(loaded.anomaly_score(images), scores)
    np.testing.assert_array_equal(loaded.explain(images), detector.explain(images))
    assert loaded.schema_ == detector.schema_


@pytest.mark.parametrize("spot", [(0, 0), (11, 15), (22, 30), (3, 30)])
def test_a_small_defect_is_found_where_it_is(detector, spot):
    odd, normal = large(6, 3, spot=spot), large(20, 4)
    assert detector.anomaly_score(odd).min() > np.median(detector.anomaly_score(normal))
    maps = anomaly_maps(detector, odd).mean(axis=0)
    y, x = np.unravel_index(maps.argmax(), maps.shape)
    assert abs(y - spot[0] - 2.5) <= 8
    assert abs(x - spot[1] - 2.5) <= 8


def test_the_network_is_that_of_a_tile(detector):
    alone = VAEDetector(**{**SMALL, "tile": None, "backbone": detector.backbone}).fit(large(40, shape=(1, 16, 16)))
    assert detector.architecture_["n_entries"] == alone.architecture_["n_entries"]
    assert detector.score_name_ == alone.score_name_
    assert detector.score_names_ == alone.score_names_
    assert detector.schema_.core.shape == alone.schema_.shape


def test_images_and_not_tiles_are_split_and_calibrated(detector):
    assert detector.n_rows_ == {"train": 40, "calibration": len(detector.calibration_scores_)}
    assert len(detector.calibration_scores_) <= 40
    assert len(detector.row_hashes_["training"]) == 40
    assert detector.seen_rows(large(40))["training"] == 40


def test_new_normal_images_are_flagged_as_seldom_as_promised():
    """By tiles, of which an image has four, it would be twice the rate or more.

    A threshold from 99 images has a true rate with a standard deviation of 4 points; the mean over ten, of 1.3.
    """
    options = {**SMALL, "max_steps": 5, "score_name": "nearest_neighbour"}
    shape, new = (1, 24, 24), large(500, 1, shape=(1, 24, 24))
    detector = VAEDetector(**options).fit(large(60, shape=shape))
    assert (detector.predict(new) == -1).mean() < 0.3
    scores, flagged = detector.anomaly_score(new), []
    for seed in range(10):
        detector.calibrate(large(99, 10 + seed, shape=shape))
        flagged.append((scores > detector.threshold_).mean())
    assert 0.15 < np.mean(flagged) < 0.25


def test_one_tile_is_the_image():
    """The score of a single tile is that of the same image without tiles, but for the last digits."""
    images = large(30, shape=(1, 16, 16))
    one, none = (VAEDetector(**{**SMALL, "tile": tile}).fit(images) for tile in (16, None))
    new = large(5, 1, shape=(1, 16, 16))
    np.testing.assert_allclose(one.anomaly_score(new), none.anomaly_score(new), rtol=1e-3, atol=1e-3)


def test_images_to_learn_from_can_be_changed(detector):
    changed = VAEDetector(**{**SMALL, "backbone": detector.backbone, "max_steps": 5}, flips=("h",), shift=1)
    assert np.isfinite(changed.fit(large(20)).anomaly_score(large(2, 1))).all()


def test_an_image_that_cannot_be_decoded_has_no_score(detector):
    images = large(3, 1)
    expected = detector.anomaly_score(images)
    images[1] = np.nan
    scores = detector.anomaly_score(images)
    assert np.isnan(scores[1])
    np.testing.assert_array_equal(scores[[0, 2]], expected[[0, 2]])


def test_what_tiles_cannot_do(detector):
    assert not detector.can_generate
    with pytest.raises(ValueError, match=r"knows images by tiles of 16 x 16 pixels, .* Fit without --tile"):
        detector.sample(1)
    with pytest.raises(DataError, match="Images of shape"):
        detector.anomaly_score(large(1, shape=(1, 36, 28)))


@pytest.mark.parametrize(("X", "tile", "sentence"), [
    (large(20), 64, r"tile=64 is larger than the images, which have 36 x 28 pixels. Use at most 28, or no tiles."),
    (large(20), 7, "tile=7 must be an integer of at least 8"),
    (np.zeros((20, 3)), 16, "tile=16 is for images"),
])  # fmt: skip
def test_tiles_that_cannot_be_cut_are_refused(X, tile, sentence):
    with pytest.raises(ValueError, match=sentence):
        VAEDetector(**{**SMALL, "tile": tile}).fit(X)


def test_a_file_with_tiles_that_do_not_fit_is_refused(detector, tmp_path):
    detector.save(tmp_path / "m.safetensors")
    header, tensors = load_model(tmp_path / "m.safetensors")
    for shape in ([1, 10, 36], [3, 28, 36]):
        save_model(tmp_path / "n.safetensors", {**header, "schema": {**header["schema"], "shape": shape}}, tensors)
        with pytest.raises(ModelFileError, match="its images have another size than its tensors"):
            load(tmp_path / "n.safetensors")
        with pytest.raises(ValueError, match="have no tiles of shape"):
            TileSchema.restore({**header["schema"], "shape": shape}, detector.schema_.tensors())


# The command line -----------------------------------------------------------------------------------------------------


def save(folder, images):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray((image[0] * 255).astype(np.uint8)).save(folder / f"{number:02}.png")


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    """Strips of 300 x 40 pixels with cuts of 6 x 6 pixels, their masks, and a model."""
    folder, shape = tmp_path_factory.mktemp("plant"), (1, 40, 300)
    mask = np.zeros((1, 1, *shape[1:]))
    mask[..., 20:26, 100:106] = 1.0
    save(folder / "sheet/train/good", large(12, shape=shape))
    save(folder / "sheet/test/good", large(4, 1, shape=shape))
    save(folder / "sheet/test/cut", large(4, 2, spot=(20, 100), shape=shape))
    save(folder / "sheet/ground_truth/cut", np.repeat(mask, 4, axis=0))
    said = run("fit", folder / "sheet", "-o", folder / "m.safetensors", "--backbone", "gabor", *OPTIONS).stderr
    assert "Images of 300 x 40 pixels are cut into 18 x 2 tiles of 32 pixels, each known by 8 x 8 patches" in said
    assert "brought to" not in said
    return folder


def test_large_images_are_scored_explained_and_reported(plant, tmp_path):
    run("score", plant / "m.safetensors", plant / "sheet", "-o", tmp_path / "s.csv", "--maps", tmp_path / "maps")
    predictions = read_predictions(tmp_path / "s.csv").set_index("path")
    cuts = predictions.index.str.startswith("test/cut")
    assert predictions["anomaly_score"][cuts].min() > predictions["anomaly_score"][~cuts].max()
    written = np.load(tmp_path / "maps/test/cut/03.npy")
    assert written.shape == (40, 300)
    assert written.sum() == pytest.approx(predictions.loc["test/cut/03.png", "anomaly_score"], abs=1e-2)
    assert np.hypot(*np.subtract(np.unravel_index(written.argmax(), written.shape), (23, 103))) < 8
    run("report", plant / "m.safetensors", plant / "sheet", "-o", tmp_path / "out", "--no-scores")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["roc_auc"]["value"] == 1.0
    assert metrics["pixel_roc_auc"]["value"] > 0.95
    assert (tmp_path / "out/report.html").stat().st_size < 2_000_000
    shown = run("inspect", plant / "m.safetensors").stdout
    assert "32 x 32 pixels" in shown
    assert "8 x 8, 49 features each" in shown


def test_tiles_of_an_array(tmp_path):
    np.save(tmp_path / "a.npy", (large(20, shape=(1, 40, 50))[:, 0] * 255).astype(np.uint8))
    run("fit", tmp_path / "a.npy", "-o", tmp_path / "a.safetensors", *OPTIONS)
    result = run("score", tmp_path / "a.safetensors", tmp_path / "a.npy", "-o", tmp_path / "s.csv", "--json")
    assert json.loads(result.stdout)["rows"] == 20
    result = run("sample", tmp_path / "a.safetensors", "-o", tmp_path / "x.png", exit_code=2)
    assert "Fit without --tile" in result.stderr


@pytest.mark.parametrize(("arguments", "exit_code", "sentence"), [
    (("parts", "--tile", 64), 2, "tile=64 is larger than the images, which have 36 x 28 pixels."),
    (("parts", "--tile", 4), 2, "8<=x<=2048"),
    (("normal.csv", "--tile", 16), 2, "--tile is for images"),
    (("several", "--tile", 16), 3, "several has images of 2 sizes, such as 30 x 20 and 36 x 28 pixels"),
])  # fmt: skip
def test_what_tiles_cannot_be_cut_from(tmp_path, monkeypatch, arguments, exit_code, sentence):
    monkeypatch.chdir(tmp_path)
    mixed().to_csv("normal.csv", index=False)
    save(tmp_path / "parts", large(20))
    save(tmp_path / "several/a", large(20))
    save(tmp_path / "several/b", large(1, shape=(1, 20, 30)))
    data, *options = arguments
    result = run("fit", data, "-o", "m.safetensors", *options, "--max-steps", 5, exit_code=exit_code)
    assert sentence in result.stderr
    assert not (tmp_path / "m.safetensors").exists()


def test_tiles_too_many_to_learn_from_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(splitting, "MAX_PARTS", 60)
    np.save(tmp_path / "a.npy", (large(20, shape=(1, 40, 50))[:, 0] * 255).astype(np.uint8))
    result = run("fit", tmp_path / "a.npy", "-o", tmp_path / "a.safetensors", *OPTIONS)
    assert "Each member learned from 60 of their 120 patches or tiles at most, drawn by the seed." in result.stderr


def test_a_size_brings_images_of_several_sizes_to_one(tmp_path):
    save(tmp_path / "parts/a", large(20))
    save(tmp_path / "parts/b", large(20, shape=(1, 60, 70)))
    result = run("fit", tmp_path / "parts", "-o", tmp_path / "m.safetensors", "--size", 48, *OPTIONS)
    assert "Images of 48 x 48 pixels are cut into 2 x 2 tiles of 32 pixels." in result.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_one_tile_an_image_is_tried_out_once_at_most(kind, monkeypatch):
    images = large(30, shape=(1, 16, 16))
    detector = VAEDetector(**SMALL, **KINDS[kind]).fit(images)
    assert detector.schema_.n_tiles == (1, 1)
    for _ in range(3):
        detector.explain(images[:1])
        detector.anomaly_score(images[:1])
    assert len(scoring._SMALL.get(detector.ensemble_, {})) == 0
