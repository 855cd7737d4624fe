"""Reading a question or phrase with a closed vocabulary, and counting what lies outside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

_TOKEN = re.compile(r"[a-z0-9]+")
_SILENT = frozenset("a an the is are was were do does this that it of in on at to there what which kind image picture".split())


def tokens(text: str) -> list[str]:
    """The lower-case words and numbers of ``text``, in order."""
    return _TOKEN.findall(text.lower())


@dataclass(frozen=True)
class TokenizedQuestion:
    """A question as a network sees it: word ids, which answers may be given, and whether every word is known."""

    ids: tuple[int, ...]
    allowed: tuple[int, ...]
    known: bool


@dataclass(frozen=True)
class Vocabulary:
    """Words and typed answers. ``answers`` pairs each answer type with its answers; the type's own name, used as a
    word, asks for it ("What color …"); a question without one is yes/no, or a choice of the answers it offers."""

    answers: tuple[tuple[str, tuple[str, ...]], ...]
    nouns: tuple[str, ...]

    @property
    def flat(self) -> tuple[str, ...]:
        """All answers in head order."""
        return tuple(answer for _, group in self.answers for answer in group)

    @property
    def words(self) -> tuple[str, ...]:
        """All words with an embedding, in order; id 0 is kept for unknown words."""
        return tuple(dict.fromkeys([*(kind for kind, _ in self.answers), *self.flat, *self.nouns, "or", "not"]))

    def group(self, kind: str) -> tuple[int, ...]:
        """Head positions of the answers of one type."""
        start = 0
        for name, group in self.answers:
            if name == kind:
                return tuple(range(start, start + len(group)))
            start += len(group)
        return ()

    def read(self, question: str) -> TokenizedQuestion:
        """Read ``question``; it is always answerable: an unknown word is skipped and marked."""
        return _read(self, question)

    def ids(self, text: str) -> tuple[tuple[int, ...], bool]:
        """Ids of the meaningful words of ``text``, and whether all of them are known."""
        index = _index(self)
        found = [index.get(word, 0) for word in tokens(text) if word not in _SILENT]
        return tuple(found), 0 not in found


@lru_cache(maxsize=64)
def _index(vocabulary: Vocabulary) -> dict[str, int]:
    return {word: number for number, word in enumerate(vocabulary.words, 1)}


@lru_cache(maxsize=100_000)
def _read(vocabulary: Vocabulary, question: str) -> TokenizedQuestion:
    ids, known = vocabulary.ids(question)
    words = tokens(question)
    flat = vocabulary.flat
    kinds = [kind for kind, _ in vocabulary.answers if kind in words]
    offered = [flat.index(word) for word in words if word in flat]
    if "or" in words and len(offered) >= 2:
        allowed: Sequence[int] = offered
    elif kinds and (words[0] not in {"is", "are", "does", "do"}):
        allowed = vocabulary.group(kinds[0])
    else:
        allowed = vocabulary.group("yes/no")
    return TokenizedQuestion(ids, tuple(dict.fromkeys(allowed)) or tuple(range(len(flat))), known)
