"""Drawn photographs of good and of defective surfaces and parts, from a seed: 256 x 256 pixels, in colour.

Each scene is drawn anew for each image, with its own noise, pose and light, and then seen through a sensor that blurs,
adds noise and rounds to 8 bits. A defect is drawn into the scene before the sensor sees it; its mask is where it
changed the scene. Two scenes are windows of the photographs that scikit-learn brings along.
"""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from sklearn.datasets import load_sample_image

__all__ = ["DEFECTS", "SCENES", "made"]

SIDE = 256
# A defect is where it changed a channel by more than this, of the range from 0 to 1.
VISIBLE = 0.02

Rng = np.random.Generator
Plane = NDArray[np.float64]


class Drawn(NamedTuple):
    """A scene without its sensor."""

    image: Plane
    """Shape (side, side, 3)."""
    part: Plane
    """1 on the part, 0 on what lies behind it, shape (side, side)."""
    behind: Plane
    """What is seen where the part is missing, shape (side, side, 3)."""


# -- tools -------------------------------------------------------------------------------------------------------------


def _places() -> tuple[Plane, Plane]:
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    return y.astype(float), x.astype(float)


def _noise(rng: Rng, sigma: float | tuple[float, float]) -> Plane:
    """Smooth noise with a standard deviation of one."""
    found = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), sigma, mode="wrap")
    return (found - found.mean()) / found.std()


def _posed(rng: Rng, turn: float, shift: float) -> tuple[Plane, Plane]:
    """Coordinates of a part that lies turned by up to ``turn`` degrees, and shifted."""
    y, x = _places()
    angle, (dy, dx) = np.deg2rad(rng.uniform(-turn, turn)), rng.uniform(-shift, shift, 2)
    y, x = y - dy, x - dx
    return np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x


def _cover(distance: Plane) -> Plane:
    """Share of each pixel that lies inside, from the signed distance to the border."""
    return np.clip(0.5 - distance, 0, 1)


def _box(y: Plane, x: Plane, height: float, width: float, corner: float = 0.0) -> Plane:
    dy, dx = np.abs(y) - height / 2 + corner, np.abs(x) - width / 2 + corner
    return np.hypot(np.maximum(dy, 0), np.maximum(dx, 0)) + np.minimum(np.maximum(dy, dx), 0) - corner


def _paint(image: Plane, cover: Plane, colour: Plane | tuple[float, ...]) -> Plane:
    return image + cover[..., None] * (np.asarray(colour) - image)


def _flat(colour: tuple[float, ...], shade: Plane) -> Plane:
    return np.asarray(colour) * shade[..., None]


def _surface(image: Plane) -> Drawn:
    behind = ndimage.gaussian_filter(image, (12, 12, 0))
    return Drawn(image, np.ones((SIDE, SIDE)), behind)


# -- surfaces ----------------------------------------------------------------------------------------------------------


def cloth(rng: Rng) -> Drawn:
    """Two families of threads, over and under."""
    y, x = _posed(rng, 4, 40)
    y, x = y + 1.2 * _noise(rng, 14), x + 1.2 * _noise(rng, 14)
    warp, weft = np.cos(2 * np.pi * x / 9), np.cos(2 * np.pi * y / 9)
    over = np.sign(np.sin(np.pi * x / 9) * np.sin(np.pi * y / 9))
    height = np.where(over > 0, warp, weft)
    thread = np.where(over > 0, _noise(rng, (20, 1.5)), _noise(rng, (1.5, 20)))
    return _surface(_flat((0.62, 0.56, 0.45), 0.85 + 0.18 * height + 0.05 * thread))


def wood(rng: Rng) -> Drawn:
    """Rings cut along the grain, and pores."""
    y, x = _posed(rng, 3, 100)
    bent = y + 9 * _noise(rng, (12, 60)) + 0.02 * x
    rings = np.sin(2 * np.pi * bent / rng.uniform(16, 24)) + 0.5 * np.sin(2 * np.pi * bent / 7 + 1)
    pores = np.clip(_noise(rng, (0.8, 9)) - 1.3, 0, None)
    return _surface(_flat((0.66, 0.45, 0.27), 0.9 + 0.09 * rings + 0.03 * _noise(rng, (1, 12)) - 0.14 * pores))


