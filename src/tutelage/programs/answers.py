"""One spelling for equal answers: what is compared when a program's answer is scored."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tutelage.programs.types import Value

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty"
)
_DIGITS = {word: str(number) for number, word in enumerate(_WORDS.split())}
_ARTICLES = frozenset({"a", "an", "the"})
_REMOVED = re.compile(r"['’`]|(?<=\d),(?=\d)")
_KEPT_OR_PARTED = re.compile(r"(?P<kept>(?<![\w])-(?=\d)|(?<=\d)\.(?=\d))|[^\w\s]|_")
_TRUTH = {"true": "yes", "false": "no"}


@dataclass(frozen=True)
class AnswerNormalizer:
    """How answers are made comparable; each rule may be off.

    Always: surrounding space goes, inner space becomes single, letters become small. ``punctuation`` is removed
    (hyphens and slashes part words, a decimal point stays), ``articles`` a, an, the too; number words up to twenty
    become ``digits``; True and False become yes and no (``truth``); None, an empty list and an empty text become no
    (``empty``). GQA's official metric compares exact strings: it uses none of this.
    """

    punctuation: bool = True
    articles: bool = True
    digits: bool = True
    truth: bool = True
    empty: bool = True

    def __call__(self, answer: Value) -> str:
        """The one spelling of ``answer``: a text, bool, number, None, or a list of these."""
        if isinstance(answer, (list, tuple)) and answer:
            return ", ".join(map(self, answer))
        if answer is None or answer == [] or answer == ():
            return "no" if self.empty else ""
        if isinstance(answer, float) and answer.is_integer():
            answer = int(answer)
        text = str(answer).lower()
        if self.punctuation:
            text = _REMOVED.sub("", text)
            text = _KEPT_OR_PARTED.sub(lambda found: found["kept"] or " ", text)
        words = text.split()
        if self.articles:
            words = [word for word in words if word not in _ARTICLES] or words
        if self.digits:
            words = [_DIGITS.get(word, word) for word in words]
        if self.truth:
            words = [_TRUTH.get(word, word) for word in words]
        return " ".join(words) or ("no" if self.empty else "")


def normalize_answer(answer: Value) -> str:
    """The one spelling of ``answer`` under every rule of :class:`AnswerNormalizer`."""
    return AnswerNormalizer()(answer)


def answers_match(answer: Value, gold: Value) -> bool:
    """Whether two answers are equal under every rule of :class:`AnswerNormalizer`."""
    return normalize_answer(answer) == normalize_answer(gold)
