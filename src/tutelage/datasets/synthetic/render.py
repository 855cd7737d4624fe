"""Pictures of scenes: numpy only, the same bytes for the same scene."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

import numpy as np

from tutelage.datasets.synthetic.scene import DOMAINS, Scene, SceneObject, VisualDomain

RGB: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "black": (0.07, 0.07, 0.07),
        "gray": (0.52, 0.52, 0.52),
        "teal": (0.03, 0.58, 0.60),
        "brown": (0.50, 0.28, 0.10),
        "red": (0.86, 0.12, 0.12),
        "green": (0.18, 0.65, 0.16),
        "blue": (0.14, 0.24, 0.86),
        "yellow": (0.95, 0.84, 0.10),
    }
)
_LUMINANCE = (0.3, 0.59, 0.11)
_FINE = 4  # sub-samples a pixel and axis
_GLYPHS = (
    "111101101101111",
    "010110010010111",
    "111001111100111",
    "111001011001111",
    "101101111001001",
    "111100111001111",
    "111100111101111",
    "111001010010010",
    "111101111101111",
    "111101111001111",
)  # digits 0-9 on 3 x 5 cells, by rows
_GLYPH_MARGIN = 0.22


def render(scene: Scene, domain: VisualDomain | None = None) -> np.ndarray:
    """The picture of ``scene`` as uint8 [3, H, W], in the look of ``domain`` (default: the scene's own)."""
    look = domain or DOMAINS[scene.domain]
    rng = np.random.default_rng(scene.seed + 1)
    picture = np.empty((3, scene.height, scene.width), np.float32)
    ground = rng.uniform(*look.background) + rng.uniform(-1, 1, 3) * look.background_hue
    picture[:] = ground.astype(np.float32)[:, None, None]
    jitter = rng.uniform(-1, 1, (len(scene.things), 3)) * look.color_jitter
    for thing, change in zip(scene.things, jitter, strict=True):
        _draw(picture, thing, np.asarray(RGB[thing.color]) + change, look)
    return _look(picture, look, rng)


def masks(scene: Scene) -> np.ndarray:
    """bool [n, H, W]: the visible pixels of each thing, in the order of ``scene.things``."""
    found = np.zeros((len(scene.things), scene.height, scene.width), bool)
    for i, thing in enumerate(scene.things):
        x1, y1, x2, y2 = thing.box
        cover = _cover(thing.shape, thing.w, thing.h) >= 0.5
        found[:i, y1:y2, x1:x2] &= ~cover
        found[i, y1:y2, x1:x2] = cover
    return found


def _draw(picture: np.ndarray, thing: SceneObject, color: np.ndarray, look: VisualDomain) -> None:
    """Paint one thing over the picture."""
    x1, y1, x2, y2 = thing.box
    patch = picture[:, y1:y2, x1:x2]
    contrast = np.float32(0.05 if color @ _LUMINANCE > 0.5 else 0.97)
    paint: np.ndarray = color.astype(np.float32)[:, None, None]
    if thing.pattern != "plain":
        paint = paint + (contrast - paint) * (np.float32(0.7) * _pattern(thing.pattern, thing.shape, thing.w, thing.h))
    patch += (paint - patch) * (_cover(thing.shape, thing.w, thing.h) * np.float32(look.fill))
    if look.outline is not None:
        patch += (np.float32(look.outline) - patch) * _rim(thing.shape, thing.w, thing.h)
    if thing.digit is not None:
        patch += (contrast - patch) * _glyph(thing.digit, thing.w, thing.h)


def _look(picture: np.ndarray, look: VisualDomain, rng: np.random.Generator) -> np.ndarray:
    """Light, cloth, blur and noise of a domain, then bytes."""
    height, width = picture.shape[1:]
    strength, gain, texture, sigma, noise = (
        np.float32(rng.uniform(*pair)) for pair in (look.tint_strength, look.gain, look.texture, look.blur, look.noise)
    )
    phase = rng.uniform(0, 6.28, 2)
    light = gain * ((1 - strength) * np.eye(3, dtype=np.float32) + strength * np.asarray(look.tint, np.float32))
    picture = (light @ picture.reshape(3, -1)).reshape(picture.shape)
    if texture > 0:
        rows = np.sin(np.arange(height, dtype=np.float32) * 1.9 + phase[0])
        columns = np.sin(np.arange(width, dtype=np.float32) * 2.2 + phase[1])
        picture *= 1 + texture * (rows[:, None] + columns[None, :]).astype(np.float32) / 2
    if sigma > 0.05:
        picture = _blurred(picture, float(sigma))
    picture += rng.standard_normal(picture.shape, np.float32) * noise
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Three-tap Gaussian in both directions, edges repeated."""
    tail = float(np.exp(-0.5 / sigma**2))
    middle, side = np.float32(1 / (1 + 2 * tail)), np.float32(tail / (1 + 2 * tail))
    padded = np.pad(picture, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, 1:-1] * middle + (padded[:, :-2] + padded[:, 2:]) * side
    return np.asarray(rows[:, :, 1:-1] * middle + (rows[:, :, :-2] + rows[:, :, 2:]) * side)


def _grid(w: int, h: int) -> tuple[np.ndarray, np.ndarray]:
    """Sub-sample positions in -1..1 over a w x h box."""
    x = (np.arange(w * _FINE) + 0.5) / (w * _FINE) * 2 - 1
    y = (np.arange(h * _FINE) + 0.5) / (h * _FINE) * 2 - 1
    return np.meshgrid(x, y)


def _shrink(fine: np.ndarray) -> np.ndarray:
    """Mean over the sub-samples of each pixel, float32 and read-only (cached arrays are shared)."""
    h, w = fine.shape[0] // _FINE, fine.shape[1] // _FINE
    small = fine.reshape(h, _FINE, w, _FINE).mean((1, 3)).astype(np.float32)
    small.flags.writeable = False
    return small


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """bool: which positions of the box (-1..1) belong to the shape."""
    match shape:
        case "circle":
            return x * x + y * y <= 1
        case "rectangle":
            return np.ones_like(x, bool)
        case "triangle":
            return np.abs(x) <= (y + 1) / 2
        case "cross":
            return (np.abs(x) <= 0.36) | (np.abs(y) <= 0.36)
        case "sign":
            return np.abs(x) + np.abs(y) <= 1.55
        case "star":
            return _star(x, y)
    raise ValueError(f"no such shape: {shape}")


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A five-pointed star, one point up, filling the box: the straight edge between a point and a notch."""
    y = y * 0.905 + 0.095  # a star reaches from -1 to +0.81 about its centre
    radius, angle = np.hypot(x * 0.95, y), np.arctan2(x, -y)
    turn = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    notch = 0.44
    edge = notch * np.sin(np.pi / 5) / (notch * np.sin(np.pi / 5 - turn) + np.sin(turn))
    return radius <= edge


@lru_cache(maxsize=4096)
def _cover(shape: str, w: int, h: int) -> np.ndarray:
    """float32 [h, w]: share of each pixel that the shape covers."""
    return _shrink(_inside(shape, *_grid(w, h)))


@lru_cache(maxsize=4096)
def _rim(shape: str, w: int, h: int) -> np.ndarray:
    """float32 [h, w]: share of each pixel covered by a rim one pixel wide, inside the shape."""
    inside = _inside(shape, *_grid(w, h))
    return _shrink(inside & ~_eroded(inside))


def _eroded(inside: np.ndarray) -> np.ndarray:
    """The sub-samples at least a pixel away from the outside, along rows and columns."""
    padded = np.pad(inside, _FINE)
    moved = (np.roll(padded, shift, axis)[_FINE:-_FINE, _FINE:-_FINE] for axis in (0, 1) for shift in (_FINE, -_FINE))
    return np.logical_and.reduce([inside, *moved])


@lru_cache(maxsize=4096)
def _pattern(pattern: str, shape: str, w: int, h: int) -> np.ndarray:
    """float32 [h, w]: 1 where the second colour lies; never on the rim, so that the outline stays whole."""
    x, y = _grid(w, h)
    inside = _eroded(_inside(shape, x, y))
    x, y = x * w / 2, y * h / 2
    if pattern == "striped":
        return _shrink(inside & ((y + 1) % 4 < 2))
    return _shrink(inside & (((x + 2) % 4 - 2) ** 2 + ((y + 2) % 4 - 2) ** 2 <= 1.25**2))


@lru_cache(maxsize=4096)
def _glyph(digit: str, w: int, h: int) -> np.ndarray:
    """float32 [h, w]: share of each pixel that the digit covers."""
    x, y = _grid(w, h)
    column = np.floor((x + 1 - 2 * _GLYPH_MARGIN * 1.25) / (2 - 5 * _GLYPH_MARGIN) * 3).astype(int)
    row = np.floor((y + 1 - 2 * _GLYPH_MARGIN * 0.8) / (2 - 3.2 * _GLYPH_MARGIN) * 5).astype(int)
    valid = (column >= 0) & (column < 3) & (row >= 0) & (row < 5)
    cells = np.array([c == "1" for c in _GLYPHS[int(digit)]]).reshape(5, 3)
    return _shrink(valid & cells[np.clip(row, 0, 4), np.clip(column, 0, 2)])
