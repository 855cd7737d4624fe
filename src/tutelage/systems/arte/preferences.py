"""A student's preferences: how well it does after each example, and the pairs that tune the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from tutelage.distillation.preference import Preference
from tutelage.errors import InputError
from tutelage.seeds import numpy_rng
from tutelage.systems.arte.prompts import (
    Draft,
    Question,
    Student,
    TaskText,
    question_prompt,
    rationale_prompt,
    same_text,
    tagged,
)

Same = Callable[[str | None, str | None], bool]
QUESTION_PAIRS = 50


@dataclass(frozen=True)
class ScoredDraft:
    """A draft, and how many of the ``total`` preference questions the student answered rightly after it."""

    draft: Draft
    right: int
    total: int

    @property
    def score(self) -> Fraction:
        """``s_r``, exactly, in 0..1."""
        return Fraction(self.right, self.total)


def score_drafts(drafts: Sequence[Draft], student: Student, items: Sequence[Question], same: Same = same_text) -> list[ScoredDraft]:
    """Score every draft as the one example before every preference question.

    Raises:
        InputError: no preference question, or as many answers as questions did not come.
    """
    if not items:
        raise InputError("no preference question", where="items", remedy="give at least one")
    found = []
    for draft in drafts:
        answers = student([draft], [item.text for item in items])
        if len(answers) != len(items):
            raise InputError(f"{len(answers)} answers to {len(items)} questions", where="student", remedy="one each, in order")
        right = sum(same(answer, item.target) for answer, item in zip(answers, items))
        found.append(ScoredDraft(draft, right, len(items)))
    return found


def examinee_scores(
    students: Sequence[Student],
    items: Sequence[Question],
    examples: Sequence[Draft],
    shots: Sequence[int] = (0, 1, 2, 3),
    same: Same = same_text,
) -> np.ndarray:
    """[students x shots, items] of 0 and 1: each student with the first 0 to 3 examples is an examinee.

    Raises:
        InputError: fewer examples than shots.
    """
    if len(examples) < max(shots):
        raise InputError(f"{len(examples)} examples for {max(shots)} shots", where="examples", remedy="give more, or fewer shots")
    rows = []
    for student in students:
        for count in shots:
            answers = student(examples[:count], [item.text for item in items])
            rows.append([int(same(answer, item.target)) for answer, item in zip(answers, items, strict=True)])
    return np.array(rows)


def by_question(scored: Sequence[ScoredDraft]) -> dict[Question, list[ScoredDraft]]:
    """Drafts by question, in the order of first appearance."""
    found: dict[Question, list[ScoredDraft]] = {}
    for one in scored:
        found.setdefault(one.draft.question, []).append(one)
    return found


def question_scores(scored: Sequence[ScoredDraft]) -> dict[Question, Fraction]:
    """``s_q``: the mean of a question's ``s_r``."""
    return {question: sum((one.score for one in own), Fraction(0)) / len(own) for question, own in by_question(scored).items()}


@dataclass(frozen=True)
class PairSet:
    """Pairs for DPO, and how many were dropped as both sides scored alike."""

    pairs: tuple[Preference, ...]
    dropped: int


def rationale_pairs(scored: Sequence[ScoredDraft], task: TaskText) -> PairSet:
    """Of each question the best and the worst rationale; of equals the one of the smaller style.

    The prompt is the plain one: the style that a rationale was asked for in is erased, so that the teacher learns to choose.
    """
    pairs, dropped = [], 0
    for question, own in by_question(scored).items():
        best = min(own, key=lambda one: (-one.score, one.draft.style))
        worst = min(own, key=lambda one: (one.score, one.draft.style))
        if best.score == worst.score or best.draft.rationale == worst.draft.rationale:
            dropped += 1
            continue
        pairs.append(Preference(rationale_prompt(task, question.text).text, best.draft.rationale, worst.draft.rationale))
    return PairSet(tuple(pairs), dropped)


def question_pairs(
    scored: Sequence[ScoredDraft],
    task: TaskText,
    count: int = QUESTION_PAIRS,
    choice: Literal["random", "extreme"] = "random",
    seed: int = 0,
) -> PairSet:
    """Pairs of a question from the best quarter by ``s_q`` and one from the worst quarter.

    Args:
        scored: drafts of four questions or more.
        task: the prompt of all pairs is its request for questions.
        count: of pairs.
        choice: ``random``: drawn from the quarters; ``extreme``: best with worst, second with second last, and so on, as far as
            the quarters go. The paper says the one in one place and the other in another.
        seed: of the draws.

    Raises:
        InputError: fewer than four questions: the quarters would be empty.
    """
    ranked = sorted(question_scores(scored).items(), key=lambda one: (-one[1], one[0]))
    quarter = len(ranked) // 4
    if quarter < 1 or count < 1:
        message = f"{len(ranked)} questions, {count} pairs"
        raise InputError(message, where="questions", remedy="four questions or more, and 1 pair or more")
    best, worst = ranked[:quarter], ranked[-quarter:][::-1]
    if choice == "extreme":
        places = [(number, number) for number in range(min(count, quarter))]
    else:
        rng = numpy_rng(seed, "question pairs")
        places = [(int(a), int(b)) for a, b in rng.integers(quarter, size=(count, 2))]
    prompt, pairs, dropped = question_prompt(task).text, list[Preference](), 0
    for one, other in places:
        (chosen, high), (rejected, low) = best[one], worst[other]
        if high == low:
            dropped += 1
        else:
            pairs.append(Preference(prompt, tagged(chosen), tagged(rejected)))
    return PairSet(tuple(pairs), dropped)
