import numpy as np
import pytest
import torch
from tables import mixed, run

from vae_anomaly import planning
from vae_anomaly.augment import augment
from vae_anomaly.detector import VAEDetector, load

ALL = {"flips": ("h", "v"), "shift": 2, "brightness": 0.3}


@pytest.fixture
def x(generator):
    return torch.rand(64, 3, 9, 11, generator=generator)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_nothing_asked_nothing_changed(x):
    generator = seeded()
    state = generator.get_state()
    assert augment(x, generator) is x
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("options", [ALL, {"flips": ("h",)}, {"shift": 3}, {"brightness": 0.5}])
def test_the_generator_is_the_only_source_of_chance(x, options):
    before = x.clone()
    first = augment(x, seeded(), **options)
    torch.manual_seed(5)
    assert torch.equal(augment(x, seeded(), **options), first)
    assert not torch.equal(augment(x, seeded(1), **options), first)
    assert torch.equal(x, before)
    assert first.shape == x.shape
    assert first.dtype == x.dtype


@pytest.mark.parametrize(("flip", "dim"), [("h", -1), ("v", -2)])
def test_half_of_the_images_are_flipped(x, flip, dim):
    found = augment(x, seeded(), flips=flip)
    flipped = np.array([torch.equal(a, b.flip(dim)) for a, b in zip(found, x, strict=True)])
    same = np.array([torch.equal(a, b) for a, b in zip(found, x, strict=True)])
    assert (flipped ^ same).all()
    assert 16 <= flipped.sum() <= 48


def test_flips_are_drawn_apart(x):
    found = augment(x, seeded(), flips=("h", "v"))
    candidates = (x, x.flip(-1), x.flip(-2), x.flip(-1, -2))
    counts = [sum(torch.equal(a, b) for a, b in zip(found, other, strict=True)) for other in candidates]
    assert sum(counts) == 64
    assert min(counts) >= 5


def test_shifts_pad_with_the_edge(x):
    found = augment(x, seeded(), shift=2)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    seen = set()
    for i in range(len(x)):
        windows = {(r, c): padded[i, :, r : r + 9, c : c + 11] for r in range(5) for c in range(5)}
        (offset,) = [offset for offset, window in windows.items() if torch.equal(window, found[i])]
        seen.add(offset)
    assert {r for r, _ in seen} == {c for _, c in seen} == set(range(5))


def test_a_shift_may_exceed_the_image(x):
    assert augment(x[:, :, :1, :1], seeded(), shift=5).equal(x[:, :, :1, :1])


def test_brightness_is_one_factor_for_an_image(x):
    x = 0.1 + 0.4 * x
    found = augment(x, seeded(), brightness=0.3)
    factors = (found / x).flatten(1)
    torch.testing.assert_close(factors, factors[:, :1].expand_as(factors), rtol=1e-5, atol=0)
    assert 0.7 <= factors.min() < 0.8
    assert 1.2 < factors.max() <= 1.3


def test_values_stay_in_range(x):
    found = augment(x, seeded(), **{**ALL, "brightness": 1.0})
    assert found.min() >= 0
    assert found.max() <= 1


def test_what_is_missing_stays_missing(x):
    x[3] = torch.nan
    found = augment(x, seeded(), **ALL)
    assert found[3].isnan().all()
    assert not found[4].isnan().any()


