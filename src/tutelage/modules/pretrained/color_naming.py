"""The colour of a thing by counting pixels: eleven basic colour words, by hue, saturation and value (all ours)."""

from __future__ import annotations

import numpy as np

from tutelage.programs.values import Image

COLORS = ("black", "gray", "white", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
FINEST = 96
"""Pixels a side that are looked at, at most."""
SPREAD = 0.22
"""How far from the middle pixels still count, as a share of the side: a thing stands in the middle of its crop."""
PALE = 0.2
"""What a pixel without any colour counts, where one of pure colour counts 1 more: people name the vivid part of a thing."""
_HUES = ((15, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (255, "blue"), (295, "purple"), (340, "pink"), (361, "red"))


def color_shares(image: Image) -> dict[str, float]:
    """The share of each colour in ``image``, pixels near its middle and vivid ones counting more; the shares sum to 1."""
    step = max(1, -(-max(image.width, image.height) // FINEST))
    pixels = image.bytes[:, ::step, ::step].astype(np.float32) / 255
    named = _names(pixels)
    weights = np.outer(*(np.exp(-(((np.arange(n) + 0.5) / n - 0.5) ** 2) / (2 * SPREAD**2)) for n in named.shape))
    weights *= PALE + pixels.max(0) - pixels.min(0)
    counted = np.bincount(named.ravel(), weights.ravel(), minlength=len(COLORS))
    return dict(zip(COLORS, (counted / counted.sum()).tolist(), strict=True))


def _names(pixels: np.ndarray) -> np.ndarray:
    """The number in :data:`COLORS` of each pixel's colour: float [3, H, W] in 0..1 -> int [H, W]."""
    red, green, blue = pixels
    value, low = pixels.max(0), pixels.min(0)
    chroma = value - low
    saturation = np.divide(chroma, value, out=np.zeros_like(value), where=value > 0)
    part = np.where(value == red, (green - blue) % (6 * np.maximum(chroma, 1e-6)), 0)
    part = np.where((value == green) & (value != red), blue - red + 2 * chroma, part)
    part = np.where((value == blue) & (value != red) & (value != green), red - green + 4 * chroma, part)
    hue = 60 * np.divide(part, chroma, out=np.zeros_like(value), where=chroma > 0)
    numbers = [COLORS.index(name) for _, name in _HUES]
    found = np.array(numbers)[np.searchsorted([limit for limit, _ in _HUES], hue, side="right").clip(max=len(_HUES) - 1)]
    warm = (hue < 42) | (hue >= 340)
    pale_red = ((hue < 15) | (hue >= 340)) & (saturation < 0.5) & (value > 0.75)
    found[pale_red] = COLORS.index("pink")
    found[warm & ~pale_red & (value < 0.6) & (hue >= 10) & (hue < 42)] = COLORS.index("brown")
    gray = saturation < 0.18
    found[gray & (value >= 0.78)] = COLORS.index("white")
    found[gray & (value < 0.78)] = COLORS.index("gray")
    found[(value < 0.2) | (gray & (value < 0.25))] = COLORS.index("black")
    return found
