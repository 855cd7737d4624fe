"""What SDVP runs programs on: a question about one or two images, its programs, and its answer where one is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tutelage.programs.answers import normalise
from tutelage.programs.language import Module, Program, ProgramFailure, Signature, Value
from tutelage.programs.scheduler import Context, Fallback, Job, Substitute, run
from tutelage.programs.cache import ResultCache
from tutelage.programs.trace import Trace
from tutelage.programs.values import Box, Image, iou

Parse = Callable[[str, Mapping[str, Signature], tuple[str, ...]], Program]
"""A DSL's parser: text, signatures and names of the inputs to a checked program."""


@dataclass(frozen=True)
class Question:
    """One question with its programs by DSL.

    ``answer`` None: un-annotated. ``image_id`` groups questions of one image, for resampling. ``gold`` holds, by DSL,
    the true value of each step where the task knows it.
    """

    id: str
    task: str
    images: Mapping[str, Image]
    text: str
    programs: Mapping[str, str]
    answer: Value = None
    kind: str = ""
    image_id: str = ""
    gold: Mapping[str, Sequence[Value]] = field(default_factory=dict)


class Programs:
    """Parses each distinct text once: a DSL's parser, the modules' signatures, and what has been parsed."""

    def __init__(self, dsl: str, modules: Mapping[str, Module]):
        self.dsl = dsl
        self._parse = parser(dsl)
        self._signatures = {name: module.signature for name, module in modules.items()}
        self._known: dict[tuple[str, tuple[str, ...]], Program | ProgramFailure] = {}

    def of(self, question: Question) -> Program | ProgramFailure:
        """The question's program, or the failure of its parsing."""
        key = (question.programs[self.dsl], tuple(question.images))
        found = self._known.get(key)
        if found is None:
            try:
                found = self._parse(key[0], self._signatures, key[1])
            except ProgramFailure as failure:
                found = failure
            self._known[key] = found
        return found


def parser(dsl: str) -> Parse:
    """The parser of a DSL."""
    if dsl == "visprog":
        from tutelage.programs.visprog import parse

        return parse
    from tutelage.programs.viper import parse as parse_viper

    return parse_viper


def solve(
    questions: Iterable[Question],
    modules: Mapping[str, Module],
    dsl: str = "visprog",
    *,
    cache: ResultCache | None = None,
    substitute: Substitute | None = None,
    fallback: Fallback | None = None,
    stage: str = "",
    programs: Programs | None = None,
) -> list[Trace]:
    """The traces of the questions' programs, in order."""
    parsed = programs or Programs(dsl, modules)
    jobs = (Job(q.id, parsed.of(q), dict(q.images), q.text, q.task, stage) for q in questions)
    return run(jobs, Context(modules, cache, substitute=substitute, fallback=fallback))


def correct(question: Question, answer: Value) -> float:
    """1 where the normalised answers agree, else 0; for a box, 1 where IoU with the gold box is at least 0.5."""
    gold = question.answer
    if isinstance(gold, Box):
        found = answer[0] if isinstance(answer, list) and answer else None
        return float(isinstance(found, Box) and iou(found, gold) >= 0.5)
    return float(normalise(answer) == normalise(gold))
