import os
from pathlib import Path

import numpy as np
import pytest
from pictures import pattern, save
from PIL import Image

from vae_anomaly.data import maps
from vae_anomaly.data.images import read_images
from vae_anomaly.data.maps import map_names, overlay, write_maps

SCALE = (1.0, 3.0)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def some(n, channels=1, height=6, width=9):
    rng = np.random.default_rng(0)
    return 4 * rng.random((n, height, width)), rng.random((n, channels, height, width), dtype=np.float32)


def written(folder="out"):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_names_mirror_the_input_tree():
    values, images = some(3)
    paths = write_maps("out", map_names(["a/b/003.png", "a/c.d/x.tiff", "7.JPG"]), values, images, scale=SCALE)
    assert [path.as_posix() for path in paths] == ["out/a/b/003.npy", "out/a/c.d/x.npy", "out/7.npy"]
    assert written() == ["7.npy", "7.png", "a/b/003.npy", "a/b/003.png", "a/c.d/x.npy", "a/c.d/x.png"]
    for path, value, image in zip(paths, values, images, strict=True):
        found = np.load(path)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, value.astype(np.float32))
        with Image.open(path.with_suffix(".png")) as picture:
            np.testing.assert_array_equal(np.asarray(picture), overlay(value, image, SCALE))


def test_ids_of_images_are_names():
    for name in ("good/0.png", "good/new\nline.png", "bad/ü 🙂.png", "x" * 200 + ".png"):
        save(f"in/{name}", pattern(8, 8))
    data = read_images("in")
    images, _ = data.X.load()
    write_maps("out", map_names(data.ids), images.mean(axis=1), images, scale=SCALE)
    assert written() == sorted(name[:-4] + suffix for name in data.ids for suffix in (".npy", ".png"))
    values, images = some(2)
    write_maps("numbers", map_names(np.array([1, 2])), values, images, scale=SCALE)
    assert written("numbers") == ["1.npy", "1.png", "2.npy", "2.png"]


@pytest.mark.parametrize(
    "name",
    ["../x.png", "../../x.png", "a/../../x.png", "/etc/x.png", "//x.png", "..", ".", "", "a/..", "C:\\x.png",
     "..\\x.png", "\\\\host\\x.png", "C:x.png", "a\0b.png"],
)  # fmt: skip
def test_no_name_leads_out_of_the_folder(name, tmp_path):
    values, images = some(1)
    write_maps("deep/out", map_names([name]), values, images, scale=SCALE)
    inside = os.path.realpath("deep/out")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert all(os.path.realpath(path).startswith(inside + os.sep) for path in files)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.png", "b.png"], ["a", "b"]),
        (["a.png", "a.jpg", "b.png"], ["a.png", "a.jpg", "b"]),
        (["a.png", "a.png", "a.png"], ["a.png", "a.png~2", "a.png~3"]),
        (["A.png", "a.jpg"], ["A.png", "a.jpg"]),
        (["a/1.png", "b/1.png"], ["a/1", "b/1"]),
        (["../a.png", "__/a.png"], ["__/a.png", "__/a.png~2"]),
        (["a", "a.b.png", ".hidden.png"], ["a", "a.b", ".hidden"]),
        ([1, 2, 10], ["1", "2", "10"]),
        (["1.5", 1], ["1.5", "1"]),
        ([], []),
    ],
)
def test_no_two_images_share_a_file(names, expected):
    found = map_names(names)
    assert found == expected
    assert len({name.casefold() for name in found}) == len(names)


def test_images_that_could_not_be_decoded_get_no_files():
    values, images = some(3)
    images[1] = values[1] = np.nan
    paths = write_maps("out", map_names(["a.png", "b.png", "c.png"]), values, images, scale=SCALE)
    assert [path and path.name for path in paths] == ["a.npy", None, "c.npy"]
    assert written() == ["a.npy", "a.png", "c.npy", "c.png"]


def test_equal_maps_give_equal_bytes():
    values, images = some(2)
    for folder in ("one", "two"):
        write_maps(folder, map_names(["a.png", "b.png"]), values, images, scale=SCALE)
    assert written("one") == written("two")
    assert all(Path("one", name).read_bytes() == Path("two", name).read_bytes() for name in written("one"))


def test_an_interrupted_run_leaves_no_torn_file(monkeypatch):
    values, images = some(1)
    write_maps("out", map_names(["a.png"]), values, images, scale=SCALE)
    before = {name: Path("out", name).read_bytes() for name in written()}

    def torn(file, array):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(maps.np, "save", torn)
    with pytest.raises(OSError, match="no space left"):
        write_maps("out", map_names(["a.png"]), values + 1, images, scale=SCALE)
    assert {name: Path("out", name).read_bytes() for name in written()} == before


def test_overlay_is_the_grey_image_where_nothing_exceeds_the_scale():
    values, images = some(1, channels=3)
    found = overlay(np.minimum(values[0], SCALE[0]), images[0], SCALE)
    luma = 0.299 * images[0, 0] + 0.587 * images[0, 1] + 0.114 * images[0, 2]
    np.testing.assert_array_equal(found, np.rint(255 * np.stack([luma] * 3, axis=-1)))


def test_overlay_does_not_colour_nan_or_fail_on_infinity():
    image = np.full((1, 1, 3), 0.5, np.float32)
    found = overlay(np.array([[np.nan, np.inf, -np.inf]]), image, SCALE)
    assert found[0, 0].tolist() == found[0, 2].tolist() == [128, 128, 128]
    assert found[0, 1].tolist() == overlay(np.full((1, 1), 3.0), image[..., :1], SCALE)[0, 0].tolist()


def test_more_excess_is_redder():
    image = np.full((1, 1, 50), 0.5, np.float32)
    found = overlay(np.linspace(*SCALE, 50)[None], image, SCALE)[0].astype(int)
    assert (np.diff(found[:, 0] - found[:, 2])[:20] > 0).all()
    assert (np.diff(found[:, 1])[20:] < 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_overlay_of_any_channels(channels):
    values, images = some(1, channels)
    found = overlay(values[0], images[0], SCALE)
    assert found.dtype == np.uint8
    assert found.shape == (6, 9, 3)


@pytest.mark.parametrize(
    ("names", "shape", "scale", "sentence"),
    [
        (["a"], (2, 6, 9), SCALE, "There are 1 names, 2 maps, 2 images; give as many of each."),
        (["a", "b"], (2, 6, 8), SCALE, r"Maps have shape \(2, 6, 8\) and images \(2, 1, 6, 9\)"),
        (["a", "b"], (2, 6, 9), (1.0, 1.0), r"scale=\(1\.0, 1\.0\) is no pair of a lower and a higher number\."),
        (["a", "b"], (2, 6, 9), (0.0, np.nan), r"is no pair of a lower and a higher number\."),
    ],
)
def test_arguments_that_do_not_fit(names, shape, scale, sentence):
    with pytest.raises(ValueError, match=sentence):
        write_maps("out", names, np.zeros(shape), some(2)[1], scale=scale)
    assert not Path("out").exists()