def granite(rng: Rng) -> Drawn:
    """Grains of three minerals."""
    image = np.full((SIDE, SIDE, 3), 0.62)
    for colour, sigma, share in (
        ((0.80, 0.76, 0.72), 3.0, 0.4),
        ((0.55, 0.42, 0.38), 2.2, 0.9),
        ((0.18, 0.18, 0.2), 1.8, 1.2),
    ):
        image = _paint(image, np.clip(3 * (_noise(rng, sigma) - share) + 0.5, 0, 1), colour)
    return _surface(image + 0.03 * _noise(rng, 0.7)[..., None])


def leather(rng: Rng) -> Drawn:
    """Bumps of irregular cells, lit from one side."""
    cells = rng.uniform(-8, SIDE + 8, size=(1400, 2))
    at = np.stack(np.mgrid[:SIDE, :SIDE], axis=-1).reshape(-1, 2) + 1.5 * np.stack(
        [_noise(rng, 5), _noise(rng, 5)], -1
    ).reshape(-1, 2)
    nearest = cKDTree(cells).query(at, k=2)[0]
    height = ndimage.gaussian_filter(np.minimum(nearest[:, 1] - nearest[:, 0], 4).reshape(SIDE, SIDE), 0.8)
    light = np.gradient(height, axis=0) + 0.5 * np.gradient(height, axis=1)
    return _surface(_flat((0.42, 0.25, 0.17), 0.8 + 0.09 * height + 0.22 * light + 0.04 * _noise(rng, 20)))


def tile(rng: Rng) -> Drawn:
    """Tiles with speckles, and the joints between them."""
    y, x = _posed(rng, 1.5, 28)
    joint = np.minimum(np.abs((y + 28) % 56 - 28), np.abs((x + 28) % 56 - 28))
    tint = rng.normal(0, 0.02, size=(12, 12))
    own = tint[(np.floor((y + 28) / 56).astype(int)) % 12, (np.floor((x + 28) / 56).astype(int)) % 12]
    image = _flat((0.55, 0.62, 0.66), 1 + own + 0.05 * _noise(rng, 1.2) + 0.03 * _noise(rng, 6))
    return _surface(_paint(image, np.clip(2.6 - joint, 0, 1), _flat((0.32, 0.31, 0.3), 1 + 0.1 * _noise(rng, 0.8))))


# -- parts -------------------------------------------------------------------------------------------------------------


def _table(rng: Rng, shade: float) -> Plane:
    return _flat((shade, shade, 1.03 * shade), 1 + 0.03 * _noise(rng, 2) + 0.02 * _noise(rng, 30))


def _metal(rng: Rng, shade: Plane) -> Plane:
    return _flat((0.62, 0.63, 0.66), shade + 0.03 * _noise(rng, (0.7, 5)) + 0.015 * _noise(rng, 1.5))


def gear(rng: Rng) -> Drawn:
    """A gear wheel with spokes, always in about the same place."""
    y, x = _posed(rng, 5, 4)
    behind, radius, angle = _table(rng, 0.22), np.hypot(y, x), np.arctan2(y, x)
    teeth = 4.5 * np.clip(2.5 * np.cos(24 * angle), -1, 1)
    distance = np.maximum(radius - 92 - teeth, 18 - radius)
    spokes = np.abs((angle * 5 / (2 * np.pi) + 0.5) % 1 - 0.5) * 2 * np.pi * radius / 5
    windows = np.maximum(np.maximum(radius - 72, 36 - radius), 11 - spokes)
    distance = np.maximum(distance, -windows)
    part = _cover(distance)
    shade = 0.85 + 0.15 * np.clip(-distance / 5, 0, 1) + 0.06 * np.cos(angle - 0.7)
    return Drawn(_paint(behind, part, _metal(rng, shade)), part, behind)


