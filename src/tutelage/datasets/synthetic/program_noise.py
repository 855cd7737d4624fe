"""Plausible wrong programs: what a program writer that misreads a question would write."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from tutelage.datasets.synthetic.scene import COLORS, PATTERNS, SHAPES, SIZES
from tutelage.errors import InputError

_SWAPS: tuple[tuple[str, ...], ...] = (SHAPES, COLORS, PATTERNS, SIZES, ("color", "pattern", "size"))
_SIGNS = {">": ("<", ">="), "<": (">", "<="), ">=": (">", "<="), "==": ("!=",), "!=": ("==",)}
_SIGNS |= {"and": ("or",), "or": ("and",), "1": ("2", "3"), "2": ("1", "3"), "3": ("1", "2")}
_TOKEN = re.compile(r"[A-Za-z]+|\b[1-3]\b|[<>=!]=|[<>]")
_STRINGS = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"")


def wrong_programs(programs: Mapping[str, str], rng: np.random.Generator) -> dict[str, str]:
    """``programs`` ({"visprog": text, "viper": text}) with one noun, attribute word, operator or number changed in both alike.

    The change is drawn from ``rng``; both stay programs of their language.

    Raises:
        InputError: there is nothing to change.
    """
    visprog = programs["visprog"]
    words = {w for text in _STRINGS.findall(visprog) for w in _TOKEN.findall(text)}
    choices: list[tuple[str, str]] = []
    for word in sorted(words):
        for group in _SWAPS:
            if word in group:
                choices += [(word, other) for other in group if other != word and other not in words]
        if "EVAL" in visprog and word in _SIGNS:
            choices += [(word, other) for other in _SIGNS[word]]
    if not choices:
        raise InputError("no word of the program can be changed", where=visprog)
    old, new = choices[int(rng.integers(len(choices)))]
    pattern = re.compile(rf"(?<![\w<>=!]){re.escape(old)}(?![\w<>=!])")
    if old not in _SIGNS:
        return {dsl: _STRINGS.sub(lambda found: pattern.sub(new, found[0]), text) for dsl, text in programs.items()}
    return {dsl: "\n".join(_operator(x, pattern, new) for x in text.split("\n")) for dsl, text in programs.items()}


def _operator(line: str, pattern: re.Pattern[str], new: str) -> str:
    """Change an operator in a line that computes: an EVAL, or the assignment of an answer."""
    computes = "EVAL(" in line or re.match(r"\s+answer\d+ = (?!.*\()", line) or re.match(r"\s+answer\d+ = \(", line)
    return pattern.sub(new, line) if computes else line
