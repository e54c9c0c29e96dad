import numpy as np
import pytest
import torch

from vae_anomaly.data.augment import augment

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