def screw(rng: Rng) -> Drawn:
    """A screw that lies in any direction."""
    y, x = _posed(rng, 180, 8)
    behind = _table(rng, 0.72)
    flank = np.abs(((x + y * 0.25) / 8) % 1 - 0.5) * 2
    core = np.where(x > -10, 9 + 3.5 * flank, 9.5)
    core = np.where(x > 72, np.clip(core - (x - 72) * 0.4, 0.5, None), core)
    shaft = np.maximum(np.abs(y) - core, np.maximum(-x - 62, x - 98))
    head = np.maximum(np.hypot(y, 0) - 26 + np.clip(-x - 80, 0, None) * 0.5, np.abs(x + 76) - 15)
    distance = np.minimum(shaft, head)
    part = _cover(distance)
    round_ = np.sqrt(np.clip(1 - (y / np.where(x < -61, 27, 13)) ** 2, 0, 1))
    shade = 0.35 + 0.6 * round_ + np.where((x > -10) & (x < 98), 0.22 * (flank - 0.5), 0)
    return Drawn(_paint(behind, part, _flat((0.78, 0.7, 0.5), shade + 0.02 * _noise(rng, 1))), part, behind)


def bottle(rng: Rng) -> Drawn:
    """The mouth of a bottle from above: rings of glass with reflections."""
    y, x = _posed(rng, 180, 3)
    fixed_y, fixed_x = _places()
    behind, radius = _table(rng, 0.85), np.hypot(y, x)
    light = np.arctan2(fixed_y, fixed_x)
    rings = 0.30 + 0.16 * np.sin(radius / 6.5) + 0.12 * np.cos(2 * light + 0.6) * (radius > 55)
    shine = np.exp(-(((radius - 84) / 4) ** 2)) * np.clip(np.cos(light + 2.2), 0, 1) ** 6
    colour = _flat((0.36, 0.24, 0.12), 0.7 + 2 * rings + 0.04 * _noise(rng, 4)) + 0.55 * shine[..., None]
    inside = _cover(radius - 46)
    colour = _paint(colour, inside, _flat((0.06, 0.05, 0.05), 1 + 0.2 * np.clip(radius / 46, 0, 1)))
    part = _cover(radius - 104)
    return Drawn(_paint(behind, part, colour), part, behind)


@cache
def _print() -> Plane:
    """Strokes that stand for printed letters: the same on every capsule."""
    rng, drawn = np.random.default_rng(7), np.zeros((SIDE, SIDE))
    y, x = _places()
    for letter in range(5):
        for _ in range(4):
            (y0, x0), (y1, x1) = rng.uniform(-7, 7, (2, 2))
            x0, x1 = x0 + 18 * letter - 14, x1 + 18 * letter - 14
            drawn = np.maximum(drawn, _cover(_segment(y, x, y0, x0, y1, x1) - 0.9))
    return drawn


def _segment(y: Plane, x: Plane, y0: float, x0: float, y1: float, x1: float) -> Plane:
    dy, dx = y1 - y0, x1 - x0
    along = np.clip(((y - y0) * dy + (x - x0) * dx) / max(dy * dy + dx * dx, 1e-9), 0, 1)
    return np.hypot(y - y0 - along * dy, x - x0 - along * dx)


def capsule(rng: Rng) -> Drawn:
    """A capsule of two colours with a print."""
    y, x = _posed(rng, 5, 5)
    behind = _table(rng, 0.9)
    distance = _segment(y, x, 0, -62, 0, 62) - 36
    part = _cover(distance)
    shade = 0.55 + 0.5 * np.sqrt(np.clip(-distance / 36, 0, 1)) + 0.015 * _noise(rng, 3)
    shine = 0.25 * np.exp(-(((y + 18) / 4) ** 2)) * (np.abs(x) < 66)
    colour = np.where((x < -8)[..., None], _flat((0.12, 0.13, 0.15), shade), _flat((0.80, 0.33, 0.10), shade))
    back = (SIDE - 1) / 2
    letters = ndimage.map_coordinates(_print(), [y + back, x + back], order=1, mode="constant")
    colour = _paint(colour + shine[..., None], letters, (0.93, 0.92, 0.88))
    return Drawn(_paint(behind, part, colour), part, behind)


@cache
def _layout() -> list[tuple[float, float, float, float, int]]:
    """Components of the board: place, size and kind, without overlap."""
    rng, found = np.random.default_rng(11), []
    while len(found) < 22:
        y, x = rng.uniform(-98, 98, 2)
        height, width = sorted(rng.uniform(9, 34, 2))
        if rng.random() < 0.5:
            height, width = width, height
        if all(abs(y - b[0]) > (height + b[2]) / 2 + 6 or abs(x - b[1]) > (width + b[3]) / 2 + 6 for b in found):
            found.append((y, x, height, width, int(rng.integers(4))))
    return found


