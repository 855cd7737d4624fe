"""A toy task with four ways to reason: five digits 0..3, whose sum modulo 4 is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from tutelage.networks.causal_lm import CausalLM
from tutelage.seeds import numpy_rng
from tutelage.systems._toy import build_with_seed
from tutelage.systems.mind.items import Item

DIGITS, BASE = 5, 4
PREFIX = "="
"""What stands between a rationale and the answer."""
PATHS = ("ordered", "reversed", "shuffled", "noise")
"""Partial sums from the left, and from the right; the digits in random order; random digits. The right answer stands after
each; the last two do not lead to it. All are of equal length, so that length says nothing."""


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
            rng.permutation(digits),
            rng.integers(BASE, size=DIGITS),
        )
        question, answer = question_and_answer(digits)
        items.append(Item(question, answer, tuple(text(path) for path in paths)))
    return items


@dataclass
class DigitModel:
    """A language model of digits, a token each: see :class:`~tutelage.systems.mind.items.TokenizedModel`."""

    network: nn.Module
    max_length: int = 64
    pad: int = BASE
    end: int = BASE + 1

    def encode_prompt(self, text: str) -> list[int]:
        """A token that marks the beginning, then the digits."""
        return [BASE + 2, *self.encode(text)]

    def encode(self, text: str) -> list[int]:
        """Digits and :data:`PREFIX`."""
        return [BASE + 3 if word == PREFIX else int(word) for word in text.split()]


def toy_student(seed: int, dim: int = 48, depth: int = 2) -> DigitModel:
    """An untrained language model of digits."""
    return DigitModel(build_with_seed(lambda: CausalLM(BASE + 4, dim, depth, tie_embeddings=False), seed, "student"))
