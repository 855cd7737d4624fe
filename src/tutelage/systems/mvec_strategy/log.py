"""Logs of a tutoring system: who worked on which problem, and which knowledge components each step used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tutelage.datasets.student_logs import hashed_name, log_rows
from tutelage.errors import InputError

STUDENT, HIERARCHY, PROBLEM = "Anon Student Id", "Problem Hierarchy", "Problem Name"
CORRECT, COMPONENTS = "Correct First Attempt", "KC(Default)"
SEPARATOR = "~~"


@dataclass(frozen=True)
class Instance:
    """One student at one problem.

    Attributes:
        student, hierarchy, problem: names; the hierarchy is the unit and section of the problem.
        steps: the knowledge components of each step, in order; at least one component in all.
        correct: by step, 1 where the first attempt was right, else 0; empty: not known.
    """

    student: str
    hierarchy: str
    problem: str
    steps: tuple[tuple[str, ...], ...]
    correct: tuple[int, ...] = ()

    @property
    def strategy(self) -> tuple[str, ...]:
        """The components in the order of the steps."""
        return tuple(component for step in self.steps for component in step)

    @property
    def mastery(self) -> tuple[int, ...]:
        """By component of :attr:`strategy`, whether the first attempt at its step was right."""
        return tuple(right for step, right in zip(self.steps, self.correct, strict=True) for _ in step)


def read_log(path: str | Path, components: str = COMPONENTS, salt: str = "") -> list[Instance]:
    """A log in the columns of the KDD Cup 2010 (DataShop), separated by tabs or commas, a row a step.

    Names of students are replaced by a hash of ``salt`` and the name, so that none is stored. Steps without a component are
    left out, and so are instances that have none.

    Args:
        path: the file; its first line names the columns.
        components: the column of knowledge components, several of a step separated by ``~~``.
        salt: what is hashed with each student's name.

    Raises:
        InputError: a column is missing, a row has another number of fields, a first attempt is neither 0 nor 1 (the message
            names the line), or there is no component at all.
    """

    def remedy(columns: list[str]) -> str:
        known = ", ".join(column for column in columns if column.startswith("KC(")) or "none starts with KC("
        return f"columns of components here: {known}"

    steps: dict[tuple[str, str, str], list[tuple[tuple[str, ...], int]]] = {}
    names = (STUDENT, HIERARCHY, PROBLEM, CORRECT, components)
    for where, (student, hierarchy, problem, right, used) in log_rows(path, names, remedy):
        if right not in ("0", "1"):
            raise InputError(f"{right!r} is no first attempt", where=where, remedy="0 or 1")
        found = tuple(name for part in used.split(SEPARATOR) if (name := part.strip()))
        if found:
            steps.setdefault((hashed_name(student, salt), hierarchy, problem), []).append((found, int(right)))
    if not steps:
        raise InputError("no step has a knowledge component", where=path, remedy="name another column: components=…")
    return [Instance(*key, *(tuple(part) for part in zip(*made))) for key, made in steps.items()]


def relation_corpus(instances: Sequence[Instance]) -> list[list[str]]:
    """Sentences of names that belong together (Shakya et al., 2023): for each step its components; student, hierarchy,
    problem and one component; student and component; problem and component; and for each instance all its components.

    A name is marked by what it is: ``student:``, ``hierarchy:``, ``problem:``, ``component:``.
    """
    sentences = []
    for one in instances:
        student, hierarchy, problem = f"student:{one.student}", f"hierarchy:{one.hierarchy}", f"problem:{one.problem}"
        for step in one.steps:
            names = [f"component:{name}" for name in step]
            sentences.append(names)
            for name in names:
                sentences += [[student, hierarchy, problem, name], [student, name], [problem, name]]
        sentences.append([f"component:{name}" for name in one.strategy])
    return sentences