def board(rng: Rng, without: int | None = None, moved: int | None = None) -> Drawn:
    """A circuit board: tracks, pads and components at fixed places; one may be missing or askew."""
    y, x = _posed(rng, 1, 4)
    image = _flat((0.07, 0.30, 0.18), 1 + 0.06 * _noise(rng, 1.5) + 0.04 * _noise(rng, 25))
    parts = _layout()
    for (y0, x0, *_), (y1, x1, *_) in pairwise(parts):
        track = np.minimum(_segment(y, x, y0, x0, y0, x1), _segment(y, x, y0, x1, y1, x1))
        image = _paint(image, _cover(track - 1.3), (0.16, 0.46, 0.28))
    colours = ((0.08, 0.08, 0.09), (0.55, 0.40, 0.25), (0.72, 0.72, 0.7), (0.25, 0.25, 0.5))
    for index, (y0, x0, height, width, kind) in enumerate(parts):
        pads = np.minimum(np.abs(np.abs(y - y0) - height / 2), np.abs(np.abs(x - x0) - width / 2)) - 2.5
        image = _paint(image, _cover(np.maximum(pads, _box(y - y0, x - x0, height + 6, width + 6))), (0.75, 0.73, 0.62))
        if index == without:
            continue
        dy, dx = y - y0, x - x0
        if index == moved:
            angle = np.deg2rad(rng.choice([-1, 1]) * rng.uniform(12, 25))
            dy, dx = dy + rng.uniform(-4, 4), dx + rng.uniform(-4, 4)
            dy, dx = np.cos(angle) * dy - np.sin(angle) * dx, np.sin(angle) * dy + np.cos(angle) * dx
        body = _cover(_box(dy, dx, height, width, 2))
        lit = 1 + 0.15 * np.clip(-_box(dy, dx, height, width, 2) / 3, 0, 1) + rng.normal(0, 0.02)
        image = _paint(image, body, _flat(colours[kind], lit + 0.03 * _noise(rng, 1)))
        dot = _cover(np.hypot(dy + height / 2 - 4, dx + width / 2 - 4) - 1.2)
        image = _paint(image, dot * (min(height, width) > 12), (0.85, 0.85, 0.8))
    return Drawn(image, np.ones((SIDE, SIDE)), ndimage.gaussian_filter(image, (9, 9, 0)))


def _window(rng: Rng, name: str, top: int, left: int, turn: float, shift: float) -> Drawn:
    """A part of a photograph, as a camera that shakes a little sees it."""
    photo = load_sample_image(name) / 255.0
    y, x = _posed(rng, turn, shift)
    at = [y + top + SIDE / 2, x + left + SIDE / 2]
    image = np.stack([ndimage.map_coordinates(photo[..., c], at, order=1, mode="reflect") for c in range(3)], axis=-1)
    return _surface(image)


def roof(rng: Rng) -> Drawn:
    """A temple's roof, from scikit-learn's photograph of China."""
    return _window(rng, "china.jpg", 120, 190, 1, 4)


def petals(rng: Rng) -> Drawn:
    """A dahlia, from scikit-learn's photograph of a flower."""
    return _window(rng, "flower.jpg", 80, 190, 1, 4)


SCENES: dict[str, Callable[[Rng], Drawn]] = {
    "cloth": cloth,
    "wood": wood,
    "granite": granite,
    "leather": leather,
    "tile": tile,
    "gear": gear,
    "screw": screw,
    "bottle": bottle,
    "capsule": capsule,
    "board": board,
    "roof": roof,
    "petals": petals,
}


# -- defects -----------------------------------------------------------------------------------------------------------


def _spot(rng: Rng, drawn: Drawn, margin: int) -> tuple[float, float]:
    """A place on the part, away from its border where there is room."""
    inner = ndimage.distance_transform_edt(np.pad(drawn.part > 0.5, 1))[1:-1, 1:-1]
    rows, columns = np.nonzero(inner >= min(margin, 0.8 * inner.max()))
    pick = rng.integers(len(rows))
    return float(rows[pick]) - (SIDE - 1) / 2, float(columns[pick]) - (SIDE - 1) / 2


