import contextlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
from pictures import pattern, save, save_deep_png
from PIL import ExifTags, Image, ImageOps

from vae_anomaly.data import decoding
from vae_anomaly.data.decoding import SUFFIXES, Header, UndecodableError, decoded, event, grey, header

LOSSLESS = (".png", ".bmp", ".tif", ".tiff", ".webp")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def says(sentence):
    """Expect this reason."""
    return pytest.raises(UndecodableError, match=re.escape(sentence))


def options_of(suffix):
    return {"lossless": True} if suffix == ".webp" else {}


# Formats and modes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_format(suffix, channels):
    pixels = pattern(channels=channels)
    path = save(f"a{suffix}", pixels, **options_of(suffix))
    found = decoded(path)
    if suffix == ".webp" and channels == 1:  # WebP knows colour only
        pixels = np.stack([pixels] * 3, axis=-1)
    assert found.dtype == np.uint8
    assert found.shape == pixels.shape
    assert header(path) == Header((12, 20), is_grey=found.ndim == 2)
    if suffix in LOSSLESS:
        np.testing.assert_array_equal(found, pixels)


def test_the_format_is_found_in_the_content_and_not_in_the_name():
    save("a.png").rename("a.jpg")
    np.testing.assert_array_equal(decoded("a.jpg"), pattern())


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_one_bit(suffix):
    bits = pattern(channels=1) > 127
    np.testing.assert_array_equal(decoded(save(f"a{suffix}", bits)), np.where(bits, 255, 0))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_of_grey_are_all_kept(suffix):
    pixels = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    path = save(f"a{suffix}", pixels)
    np.testing.assert_array_equal(decoded(path), pixels)
    assert header(path).is_grey
    x = event(decoded(path), (256, 256), channels=1)
    np.testing.assert_array_equal(x[0], pixels.astype(np.float32) / np.float32(65535))
    assert len(np.unique(x)) == 2**16


def test_sixteen_bits_of_big_endian_grey():
    pixels = np.arange(240, dtype=np.uint16).reshape(12, 20) * 257
    big = Image.frombytes("I;16B", (20, 12), pixels.astype(">u2").tobytes())
    big.save("a.tif")
    np.testing.assert_array_equal(decoded("a.tif"), pixels)


def test_sixteen_bits_of_colour_give_their_upper_eight():
    pixels = np.random.default_rng(0).integers(0, 2**16, (12, 20, 3), dtype=np.uint16)
    np.testing.assert_array_equal(decoded(save_deep_png("a.png", pixels)), pixels >> 8)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_what_is_transparent_is_laid_on_white(mode, suffix):
    image = Image.new(mode, (3, 1))
    colour = (100,) * (len(mode) - 1)
    for x, alpha in enumerate([0, 51, 255]):
        image.putpixel((x, 0), (*colour, alpha))
    image.save(f"a{suffix}")
    found = decoded(f"a{suffix}")
    assert found.shape == ((1, 3) if mode == "LA" else (1, 3, 3))
    assert found.reshape(3, -1)[:, 0].tolist() == [255, 224, 100]  # 255 - 155 * 0.2 = 224


def test_palette():
    image = Image.fromarray(pattern()).quantize(16)
    image.save("a.png")
    np.testing.assert_array_equal(decoded("a.png"), np.asarray(image.convert("RGB")))
    assert not header("a.png").is_grey


