"""Answer questions about images: generate a program for each question, run it, and return its trace.

    agent = VisualAgent({"LOC": detector, "VQA": vqa})
    trace = agent.ask("photo.jpg", "How many people are there?")
    trace.answer, trace.confidence, trace.status

The steps are those of VisProg (Gupta and Kembhavi, CVPR 2023) and ViperGPT (Surís et al., ICCV 2023): a
generator writes programs, a parser checks them, the scheduler runs them on the modules. Repair and voting are optional.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from tutelage.errors import InputError
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.generators.base import (
    Candidate,
    GenerationRequest,
    Parser,
    ProgramGenerator,
    grammar_generator,
)
from tutelage.programs.generators.self_consistency import VoteResult, majority_vote
from tutelage.programs.generators.self_repair import RepairRequest, RepairStats, can_repair, run_and_repair
from tutelage.programs.languages import parser_for
from tutelage.programs.result_cache import ResultCache
from tutelage.programs.run_context import Job, RunContext, direct_vqa
from tutelage.programs.scheduler import run
from tutelage.programs.trace import Trace
from tutelage.programs.types import Module, Program, ProgramFailure, Value
from tutelage.programs.values import Image

ImageSource = Image | str | os.PathLike[str]
"""An image, or the path of an image file."""

ImageOrPair = ImageSource | Sequence[ImageSource]
"""One image, or a (left, right) pair."""


class VisualQuestion(NamedTuple):
    """A question about one image, or a statement about a (left, right) pair.

    ``id`` names the trace; left out, it is the question's number in the batch.
    """

    images: ImageOrPair
    question: str
    id: str = ""

    @property
    def state(self) -> dict[str, Value]:
        """The images by the name that programs read: IMAGE, or LEFT and RIGHT.

        Raises:
            InputError: the number of images is not 1 or 2, an item is no image, or a file cannot be read.
        """
        images = list(self.images) if isinstance(self.images, (list, tuple)) else [self.images]
        if len(images) not in (1, 2):
            raise InputError(
                f"{len(images)} images",
                where=self.question,
                remedy="give one image, or a left and a right one",
            )
        names = ("IMAGE",) if len(images) == 1 else ("LEFT", "RIGHT")
        return dict(zip(names, map(_open, images), strict=True))


@dataclass(frozen=True)
class Solution:
    """All that the agent did for one question.

    Attributes:
        trace: The run whose answer is taken; under a fallback, the run that holds the fallback's call too.
        program: The program of ``trace``, or the failure that there is none.
        candidates: Every program as the generator wrote it, after repair.
        vote: The vote of ``candidates``; its ``winner`` is None where no program ran to its end.
    """

    trace: Trace
    program: Program | ProgramFailure
    candidates: Sequence[Candidate]
    vote: VoteResult

    @property
    def text(self) -> str:
        """The text of the program whose answer is taken."""
        return self.candidates[self.vote.winner or 0].text


class AgentResult(NamedTuple):
    """The solutions of a batch, in order, and what repair did for the batch (None without repair)."""

    solutions: list[Solution]
    repairs: RepairStats | None


class VisualAgent:
    """Answers questions about images with programs that call ``modules``.

    A question that cannot be answered gives a trace, not an exception. ``trace.status`` names the kind of
    failure, ``trace.error`` its cause, and ``trace.answer`` is None.

    Args:
        modules: The modules that programs may call, by name. Modules without a network (COUNT, CROP, EVAL, RESULT
            and so on) are added where ``modules`` has none of their name.
        generator: What writes the programs; the rule-based grammar by default.
        dsl: The language of the programs.
        samples: Programs per question. The answer of the majority is taken; failed programs do not vote.
        repair: Whether a failed program goes back to its generator once, with its error.
        fallback: Whether the module VQA is asked the question directly where no program succeeds. Such a
            trace has ``fallback`` True and keeps the status of the failure.
        cache: Stored results of modules, or None.

    Raises:
        InputError: an unknown language, fewer than one sample, a value that is no module, a generator that
            cannot repair, or a fallback without the module VQA.
    """

    def __init__(
        self,
        modules: Mapping[str, Module],
        generator: ProgramGenerator | None = None,
        *,
        dsl: Literal["visprog", "viper"] = "visprog",
        samples: int = 1,
        repair: bool = False,
        fallback: bool = False,
        cache: ResultCache | None = None,
    ):
        self.generator = grammar_generator() if generator is None else generator
        self.modules: dict[str, Module] = {**symbolic_modules(), **modules}
        self.dsl: str = dsl
        self.samples = samples
        self.repair = repair
        self._check(fallback)
        self.context = RunContext(self.modules, cache, fallback=direct_vqa if fallback else None)
        self.parser: Parser[Program] = parser_for(dsl, self.context.signatures)

    def ask(self, image: ImageOrPair, question: str) -> Trace:
        """The trace of one question; ``image`` is an image, a path, or a (left, right) pair of them.

        Raises:
            InputError: the image cannot be read.
        """
        return self.solve([(image, question)]).solutions[0].trace

    def ask_many(self, questions: Iterable[tuple[ImageOrPair, str] | VisualQuestion]) -> list[Trace]:
        """The traces of many (image, question) pairs, in order. Calls to one module share batches.

        Raises:
            InputError: an image cannot be read.
        """
        return [solution.trace for solution in self.solve(questions).solutions]

    def solve(
        self,
        questions: Iterable[tuple[ImageOrPair, str] | VisualQuestion],
        candidates: Sequence[Sequence[Candidate]] | None = None,
    ) -> AgentResult:
        """As :meth:`ask_many`, with the program, the candidates and the vote of each question.

        Args:
            questions: The (image, question) pairs.
            candidates: Programs already written, one or more per question; by default the generator
                writes them.

        Raises:
            InputError: an image cannot be read, or a question has no candidate.
        """
        items = [VisualQuestion(*item) for item in questions]
        states = [item.state for item in items]
        requests = [
            GenerationRequest(item.question, self.dsl, tuple(state), item.id or str(number))
            for number, (item, state) in enumerate(zip(items, states, strict=True))
        ]
        if candidates is None:
            candidates = self.generator.generate(requests, self.samples) if requests else []
        if len(candidates) != len(requests) or not all(candidates):
            fault = f"{len(candidates)} lists of programs for {len(requests)} questions, or an empty one"
            raise InputError(fault, where=self.generator.name, remedy="give each question one program or more")
        return self._run(requests, states, candidates)

    def _run(
        self,
        requests: Sequence[GenerationRequest],
        states: Sequence[Mapping[str, Value]],
        candidates: Sequence[Sequence[Candidate]],
    ) -> AgentResult:
        """Run all candidates together, vote question by question, then run the fallbacks."""
        strict = replace(self.context, fallback=None)  # the answer of a fallback has no vote
        flat = [
            RepairRequest(request, candidate, state)
            for request, state, own in zip(requests, states, candidates, strict=True)
            for candidate in own
        ]
        written, repairs = [item.candidate for item in flat], None
        if self.repair:
            traces, written, repairs = run_and_repair(flat, self.generator, self.parser, strict)
        else:
            traces = run([self._job(*item) for item in flat], strict)
        solutions: list[Solution] = []
        end = 0
        for request, own in zip(requests, candidates, strict=True):
            start, end = end, end + len(own)
            probabilities = [candidate.probability for candidate in written[start:end]]
            vote = majority_vote(traces[start:end], probabilities)
            taken = start + (vote.winner or 0)
            program = written[taken].program(self.parser, request.inputs)
            solutions.append(Solution(traces[taken], program, written[start:end], vote))
        return AgentResult(self._with_fallback(requests, states, solutions), repairs)

    def _with_fallback(
        self,
        requests: Sequence[GenerationRequest],
        states: Sequence[Mapping[str, Value]],
        solutions: list[Solution],
    ) -> list[Solution]:
        """The solutions; where no program succeeded, with the run of the fallback if there is one."""
        if self.context.fallback is None:
            return solutions
        failed = [number for number, solution in enumerate(solutions) if solution.vote.winner is None]
        first = {number: solutions[number].candidates[0] for number in failed}
        jobs = [self._job(requests[number], candidate, states[number]) for number, candidate in first.items()]
        for number, trace in zip(failed, run(jobs, self.context), strict=True):
            solutions[number] = replace(solutions[number], trace=trace)
        return solutions

    def _job(self, request: GenerationRequest, candidate: Candidate, state: Mapping[str, Value]) -> Job:
        return Job(request.id, candidate.program(self.parser, request.inputs), state, request.question)

    def _check(self, fallback: bool) -> None:
        if self.samples < 1:
            raise InputError(f"{self.samples} programs per question", where="samples", remedy="give 1 or more")
        for name, module in self.modules.items():
            if not isinstance(module, Module):
                kind = type(module).__name__
                raise InputError(f"{kind} is no module", where=name, remedy="make it one with tutelage.module")
        if self.repair and not can_repair(self.generator):
            fault = f"the generator {self.generator.name} cannot repair programs"
            raise InputError(fault, where="repair", remedy="leave it out")
        if fallback and "VQA" not in self.modules:
            raise InputError("the fallback needs a module VQA", where="fallback", remedy="give modules['VQA']")


def _open(source: object) -> Image:
    if isinstance(source, Image):
        return source
    if isinstance(source, (str, os.PathLike)):
        return Image.from_file(os.fspath(source))
    raise InputError(f"{type(source).__name__} is no image", remedy="give a path or a tutelage.Image")
