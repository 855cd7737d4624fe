"""What every writer of programs is: requests go in, drafts come out; the rule-based writers behind that one door.

A writer never checks its texts: a candidate is parsed where it is run, and what does not parse is a typed failure there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from tutelage.programs.generators import grammar
from tutelage.programs.generators.from_file import StoredProgram
from tutelage.programs.generators.gqa_functional import translate
from tutelage.programs.generators.program_builder import ProgramPair
from tutelage.programs.types import ParseFailure, Program, ProgramFailure

AnyProgram = TypeVar("AnyProgram", bound=Program, covariant=True)


class GenerationFailed(ProgramFailure):
    """A language model gave no text for a program: refused, unreachable, or not as its protocol has it."""

    kind = "writer"


class GenerationRequest(NamedTuple):
    """What a program is wanted for: a question, the language, and the images it reads: IMAGE, or LEFT and RIGHT."""

    question: str
    dsl: str = "visprog"
    inputs: tuple[str, ...] = ("IMAGE",)
    id: str = ""


@dataclass(frozen=True)
class Candidate:
    """One program as a writer wrote it, unchecked.

    ``probability`` is the mean probability of its tokens in 0..1; None where the writer knows none. With a ``failure``
    there is no program: ``text`` is then empty, or what could not be used. ``source`` names the writer and its model.
    """

    text: str
    source: str
    probability: float | None = None
    failure: ProgramFailure | None = None

    def program(self, parser: Parser[AnyProgram], inputs: tuple[str, ...]) -> AnyProgram | ProgramFailure:
        """The checked program, or the typed failure: the writer's own, else the parser's."""
        return self.failure if self.failure is not None else parser.try_parse(self.text, inputs)


class Parser(Protocol[AnyProgram]):
    """The parser of either language."""

    def try_parse(self, text: str, inputs: tuple[str, ...]) -> AnyProgram | ProgramFailure:
        """The checked program, or the typed failure."""
        ...


class ProgramGenerator(Protocol):
    """Anything that writes programs."""

    @property
    def name(self) -> str:
        """What its drafts name as their source."""
        ...

    def generate(self, requests: Sequence[GenerationRequest], n: int = 1) -> list[list[Candidate]]:
        """For each request its drafts, best first: ``n``, or fewer where it has no other; never none."""
        ...


class FailedProgram(NamedTuple):
    """A program that failed: what was wanted, what was written, and how it failed."""

    request: GenerationRequest
    text: str
    failure: ProgramFailure


@runtime_checkable
class RepairingGenerator(Protocol):
    """A writer that can be told its fault and write again. Those by rules cannot: they would write the same."""

    @property
    def name(self) -> str:
        """What its drafts name as their source."""
        ...

    def repair(self, failed_programs: Sequence[FailedProgram]) -> list[Candidate]:
        """A new draft for each fault."""
        ...


def tally(programs: Iterable[Program | ProgramFailure]) -> dict[str, int]:
    """How many programs are ok, and how many failed of each kind."""
    return dict(Counter(item.kind if isinstance(item, ProgramFailure) else "ok" for item in programs))


class RuleBasedGenerator:
    """A writer of one draft a request, by a function that raises a failure where it has no program."""

    def __init__(self, name: str, build: Callable[[GenerationRequest], str]):
        self.name, self._build = name, build

    def generate(self, requests: Sequence[GenerationRequest], n: int = 1) -> list[list[Candidate]]:
        """One draft each, whatever ``n``: rules know no second one."""
        return [[self._candidate(request)] for request in requests]

    def _candidate(self, request: GenerationRequest) -> Candidate:
        try:
            return Candidate(self._build(request), self.name)
        except ProgramFailure as failure:
            return Candidate("", self.name, failure=failure.with_traceback(None))


def grammar_generator(single: bool = False, photo: bool = False) -> RuleBasedGenerator:
    """The grammar; with ``single`` each image shows one thing, with ``photo`` it is a photograph."""

    def compose(request: GenerationRequest) -> str:
        return _text(grammar.generate(request.question, request.inputs, single=single, photo=photo), request)

    return RuleBasedGenerator("grammar", compose)


def gold_generator(programs: Iterable[StoredProgram]) -> RuleBasedGenerator:
    """Stored programs, found by the request's id, else by its question, in the request's language."""
    stored = list(programs)
    by_id = {(program.id, program.dsl): program.program for program in stored}
    by_question = {(program.question, program.dsl): program.program for program in stored}

    def compose(request: GenerationRequest) -> str:
        found = by_id.get((request.id, request.dsl)) or by_question.get((request.question, request.dsl))
        if found is None:
            raise ParseFailure(f"no stored {request.dsl} program for {request.question!r}", remedy="add it to the file")
        return found

    return RuleBasedGenerator("gold", compose)


def gqa_functional_generator(functional_programs: Mapping[str, Sequence[Any]]) -> RuleBasedGenerator:
    """GQA's functional programs, by the id of their question, translated."""

    def compose(request: GenerationRequest) -> str:
        if request.id not in functional_programs:
            raise ParseFailure(f"no functional program for the question {request.id!r}", remedy="give the questions' file")
        return _text(translate(functional_programs[request.id]), request)

    return RuleBasedGenerator("semantic", compose)


def _text(pair: ProgramPair, request: GenerationRequest) -> str:
    return pair.visprog if request.dsl == "visprog" else pair.viper