def test_no_images(x):
    assert augment(x[:0], seeded(), **ALL).shape == (0, 3, 9, 11)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"flips": ("x",)}, r"holds 'x'\. Choose from 'h' \(left-right\) and 'v'"),
        ({"shift": -1}, r"shift=-1 is less than zero\."),
        ({"brightness": 1.5}, r"brightness=1\.5 lies outside of \[0, 1\]\."),
        ({"brightness": float("nan")}, r"brightness=nan lies outside"),
    ],
)
def test_options_that_mean_nothing(x, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        augment(x, seeded(), **options)


# In training ---------------------------------------------------------------------------------------------------------

SHAPE = (1, 6, 8)
TINY_IMAGES = {"net": "mlp", "max_steps": 30, "n_estimators": 2, "hidden": (8,), "latent_dim": 3}


def one_sided(n=80, seed=0):
    """Images that are bright on their left."""
    rng = np.random.default_rng(seed)
    images = 0.2 + 0.05 * rng.random((n, *SHAPE))
    images[..., :3] += 0.5 * rng.random((n, 1, 1, 1))
    return images.astype(np.float32)


@pytest.fixture(scope="module")
def flipped():
    return VAEDetector(flips=("h",), shift=1, brightness=0.1, **{**TINY_IMAGES, "max_steps": 150}).fit(one_sided())


def recorded(monkeypatch):
    """Batches that the change of a plan gives, and what it was given."""
    seen = []
    original = planning.augment

    def recording(x, generator, **options):
        found = original(x, generator, **options)
        seen.append((x.clone(), found.clone()))
        return found

    monkeypatch.setattr(planning, "augment", recording)
    return seen


def test_each_batch_of_each_member_is_changed_and_nothing_else(monkeypatch):
    seen = recorded(monkeypatch)
    images = one_sided()
    detector = VAEDetector(flips=("h",), **TINY_IMAGES).fit(images)
    assert len(seen) == 30 * 2
    given, found = seen[0]
    sides = found[..., :3].mean(dim=(1, 2, 3)) - found[..., 5:].mean(dim=(1, 2, 3))
    assert (sides < 0).any()
    assert (sides > 0).any()
    # What is changed are pixels in [0, 1], rows of the training table.
    table = {row.round(decimals=4).numpy().tobytes() for row in torch.from_numpy(images)}
    assert all(row.round(decimals=4).numpy().tobytes() in table for row in given)
    # Calibration and scoring see the images as they are.
    n = len(seen)
    detector.anomaly_score(images)
    detector.calibrate(one_sided(60, 3))
    assert len(seen) == n


def test_members_change_their_batches_each_by_its_own_generator(monkeypatch):
    seen = recorded(monkeypatch)
    first = VAEDetector(brightness=0.5, **TINY_IMAGES).fit(one_sided())
    factors = [(after / before)[:, 0, 0, 0] for before, after in seen[:2]]
    assert not torch.allclose(*factors)
    again = VAEDetector(brightness=0.5, **TINY_IMAGES).fit(one_sided())
    assert np.array_equal(first.anomaly_score(one_sided(5, 1)), again.anomaly_score(one_sided(5, 1)))


def test_nothing_asked_leaves_training_as_it_was(monkeypatch):
    seen = recorded(monkeypatch)
    VAEDetector(**TINY_IMAGES).fit(one_sided())
    assert seen == []


def test_flipped_images_are_learned(flipped):
    plain = VAEDetector(**{**TINY_IMAGES, "max_steps": 150}).fit(one_sided())
    good, mirrored = one_sided(40, 1), one_sided(40, 1)[..., ::-1].copy()
    error = {"score_name": "reconstruction_error"}
    assert np.median(flipped.anomaly_score(mirrored, **error)) < 3 * np.median(flipped.anomaly_score(good, **error))
    assert np.median(plain.anomaly_score(mirrored, **error)) > 3 * np.median(plain.anomaly_score(good, **error))


def test_the_model_file_names_the_changes(flipped, tmp_path):
    flipped.save(tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert again.get_params() == flipped.get_params()
    assert (again.flips, again.shift, again.brightness) == (("h",), 1, 0.1)
    assert (
        "augmentation           flips h; shift 1; brightness 0.1" in run("inspect", tmp_path / "m.safetensors").stdout
    )


def test_the_command_line_changes_images_and_no_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", (one_sided()[:, 0] * 255).astype(np.uint8))
    options = ("--net", "mlp", "--max-steps", 20, "--estimators", 2, "--hidden", "8", "-o", "m.safetensors")
    run("fit", "images.npy", "--flip", "h", "--flip", "v", "--shift", 2, "--brightness", 0.1, *options)
    assert "flips h, v; shift 2; brightness 0.1" in run("inspect", "m.safetensors").stdout
    mixed().to_csv("table.csv", index=False)
    for option in (("--flip", "h"), ("--shift", 1), ("--brightness", 0.5)):
        result = run("fit", "table.csv", *option, "-o", "t.safetensors", exit_code=2)
        assert f"{option[0]} is for images, and table.csv holds none." in result.stderr
    run("fit", "images.npy", "--flip", "x", "-o", "x.safetensors", exit_code=2)
    run("fit", "images.npy", "--brightness", 2, "-o", "x.safetensors", exit_code=2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"flips": ("x",)}, r"flips=\('x',\) must be a sequence of 'h'"),
        ({"flips": "h"}, "flips='h' must be a sequence"),
        ({"shift": -1}, "shift=-1 must be an integer of at least 0"),
        ({"shift": 1.5}, "shift=1.5 must be an integer"),
        ({"brightness": 2.0}, "brightness=2.0 must be a number of at least 0 and at most 1"),
    ],
)
def test_parameters_that_mean_nothing(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        VAEDetector(**options).fit(one_sided())


def test_tables_are_not_changed():
    with pytest.raises(ValueError, match="flips, shift and brightness are for images"):
        VAEDetector(shift=1).fit(np.random.default_rng(0).normal(size=(60, 4)))
