"""From the bytes of an image file to pixels, and from pixels to samples of one shape."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

__all__ = ["MAX_PIXELS", "SUFFIXES", "Header", "UndecodableError", "decoded", "event", "grey", "header"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
# Named, because among the formats that Pillow knows are some that start other programs.
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")

MAX_PIXELS = 2**26
"""Images with more pixels are not decoded: a file of a few kilobytes can unpack to fill any memory."""

_GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)[:, None, None]


class UndecodableError(ValueError):
    """An image can't be decoded; the message is the reason, without the name of the file."""


class Header(NamedTuple):
    """What a file says about its image before anything is decoded."""

    size: tuple[int, int]
    """Height and width, as the image is meant to be seen."""
    is_grey: bool


def header(path: str | os.PathLike[str]) -> Header:
    """Size and colour of an image, without decoding it."""
    with _opened(path) as image:
        height, width = image.height, image.width
        # The exif of a PNG file may stand after its pixels, and PngImageFile.getexif would decode them to find it.
        turned = image.format != "TIFF" and Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in _SIDEWAYS
        return Header((width, height) if turned else (height, width), image.mode in _GREY_MODES)


def decoded(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Pixels of the first image in a file, of shape (h, w) if it is grey and (h, w, 3) if not.

    8 bits come out as ``uint8``, 16 bits of grey as ``uint16``, floating point as ``float32``. Of 16 bits of colour, or
    of grey with alpha, Pillow gives the upper 8. The image is turned as its EXIF data say. What is transparent is laid
    on white. Colour profiles are ignored.

    Raises
    ------
    UndecodableError
        If anything is wrong with the file or its image.
    """
    with _opened(path) as image:
        image.load()
        # TIFF files are turned in load, and then have no orientation any more.
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        pixels = _pixels(image)
        return np.ascontiguousarray(_TURNS[orientation](pixels)) if orientation in _TURNS else pixels


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """An image whose header could be read; every error comes out as a reason."""
    try:
        _check_file(path)
        # By its name, Pillow would map some TIFF files into memory, and read those that lie on their side row by row.
        with open(path, "rb") as file, Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UndecodableError(
                    f"the image has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}; cut it into tiles"
                )
            yield image
    except UndecodableError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UndecodableError(f"the image has more than {MAX_PIXELS:,} pixels; cut it into tiles") from None
    except UnidentifiedImageError:
        raise UndecodableError(
            "the file is no PNG, JPEG, BMP, TIFF or WebP image, or its beginning is damaged"
        ) from None
    except Exception:  # decoders raise almost anything: OSError, SyntaxError, struct.error, RuntimeError, MemoryError
        raise UndecodableError("the image is damaged or cut short") from None


def _check_file(path: str | os.PathLike[str]) -> None:
    try:
        # Devices and pipes may have no end.
        if not os.path.isfile(path):
            raise UndecodableError("not a file" if os.path.exists(path) else "the file does not exist")
        if os.path.getsize(path) == 0:
            raise UndecodableError("the file is empty")
        with open(path, "rb"):
            pass
    except OSError as error:
        raise UndecodableError(f"the file can't be opened: {error.strerror or error}") from None


def _pixels(image: Image.Image) -> NDArray[Any]:
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):  # older versions of Pillow say I
        return np.asarray(image).astype(np.uint16)
    if mode == "I":
        raise UndecodableError("its pixels are signed or have 32 bits, so what is white is unknown; save 8 or 16 bits")
    if mode == "F":
        return _unit_floats(np.asarray(image))
    if mode == "1":
        return np.asarray(image.convert("L"))
    if image.has_transparency_data:
        return _on_white(np.asarray(image.convert("LA" if mode in _GREY_MODES else "RGBA")))
    if mode == "L":
        return np.asarray(image)
    return np.asarray(image.convert("RGB"))


def _unit_floats(pixels: NDArray[Any]) -> NDArray[np.float32]:
    # Written so that NaN fails, too.
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise UndecodableError("its pixels are floating-point numbers outside of 0 to 1; save 8 or 16 bits")
    return pixels.astype(np.float32)


def _on_white(pixels: NDArray[Any]) -> NDArray[Any]:
    """Pixels with alpha as their last channel, laid on white."""
    white = np.iinfo(pixels.dtype).max
    colour, alpha = pixels[..., :-1].astype(np.float64), pixels[..., -1:] / white
    opaque = np.rint(white - (white - colour) * alpha).astype(pixels.dtype)
    return opaque[..., 0] if opaque.shape[-1] == 1 else opaque


# EXIF orientations that change width and height.
_SIDEWAYS = range(5, 9)
# What to do with the pixels for each EXIF orientation but 1, which is upright.
_TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def event(pixels: NDArray[Any], size: tuple[int, int], channels: int) -> NDArray[np.float32]:
    """Pixels (h, w) or (h, w, c) as float32 of shape (channels, \\*size) in [0, 1].

    Both sides are resized by antialiased bilinear interpolation; nothing is cropped, because a defect may lie at the
    edge, and the aspect is not kept. Colour becomes grey by its luma (ITU-R BT.601), grey becomes colour by repetition.

    Examples
    --------
    >>> event(np.array([[0, 255]], np.uint8), (1, 2), channels=1)
    array([[[0., 1.]]], dtype=float32)
    >>> event(np.full((40, 60, 3), 65535, np.uint16), (8, 8), channels=1).shape
    (1, 8, 8)
    """
    # Moved while a pixel is a byte or two, and not when it is a float.
    x = unit(np.ascontiguousarray(np.moveaxis(pixels[..., None] if pixels.ndim == 2 else pixels, -1, 0)))
    if channels == 1:
        x = grey(x)
    if x.shape[-2:] != size:
        x = _resized(x, size)
    return np.repeat(x, 3, axis=0) if channels > len(x) else x


def unit(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Pixels of any type in [0, 1]: whole numbers are divided by the largest one of their type."""
    x = pixels.astype(np.float32)
    if pixels.dtype.kind == "u":
        x /= np.float32(np.iinfo(pixels.dtype).max)
    return x


def grey(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """One channel from the one or three of (..., c, h, w)."""
    return x if x.shape[-3] == 1 else np.minimum((_LUMA * x).sum(axis=-3, keepdims=True), 1)


def _resized(x: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    import torch
    from torchvision.transforms.v2 import functional as F

    # Resized in floating point: whole numbers would be rounded back to 256 or 65,536 levels.
    resized: NDArray[np.float32] = F.resize(torch.from_numpy(x), list(size), antialias=True).clamp_(0, 1).numpy()
    return resized
