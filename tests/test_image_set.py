import pickle
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from pictures import pattern, save

from vae_anomaly.data import image_set
from vae_anomaly.data.decoding import decoded, event
from vae_anomaly.data.image_set import ImageSet, automatic_size, image_size
from vae_anomaly.errors import DataError


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def decodings(monkeypatch):
    """Paths of the files that were decoded, in order."""
    paths, lock = [], threading.Lock()

    def counting(path):
        with lock:
            paths.append(path)
        return decoded(path)

    monkeypatch.setattr(image_set, "decoded", counting)
    return paths


def files(n=5, **options):
    return [str(save(f"{i}.png", pattern(seed=i, **options))) for i in range(n)]


def says(sentence, error=DataError):
    return pytest.raises(error, match=re.escape(sentence))


# Laws ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 9, (5, 30)])
@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_files_and_arrays_are_equal(size, channels, dtype):
    stack = np.stack([pattern(channels=1, seed=i) for i in range(4)]).astype(dtype) * (257 if dtype == np.uint16 else 1)
    paths = [save(f"{i}.png", pixels) for i, pixels in enumerate(stack)]
    from_files = ImageSet.from_files(paths, size=size, channels=channels)
    from_array = ImageSet.from_array(stack, size=size, channels=channels)
    assert from_files.shape == from_array.shape
    np.testing.assert_array_equal(from_files.load()[0], from_array.load()[0])


@pytest.mark.parametrize("source", ["files", "array"])
def test_take_and_load_commute(source):
    array = np.arange(960, dtype=np.uint16).reshape(5, 8, 24)
    images = ImageSet.from_files(files()) if source == "files" else ImageSet.from_array(array)
    x, reasons = images.load()
    assert x.dtype == np.float32
    assert x.shape == images.shape
    assert 0 <= x.min() < x.max() <= 1
    assert reasons.tolist() == [""] * 5
    for chosen in ([3, 1], [4, 4, 0], [-1], [], [True, False, False, True, True], [False] * 5, range(2)):
        index = np.arange(5)[np.asarray(chosen, dtype=None if len(chosen) else int)]
        taken = images.take(chosen)
        assert len(taken) == len(index)
        np.testing.assert_array_equal(taken.load()[0], x[index])
        np.testing.assert_array_equal(images.load(chosen)[0], x[index])
        assert taken.names.tolist() == images.names[index].tolist()
    np.testing.assert_array_equal(images.take([4, 2, 0]).take([2, 1]).load()[0], x[[0, 2]])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 99])
@pytest.mark.parametrize("n_workers", [1, 3])
def test_batches_joined_are_the_whole(size, n_workers):
    paths = files()
    Path("2.png").write_bytes(b"junk")
    for images in (
        ImageSet.from_files(paths, n_workers=n_workers),
        ImageSet.from_files(paths, n_workers=n_workers).take([4, 2, 1]),
        ImageSet.from_array(np.zeros((5, 8, 8), np.uint8)),
        ImageSet.from_array(np.zeros((5, 8, 8), np.uint8), size=9),
    ):
        positions, x, reasons = (np.concatenate(parts) for parts in zip(*images.batches(size), strict=True))
        assert positions.tolist() == list(range(len(images)))
        np.testing.assert_array_equal(x, images.load()[0])
        assert reasons.tolist() == images.load()[1].tolist()


def test_no_images_no_batches():
    empty = ImageSet.from_files([], size=8, channels=1)
    assert list(empty.batches(3)) == []
    assert empty.load()[0].shape == (0, 1, 8, 8)


def test_broken_files_keep_their_place():
    paths = files()
    Path("1.png").write_bytes(Path("1.png").read_bytes()[:200])
    Path("3.png").unlink()
    x, reasons = ImageSet.from_files(paths).load()
    assert reasons.tolist() == ["", "the image is damaged or cut short", "", "the file does not exist", ""]
    assert np.isnan(x).all(axis=(1, 2, 3)).tolist() == [False, True, False, True, False]
    assert np.isnan(x).any(axis=(1, 2, 3)).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("size", [None, (4, 4)])
def test_nan_in_an_array_counts_as_broken(size):
    array = np.full((3, 8, 8), 0.5)
    array[1, 2, 3] = np.nan
    x, reasons = ImageSet.from_array(array, size=size).load()
    assert reasons.tolist() == ["", "some of its pixels are NaN", ""]
    assert np.isnan(x).all(axis=(1, 2, 3)).tolist() == [False, True, False]


# Memory --------------------------------------------------------------------------------------------------------------


def test_nothing_is_decoded_before_it_is_asked_for(decodings):
    images = ImageSet.from_files(files())
    assert images.shape == (5, 3, 12, 20)
    images.take([1, 2]).fingerprint()
    assert decodings == []
    images.load([3])
    assert decodings == ["3.png"]


