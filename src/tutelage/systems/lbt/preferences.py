"""The second method: pairs of rationales that tune the teacher, by correctness and by what students make of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction

from tutelage.distillation.preference import Preference
from tutelage.errors import InputError
from tutelage.systems.lbt.answers import Normalize, normalize_answer, same_answer
from tutelage.systems.lbt.selection import Sample

MARGIN, MOST_PAIRS = 0.3, 8


def preference_score(sample: Sample, truth: str, weight: float = 0.5, normalize: Normalize = normalize_answer) -> Fraction:
    """``(1 - weight) * correct + weight * score``, exactly; weight 0 looks at correctness alone.

    Examples:
        >>> preference_score(Sample("", "4", 1, 5), "4"), preference_score(Sample("", "5", 1, 5), "4")
        (Fraction(3, 5), Fraction(1, 10))
    """
    part = Fraction(str(weight))
    return (1 - part) * same_answer(sample.answer, truth, normalize) + part * sample.exact_score


def response_text(sample: Sample) -> str:
    """Rationale and answer as the teacher would write them."""
    return sample.rationale if sample.answer is None else f"{sample.rationale}\nThe answer is {sample.answer}."


def preference_pairs(
    problem: str,
    samples: Sequence[Sample],
    truth: str,
    *,
    weight: float = 0.5,
    margin: float = MARGIN,
    most: int = MOST_PAIRS,
    normalize: Normalize = normalize_answer,
    response: Callable[[Sample], str] = response_text,
) -> list[Preference]:
    """Pairs of one problem whose scores differ by more than ``margin``, the widest first, then by text; at most ``most``.

    Args:
        problem: the prompt of the pairs.
        samples: of the problem, with scores.
        truth: its right answer.
        weight: of the students' score beside correctness; 0 is the baseline.
        margin: a difference of exactly this much makes no pair.
        most: of a problem, the widest (our choice; the paper gives the number alone).
        normalize: gives equal answers one text.
        response: what the teacher shall learn to write.

    Raises:
        InputError: a weight outside 0..1, or fewer than one pair.
    """
    if not 0 <= weight <= 1 or most < 1:
        raise InputError(f"weight {weight}, at most {most} pairs", where="pairs", remedy="a weight in 0..1, and 1 pair or more")
    least = Fraction(str(margin))
    # of equal texts the best score counts once: a text is never better than itself
    scored: dict[str, Fraction] = {}
    for sample in samples:
        text, score = response(sample), preference_score(sample, truth, weight, normalize)
        scored[text] = max(score, scored.get(text, score))
    found = []
    for one, other in itertools.combinations(sorted(scored), 2):
        chosen, rejected = (one, other) if scored[one] > scored[other] else (other, one)
        difference = scored[chosen] - scored[rejected]
        if difference > least:
            found.append((-difference, chosen, rejected))
    return [Preference(problem, chosen, rejected) for _, chosen, rejected in sorted(found)[:most]]
