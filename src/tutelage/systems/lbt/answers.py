"""Answers of mathematics: one text for all spellings of an answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

Normalize = Callable[[str | None], str | None]
"""A text that is the same for equal answers; None for what is no answer."""

_LONGEST = 200  # letters: a longer answer is compared as it stands
_DROPPED = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|\\\$|\$|\^\{?\\circ\}?|°|\\?%")
_UNIT = re.compile(r"(?<=.)\s*\\(?:text|mbox|mathrm)\s*\{[^{}]*\}(?:\^\{?\d\}?)?\s*$")
_WORDED = re.compile(r"\\(?:text|mbox|mathrm|textbf)\s*\{([^{}]*)\}")
_PLAIN_UNIT = re.compile(r"^([-+]?[\d.,/]*\d[\d.,/]*) +[A-Za-z]{2,}(?: [A-Za-z]+)*(?:\^\d)?$")
_NAMED = re.compile(r"^[A-Za-z][A-Za-z0-9_]?\s*=\s*([^=]+)$")
_SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)|\\frac\s*(\d)\s*\{|\\frac\s*(\{[^{}]*\})\s*(\d)(?!\d)")
_SHORT_ROOT = re.compile(r"\\sqrt\s*([A-Za-z0-9])")
_FRACTION = re.compile(r"^([-+]?)\\frac\{([-+]?\d+)\}\{([-+]?\d+)\}$")
_RATIO = re.compile(r"^([-+]?\d+)/(\d+)$")
_THOUSANDS = re.compile(r"^[-+]?\d{1,3}(?:,\d{3})+(?:\.\d*)?$")
_DECIMAL = re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)$")


def normalize_answer(text: str | None) -> str | None:
    r"""One text for all spellings of an answer; None for None and for a blank.

    Numbers become whole numbers or fractions in lowest terms: ``0.5``, ``2/4``, ``\frac12`` and ``\dfrac{1}{2}`` are
    ``1/2``; ``1,000`` and ``1000.`` are ``1000``. Dollar signs, spaces, units, degrees and percent signs go, a name before
    an equals sign too (``x=3``), and ``\text{yes}`` is ``yes``. Formulas are compared as texts: ``x+1`` and ``1+x`` differ,
    for the parsers that would know better evaluate what they read.

    Examples:
        >>> [normalize_answer(one) for one in ("0.25", r"\frac{1}{4}", "2/8", "7.", "1,000", r"90^\circ", r"5\text{ cm}")]
        ['1/4', '1/4', '1/4', '7', '1000', '90', '5']
    """
    if text is None or not text.strip():
        return None
    if len(text) > _LONGEST:
        return " ".join(text.split())
    found = _DROPPED.sub("", text).strip()
    found = _UNIT.sub("", found)
    found = _WORDED.sub(lambda match: match[1], found).strip()
    if unit := _PLAIN_UNIT.match(found):
        found = unit[1]
    if named := _NAMED.match(found):
        found = named[1]
    found = re.sub(r"\\[dt]frac", r"\\frac", found.strip().rstrip("."))
    found = _SHORT_FRACTION.sub(_braced, found)
    found = _SHORT_ROOT.sub(r"\\sqrt{\1}", found)
    found = re.sub(r"\s+", "", found)
    return _as_number(found) or found or None


def same_answer(one: str | None, other: str | None, normalize: Normalize = normalize_answer) -> bool:
    """Whether two answers are equal; what is no answer equals nothing, not even itself."""
    key = normalize(one)
    return key is not None and key == normalize(other)


def parse_answer(text: str) -> tuple[str, str | None]:
    r"""(rationale, answer) of a solution: the last ``\boxed{…}``, or what follows the last "answer is" or "Answer:".

    The rationale is all that stands before that; the answer is None where there is none.
    """
    at = text.rfind(r"\boxed{")
    if at >= 0:
        start = at + len(r"\boxed{")
        level = 1
        for place in range(start, len(text)):
            level += {"{": 1, "}": -1}.get(text[place], 0)
            if level == 0:
                return text[:at].rstrip(" $\n"), text[start:place].strip() or None
    matches = list(re.finditer(r"(?:the\s+)?(?:final\s+)?answer(?:\s+is\s*:?|\s*:)[ \t]*", text, re.IGNORECASE))
    if not matches:
        return text.strip(), None
    last = matches[-1]
    line = text[last.end() :].partition("\n")[0].strip()
    return text[: last.start()].strip(), line.removesuffix(".").strip() or None


def _braced(match: re.Match[str]) -> str:
    both, below, first, second = match[1], match[2], match[3], match[4]
    if both:
        return rf"\frac{{{both}}}{{{below}}}"
    if first:
        return rf"\frac{{{first}}}{{"
    return rf"\frac{second}{{{match[5]}}}"


def _as_number(text: str) -> str | None:
    """A rational number in lowest terms, or None."""
    sign, value = "", None
    if match := _FRACTION.match(text):
        sign, (above, below) = match[1], match.groups()[1:]
        value = Fraction(int(above), int(below)) if int(below) else None
    elif match := _RATIO.match(text):
        value = Fraction(int(match[1]), int(match[2])) if int(match[2]) else None
    elif _THOUSANDS.match(text):
        value = Fraction(text.replace(",", ""))
    elif _DECIMAL.match(text):
        value = Fraction(text)
    if value is None:
        return None
    return str(-value if sign == "-" else value)