def test_batches_are_decoded_two_ahead(decodings):
    batches = ImageSet.from_files(files(20), n_workers=1).batches(2)
    next(batches)
    assert len(decodings) <= 6
    batches.close()
    assert len(decodings) <= 6


def test_only_some_headers_are_read(monkeypatch):
    read = []
    monkeypatch.setattr(image_set, "header", lambda path: read.append(path) or image_set.Header((12, 20), True))
    ImageSet.from_files([f"{i}.png" for i in range(1000)])
    assert len(read) == 64
    assert read[0] == "0.png"
    assert read[-1] == "999.png"
    read.clear()
    ImageSet.from_files([f"{i}.png" for i in range(1000)], size=64, channels=1)
    assert read == []


def test_the_cache_decodes_once(decodings):
    images = ImageSet.from_files(files(), cache_gb=1.0)
    x, _ = images.load()
    x[:] = 7  # what was handed out is the caller's
    np.testing.assert_array_equal(images.load()[0], ImageSet.from_files(files()).load()[0])
    images.take([3]).load()
    assert sorted(decodings) == sorted(2 * files())


def test_the_cache_is_bounded(decodings):
    one = 3 * 12 * 20 * 4
    images = ImageSet.from_files(files(), cache_gb=2.5 * one / 1e9)
    images.load()
    images.load()
    assert len(decodings) == 5 + 3


def test_a_broken_file_is_not_kept(decodings):
    paths = files(1)
    images = ImageSet.from_files(paths, cache_gb=1.0)
    Path("0.png").write_bytes(b"junk")
    assert images.load()[1].tolist() != [""]
    files(1)
    assert images.load()[1].tolist() == [""]


def test_an_array_is_not_copied_and_not_written_to():
    array = np.zeros((3, 8, 8), np.uint8)
    images = ImageSet.from_array(array)
    assert np.shares_memory(images.source.array, array)
    with pytest.raises(ValueError, match="read-only"):
        images.source.array[0] = 1
    array[0] = 255
    assert images.load()[0][0].min() == 1


def test_another_process_gets_the_same_images():
    images = ImageSet.from_files(files(), cache_gb=1.0)
    x, _ = images.load()
    content = pickle.dumps(images)
    assert len(content) < 2000
    np.testing.assert_array_equal(pickle.loads(content).load()[0], x)


# Size and channels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(28, 28)], (28, 28)),
        ([(8, 256), (8, 256)], (8, 256)),
        ([(7, 28)], (64, 256)),
        ([(257, 257)], (256, 256)),
        ([(1024, 1024), (900, 900)], (256, 256)),
        ([(28, 28), (32, 32)], (256, 256)),
        ([(480, 640)] * 2 + [(640, 480)], (192, 256)),
        ([(640, 480)] * 2 + [(480, 640)], (256, 192)),
        ([(100, 1000)], (24, 256)),
        ([(1, 1000)], (8, 256)),
        ([(1000, 1)], (256, 8)),
    ],
)
def test_automatic_size(sizes, expected):
    assert automatic_size(sizes) == expected


def test_the_automatic_size_is_that_of_the_files():
    save("a.png", pattern(40, 60))
    assert ImageSet.from_files(["a.png"]).shape == (1, 3, 40, 60)
    save("b.png", pattern(80, 120))
    assert ImageSet.from_files(["a.png", "b.png"]).shape == (2, 3, 168, 256)
    assert ImageSet.from_files(["a.png"], size=16).shape == (1, 3, 16, 16)
    assert ImageSet.from_files(["a.png"], size=(16, 24), channels=1).shape == (1, 1, 16, 24)


def test_channels_are_three_if_one_image_has_colour():
    paths = files(3, channels=1)
    assert ImageSet.from_files(paths).channels == 1
    save("0.png")
    assert ImageSet.from_files(paths).channels == 3


def test_a_broken_file_does_not_spoil_size_and_channels():
    paths = files(3, channels=1)
    Path("0.png").write_bytes(b"junk")
    assert ImageSet.from_files(paths).shape == (3, 1, 12, 20)


def test_the_one_good_file_outside_of_the_sample_counts():
    paths = [f"{i}.png" for i in range(200)]
    save("1.png")
    assert ImageSet.from_files(paths).shape == (200, 3, 12, 20)


def test_no_good_file_at_all():
    with says("None of 2 images can be decoded; the first is a.png: the file does not exist."):
        ImageSet.from_files(["a.png", "b.png"])
    assert ImageSet.from_files(["a.png"], size=8, channels=1).load()[1].tolist() == ["the file does not exist"]
    with says("There is no image to take size and channels from. Give both."):
        ImageSet.from_files([], size=8)


