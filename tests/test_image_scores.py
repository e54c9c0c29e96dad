"""Scores that see images: the laws of every score, and those of single ones."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from vae_anomaly import patches
from vae_anomaly.detector import VAEDetector, load
from vae_anomaly.ensemble import Ensemble
from vae_anomaly.patches import patch_distances
from vae_anomaly.picture import Picture, views_of
from vae_anomaly.scores import IMAGE_REFERENCES, PATCH_REFERENCES, REFERENCES, SCORES, neg_elbo, scores_for, shares
from vae_anomaly.scoring import map_rows

IMAGES = [name for name, score in SCORES.items() if score.images]
SHAPE, LATENT, N_MC = (2, 9, 8), 3, 4
N_ENTRIES = math.prod(SHAPE)
SMALL = {"max_steps": 30, "n_estimators": 2, "hidden": (16,), "latent_dim": 4}


def squares(n, seed=0, *, shape=(1, 12, 12), holes=False):
    """Bright squares on dark ground, with a hole where asked."""
    rng = np.random.default_rng(seed)
    images = 0.2 + rng.normal(0, 0.02, (n, *shape))
    for image in images:
        top, left = rng.integers(2, 4, 2)
        image[:, top : top + 7, left : left + 7] += 0.5
        if holes:
            image[:, top + 3 : top + 5, left + 3 : left + 5] = 0.2
    return images.clip(0, 1).astype(np.float32)


def make(make_vae, seed=0, *, dtype=torch.float32, n_codes=12):
    """A VAE of small pictures, with its references filled from random ones."""
    picture = Picture(SHAPE, (0.5, 0.4), (0.3, 0.2))
    vae = make_vae((N_ENTRIES,), LATENT, seed=seed, picture=picture, n_codes=n_codes, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    train, held_out = torch.randn(2, n_codes, N_ENTRIES, generator=generator, dtype=dtype)
    eps = torch.randn(N_MC, 1, LATENT, generator=generator, dtype=dtype)

    def keep(filled):
        for name, value in filled.items():
            assert value.shape == vae.get_buffer(name).shape
            vae.get_buffer(name).copy_(value)

    with torch.no_grad():
        for fill in (*REFERENCES, *IMAGE_REFERENCES):
            keep(fill(vae, train, held_out, eps))
        distances = patch_distances(vae, held_out)
        for fill in PATCH_REFERENCES:
            keep(fill(vae, held_out, *distances))
    return vae


@pytest.fixture
def x(generator):
    return torch.randn(7, N_ENTRIES, generator=generator)


@pytest.fixture
def eps(generator):
    return torch.randn(N_MC, 1, LATENT, generator=generator)


@pytest.fixture(scope="module")
def detector():
    return VAEDetector(**SMALL).fit(squares(100))


# -- laws of every score ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_one_finite_number_for_each_image_that_its_shares_sum_to(name, make_vae, x, eps):
    vae, score = make(make_vae), SCORES[name]
    rows = torch.cat([x, torch.full_like(x[:1], torch.nan), torch.zeros_like(x[:1]), 20.0 * x[:1]])
    scores, contributions = score.function(vae, rows, eps), shares(score, vae, rows, eps)
    assert scores.shape == (len(rows),)
    assert contributions.shape == rows.shape
    assert torch.isfinite(contributions).all()
    scale = max(float(contributions.abs().sum(dim=1).max().detach()), 1.0)
    torch.testing.assert_close(contributions.sum(dim=1), scores, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("name", IMAGES)
def test_score_of_an_image_depends_on_that_image_alone(name, make_vae, x, eps):
    vae, rows, eps, score = make(make_vae, dtype=torch.float64), x.double(), eps.double(), SCORES[name].function
    one_by_one = torch.cat([score(vae, rows[i : i + 1], eps) for i in range(len(rows))])
    torch.testing.assert_close(one_by_one, score(vae, rows, eps), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", IMAGES)
def test_all_members_at_once_score_as_each_does(name, make_vae, x, eps):
    members = [make(make_vae, seed) for seed in range(2)]
    own = torch.stack([x, 0.5 * x])
    # With gradients, the ensemble is one program.
    together = Ensemble(members).map(SCORES[name].function, own, eps, in_dims=(0, None))
    apart = torch.stack([SCORES[name].function(vae, rows, eps) for vae, rows in zip(members, own, strict=True)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", IMAGES)
def test_a_few_images_score_bit_for_bit_as_among_many(name, make_vae, eps):
    ensemble, function = Ensemble([make(make_vae)]), SCORES[name].function
    rows = np.random.default_rng(0).normal(size=(40, N_ENTRIES)).astype(np.float32)
    wanted = map_rows(ensemble, eps, function, rows, again=True)
    for n_rows in (1, 9):
        some = map_rows(ensemble, eps, function, rows[7 : 7 + n_rows], again=True)
        np.testing.assert_array_equal(some, wanted[7 : 7 + n_rows])


@pytest.mark.parametrize("name", IMAGES)
def test_a_saved_model_gives_the_same(name, detector, tmp_path):
    detector.save(tmp_path / "square.safetensors")
    again, images = load(tmp_path / "square.safetensors"), squares(5, 3)
    assert np.array_equal(again.anomaly_score(images, score_name=name), detector.anomaly_score(images, score_name=name))


@pytest.mark.parametrize("name", IMAGES)
def test_tables_and_features_have_no_such_score(name):
    rows = np.random.default_rng(0).normal(size=(60, 3))
    with pytest.raises(ValueError, match=rf"'{name}' is for images on pixels, and the model is one of a table. Use"):
        VAEDetector(score_name=name, **SMALL).fit(rows)
    fitted = VAEDetector(**{**SMALL, "max_steps": 2}).fit(rows)
    with pytest.raises(ValueError, match="is for images on pixels"):
        fitted.anomaly_score(rows, score_name=name)
    assert fitted.score_names_ == scores_for(images=False)
    assert fitted.score_name_ == "novelty"


def test_features_have_none_either():
    with pytest.raises(ValueError, match="the model is one of features"):
        VAEDetector(backbone="gabor", score_name="patch_novelty", **SMALL).fit(squares(20, shape=(1, 32, 32)))


# -- patch_novelty ----------------------------------------------------------------------------------------------------


def naive_patches(vae, image, view):
    """Distance of each patch from the nearest of the training images' within the window, with plain loops."""

    def cells(row):
        image = np.asarray(row).reshape(SHAPE)
        assert (view.rows, view.columns) == SHAPE[1:]
        middle = np.sort(image.reshape(SHAPE[0], -1), axis=1)[:, view.rows * view.columns // 2]
        return image - middle[:, None, None]

    def scaled(patch):
        return patch / (np.linalg.norm(patch) + 0.4 * math.sqrt(patch.size) * float(vae.patch_contrast))

    here, others, found = cells(image), [cells(row) for row in vae.exemplars], []
    for top in view.tops:
        for left in view.lefts:
            patch = scaled(here[:, top : top + view.patch, left : left + view.patch])
            distances = []
            for other in others:
                other = np.pad(other, ((0, 0), *[(view.window, view.window)] * 2), mode="edge")
                for dy in range(2 * view.window + 1):
                    for dx in range(2 * view.window + 1):
                        there = other[:, top + dy :, left + dx :][:, : view.patch, : view.patch]
                        distances.append(np.linalg.norm(patch - scaled(there)))
            found.append(min(distances))
    return np.array(found)


def test_patch_novelty_is_that_of_plain_loops(make_vae, x, eps):
    vae = make(make_vae, dtype=torch.float64)
    found = SCORES["patch_novelty"].function(vae, x.double(), eps.double()).tolist()
    for row, score in zip(x.double(), found, strict=True):
        views, first = [], 0
        *usual, (middle_grain, excess_grain) = vae.usual_views.tolist()
        for view, (middle, excess) in zip(vae.picture.views, usual, strict=True):
            mean, spread = vae.usual_patches[:, first : first + view.n_places].numpy()
            first += view.n_places
            z = np.maximum((naive_patches(vae, row, view) - mean) / spread, 0.0)
            views.append((math.sqrt((z**2).mean()) - middle) / excess)
        grain = naive_grain(row)
        if grain > middle_grain:
            views.append((grain - middle_grain) / excess_grain)
        assert score == pytest.approx(max(views), rel=1e-6)


def naive_grain(row):
    """Median difference of a pixel from its block of two by two, with plain loops."""
    image, found = np.asarray(row).reshape(SHAPE), []
    for channel in image:
        for top in range(0, SHAPE[1] - 1, 2):
            for left in range(0, SHAPE[2] - 1, 2):
                block = channel[top : top + 2, left : left + 2]
                found.extend(abs(block - block.mean()).ravel())
    return sorted(found)[len(found) // 2]


def test_noise_that_no_training_image_has_is_novel():
    """Its cells are as usual; its pixels are not. Images without any grain lose nothing by the term."""
    clean = squares(240, 1).round(1)
    detector = VAEDetector(net="mlp", **{**SMALL, "max_steps": 2}).fit(clean[:200])
    rng = np.random.default_rng(0)
    noisy = (clean[200:] + rng.choice([-0.05, 0.05], clean[200:].shape)).astype(np.float32)
    assert (detector.predict(noisy) == -1).all()
    scores = detector.anomaly_score(np.unique(clean[200:], axis=0))
    assert np.unique(scores, return_counts=True)[1].max() < len(scores) / 5


def test_patches_reach_every_cell_of_every_size():
    for height in (1, 2, 5, 8, 13, 28, 40, 64, 100):
        for width in (1, 7, 28, 65):
            for view in views_of(height, width):
                covered = np.zeros((view.rows, view.columns), bool)
                for top in view.tops:
                    for left in view.lefts:
                        covered[top : top + view.patch, left : left + view.patch] = True
                assert covered.all()
                assert view.tops[-1] + view.patch == view.rows


def test_it_is_the_score_of_images_and_finds_defects(detector):
    assert detector.score_name_ == "patch_novelty"
    good, bad = squares(300, 1), squares(60, 2, holes=True)
    assert (detector.predict(bad) == -1).mean() > 0.95
    # 5 % asked for: five standard deviations of 300 images at a threshold from 100.
    assert (detector.predict(good) == -1).mean() < 0.17
    shown = detector.explain(bad).mean(axis=0)[0] - detector.usual_shares_.reshape(12, 12)
    assert shown[5:9, 5:9].mean() > 5 * shown.mean()


def test_brighter_images_are_no_others(detector):
    images = squares(40, 4)
    darker, brighter = (detector.anomaly_score((images + change).astype(np.float32)) for change in (-0.1, 0.1))
    np.testing.assert_allclose(darker, brighter, atol=0.02 * np.ptp(darker) + 1e-3)


def test_small_spots_on_large_colour_images_are_found():
    rng = np.random.default_rng(0)
    images = rng.uniform(0.4, 0.6, (30, 3, 60, 50)).astype(np.float32)
    detector = VAEDetector(net="mlp", backbone="pixels", **{**SMALL, "max_steps": 2}).fit(images)
    images[0, :, 30:40, 20:40] = 1.0
    scores = detector.anomaly_score(images[:4])
    assert scores.argmax() == 0
    np.testing.assert_allclose(detector.explain(images[:4]).sum(axis=(1, 2, 3)), scores, rtol=1e-3, atol=1e-3)


# -- the others -------------------------------------------------------------------------------------------------------


def test_regret_is_what_there_is_to_gain(make_vae, x, eps):
    vae = make(make_vae)
    regret = SCORES["likelihood_regret"].function
    assert (regret(vae, x, eps) >= 0).all()
    # An encoder that is far off leaves more to gain.
    before = regret(vae, x, eps).mean()
    with torch.no_grad():
        next(reversed(list(vae.encoder.parameters()))).add_(2.0)
    assert regret(vae, x, eps).mean() > 1.5 * before


def test_complexity_is_the_size_of_the_file(make_vae, x, eps):
    vae = make(make_vae)
    found = neg_elbo(vae, x, eps) - SCORES["input_complexity"].function(vae, x, eps)
    images = x.reshape(-1, *SHAPE).numpy() * np.array([0.3, 0.2])[:, None, None] + np.array([0.5, 0.4])[:, None, None]
    for nats, image in zip(found.tolist(), images, strict=True):
        file = io.BytesIO()
        # Two channels are no colours: they lie below each other.
        pixels = (image.clip(0, 1).astype(np.float32) * 255).round().astype(np.uint8).reshape(18, 8)
        Image.fromarray(pixels).save(file, "PNG", compress_level=9)
        assert nats == pytest.approx(len(file.getvalue()) * 8 * math.log(2), abs=8.0)
    plain = SCORES["input_complexity"].function(vae, torch.zeros_like(x[:1]), eps) - neg_elbo(vae, 0 * x[:1], eps)
    assert -plain < found.min()


def test_path_statistics_see_both_tails(make_vae, x, eps):
    vae, score = make(make_vae), SCORES["path_statistics"].function
    with torch.no_grad():
        qz = vae.encode(x[:1])
        path = [(x[:1] - vae.decode(qz.mean).mean).norm(), qz.mean.norm(), qz.stddev.norm()]
        for index in range(3):
            for factor, expected in ((1.0, 0.0), (0.5, 1.0), (2.0, 1.0)):
                middles = torch.stack(path)
                middles[index] *= factor
                vae.usual_path[:, 0] = middles
                vae.usual_path[:, 1:] = (middles - torch.stack(path)).abs().clamp(min=1.0)[:, None]
                if expected:
                    vae.usual_path[index, 1:] = (middles[index] - path[index]).abs()
                assert float(score(vae, x[:1], eps)) == pytest.approx(expected, abs=1e-4)


def test_patch_error_is_the_worst_mean_over_a_patch(make_vae, x, eps):
    vae = make(make_vae, dtype=torch.float64)
    excess = (SCORES["neg_log_px_z"].entries(vae, x.double(), eps.double()) + vae.missing_log_px).detach()
    excess = excess.reshape(-1, *SHAPE).numpy()
    expected = [
        max(image[:, top : top + 3, left : left + 3].mean() for top in range(7) for left in range(6))
        for image in excess
    ]
    found = SCORES["patch_error"].function(vae, x.double(), eps.double()).detach()
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("at_once", [1, 300, 10**6])
def test_places_of_several_patches_are_searched_at_once_on_a_gpu(at_once, make_vae, x, monkeypatch):
    vae = make(make_vae)
    wanted = patch_distances(vae, x)
    seen = []
    monkeypatch.setattr(patches, "SEVERAL_PLACES_ON", ("cpu",))
    monkeypatch.setattr(patches, "MAX_AT_ONCE", at_once)
    closest = patches._closest
    monkeypatch.setattr(patches, "_closest", lambda own, others: seen.append(len(own)) or closest(own, others))
    torch.testing.assert_close(patch_distances(vae, x), wanted)
    views = vae.picture.views
    assert sum(seen) == sum(view.n_places for view in views)
    assert (max(seen) == 1) == (at_once == 1)
    assert (len(seen) == len(views)) == (at_once == 10**6)
