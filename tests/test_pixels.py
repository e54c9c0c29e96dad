import numpy as np
import pytest

from vae_anomaly.detector import VAEDetector, load
from vae_anomaly.errors import DataError
from vae_anomaly.heat_maps import anomaly_maps, colour_scale
from vae_anomaly.pixels import PixelSchema, is_images, pixels
from vae_anomaly.scores import scores_for

SMALL = {"max_steps": 60, "n_estimators": 2, "hidden": (16,), "latent_dim": 4}


def discs(n, seed=0, *, holes=False, channels=1):
    """Bright discs on dark ground, with a hole where asked."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:12, :12]
    images = np.empty((n, channels, 12, 12), np.float32)
    for image in images:
        centre = 5.5 + rng.normal(0, 0.4, 2)
        inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 16
        image[:] = 0.2 + 0.5 * inside + rng.normal(0, 0.02, (channels, 12, 12))
        if holes:
            image[:, 5:8, 5:8] = 0.1
    return images.clip(0, 1)


@pytest.fixture(scope="module", params=["conv", "mlp"])
def detector(request):
    return VAEDetector(net=request.param, **SMALL).fit(discs(120))


def test_defects_score_higher_and_the_threshold_catches_them(detector):
    good, bad = detector.anomaly_score(discs(60, 1)), detector.anomaly_score(discs(60, 2, holes=True))
    assert np.median(bad) > np.quantile(good, 0.9)
    assert (good > detector.threshold_).mean() < 0.25
    assert (detector.predict(discs(60, 2, holes=True)) == -1).mean() > 0.5


def test_scores_do_not_depend_on_order_or_company(detector):
    images = discs(9, 3)
    scores = detector.anomaly_score(images)
    assert np.array_equal(detector.anomaly_score(images[::-1]), scores[::-1])
    assert np.array_equal([detector.anomaly_score(image[None])[0] for image in images], scores)


def test_maps_sum_to_the_score_and_find_the_defect(detector):
    images = discs(20, 4, holes=True)
    shares = detector.explain(images)
    assert shares.shape == images.shape
    np.testing.assert_allclose(shares.sum(axis=(1, 2, 3)), detector.anomaly_score(images), rtol=1e-4, atol=1e-4)
    maps = anomaly_maps(detector, images)
    assert maps.shape == (20, 12, 12)
    usual = detector.usual_shares_.reshape(12, 12)
    excess = maps - usual
    assert excess[:, 5:8, 5:8].mean() > 5 * excess.mean()
    low, high = colour_scale(detector)
    assert low == pytest.approx(usual.max())
    assert high > low


def test_a_saved_model_scores_alike(detector, tmp_path):
    detector.save(tmp_path / "disc.safetensors")
    again = load(tmp_path / "disc.safetensors")
    images = discs(9, 5)
    assert np.array_equal(again.anomaly_score(images), detector.anomaly_score(images))
    assert again.schema_ == detector.schema_
    assert again.n_features_in_ == 144


def test_samples_and_reconstructions_are_images(detector):
    assert detector.sample(3).shape == (3, 1, 12, 12)
    expected = detector.reconstruct(discs(5, 6))
    assert expected.shape == (5, 1, 12, 12)
    assert 0 <= expected.min() <= expected.max() <= 1
    assert detector.latent(discs(5, 6)).shape == (5, 4)


def test_images_that_were_trained_on_are_known(detector):
    assert detector.seen_rows(discs(120)[:30])["training"] == 30
    assert detector.seen_rows(discs(30, 9))["training"] == 0


def test_colour_images_and_odd_shapes():
    images = discs(60, channels=3)[:, :, :, :7]
    detector = VAEDetector(**SMALL).fit((images * 255).round().astype(np.uint8))
    assert detector.sample(2).shape == (2, 3, 12, 7)
    assert detector.explain(images[:2]).shape == (2, 3, 12, 7)


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli", "gaussian_shared", "student_t"])
def test_likelihoods_of_pixels(likelihood):
    detector = VAEDetector(likelihood=likelihood, net="mlp", **SMALL).fit(discs(60))
    assert np.isfinite(detector.anomaly_score(discs(5, 1))).all()


@pytest.mark.parametrize(("X", "sentence"), [
    (discs(4)[:, :, :5], r"Images of shape \(1, 5, 12\) were given, and the model knows \(1, 12, 12\)"),
    (discs(4).reshape(4, -1), "fitted on images of shape"),
    (discs(4) * 200, "Pixels must lie between 0 and 1, and these go from 0 to"),
])  # fmt: skip
def test_what_does_not_fit_the_model_is_refused(detector, X, sentence):
    with pytest.raises(DataError, match=sentence):
        detector.anomaly_score(X)


def test_a_table_has_no_convolutions_and_pixels_no_categories():
    with pytest.raises(ValueError, match="net='conv' is for images"):
        VAEDetector(net="conv", **SMALL).fit(np.random.default_rng(0).normal(size=(50, 4)))
    with pytest.raises(ValueError, match="pixels are numbers"):
        VAEDetector(likelihood="categorical", **SMALL).fit(discs(50))
    with pytest.raises(ValueError, match="Unknown net 'resnet'"):
        VAEDetector(net="resnet").fit(discs(50))


def test_a_table_model_refuses_images():
    detector = VAEDetector(**SMALL).fit(np.random.default_rng(0).normal(size=(60, 4)))
    with pytest.raises(DataError, match="fitted on a table"):
        detector.anomaly_score(discs(3))


@pytest.mark.parametrize("scaling", ["standard", "unit"])
def test_encoding_has_an_inverse(scaling):
    images = discs(10, channels=3)
    schema = PixelSchema.infer(images, scaling=scaling)
    np.testing.assert_allclose(schema.decode(schema.encode(images)), images, atol=1e-6)
    assert PixelSchema.from_json(schema.to_json()) == schema


def test_integers_count_from_0_to_their_largest():
    assert pixels(np.array([[[[0, 65535]]]], np.uint16)).ravel().tolist() == [0.0, 1.0]
    assert is_images(np.zeros((2, 1, 4, 4)))
    assert not is_images(np.zeros((2, 4)))


def test_images_of_one_colour_can_be_scaled():
    schema = PixelSchema.infer(np.full((4, 1, 3, 3), 0.5, np.float32), scaling="standard")
    assert schema.scale == (1 / 255,)


@pytest.mark.parametrize("scaling", ["standard", "unit"])
def test_undecodable_images_teach_nothing(scaling):
    with pytest.raises(DataError, match="None of the images can be decoded"):
        PixelSchema.infer(np.full((4, 1, 3, 3), np.nan, np.float32), scaling=scaling)


@pytest.mark.parametrize("writeable", [False, True])
def test_pixels_that_stay_as_they_are_are_read_where_they_are(writeable):
    images = pixels(discs(60))
    images.flags.writeable = writeable
    before = images.copy()
    encoded = PixelSchema.infer(images, scaling="unit").encode(images)
    assert np.shares_memory(encoded, images) == writeable
    detector = VAEDetector(likelihood="bernoulli", **SMALL).fit(images)
    for name in scores_for(images=True):
        detector.anomaly_score(images, score_name=name)
    detector.explain(images)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize(("given", "sentence"), [
    ({"shape": [1, 2], "center": [0.0], "scale": [1.0]}, "no shape"),
    ({"shape": [1, 2, 2], "center": [0.0, 0.0], "scale": [1.0]}, "other scales"),
    ({"shape": [1, 2, 2], "center": [0.0], "scale": [0.0]}, "no usable scale"),
])  # fmt: skip
def test_schemas_of_damaged_files_are_refused(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        PixelSchema.from_json(given)


@pytest.mark.parametrize("n_channels", [1, 3, 4])
def test_channels_that_come_last_are_named(n_channels):
    with pytest.raises(DataError, match=r"have 16 channels, as channels come first.* numpy\.moveaxis\(X, -1, 1\)"):
        pixels(np.zeros((5, 16, 16, n_channels)))
    assert pixels(np.zeros((5, n_channels, 16, 16))).shape == (5, n_channels, 16, 16)
    assert pixels(np.zeros((5, 3, 16, 3))).shape == (5, 3, 16, 3)