@pytest.mark.parametrize("size", [0, -3, (3,), (3, 0), (1, 2, 3), 2.5, "ab"])
def test_sizes_that_are_none(size):
    with says("is neither a number of pixels nor (height, width).", ValueError):
        image_size(size)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"channels": 2}, "channels=2 is neither 1 (grey) nor 3 (colour)."),
        ({"n_workers": 0}, "n_workers=0 is less than one."),
        ({"cache_gb": -1}, "cache_gb=-1 is less than zero."),
    ],
)
def test_other_options(options, sentence):
    with says(sentence, ValueError):
        ImageSet.from_array(np.zeros((1, 8, 8), np.uint8), **options)
    with says("A batch of 0 images is empty.", ValueError):
        next(ImageSet.from_array(np.zeros((1, 8, 8), np.uint8)).batches(0))


# Arrays --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "u2", ">u2", "f2", "f4", ">f8", "bool"])
@pytest.mark.parametrize("shape", [(2, 9, 8), (2, 9, 8, 1), (2, 9, 8, 3)])
def test_arrays(dtype, shape):
    dtype = np.dtype(dtype)
    white = np.iinfo(dtype).max if dtype.kind == "u" else 1
    array = np.zeros(shape, dtype)
    array[1, 2, 3] = white
    x, _ = ImageSet.from_array(array).load()
    assert x.shape == (2, shape[3] if len(shape) == 4 else 1, 9, 8)
    assert x.dtype == np.float32
    assert x[1, :, 2, 3].tolist() == [1.0] * x.shape[1]
    assert x.sum() == x.shape[1]


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (
            np.zeros((3, 4)),
            "X has shape (3, 4), expected (n, height, width) or (n, height, width, channels) with 1 or 3",
        ),
        (np.zeros((2, 3, 8, 8)), "X has shape (2, 3, 8, 8), expected (n, height, width)"),
        (np.zeros((0, 8, 8)), "X has shape (0, 8, 8): there are no pixels in it."),
        (np.full((2, 8, 8), 255.0), "X holds the value 255, and floats have to lie in [0, 1]. Divide by the value of"),
        (np.full((2, 8, 8), -0.5), "X holds the value -0.5, and floats"),
        (np.full((2, 8, 8), np.inf), "X holds the value inf, and floats"),
        (np.zeros((2, 8, 8), np.int64), "X is of type int64, expected uint8, uint16, or floats from 0 to 1."),
        (np.zeros((2, 8, 8), "U3"), "X is of type <U3, expected uint8"),
    ],
)
def test_unusable_arrays(array, sentence):
    with says(sentence):
        ImageSet.from_array(array, where="X")


def test_floats_are_checked_to_the_last():
    array = np.zeros((3000, 2, 2))
    array[-1, -1, -1] = 2
    with says("holds the value 2, and floats"):
        ImageSet.from_array(array)


# Fingerprint and names -----------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_content_order_and_shape():
    images = ImageSet.from_files(files())
    same = images.fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", same)
    copies = [str(Path(path).rename(f"other-{path}")) for path in files()]
    assert ImageSet.from_files(copies).fingerprint() == same
    images = ImageSet.from_files(copies)
    others = {
        images.take([1, 0, 2, 3, 4]).fingerprint(),
        images.take(range(4)).fingerprint(),
        ImageSet.from_files(copies, size=9).fingerprint(),
        ImageSet.from_files(copies, channels=1).fingerprint(),
    }
    save(copies[3], pattern(seed=9))
    others.add(images.fingerprint())
    Path(copies[3]).unlink()
    others.add(images.fingerprint())
    assert len(others | {same}) == 7


def test_the_fingerprint_of_an_array_is_the_same_on_every_machine():
    array = np.arange(2 * 8 * 8, dtype=np.uint16).reshape(2, 8, 8)
    fingerprint = ImageSet.from_array(array).fingerprint()
    assert fingerprint == ImageSet.from_array(array.astype(">u2")).fingerprint()
    assert fingerprint == ImageSet.from_array(array.transpose(2, 1, 0).copy().transpose(2, 1, 0)).fingerprint()
    assert fingerprint != ImageSet.from_array(array.astype(np.uint8)).fingerprint()
    assert fingerprint == "b18645767bed5d99e50aacee9b561ffba37a301bbef1199e0749380af428486c"


def test_names():
    assert ImageSet.from_files(files()).take([3, 1]).names.tolist() == ["3.png", "1.png"]
    assert ImageSet.from_files(files(), names=list("abcde")).take([3, 1]).names.tolist() == ["d", "b"]
    images = ImageSet.from_array(np.zeros((5, 8, 8), np.uint8)).take([3, 1])
    assert images.names.tolist() == [4, 2]
    assert images.paths is None
    assert images.path(0) is None
    images = ImageSet.from_files(files(), names=list("abcde")).take([3, 1])
    assert images.paths == ["3.png", "1.png"]
    assert images.path(1) == "1.png"


def test_the_decoded_image_is_the_event_of_its_pixels():
    (path,) = files(1)
    x, _ = ImageSet.from_files([path], size=(7, 9), channels=1).load()
    np.testing.assert_array_equal(x[0], event(pattern(seed=0), (7, 9), channels=1))
