"""Accept the teacher: on a small labelled probe it must beat the student, else the pair is skipped (our choice).

Without a probe, the final answers that are known serve as one: :func:`split_off_probe`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tutelage.modules.visual_module import CallLabel, VisualModule
from tutelage.programs.answers import normalize_answer
from tutelage.programs.types import Call, Module, Value
from tutelage.programs.values import Box, iou
from tutelage.sdvp.collect import call_of, gold_forcing, teacher_forcing
from tutelage.sdvp.questions import Question, accuracy, solve, split_by_image
from tutelage.sdvp.tally import SdvpWarning
from tutelage.sdvp.teachers import ModuleTeacher

Probe = list[tuple[Call, CallLabel]]


@dataclass(frozen=True)
class TeacherCheck:
    """How teacher and student did on the probe calls that the teacher covers."""

    accepted: bool
    teacher: float | None
    student: float | None
    calls: int


def gold_probe(questions: Sequence[Question], modules: Mapping[str, Module], dsl: str = "visprog") -> dict[str, Probe]:
    """Labelled calls by module: the questions' programs run with every step's true value."""
    found: dict[str, Probe] = {name: [] for name in modules}
    for trace in solve(questions, modules, dsl, substitute=gold_forcing(questions, dsl)):
        for record in trace.steps:
            if record.module in found and record.substituted:
                found[record.module].append((call_of(record), CallLabel(record.output)))
    return found


def answer_probe(questions: Sequence[Question], modules: Mapping[str, Module], dsl: str | None = None) -> dict[str, Probe]:
    """Labelled calls by module where only final answers are known: those whose value is the program's answer as it stands.

    The crop that such a call sees may be a wrong one; teacher and module are then both judged on it.
    """
    found: dict[str, Probe] = {}
    known = [question for question in questions if question.answer is not None]
    for question, trace in zip(known, solve(known, modules, dsl), strict=True):
        steps = [record for record in trace.steps if record.module != "RESULT"]
        last = steps[-1] if steps and trace.status == "ok" else None
        if last is None or modules[last.module].symbolic or isinstance(last.output, list):  # no boxes spell as "no"
            continue
        if normalize_answer(last.output) == normalize_answer(trace.answer):
            found.setdefault(last.module, []).append((call_of(last), CallLabel(question.answer)))
    return found


PROBE_SHARE, LEAST_PROBE, MOST_PROBE = 0.2, 5, 500
"""Of the images with known answers, the share that is split off as a probe; at least and at most so many questions."""


def split_off_probe(
    questions: Sequence[Question], seed: int = 0, share: float = PROBE_SHARE
) -> tuple[list[Question], list[Question]]:
    """(Questions to learn from, answered questions to check teachers on): no image is in both. Where too few answers are
    known, nothing is split off."""
    known = [question for question in questions if question.answer is not None]
    if len(known) * share < LEAST_PROBE:
        return list(questions), []
    rest, held = split_by_image(questions, min(share, MOST_PROBE / len(known)), seed)
    return (rest, [question for question in held if question.answer is not None]) if rest else (list(questions), [])


def check_in_programs(
    teacher: ModuleTeacher, name: str, questions: Sequence[Question], modules: Mapping[str, Module], dsl: str | None = None
) -> TeacherCheck:
    """Whether programs give no fewer right final answers with the teacher in place of the module ``name``.

    For modules whose values are no final answers. Equal is enough (our choice): later steps hide much of a gain.
    """
    if not questions:
        return TeacherCheck(True, None, None, 0)
    of_teacher = accuracy(questions, teacher_forcing(modules, {name: teacher}), dsl)
    of_module = accuracy(questions, modules, dsl)
    return TeacherCheck(of_teacher >= of_module, of_teacher, of_module, len(questions))


def warn_of_unseen(teachers: Mapping[str, str], depth: int) -> None:
    """Say which teachers were accepted without a look at their answers.

    Args:
        teachers: names of teachers, by module.
        depth: of the call that the warning points to, from this one.

    Warns:
        SdvpWarning: if there are any.
    """
    if teachers:
        named = ", ".join(f"{teacher} of {module}" for module, teacher in teachers.items())
        text = f"accepted unseen: {named}. Give probe=, labelled calls by module, or questions with answers"
        warnings.warn(text, SdvpWarning, stacklevel=depth + 1)


def value_matches(value: Value, gold: Value) -> float:
    """1 where a step's value is right: equal answers; for boxes, as many as there are, each gold one met (IoU 0.5)."""
    if isinstance(gold, list):
        boxes = value if isinstance(value, list) else []
        return float(len(boxes) == len(gold) and all(any(iou(b, g) >= 0.5 for b in boxes) for g in gold if isinstance(g, Box)))
    return float(normalize_answer(value) == normalize_answer(gold))


def check_teacher(teacher: ModuleTeacher, module: VisualModule, calls: Probe) -> TeacherCheck:
    """Whether the teacher beats the module on the covered calls of the probe; without such calls it is accepted unseen."""
    raw_labels = teacher.label([call for call, _ in calls])
    covered = [i for i, label in enumerate(raw_labels) if label is not None]
    if not covered:
        return TeacherCheck(True, None, None, 0)
    values: list[Value] = []
    for start in range(0, len(covered), 256):
        values += module.run([calls[i][0] for i in covered[start : start + 256]]).values
    golds = [calls[i][1].value for i in covered]
    labels = [label for label in raw_labels if label is not None]
    teacher_accuracy = sum(value_matches(label.value, gold) for label, gold in zip(labels, golds, strict=True)) / len(covered)
    module_accuracy = sum(value_matches(value, gold) for value, gold in zip(values, golds, strict=True)) / len(covered)
    return TeacherCheck(teacher_accuracy > module_accuracy, teacher_accuracy, module_accuracy, len(covered))
