"""What SDVP runs programs on: a question about one or two images, its programs, and its answer where one is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tutelage.errors import InputError
from tutelage.programs.answers import normalize_answer
from tutelage.programs.languages import LANGUAGES, parser_for
from tutelage.programs.run_context import Job, Override, RunContext
from tutelage.programs.scheduler import stream
from tutelage.programs.trace import Trace
from tutelage.programs.types import Module, ParseFailure, Program, ProgramFailure, Value
from tutelage.programs.values import Box, Image, iou
from tutelage.seeds import numpy_rng


@dataclass(frozen=True, slots=True)
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


def language_of(questions: Sequence[Question]) -> str:
    """The language that most of the questions have a program in; VisProg where it is as many."""
    counts = {dsl: sum(dsl in question.programs for question in questions) for dsl in LANGUAGES}
    return max(counts, key=counts.__getitem__)


def split_by_image(questions: Sequence[Question], share: float, seed: int = 0) -> tuple[list[Question], list[Question]]:
    """The questions in two parts that share no image, in their order: (the rest, those of ``share`` of the images).

    Args:
        questions: at least one.
        share: of the images, in 0..1; at least one image is taken.
        seed: which images.

    Raises:
        InputError: a share outside 0..1.
    """
    if not 0 < share < 1:
        raise InputError(f"a share of {share}", where="share", remedy="between 0 and 1")
    groups = [question.image_id or "+".join(image.root_key for image in question.images.values()) for question in questions]
    names = list(dict.fromkeys(groups))
    order = numpy_rng(seed, "split by image").permutation(len(names))
    taken = {names[i] for i in order[: max(1, round(share * len(names)))]}
    parts: tuple[list[Question], list[Question]] = ([], [])
    for question, group in zip(questions, groups, strict=True):
        parts[group in taken].append(question)
    return parts


class ProgramParser:
    """A DSL's parser for the modules at hand; each distinct text is parsed once."""

    def __init__(self, dsl: str, modules: Mapping[str, Module]):
        self.dsl = dsl
        signatures = {name: module.signature for name, module in modules.items()}
        self._parser = parser_for(dsl, signatures)

    def parse(self, question: Question) -> Program | ProgramFailure:
        """The question's program, or the failure of its parsing; a question without one fails too."""
        text = question.programs.get(self.dsl)
        if text is None:
            held = ", ".join(question.programs) or "none"
            return ParseFailure(f"no {self.dsl} program", where=question.id, remedy=f"the question's programs: {held}")
        return self._parser.try_parse(text, tuple(question.images))


def solve(
    questions: Iterable[Question],
    modules: Mapping[str, Module],
    dsl: str | None = None,
    *,
    substitute: Override | None = None,
    programs: ProgramParser | None = None,
) -> list[Trace]:
    """The traces of the questions' programs, in order.

    Args:
        questions: With a program in the language ``dsl``; one without it fails.
        modules: By name.
        dsl: The language; None: that which most of the questions have a program in.
        substitute: What may answer a call in its module's place.
        programs: A parser of the language that already knows some of the texts.
    """
    return list(solve_stream(questions, modules, dsl, substitute=substitute, programs=programs))


def solve_stream(
    questions: Iterable[Question],
    modules: Mapping[str, Module],
    dsl: str | None = None,
    *,
    substitute: Override | None = None,
    stage: str = "",
    programs: ProgramParser | None = None,
) -> Iterator[Trace]:
    """As :func:`solve`, one trace after the other: for many questions of whose traces little is kept."""
    if dsl is None and programs is None:
        questions = list(questions)
        dsl = language_of(questions)
    parsed = programs or ProgramParser(dsl or "visprog", modules)
    jobs = (Job(q.id, parsed.parse(q), dict(q.images), q.text, q.task, stage) for q in questions)
    return stream(jobs, RunContext(modules, substitute=substitute))


def score_answer(question: Question, answer: Value) -> float:
    """1 where the normalised answers agree, else 0; for a box, 1 where IoU with the gold box is at least 0.5."""
    gold = question.answer
    if isinstance(gold, Box):
        found = answer[0] if isinstance(answer, list) and answer else answer
        return float(isinstance(found, Box) and iou(found, gold) >= 0.5)
    return float(normalize_answer(answer) == normalize_answer(gold))


def accuracy(questions: Sequence[Question], modules: Mapping[str, Module], dsl: str | None = None) -> float:
    """The share of the questions that their programs answer rightly, in 0..1."""
    traces = solve_stream(questions, modules, dsl)
    return sum(score_answer(q, t.answer) for q, t in zip(questions, traces, strict=True)) / max(1, len(questions))