def test_palette_with_a_transparent_colour():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save("a.png", transparency=1)
    assert decoded("a.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk(suffix):
    Image.new("CMYK", (4, 4), (255, 0, 0, 0)).save(f"a{suffix}")
    np.testing.assert_allclose(decoded(f"a{suffix}"), np.full((4, 4, 3), [0, 255, 255]), atol=2)


def test_floating_point_from_zero_to_one():
    pixels = np.linspace(0, 1, 240, dtype=np.float32).reshape(12, 20)
    np.testing.assert_array_equal(decoded(save("a.tif", pixels)), pixels)


@pytest.mark.parametrize("value", [1.5, -0.1, np.nan, np.inf])
def test_other_floating_point(value):
    with says("its pixels are floating-point numbers outside of 0 to 1; save 8 or 16 bits"):
        decoded(save("a.tif", np.array([[0.5, value]], np.float32)))


def test_pixels_of_32_bits():
    with says("its pixels are signed or have 32 bits, so what is white is unknown"):
        decoded(save("a.tif", np.array([[1, 2]], np.int32)))


def test_other_colours_become_rgb():
    Image.new("RGB", (4, 4), (200, 30, 90)).convert("YCbCr").save("a.tif")
    np.testing.assert_allclose(decoded("a.tif"), np.full((4, 4, 3), [200, 30, 90]), atol=2)


def test_the_first_of_several_images():
    first, second = (Image.fromarray(pattern(seed=seed)) for seed in (0, 1))
    first.save("a.tif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decoded("a.tif"), pattern())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(suffix, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(f"a{suffix}", exif=exif, **options_of(suffix))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decoded(path), expected)
    assert header(path).size == expected.shape[:2]


def test_sixteen_bits_are_turned_too():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels = np.arange(6, dtype=np.uint16).reshape(2, 3) * 1000
    np.testing.assert_array_equal(decoded(save("a.png", pixels, exif=exif)), np.rot90(pixels, -1))


# What can't be decoded -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cut_files_give_a_reason(suffix):
    content = save(f"a{suffix}", pattern(64, 64)).read_bytes()
    for length in (1, 10, 30, len(content) // 2, len(content) - 200):
        Path(f"a{suffix}").write_bytes(content[:length])
        with pytest.raises(UndecodableError, match=r"damaged"):
            decoded(f"a{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files_give_pixels_or_a_reason(suffix):
    content = save(f"a{suffix}", pattern(32, 32)).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), 5):
            damaged[position] = rng.integers(256)
        Path(f"a{suffix}").write_bytes(damaged)
        with contextlib.suppress(UndecodableError):
            assert decoded(f"a{suffix}").dtype in (np.uint8, np.uint16, np.float32)


@pytest.mark.parametrize("content", [b"junk" * 99, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF89a"])
def test_other_files(content):
    Path("a.png").write_bytes(content)
    with says("the file is no PNG, JPEG, BMP, TIFF or WebP image, or its beginning is damaged"):
        decoded("a.png")


def test_empty_and_absent_files_and_folders():
    Path("empty.png").touch()
    Path("folder.png").mkdir()
    for path, reason in [
        ("empty.png", "the file is empty"),
        ("folder.png", "not a file"),
        ("gone.png", "the file does not exist"),
    ]:
        with says(reason):
            decoded(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for():
    os.mkfifo("pipe.png")
    with says("not a file"):
        decoded("pipe.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may open everything")
def test_a_file_that_may_not_be_opened():
    save("a.png").chmod(0)
    with says("the file can't be opened: Permission denied"):
        decoded("a.png")


def test_decompression_bombs(monkeypatch):
    save("a.png", np.zeros((50, 60), np.uint8))
    monkeypatch.setattr(decoding, "MAX_PIXELS", 2999)
    with says("the image has 60 x 50 pixels, more than 2,999; cut it into tiles"):
        decoded("a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with says("the image has more than 2,999 pixels; cut it into tiles"):
        decoded("a.png")


def test_the_limit_lies_below_the_one_of_pillow():
    assert decoding.MAX_PIXELS < Image.MAX_IMAGE_PIXELS


# From pixels to samples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, bool])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(12, 20), (5, 7), (30, 31)])
def test_events_have_the_shape_and_the_range(dtype, channels, size):
    white = 1 if np.dtype(dtype).kind in "fb" else np.iinfo(dtype).max
    for value in (0, white):
        for pixels in (np.full((12, 20), value, dtype), np.full((12, 20, 3), value, dtype)):
            x = event(pixels, size, channels)
            assert x.dtype == np.float32
            assert x.shape == (channels, *size)
            np.testing.assert_allclose(x, float(bool(value)), rtol=1e-6)
            assert x.max() <= 1


def test_grey_is_the_luma():
    x = event(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8), (1, 3), channels=1)
    np.testing.assert_allclose(x[0, 0], [0.299, 0.587, 0.114], rtol=1e-6)
    batch = np.random.default_rng(0).random((2, 3, 4, 5), dtype=np.float32)
    np.testing.assert_array_equal(grey(batch)[1], grey(batch[1]))


def test_grey_repeated_is_grey():
    pixels = pattern(channels=1)
    x = event(pixels, (9, 9), channels=3)
    np.testing.assert_array_equal(x, np.stack([event(pixels, (9, 9), channels=1)[0]] * 3))


def test_resizing_averages_and_crops_nothing():
    pixels = np.zeros((64, 64), np.uint8)
    pixels[0, :] = 255  # a defect at the edge
    x = event(pixels, (8, 8), channels=1)[0]
    assert np.all(x[0] > 0.05)
    np.testing.assert_allclose(x.mean(), 1 / 64, rtol=0.4)
    # A pattern finer than the new pixels becomes grey, and not a pattern of another width.
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    np.testing.assert_allclose(event(stripes, (8, 8), channels=1)[0, :, 1:-1], 0.5, atol=0.05)


def test_resizing_keeps_more_than_8_bits():
    ramp = np.arange(256, dtype=np.uint8).repeat(4).reshape(1, -1).repeat(8, axis=0)
    assert len(np.unique(event(ramp, (8, 700), channels=1))) > 400


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_files_that_lie_on_their_side(mode, compression, orientation):
    """Checked against NumPy: Pillow's own way of turning files that it maps into memory is what went wrong."""
    upright = np.zeros((20, 31), np.uint8)
    upright[:, :10], upright[:5] = 200, 100
    image = Image.fromarray(upright.astype(np.uint16) if mode == "I;16" else upright)
    image = image if mode in ("L", "I;16") else image.convert(mode)
    image.save("a.tif", tiffinfo={ExifTags.Base.Orientation.value: orientation}, compression=compression)
    turns = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose, 6: lambda a: np.rot90(a, -1),
             7: lambda a: np.rot90(a.T, 2), 8: np.rot90}  # fmt: skip
    expected = turns.get(orientation, np.asarray)(upright)
    found = decoded("a.tif")
    np.testing.assert_array_equal(found if found.ndim == 2 else found[..., 0], expected)
    assert header("a.tif").size == expected.shape


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_orientation_that_does_not_exist_turns_nothing(suffix):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 9
    Image.new("L", (31, 20)).save(f"a{suffix}", exif=exif)
    assert header(f"a{suffix}").size == decoded(f"a{suffix}").shape == (20, 31)
