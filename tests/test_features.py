import json
import sys
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.base import clone
from tables import read_predictions, run
from torch import nn

from vae_anomaly import account, features
from vae_anomaly.backbones import BACKBONES, MAX_FEATURES, build_extractor, restore_extractor
from vae_anomaly.detector import VAEDetector, load
from vae_anomaly.errors import DataError, ModelFileError, UnknownNameError
from vae_anomaly.features import FeatureSchema
from vae_anomaly.filters import LEAST_STRENGTH, N_ORIENTATIONS, FilterBank
from vae_anomaly.heat_maps import anomaly_maps, colour_scale
from vae_anomaly.patch_grid import on_pixels, place_codes, rank_weights, summarised
from vae_anomaly.persistence import load_model, save_model
from vae_anomaly.planning import find_backbone
from vae_anomaly.pretrained import download_weights, read_weights
from vae_anomaly.scores import SCORES, scores_for
from vae_anomaly.splitting import split_rows

SMALL = {"max_steps": 50, "n_estimators": 2, "hidden": (16,), "latent_dim": 4, "fpr": 0.2}
OPTIONS = ("--latent-dim", 4, "--max-steps", 50, "--estimators", 2, "--hidden", "16", "--fpr", 0.2)


def cloth(n, seed=0, *, cut=False, channels=1, size=32):
    """Stripes with a phase of their own, and a smooth hole where asked."""
    rng = np.random.default_rng(seed)
    x = np.arange(size)
    images = np.empty((n, channels, size, size), np.float32)
    for image in images:
        stripes = 0.5 + 0.3 * np.sin(2 * np.pi * (x + rng.uniform(0, 8)) / 8)
        image[:] = stripes + rng.normal(0, 0.02, (channels, size, size))
        if cut:
            image[:, 10:20, 10:20] = 0.5
    return images.clip(0, 1)


@pytest.fixture(scope="session")
def state():
    """Random weights of the stages of a ResNet-18 that are used."""
    from torchvision.models import resnet18

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = resnet18(weights=None).state_dict()
    return {name: value for name, value in weights.items() if not name.startswith(("layer4", "fc"))}


