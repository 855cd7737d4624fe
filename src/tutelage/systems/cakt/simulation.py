"""Simulated students in two worlds: one where practice on a concept makes it known, and one where nothing is learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from tutelage.errors import InputError, did_you_mean
from tutelage.fields import check_range
from tutelage.seeds import numpy_rng
from tutelage.storage import write_text
from tutelage.systems.cakt.answers import Answers

World = Literal["learning", "ability"]
KNOWN_AT_START, LEARNED, RIGHT_KNOWN, RIGHT_UNKNOWN = 0.25, 0.2, 0.9, 0.15
AT_WORK, PRACTICE = 5, 8


@dataclass(frozen=True)
class Simulated:
    """Students, the names of all concepts, and by student the true chance of each answer [n]."""

    students: list[Answers]
    concepts: list[str]
    truth: list[np.ndarray]


def simulated_answers(seed: int, students: int = 250, each: int = 40, concepts: int = 40, world: World = "learning") -> Simulated:
    """Practice in turn: a student has 5 concepts at work and takes one of them at random at each step; after 8 answers on a
    concept another takes its place.

    In the world "learning" a concept is known at the start with probability .25, an unknown one becomes known with .2 after
    each answer, and P(right) is .9 where it is known, else .15; nothing links concepts. In the world "ability" the order of
    concepts is the same, and ``P(right) = sigmoid(ability of the student + ease of the concept)``, both standard normal.

    Raises:
        InputError: fewer than one of each, or an unknown world.
    """
    for name, value in (("students", students), ("each", each), ("concepts", concepts)):
        check_range(name, value, 1, 10**7, whole=True)
    if world not in get_args(World):
        raise InputError(f"unknown world {world!r}", where="world", remedy=did_you_mean(str(world), list(get_args(World))))
    names = [f"concept {i:02d}" for i in range(concepts)]
    ease = numpy_rng(seed, "ease").normal(size=concepts)
    made, truth = [], []
    for student in range(students):
        order = _practice(numpy_rng(seed, "order of concepts", student), each, concepts)
        rng = numpy_rng(seed, "answers", world, student)
        if world == "ability":
            chances = 1 / (1 + np.exp(-(rng.normal() + ease[order])))
            right = rng.random(each) < chances
        else:
            known, chances, right = rng.random(concepts) < KNOWN_AT_START, np.zeros(each), np.zeros(each, bool)
            for step, concept in enumerate(order):
                chances[step] = RIGHT_KNOWN if known[concept] else RIGHT_UNKNOWN
                right[step] = rng.random() < chances[step]
                known[concept] |= rng.random() < LEARNED
        made.append(Answers(f"student {student}", tuple(names[i] for i in order), tuple(int(one) for one in right)))
        truth.append(chances)
    return Simulated(made, names, truth)


def _practice(rng: np.random.Generator, each: int, concepts: int) -> list[int]:
    """The concept of each step."""
    waiting = rng.permutation(concepts).tolist()
    at_work, left = [waiting.pop() for _ in range(min(AT_WORK, concepts))], [PRACTICE] * min(AT_WORK, concepts)
    order = []
    for _ in range(each):
        place = int(rng.integers(len(at_work)))
        order.append(at_work[place])
        left[place] -= 1
        if not left[place]:
            waiting = waiting or [one for one in rng.permutation(concepts).tolist() if one not in at_work] or [at_work[place]]
            at_work[place], left[place] = waiting.pop(), PRACTICE
    return order


def write_answers(path: str | Path, students: list[Answers]) -> Path:
    """Write a log in the columns of ASSISTments, as :func:`~tutelage.systems.cakt.answers.read_answers` reads it.

    Raises:
        InputError: a name holds a comma, a quote or a line break.
    """
    lines = ["order_id,user_id,skill_id,correct"]
    for one in students:
        for name in {one.student, *one.concepts}:
            if any(sign in name for sign in ',"\n\r\t'):
                raise InputError(f"{name!r} is no name for a table", where=path, remedy="no commas, quotes or line breaks")
        lines += [f"{len(lines) + i},{one.student},{c},{r}" for i, (c, r) in enumerate(zip(one.concepts, one.right, strict=True))]
    return write_text(path, "\n".join(lines) + "\n")
