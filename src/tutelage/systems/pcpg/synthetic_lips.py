"""Synthetic lips: clips of a mouth that spells words, in which several letters share one shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tutelage.seeds import numpy_rng

LETTERS = "abcdefghijkl"
SHAPES = (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6)
"""The mouth shape of each letter: five pairs of letters look alike, and two are unmistakable."""
IMAGE_SIZE = (6, 8)
_MOUTHS = ((0.3, 3.5), (1.0, 3.5), (2.0, 3.5), (2.9, 3.5), (1.0, 1.8), (2.0, 1.8), (2.9, 1.8))
"""Half the height and half the width of each open mouth, in pixels."""


@dataclass(frozen=True)
class Lips:
    """Clips with their words.

    Attributes:
        clips: float [N, 1, T, 6, 8].
        lengths: real frames of each clip [N].
        words: one a clip.
    """

    clips: Tensor
    lengths: Tensor
    words: list[str]


def mouths() -> np.ndarray:
    """The seven mouths without noise [7, 6, 8]: an ellipse of ones with soft edges on zeros."""
    height, width = IMAGE_SIZE
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    inside = [1.0 - np.sqrt((y / half_height) ** 2 + (x / half_width) ** 2) for half_height, half_width in _MOUTHS]
    return np.stack([np.clip(0.5 + 1.5 * one, 0, 1) for one in inside])


def lexicon(seed: int, count: int = 200, shortest: int = 3, longest: int = 6) -> list[str]:
    """``count`` different words of ``shortest`` to ``longest`` letters, drawn at random. Some may look alike on the lips."""
    rng, found = numpy_rng(seed, "lexicon"), dict[str, None]()
    while len(found) < count:
        found["".join(rng.choice(list(LETTERS), rng.integers(shortest, longest + 1)))] = None
    return list(found)


def lips(words: list[str], seed: int, *names: object, count: int, noise: float = 0.5) -> Lips:
    """``count`` clips of words drawn from ``words``: each letter lasts two to four frames, each frame has noise of its own.

    Args:
        words: to draw from.
        seed, names: of the stream.
        count: N.
        noise: deviation of each pixel.
    """
    rng = numpy_rng(seed, "lips", *names)
    chosen = [words[i] for i in rng.integers(len(words), size=count)]
    pictures, frames = mouths(), 4 * max(map(len, words))
    clips, lengths = np.zeros((count, frames, *IMAGE_SIZE)), np.zeros(count, np.int64)
    for row, word in enumerate(chosen):
        shapes = np.repeat([SHAPES[LETTERS.index(letter)] for letter in word], rng.integers(2, 5, len(word)))
        lengths[row] = len(shapes)
        clips[row, : len(shapes)] = pictures[shapes] + rng.normal(0, noise, (len(shapes), *IMAGE_SIZE))
    return Lips(torch.from_numpy(clips).float()[:, None], torch.from_numpy(lengths), chosen)