def _sign(rng: Rng) -> float:
    return float(rng.choice([-1.0, 1.0]))


def _curve(rng: Rng, drawn: Drawn, length: float, bend: float) -> Plane:
    """Distance of each pixel to a bent line on the part."""
    y, x = _places()
    at, angle, step = np.array(_spot(rng, drawn, 6)), rng.uniform(0, 2 * np.pi), 4.0
    distance = np.full_like(y, np.inf)
    for _ in range(int(length / step)):
        after = at + step * np.array([np.sin(angle), np.cos(angle)])
        distance = np.minimum(distance, _segment(y, x, *at, *after))
        at, angle = after, angle + rng.normal(0, bend)
    return distance


def _blob(rng: Rng, drawn: Drawn, radius: float) -> Plane:
    """Signed distance to the border of an irregular spot."""
    y, x = _places()
    y0, x0 = _spot(rng, drawn, int(radius * 0.7))
    return np.hypot(y - y0, (x - x0) * rng.uniform(0.7, 1.4)) - radius * (1 + 0.15 * _noise(rng, 8))


def scratch(rng: Rng, drawn: Drawn) -> Plane:
    """A thin line, brighter or darker."""
    cover = _cover(_curve(rng, drawn, rng.uniform(30, 90), 0.08) - rng.uniform(0.5, 1.1)) * drawn.part
    return drawn.image + _sign(rng) * rng.uniform(0.15, 0.35) * cover[..., None]


def crack(rng: Rng, drawn: Drawn) -> Plane:
    """A dark line that goes zigzag."""
    cover = _cover(_curve(rng, drawn, rng.uniform(40, 100), 0.6) - rng.uniform(0.5, 1.2)) * drawn.part
    return drawn.image * (1 - rng.uniform(0.4, 0.7) * cover[..., None])


def hole(rng: Rng, drawn: Drawn) -> Plane:
    """A dark spot with a lit rim."""
    distance = _blob(rng, drawn, rng.uniform(3, 7))
    image = drawn.image + 0.15 * np.exp(-(((distance - 1.5) / 1.5) ** 2))[..., None]
    return _paint(image, _cover(distance), rng.uniform(0.02, 0.12, 3))


def stain(rng: Rng, drawn: Drawn) -> Plane:
    """A soft spot of another colour; what lies under it shows through."""
    cover = np.clip(0.5 - _blob(rng, drawn, rng.uniform(9, 20)) / 5, 0, 1) * drawn.part
    return _paint(drawn.image, rng.uniform(0.3, 0.5) * cover, rng.uniform(0.05, 0.6, 3))


def dent(rng: Rng, drawn: Drawn) -> Plane:
    """A hollow that the light comes to from one side."""
    y, x = _places()
    (y0, x0), radius, angle = _spot(rng, drawn, 12), rng.uniform(6, 12), rng.uniform(0, 2 * np.pi)
    slope = ((y - y0) * np.sin(angle) + (x - x0) * np.cos(angle)) / radius
    light = slope * np.exp(-((y - y0) ** 2 + (x - x0) ** 2) / radius**2) * drawn.part
    return drawn.image * (1 + rng.uniform(0.5, 0.9) * light[..., None])


def thread(rng: Rng, drawn: Drawn) -> Plane:
    """A fibre that lies on the part."""
    distance = _curve(rng, drawn, rng.uniform(50, 120), 0.25)
    image = drawn.image * (1 - 0.3 * np.exp(-((distance / 3) ** 2))[..., None])
    return _paint(image, 0.9 * _cover(distance - rng.uniform(0.7, 1.2)), rng.uniform(0, 1, 3))


def discoloration(rng: Rng, drawn: Drawn) -> Plane:
    """A large part has a slightly other colour."""
    cover = np.clip(0.5 - _blob(rng, drawn, rng.uniform(22, 40)) / 12, 0, 1) * drawn.part
    tint = rng.normal(size=3)
    return drawn.image + rng.uniform(0.09, 0.16) * cover[..., None] * tint / np.linalg.norm(tint)


