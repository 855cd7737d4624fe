"""What was made of texts, found again: the oldest go where there are too many, or too long ones."""

from __future__ import annotations

from typing import Generic, TypeVar

V = TypeVar("V")
MAX_CHARACTERS = 8_000_000
"""Characters of the texts that one cache remembers: what is made of them takes many times as much."""


class TextCache(Generic[V]):
    """Values by a text and its context; at most ``texts`` of them, of ``characters`` in all."""

    def __init__(self, texts: int, characters: int = MAX_CHARACTERS):
        self._texts, self._characters, self._held = texts, characters, 0
        self._values: dict[tuple[str, object], V] = {}

    def get(self, text: str, context: object = None) -> V | None:
        """The value of ``text``, or None."""
        return self._values.get((text, context))

    def put(self, text: str, value: V, context: object = None) -> None:
        """Remember ``value``."""
        self._held += len(text)
        while self._values and (len(self._values) >= self._texts or self._held > self._characters):
            oldest = next(iter(self._values))
            self._held -= len(oldest[0])
            del self._values[oldest]
        self._values[text, context] = value
