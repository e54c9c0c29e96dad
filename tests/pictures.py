"""Image files that tests make."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def pattern(height=12, width=20, channels=3, seed=0):
    """Pixels that no turn and no swap of channels leaves as they are."""
    rng = np.random.default_rng(seed)
    shape = (height, width) if channels == 1 else (height, width, channels)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def save(path, pixels=None, **options):
    """Save pixels (a pattern of colours, unless given) under a name, with its folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pattern() if pixels is None else pixels).save(path, **options)
    return path


def save_deep_png(path, pixels):
    """Save uint16 pixels (h, w, 3) as a PNG file with all 16 bits, which Pillow does for grey images only."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    body = b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return Path(path)