def missing(rng: Rng, drawn: Drawn) -> Plane:
    """A piece has broken off, or a patch of the surface is worn."""
    y, x = _places()
    rows, columns = np.nonzero((drawn.part > 0.3) & (ndimage.minimum_filter(drawn.part, 5) < 0.3))
    if len(rows):
        pick = rng.integers(len(rows))
        y0, x0 = rows[pick] - (SIDE - 1) / 2, columns[pick] - (SIDE - 1) / 2
    else:
        y0, x0 = _spot(rng, drawn, 10)
    distance = np.hypot(y - y0, x - x0) - rng.uniform(8, 15) * (1 + 0.12 * _noise(rng, 5))
    return _paint(drawn.image, _cover(distance), drawn.behind)


def misplaced(rng: Rng, drawn: Drawn) -> Plane:
    """A piece of the part lies askew: cut out, turned and put back."""
    y, x = _places()
    (y0, x0), radius = _spot(rng, drawn, 12), rng.uniform(12, 20)
    cover, angle = _cover(np.hypot(y - y0, x - x0) - radius), np.deg2rad(_sign(rng) * rng.uniform(25, 90))
    dy, dx = y - y0, x - x0
    back = (SIDE - 1) / 2
    at = [np.cos(angle) * dy - np.sin(angle) * dx + y0 + back, np.sin(angle) * dy + np.cos(angle) * dx + x0 + back]
    turned = [ndimage.map_coordinates(drawn.image[..., c], at, order=1, mode="nearest") for c in range(3)]
    return _paint(drawn.image, cover, np.stack(turned, axis=-1))


DEFECTS: dict[str, Callable[[Rng, Drawn], Plane]] = {
    "scratch": scratch,
    "crack": crack,
    "hole": hole,
    "stain": stain,
    "dent": dent,
    "thread": thread,
    "discoloration": discoloration,
    "missing": missing,
    "misplaced": misplaced,
}


def _seen(rng: Rng, image: Plane) -> NDArray[np.uint8]:
    """What a sensor makes of a scene: uneven light, blur, noise of light and of electronics, 8 bits."""
    y, x = _places()
    dy, dx = rng.normal(0, 0.03, 2)
    light = rng.normal(1, 0.03) * (1 + (dy * y + dx * x) / SIDE - 0.08 * (y**2 + x**2) / SIDE**2)
    image = ndimage.gaussian_filter(np.clip(image * light[..., None], 0, 1), (0.6, 0.6, 0))
    noisy = image + rng.normal(size=image.shape) * np.sqrt(0.008**2 + 0.0004 * image)
    return np.clip(np.rint(255 * noisy), 0, 255).astype(np.uint8)


def _spoilt_board(rng: Rng) -> tuple[Plane, Plane]:
    """A board with a component missing or askew, and the same one without that."""
    seed, index = int(rng.integers(2**31)), int(rng.integers(len(_layout())))
    fault = {rng.choice(["without", "moved"]): index}
    good = board(np.random.default_rng(seed)).image
    return board(np.random.default_rng(seed), **fault).image, good


def made(scene: str, seed: int, defect: str | None = None) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """An image of shape (256, 256, 3) and where it is defective.

    Examples
    --------
    >>> image, mask = made("cloth", 1, "hole")
    >>> image.shape, bool(mask.any()), bool(made("cloth", 1)[1].any())
    ((256, 256, 3), True, False)
    """
    rng = np.random.default_rng([seed, *scene.encode(), *(defect or "").encode()])
    if defect is None:
        return _seen(rng, SCENES[scene](rng).image), np.zeros((SIDE, SIDE), dtype=bool)
    if scene == "board" and defect in ("missing", "misplaced"):
        spoilt, good = _spoilt_board(rng)
    else:
        while True:
            drawn = SCENES[scene](rng)
            good, spoilt = drawn.image, DEFECTS[defect](rng, drawn)
            changed = np.abs(spoilt - good).max(axis=-1) > VISIBLE
            # A crack may run off the part, and a piece turned in place may look the same.
            if changed.sum() >= 30:
                break
    changed = np.abs(np.clip(spoilt, 0, 1) - np.clip(good, 0, 1)).max(axis=-1) > VISIBLE
    mask = ndimage.binary_closing(np.pad(changed, 4), iterations=3)[4:-4, 4:-4]
    return _seen(rng, spoilt), mask
