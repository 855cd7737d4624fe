"""What answers a step in its module's place: the true values, the teachers, or one's own function."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tutelage.modules.visual_module import CallLabel
from tutelage.programs.run_context import USE_MODULE
from tutelage.programs.serialization import input_hash
from tutelage.programs.trace import StepRecord
from tutelage.programs.types import Call, Value
from tutelage.sdvp.questions import Question
from tutelage.sdvp.teachers import ModuleTeacher


@dataclass(frozen=True)
class StepOracle:
    """What answers a step in its module's place.

    ``answer`` takes a question and a call and gives a value, or KEEP where it knows none. ``truth``: its values are the
    true ones, so that what they do not repair is the program's error. ``prime`` is told the records of the runs as they
    are, so that a network can answer them as batches.
    """

    name: str
    answer: Callable[[Question, Call], Value]
    truth: bool = True
    prime: Callable[[Sequence[StepRecord]], None] | None = None


def gold_oracle(dsl: str = "visprog", programs: Mapping[str, str] | None = None) -> StepOracle:
    """The true value of each step, where the question knows it.

    ``programs`` holds, by question id, the program that the true values belong to, where questions may run others: a
    step is then answered only if it is written as in that program (a VisProg line; a ViperGPT program whole).
    """

    def answer(question: Question, call: Call) -> Value:
        gold = question.gold.get(dsl, ())
        value = gold[call.step] if 0 <= call.step < len(gold) else None
        foreign = programs is not None and not _same_step(question.programs[dsl], programs.get(question.id), call, dsl)
        return USE_MODULE if value is None or foreign else value

    return StepOracle("gold", answer)


def _same_step(text: str, gold: str | None, call: Call, dsl: str) -> bool:
    if gold is None or dsl != "visprog":
        return text == gold
    lines, gold_lines = text.splitlines(), gold.splitlines()
    return call.step < min(len(lines), len(gold_lines)) and lines[call.step].strip() == gold_lines[call.step].strip()


def teacher_oracle(teachers: Mapping[str, ModuleTeacher] | Callable[[str], Mapping[str, ModuleTeacher]]) -> StepOracle:
    """What the teachers say, where they cover the call; each distinct call is asked once. ``teachers`` by module, or a
    function that gives these by task."""
    of_task = teachers if callable(teachers) else lambda task: teachers
    known: dict[tuple[str, str], CallLabel | None] = {}

    def prime(records: Sequence[StepRecord]) -> None:
        own_calls: dict[ModuleTeacher, dict[str, Call]] = defaultdict(dict)
        for record in records:
            teacher = of_task(record.origin.task).get(record.module)
            if teacher is not None:
                own_calls[teacher][record.input_hash] = Call(record.module, record.args, record.step)
        for teacher, calls in own_calls.items():
            labels = teacher.label(list(calls.values()))
            known.update({(teacher.version, name): label for name, label in zip(calls, labels, strict=True)})

    def answer(question: Question, call: Call) -> Value:
        teacher = of_task(question.task).get(call.module)
        if teacher is None:
            return USE_MODULE
        key = (teacher.version, input_hash(call.module, call.args))
        if key not in known:
            known[key] = teacher.label([call])[0]
        label = known[key]
        return USE_MODULE if label is None else label.value

    return StepOracle("teacher", answer, truth=False, prime=prime)