@pytest.fixture(scope="session")
def weights(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def gabor():
    return VAEDetector(backbone="gabor", **SMALL).fit(cloth(40))


@pytest.fixture(scope="module")
def resnet(weights):
    return VAEDetector(backbone="resnet18", backbone_weights=weights, **SMALL).fit(cloth(12))


@pytest.fixture(params=["gabor", "resnet"])
def detector(request):
    return request.getfixturevalue(request.param)


# -- the detector ------------------------------------------------------------------------------------------------------


def test_defects_score_higher_and_the_threshold_catches_them(gabor):
    good, bad = gabor.anomaly_score(cloth(30, 1)), gabor.anomaly_score(cloth(30, 2, cut=True))
    assert bad.min() > np.quantile(good, 0.9)
    assert (good > gabor.threshold_).mean() < 0.45
    assert (bad > gabor.threshold_).mean() > 0.9


def test_both_questions_are_asked_of_patches_unless_one_is_named(gabor):
    images = cloth(3, 8)
    assert gabor.score_name_ == "novelty"
    assert np.array_equal(gabor.anomaly_score(images), gabor.anomaly_score(images, score_name="novelty"))
    assert clone(gabor).set_params(score_name="kl").fit(cloth(40)).score_name_ == "kl"


def test_scores_do_not_depend_on_order_or_company(detector):
    images = cloth(7, 3)
    scores = detector.anomaly_score(images)
    assert np.array_equal(detector.anomaly_score(images[::-1]), scores[::-1])
    assert np.array_equal([detector.anomaly_score(image[None])[0] for image in images], scores)


def test_maps_sum_to_the_score_and_find_the_defect(gabor):
    images = cloth(10, 4, cut=True)
    for name in ("neg_log_px_z", "novelty", "kl"):
        shares = gabor.explain(images, score_name=name)
        assert shares.shape == images.shape
        np.testing.assert_allclose(
            shares.sum(axis=(1, 2, 3)), gabor.anomaly_score(images, score_name=name), rtol=1e-4, atol=1e-4
        )
    maps = anomaly_maps(gabor, images)
    assert maps[:, 10:20, 10:20].mean() > 3 * maps[:, 24:, 24:].mean()
    low, high = colour_scale(gabor)
    assert low == pytest.approx(gabor.usual_shares_.max())
    assert high > low


def test_one_pass_gives_the_scores_and_the_maps_of_two(gabor):
    images = cloth(5, seed=3, cut=True)
    scores, maps = gabor.explained_score(images)
    assert np.array_equal(scores, gabor.anomaly_score(images))
    assert np.array_equal(maps, gabor.explain(images))


def test_calibration_counts_images_not_patches(detector):
    n = 40 if detector.backbone == "gabor" else 12
    # Two members, each of which leaves out a fifth.
    assert len(detector.calibration_scores_) == 2 * (n // 5)
    assert detector.n_rows_["train"] == n
    assert detector.threshold_rule_["out_of_fold"]


def test_calibration_scores_are_those_of_the_member_that_did_not_see_the_image(gabor):
    encoded = torch.from_numpy(gabor.schema_.encode(cloth(40)))
    function = gabor.schema_.score_function(SCORES[gabor.score_name_].function)
    with torch.no_grad():
        by_member = np.stack([function(vae, encoded, gabor.eps_).numpy() for vae in gabor.ensemble_.members()])
    gaps = np.abs(by_member[:, :, None] - gabor.calibration_scores_).min(axis=1)
    # Eight images of each of the two folds.
    assert ((gaps < 1e-3).sum(axis=1) == 8).all()


def test_a_saved_model_scores_alike_without_the_file_of_weights(state, tmp_path):
    torch.save(state, tmp_path / "w.pth")
    fitted = VAEDetector(backbone="resnet18", backbone_weights=tmp_path / "w.pth", **SMALL).fit(cloth(12))
    fitted.save(tmp_path / "m.safetensors")
    (tmp_path / "w.pth").unlink()
    again = load(tmp_path / "m.safetensors")
    images = cloth(5, 5)
    assert np.array_equal(again.anomaly_score(images), fitted.anomaly_score(images))
    assert again.schema_ == fitted.schema_
    assert again.schema_.fingerprint == fitted.schema_.fingerprint
    assert again.n_features_in_ == 32 * 32
    assert (tmp_path / "m.safetensors").stat().st_size < 13_000_000


def test_a_refit_gives_the_same_scores(gabor):
    again = clone(gabor).fit(cloth(40))
    assert np.array_equal(again.anomaly_score(cloth(4, 6)), gabor.anomaly_score(cloth(4, 6)))


def test_features_give_no_images_back(gabor):
    for function in (lambda: gabor.sample(2), lambda: gabor.reconstruct(cloth(2))):
        with pytest.raises(ValueError, match="no image can be drawn or reconstructed"):
            function()
    assert not gabor.can_generate
    assert gabor.holds_images
    assert gabor.latent(cloth(3)).shape == (3, 4)


def test_images_that_were_trained_on_are_known(gabor):
    assert gabor.seen_rows(cloth(40)[:10])["training"] == 10
    assert gabor.seen_rows(cloth(10, 9))["training"] == 0


def test_an_undecodable_image_gets_no_score_and_changes_no_other(gabor):
    images = cloth(4, 7)
    expected = gabor.anomaly_score(images)
    images[1] = np.nan
    scores = gabor.anomaly_score(images)
    assert np.isnan(scores[1])
    assert np.array_equal(scores[[0, 2, 3]], expected[[0, 2, 3]])


def test_colour_counts():
    images = cloth(30, channels=3, size=24)
    fitted = VAEDetector(backbone="gabor", **SMALL).fit((images * 255).round().astype(np.uint8))
    stained = images.copy()
    # As bright as before, in another colour.
    stained[:, 0, 8:16, 8:16] += 0.15
    stained[:, 1, 8:16, 8:16] -= 0.15
    stained = stained.clip(0, 1)
    assert np.median(fitted.anomaly_score(stained)) > fitted.anomaly_score(cloth(20, 1, channels=3, size=24)).max()
    assert fitted.explain(images[:2]).shape == (2, 3, 24, 24)


@pytest.mark.parametrize(("params", "error", "sentence"), [
    ({"backbone": "resnet19"}, UnknownNameError, "Unknown backbone 'resnet19'. Choose from 'auto', 'gabor', 'pixels'"),
    ({"backbone_weights": "w.pth"}, ValueError, "none is named"),
    ({"backbone": "gabor", "backbone_weights": "w.pth"}, ValueError, "'gabor' has none that are learned"),
    ({"backbone": "gabor", "net": "conv"}, ValueError, "the networks see single patches"),
    ({"backbone": "gabor", "likelihood": "bernoulli"}, ValueError, "describes pixels from 0 to 1"),
    ({"backbone": "resnet18", "backbone_weights": "w.pth"}, DataError, "'w.pth' does not exist"),
])  # fmt: skip
def test_parameters_that_do_not_go_together(params, error, sentence):
    with pytest.raises(error, match=sentence):
        VAEDetector(**{**SMALL, **params}).fit(cloth(12))


def test_a_backbone_is_for_images():
    with pytest.raises(ValueError, match="backbone='gabor' is for images"):
        VAEDetector(backbone="gabor", **SMALL).fit(np.random.default_rng(0).normal(size=(20, 3)))


def test_images_of_another_shape_are_refused(gabor):
    with pytest.raises(DataError, match="the model knows"):
        gabor.anomaly_score(cloth(2, size=16))


@pytest.mark.parametrize(("change", "sentence"), [
    ({"shape": [1, 2]}, "no shape"),
    ({"shape": [1, 16, 16]}, "not those of its backbone"),
    ({"center": [0.0]}, "not those of its backbone"),
    ({"scale": [0.0] * 49}, "no usable scale"),
    ({"fingerprint": "0"}, "not those that it was fitted with"),
    ({"backbone": "resnet18"}, "not the weights of resnet18"),
    ({"backbone": "os.system"}, "Unknown backbone"),
])  # fmt: skip
def test_schemas_of_damaged_files_are_refused(gabor, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        FeatureSchema.restore({**gabor.schema_.to_json(), **change}, gabor.schema_.tensors())


def test_a_file_without_its_backbone_is_refused(gabor, tmp_path, monkeypatch):
    monkeypatch.setattr(FeatureSchema, "tensors", lambda self: {})
    gabor.save(tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError, match="does not hold a whole model"):
        load(tmp_path / "m.safetensors")


# -- what "auto" stands for, and what is usual at a place --------------------------------------------------------------


@pytest.mark.parametrize(("shape", "params", "expected"), [
    ((3, 64, 64), {}, "gabor"),
    ((1, 65, 64), {}, "gabor"),
    ((1, 65, 64), {"net": "mlp", "likelihood": "student_t"}, "gabor"),
    ((1, 64, 64), {}, None),
    ((1, 65, 64), {"backbone": "pixels"}, None),
    ((1, 65, 64), {"backbone": None}, None),
    ((1, 65, 64), {"net": "conv"}, None),
    ((1, 65, 64), {"likelihood": "bernoulli"}, None),
    ((1, 8, 8), {"backbone": "gabor"}, "gabor"),
])  # fmt: skip
def test_large_images_are_known_by_features_unless_pixels_are_asked_for(shape, params, expected):
    assert find_backbone(VAEDetector(**params), shape) == expected


def placed(n, shift, seed=0):
    """A bright square that is shifted by up to so many pixels."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0.3, 0.02, (n, 1, 64, 64))
    for image, (y, x) in zip(images, rng.integers(-shift, shift + 1, (n, 2)) % 64, strict=True):
        image[0] += np.roll(0.5 * np.pad(np.ones((20, 20)), 22), (y, x), axis=(0, 1))
    return images.clip(0, 1).astype(np.float32)


def test_places_have_their_own_scale_where_they_tell_something():
    n = 60
    extractor = build_extractor("gabor", 1, seed=0)
    for shift, own in ((1, True), (32, False)):
        schema = FeatureSchema.of(placed(n, shift), "gabor", extractor)
        assert (schema.usual.center.std(axis=(0, 1)) > 1e-3).any() == own
        fresh = schema.encode(placed(n, shift, seed=1)).reshape(n, *schema.grid, -1)[..., :49]
        assert abs(fresh.mean()) < 0.1
        assert fresh.std() < 1.2
        # A square at a place where none has ever been stands out more, the more a place tells.
        odd = schema.encode(np.roll(placed(n, 0), 12, axis=-1)).reshape(n, *schema.grid, -1)[..., :49]
        assert (odd.std() > 2 * fresh.std()) == own


def test_of_many_images_some_say_what_is_usual(monkeypatch):
    images = cloth(40)
    images[3] = np.nan
    monkeypatch.setattr("vae_anomaly.features.MAX_USUAL_ENTRIES", 1)
    few = FeatureSchema.of(images, "gabor", build_extractor("gabor", 1, seed=0), rows=np.arange(1, 40))
    assert len(few._kept) == 20
    assert len(FeatureSchema.of(cloth(5), "gabor", few.extractor)._kept) == 5


def test_flipped_copies_teach_what_is_normal_and_calibrate_nothing():
    def one_sided(n, seed=0):
        images = np.random.default_rng(seed).normal(0.3, 0.02, (n, 1, 32, 32)).astype(np.float32)
        images[:, :, 8:24, 4:10] = 0.9
        return images.clip(0, 1)

    params = {**SMALL, "backbone": "gabor", "max_steps": 150}
    plain, flipped = (VAEDetector(**params, flips=flips).fit(one_sided(40)) for flips in ((), ("h",)))
    good, mirrored = one_sided(20, 1), one_sided(20, 1)[..., ::-1].copy()
    gaps = [np.median(d.anomaly_score(mirrored)) - np.median(d.anomaly_score(good)) for d in (plain, flipped)]
    assert gaps[1] < 0.5 * gaps[0]
    assert plain.n_rows_ == flipped.n_rows_
    assert len(plain.calibration_scores_) == len(flipped.calibration_scores_)


# -- patches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_patches", [1, 9, 1024])
def test_weights_of_ranks_fall_and_sum_to_one(n_patches):
    weights = rank_weights(n_patches).double()
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-6)
    assert (weights > 0).all()
    assert (weights.diff() < 0).all()


def test_a_score_lies_between_mean_and_maximum_and_its_parts_sum_to_it():
    scores = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) - 3
    whole, parts = summarised(scores)
    by_hand = [(np.sort(row)[::-1] * rank_weights(40).numpy()).sum() for row in scores.numpy()]
    np.testing.assert_allclose(whole, by_hand, rtol=1e-5)
    np.testing.assert_allclose(parts.sum(dim=1), whole, rtol=1e-5)
    assert (scores.mean(dim=1) < whole).all()
    assert (whole < scores.max(dim=1).values).all()
    assert torch.equal(parts.argsort(dim=1), scores.argsort(dim=1))


@pytest.mark.parametrize(("height", "width"), [(32, 24), (7, 50), (4, 3)])
def test_pixels_sum_to_the_parts_of_the_grid(height, width):
    parts = np.random.default_rng(0).normal(size=(2, 4, 3))
    found = on_pixels(parts, height, width)
    assert found.shape == (2, height, width)
    np.testing.assert_allclose(found.sum(axis=(1, 2)), parts.sum(axis=(1, 2)))
    one = np.zeros((1, 4, 3))
    one[0, 2, 1] = 1
    y, x = np.unravel_index(on_pixels(one, height, width)[0].argmax(), (height, width))
    assert (y * 4 // height, x * 3 // width) == (2, 1)


def test_every_place_has_a_code_of_its_own():
    codes = place_codes(9, 5).reshape(-1, 4)
    assert len(np.unique(codes.round(5), axis=0)) == 45
    assert np.abs(codes).max() <= 1


def test_all_patches_of_an_image_are_on_one_side():
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    split = split_rows(20, 4, generators)
    patches = split.parts(6, generators[:3])
    for member in range(3):
        rows = set(split.train[member].tolist())
        assert sorted(patches.train[member].tolist()) == sorted(6 * row + part for row in rows for part in range(6))
        assert {patch // 6 for patch in patches.held_out[member].tolist()} == set(split.held_out[member].tolist())
    assert patches.train[0].tolist() != sorted(patches.train[0].tolist())
    assert np.array_equal(patches.calibration // 6 >= 0, np.ones(len(patches.calibration), bool))


# -- filters and backbones ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (28, 28), (64, 40), (130, 257)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_bank_takes_images_of_all_sizes(size, channels):
    (found,) = FilterBank(channels)(torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0)))
    cell = 8 if min(size) >= 128 else 4
    assert found.shape == (2, 49 * channels, *(round(side / cell) for side in size))
    assert bool(torch.isfinite(found).all())


def test_even_light_gives_nothing_and_contrast_counts_in_proportion():
    bank = FilterBank(1)
    (flat,) = bank(torch.full((1, 1, 64, 64), 0.7))
    torch.testing.assert_close(flat[:, 0], torch.full((1, 16, 16), 0.7))
    assert flat[:, 1:].abs().max() < 1e-4
    image = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    whole, half = ((bank(x)[0][:, 1:] + LEAST_STRENGTH**0.5).square() - LEAST_STRENGTH for x in (image, image / 2))
    torch.testing.assert_close(half, whole / 2, rtol=1e-4, atol=1e-5)


def test_each_orientation_answers_to_its_own_waves():
    bank = FilterBank(1)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for index in range(N_ORIENTATIONS):
        angle = np.pi * index / N_ORIENTATIONS
        wave = 0.5 + 0.5 * torch.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / 5)
        energies = bank(wave[None, None])[0][0, 1 : 1 + N_ORIENTATIONS].mean(dim=(1, 2))
        assert int(energies.argmax()) == index


def test_all_learned_backbones_are_torchvisions():
    from torchvision.models import get_model_weights, list_models

    learned = [name for name, backbone in BACKBONES.items() if backbone.learned]
    assert set(learned) < set(list_models())
    assert all(get_model_weights(name).DEFAULT.url.startswith("https://") for name in learned)


@pytest.mark.parametrize("name", ["gabor", "resnet18", "resnet50"])
def test_backbones_find_so_many_features_at_most_and_survive_a_file(name):
    from torchvision.models import get_model

    weights = None
    if BACKBONES[name].learned:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # Weights alone, and none of the slow drawing of those that a network starts from.
            with torch.device("meta"):
                blank = get_model(name, weights=None)
            weights = {key: 0.02 * torch.rand(value.shape) for key, value in blank.state_dict().items() if used(key)}
    extractor = build_extractor(name, 1, seed=0, weights=weights)
    images = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    found = extractor(images)
    assert found.shape[-1] == (MAX_FEATURES if BACKBONES[name].learned else 49)
    again = restore_extractor(name, 1, extractor.state_dict())
    assert torch.equal(again(images), found)
    assert again.fingerprint() == extractor.fingerprint()
    assert not any(parameter.requires_grad for parameter in again.parameters())


def used(key):
    return not key.startswith(("layer4", "fc")) and "num_batches" not in key


def test_features_are_those_of_torchvision(state):
    from torchvision.models import resnet18

    network = resnet18(weights=None)
    network.load_state_dict(state, strict=False)
    network.eval()
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    extractor = build_extractor("resnet18", 1, seed=3, weights=state)
    center, scale = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        h = (images.expand(-1, 3, -1, -1) - center[:, None, None]) / scale[:, None, None]
        h = network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(h)))))
        second = network.layer2(h)
        third = network.layer3(second)
    mean = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    up = nn.functional.interpolate(mean(third), second.shape[-2:], mode="bilinear", align_corners=False)
    joined = torch.cat([mean(second), up], dim=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(extractor(images), joined @ extractor.projection, rtol=1e-4, atol=1e-4)
    gram = extractor.projection.T @ extractor.projection
    torch.testing.assert_close(gram, torch.eye(MAX_FEATURES), rtol=1e-4, atol=1e-4)
    other = build_extractor("resnet18", 1, seed=4, weights=state)
    assert not torch.equal(other.projection, extractor.projection)


# -- weights -----------------------------------------------------------------------------------------------------------


def test_weights_come_from_both_kinds_of_files(state, weights, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    for path in (weights, tmp_path / "w.safetensors"):
        found = read_weights(path)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("trapped"),)


@pytest.mark.parametrize(("name", "content", "sentence"), [
    ("w.pth", {"conv1.weight": Trap()}, "code in such a file is never run"),
    ("w.pth", b"nothing", "is damaged"),
    ("w.safetensors", b"nothing", "is no safetensors file"),
    ("w.pth", [torch.zeros(1)], "holds no weights"),
    ("w.pth", {"epoch": 3}, "holds no weights"),
    ("w.pth", {}, "holds no weights"),
])  # fmt: skip
def test_files_that_hold_no_weights(tmp_path, monkeypatch, name, content, sentence):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path(name).write_bytes(content)
    else:
        torch.save(content, name)
    with pytest.raises(DataError, match=sentence):
        read_weights(name)
    assert not Path("trapped").exists()


@pytest.mark.parametrize(("change", "sentence"), [
    ({"layer1.0.conv1.weight": None}, "no 'layer1.0.conv1.weight' among them"),
    ({"bn1.weight": torch.ones(3)}, r"'bn1.weight' has shape \(3,\), and should have \(64,\)"),
    ({"bn1.weight": torch.full((64,), torch.nan)}, "not finite"),
])  # fmt: skip
def test_weights_of_another_network_are_refused(state, change, sentence):
    given = {name: value for name, value in {**state, **change}.items() if value is not None}
    with pytest.raises(DataError, match=sentence):
        build_extractor("resnet18", 1, seed=0, weights=given)


def offline(*_, **__):
    raise urllib.error.URLError("no network")


def test_where_there_is_no_network_a_sentence_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(DataError, match=r"resnet18 are not on this machine .*--weights FILE"):
        download_weights("resnet18")


def test_a_download_runs_no_code_and_checks_its_hash(monkeypatch, state):
    asked = {}

    def download(url, **options):
        asked.update(options, url=url)
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    assert download_weights("resnet18") is state
    assert asked["weights_only"] is True
    assert asked["check_hash"] is True
    assert "resnet18" in asked["url"]


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plant")
    for name, images in {
        "train/good": cloth(30), "test/good": cloth(10, 1), "test/cut": cloth(6, 2, cut=True),
    }.items():  # fmt: skip
        (folder / "cloth" / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray((image[0] * 255).astype(np.uint8)).save(folder / f"cloth/{name}/{number:02}.png")
    run("fit", folder / "cloth", "-o", folder / "m.safetensors", "--backbone", "gabor", *OPTIONS)
    return folder


def test_scores_maps_and_report(plant, tmp_path):
    run("score", plant / "m.safetensors", plant / "cloth", "-o", tmp_path / "s.csv", "--maps", tmp_path / "maps")
    predictions = read_predictions(tmp_path / "s.csv").set_index("path")
    cuts = predictions.index.str.startswith("test/cut")
    assert predictions["anomaly_score"][cuts].min() > predictions["anomaly_score"][~cuts].median()
    written = np.load(tmp_path / "maps/test/cut/03.npy")
    assert written.sum() == pytest.approx(predictions.loc["test/cut/03.png", "anomaly_score"], abs=1e-3)
    run("report", plant / "m.safetensors", plant / "cloth", "-o", tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text()
    assert "Images to look at" in page
    assert "Images drawn from the model" not in page
    assert json.loads((tmp_path / "out/metrics.json").read_text())["n_anomalies"] == 6


def test_scores_that_take_long_are_compared_when_asked_for(plant, tmp_path, monkeypatch):
    arguments = ("report", plant / "m.safetensors", plant / "cloth", "-o")

    def compared(name):
        return {one["name"] for one in json.loads((tmp_path / name / "metrics.json").read_text())["compared"]}

    run(*arguments, tmp_path / "all")
    assert compared("all") == set(scores_for(images=False))
    assert "Not compared" not in (tmp_path / "all/report.html").read_text()
    monkeypatch.setattr(account, "MAX_DRAWN_ENTRIES", 1000)
    result = run(*arguments, tmp_path / "few")
    drawn = {name for name in scores_for(images=False) if SCORES[name].draws}
    assert compared("few") == set(scores_for(images=False)) - drawn
    sentence = "Not compared, as they take long: neg_elbo, neg_log_px, reconstruction_probability, typicality. "
    assert sentence + "Add one with --compare-score neg_elbo." in result.stderr
    assert sentence in (tmp_path / "few/report.html").read_text()
    result = run(*arguments, tmp_path / "more", "--compare-score", "neg_elbo")
    assert compared("more") - compared("few") == {"neg_elbo"}
    assert "Not compared, as they take long: neg_log_px, " in result.stderr
    run(*arguments, tmp_path / "one", "--no-scores", "--compare-score", "kl")
    assert compared("one") == {"novelty", "kl"}
    result = run(*arguments, tmp_path / "no", "--compare-score", "patch_novelty", exit_code=2)
    assert "'patch_novelty' is for images on pixels" in result.stderr


def test_what_a_model_of_features_knows_and_cannot_do(plant, tmp_path):
    shown = run("inspect", plant / "m.safetensors").stdout
    assert "gabor" in shown
    assert "8 x 8, 49 features each" in shown
    for option in ((), ("--traverse",)):
        result = run("sample", plant / "m.safetensors", *option, "-o", tmp_path / "drawn.png", exit_code=2)
        assert "no image can be drawn or reconstructed" in result.stderr
        assert not (tmp_path / "drawn.png").exists()


def test_large_photographs_need_no_option(tmp_path):
    (tmp_path / "parts").mkdir()
    for number, image in enumerate(cloth(12, channels=3, size=300)):
        Image.fromarray((np.moveaxis(image, 0, -1) * 255).astype(np.uint8)).save(tmp_path / f"parts/{number:02}.png")
    result = run("fit", tmp_path / "parts", "-o", tmp_path / "m.safetensors", *OPTIONS)
    assert "Images of 300 x 300 pixels are brought to 256 x 256 pixels; --size names another side." in result.stderr
    assert "Images of 256 x 256 pixels are known by 32 x 32 patches (backbone gabor)" in result.stderr
    result = run("sample", tmp_path / "m.safetensors", "-o", tmp_path / "x.png", exit_code=2)
    assert "Fit with --backbone pixels" in result.stderr
    run("score", tmp_path / "m.safetensors", tmp_path / "parts", "-o", tmp_path / "s.csv")
    assert read_predictions(tmp_path / "s.csv")["anomaly_score"].notna().all()


def test_weights_that_cannot_be_had_end_with_exit_code_3(plant, tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    output = tmp_path / "m.safetensors"
    result = run("fit", plant / "cloth", "-o", output, "--backbone", "resnet18", *OPTIONS, exit_code=3)
    assert "--weights FILE" in result.stderr
    (tmp_path / "w.pth").write_bytes(b"nothing")
    arguments = ("--backbone", "resnet18", "--weights", tmp_path / "w.pth")
    result = run("fit", plant / "cloth", "-o", output, *arguments, *OPTIONS, exit_code=3)
    assert "is damaged" in result.stderr
    run("fit", plant / "cloth", "-o", output, "--backbone", "nonsense", *OPTIONS, exit_code=2)
    assert not output.exists()


def test_features_are_kept_by_several_threads(gabor, monkeypatch):
    images = cloth(60, 3)
    monkeypatch.setattr(features, "MAX_KEPT_BYTES", 5 * next(iter(gabor.schema_._kept.values())).nbytes)
    wanted = gabor.schema_.encode(images)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda part: gabor.schema_.encode(images[part::6]), range(6)))
    finally:
        sys.setswitchinterval(before)
    assert all(np.array_equal(rows, wanted[part::6]) for part, rows in enumerate(found))
    assert len(gabor.schema_._kept) <= 5


def test_a_small_file_of_large_images_is_refused_before_one_is_made(gabor, tmp_path, monkeypatch):
    gabor.save(tmp_path / "m.safetensors")
    header, tensors = load_model(tmp_path / "m.safetensors")
    del header["checksum"], header["format_version"]
    header["schema"]["shape"] = [1, 65536, 65536]
    save_model(tmp_path / "m.safetensors", header, tensors)
    monkeypatch.setattr(features, "_extract", lambda *args: pytest.fail("17 GB"))
    with pytest.raises(ModelFileError, match="its images have another size than its tensors"):
        load(tmp_path / "m.safetensors")
