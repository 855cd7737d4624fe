"""Texts as vectors, with nothing installed: hashed words weighted by how rare they are."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Embed = Callable[[Sequence[str]], Any]
"""Maps n texts to an array [n, d]; texts of like meaning should point the same way."""

_WORD = re.compile(r"\w+")


def hashed_words(corpus: Sequence[str], width: int = 1024) -> Embed:
    """An embedding by words, pairs of neighbouring words and the first four letters of each, weighted by rarity in
    ``corpus`` (TF-IDF with hashing): array [n, width]. Equal on every machine.
    """
    seen = Counter(place for text in corpus for place in {*_places(text, width)})

    def embed(texts: Sequence[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), width))
        for row, text in zip(vectors, texts, strict=True):
            for place, count in Counter(_places(text, width)).items():
                row[place] = (1 + np.log(count)) * np.log((1 + len(corpus)) / (1 + seen[place]) + 1)
        return vectors

    return embed


def _places(text: str, width: int) -> list[int]:
    words = _WORD.findall(text.lower())
    parts = [*words, *(f"{a} {b}" for a, b in zip(words, words[1:])), *(f"{word[:4]}-" for word in words if len(word) > 4)]
    return [int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little") % width for part in parts]
