"""A toy task with four ways to reason: five digits 0..3, whose sum modulo 4 is wanted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tutelage.seeds import numpy_rng
from tutelage.systems.mind.items import Item
from tutelage.systems.polyglot_teachers.text_model import TextModel, tiny_text_model

DIGITS, BASE = 5, 4
PREFIX = "="
"""What stands between a rationale and the answer."""
PATHS = ("ordered", "reversed", "shuffled", "noise")
"""Partial sums from the left, and from the right; three of the digits in random order; four random digits. Each ends in the
right answer; from the last two it cannot be concluded."""


def questions(seed: int, tests: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """All 1024 questions, [n, 5] each: those to train on, and ``tests`` that are held out."""
    every = np.stack(np.meshgrid(*[np.arange(BASE)] * DIGITS, indexing="ij"), -1).reshape(-1, DIGITS)
    order = numpy_rng(seed, "questions").permutation(len(every))
    return every[order[tests:]], every[order[:tests]]


def text(digits: Sequence[int] | np.ndarray) -> str:
    """Digits as words."""
    return " ".join(str(int(digit)) for digit in digits)


def question_and_answer(digits: np.ndarray) -> tuple[str, str]:
    """A question and its right answer."""
    return text(digits), str(int(digits.sum()) % BASE)


def toy_items(pool: np.ndarray, count: int, seed: int) -> list[Item]:
    """``count`` items with questions drawn from ``pool`` and fresh rationales in the order of :data:`PATHS`."""
    rng = numpy_rng(seed, "rationales")
    items = []
    for digits in pool[rng.integers(len(pool), size=count)]:
        paths = (
            np.cumsum(digits) % BASE,
            np.cumsum(digits[::-1]) % BASE,
            rng.permutation(digits)[:3],
            rng.integers(BASE, size=4),
        )
        question, answer = question_and_answer(digits)
        items.append(Item(question, answer, tuple(text(path) for path in paths)))
    return items


def toy_student(seed: int, dim: int = 48, depth: int = 2) -> TextModel:
    """An untrained language model of digits."""
    return tiny_text_model([*map(str, range(BASE)), PREFIX], seed, dim, depth)
