"""Which of a teacher's answers to give, by how well students did after its explanation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from tutelage.errors import InputError, did_you_mean
from tutelage.systems.lbt.answers import Normalize, normalize_answer

Rule = Literal["sum", "max", "majority", "average"]
RULES: tuple[Rule, ...] = ("sum", "max", "majority", "average")


@dataclass(frozen=True)
class Sample:
    """A rationale and its answer, and how students did on exams when it stood before them as an example.

    Attributes:
        rationale: how the teacher came to the answer.
        answer: None where its text held none; such a sample is never chosen.
        right, total: exam answers that were right, and all, over all exams, repeats and students.
    """

    rationale: str
    answer: str | None
    right: int = 0
    total: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.total:
            raise InputError(f"{self.right} of {self.total} right", where="sample", remedy="right in 0..total")

    @property
    def exact_score(self) -> Fraction:
        """The share of right exam answers, as a fraction; 0 without any."""
        return Fraction(self.right, self.total) if self.total else Fraction(0)

    @property
    def score(self) -> float:
        """The same as a number in 0..1: the LbT score."""
        return float(self.exact_score)


@dataclass(frozen=True)
class AnswerScore:
    """One answer: the number of its samples, and the sum, the highest and the mean of their scores."""

    answer: str
    count: int
    sum: float
    max: float
    average: float


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        answer: normalised.
        place: of the sample with this answer that has the highest score.
        fell_back: no student was ever right, so that the majority decided.
        table: every answer, the chosen one first.
    """

    answer: str
    place: int
    fell_back: bool
    table: tuple[AnswerScore, ...]


def select(samples: Sequence[Sample], rule: Rule = "sum", normalize: Normalize = normalize_answer) -> Choice:
    """Choose an answer. Equals go to the answer with more samples, then to the smaller text; order never matters.

    Args:
        samples: of one problem, with scores of the same students on the same exams.
        rule: ``sum`` and ``average`` of the scores of an answer's samples, ``max`` the single highest score, ``majority`` the
            number of samples (self-consistency: it looks at no score).
        normalize: gives equal answers one text; None for what is no answer.

    Examples:
        >>> scored = [Sample("", "A", 2, 10), Sample("", "A", 3, 10), Sample("", "A", 3, 10), Sample("", "B", 7, 10)]
        >>> [select(scored, rule).answer for rule in ("majority", "max", "sum", "average")]
        ['A', 'B', 'A', 'B']

    Raises:
        InputError: an unknown rule, or no sample with an answer.
    """
    if rule not in RULES:
        raise InputError(f"unknown rule {rule!r}", where="rule", remedy=did_you_mean(rule, list(RULES)))
    groups: dict[str, list[int]] = {}
    for place, sample in enumerate(samples):
        key = normalize(sample.answer)
        if key is not None:
            groups.setdefault(key, []).append(place)
    if not groups:
        raise InputError("no sample has an answer", where="samples", remedy="sample more, or give another parser of answers")
    scores = [sample.exact_score for sample in samples]
    fell_back = rule != "majority" and not any(scores[place] for places in groups.values() for place in places)

    def worth(places: list[int]) -> Fraction:
        own = [scores[place] for place in places]
        total = sum(own, Fraction(0))
        by_rule = {"sum": total, "max": max(own), "average": total / len(own), "majority": Fraction(len(own))}
        return by_rule["majority" if fell_back else rule]

    ranked = sorted(groups, key=lambda key: (-worth(groups[key]), -len(groups[key]), key))
    best = min(groups[ranked[0]], key=lambda place: (-scores[place], samples[place].rationale, place))
    table = []
    for key in ranked:
        own = [scores[place] for place in groups[key]]
        total = sum(own, Fraction(0))
        table.append(AnswerScore(key, len(own), float(total), float(max(own)), float(total / len(own))))
    return Choice(ranked[0], best, fell_back, tuple(table))
