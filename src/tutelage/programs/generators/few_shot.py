"""Few-shot prompts: rules of a language, in-context examples, and the question.

A file of examples is plain text::

    # a line that begins with # is a comment
    Question: What color is the circle?
    Program:
    BOX0=LOC(image=IMAGE,object='circle')
    …

``NlvrStatement:`` stands where a sentence about two images is to be judged. A program ends where the next question begins.
Examples are parsed when they are read: one that does not hold is an error that names its line.
Random examples follow VisProg (Gupta and Kembhavi, CVPR 2023), which draws new ones for each run; the texts are our choice.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from tutelage.errors import InputError
from tutelage.programs.generators.base import FailedProgram, GenerationRequest, Parser
from tutelage.programs.generators.embedding import Embed, hashed_words
from tutelage.programs.languages import LANGUAGES, parser_for
from tutelage.programs.types import ParseFailure, ProgramFailure, Signature, UnknownModule
from tutelage.programs.viper_api import NEEDS, stub
from tutelage.seeds import derive

BUILT_IN = Path(__file__).parent / "examples"
"""``DSL-rules.txt``, and examples for one image and for a pair: ``DSL-one.txt``, ``DSL-pair.txt``."""

PAIR = ("LEFT", "RIGHT")
_FORM = "Question: …, Program: on the next line, then the program"
_OPENING = re.compile(r"(?:Question|Statement):\s*(.*)")
_NEEDS = re.compile(r"^\[(\w+)\] ?(.*)$", re.MULTILINE)
_LINE = re.compile(r"line (\d+)")

Choice = Literal["fixed", "random", "retrieved"]
Choose = Callable[[GenerationRequest, int], "Sequence[Example]"]
"""The examples for a request; the second argument numbers the sample, of several programs for one question."""


class Example(NamedTuple):
    """A question and its program; ``line`` is the question's in its file."""

    question: str
    program: str
    line: int = 0


@dataclass(frozen=True)
class Prompt:
    """What a model is asked: ``turns`` alternate between the user and the assistant, the last is the user's."""

    rules: str
    turns: tuple[str, ...]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt for models that chat."""
        roles = ("user", "assistant")
        spoken = [{"role": roles[number % 2], "content": turn} for number, turn in enumerate(self.turns)]
        return [{"role": "system", "content": self.rules}, *spoken]

    @property
    def text(self) -> str:
        """The prompt for models that go on with a text; :data:`STOP` ends the program."""
        spoken = (f"{turn}\nProgram:\n" if number % 2 == 0 else f"{turn}\n\n" for number, turn in enumerate(self.turns))
        return f"{self.rules}\n\n{''.join(spoken)}"


class InstructionPrompt(Prompt):
    """A prompt of one turn that asks for no program; for models that go on with a text it ends in a blank line."""

    @property
    def text(self) -> str:
        """The prompt for models that do not chat."""
        return f"{self.rules}\n\n{self.turns[-1]}\n\n"


STOP = ("\nQuestion:", "\nStatement:")
"""Where a model that only goes on with a text begins the next example."""


def read_examples(
    path: str | Path, parser: Parser[Any], inputs: tuple[str, ...] = ("IMAGE",), *, leave_out: bool = False
) -> tuple[Example, ...]:
    """The examples of a file, each program checked by ``parser``.

    ``leave_out`` drops examples that call modules which the parser does not know; otherwise they are errors too.

    Raises:
        InputError: the file is absent or empty, a question has no program, or a program does not hold; file and line
            are named.
    """
    path = Path(path)
    found = []
    for example, first in _blocks(path):
        program = parser.try_parse(example.program, inputs)
        if isinstance(program, UnknownModule) and leave_out:
            continue
        if isinstance(program, ProgramFailure):
            stated = _LINE.search(str(program.where))
            at = first + int(stated[1]) - 1 if stated else first
            message = f"the example {example.question!r} does not hold ({program.kind}): {program.message}"
            raise InputError(message, where=f"{path}:{at}", remedy=program.remedy or "correct the program")
        found.append(example)
    if not found:
        raise InputError("no example", where=path, remedy=f"write {_FORM}")
    return tuple(found)


def _blocks(path: Path) -> list[tuple[Example, int]]:
    """Each example with the line its program begins on."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the examples: {error}", where=path, remedy="give a text file") from error
    starts = [number for number, line in enumerate(lines) if _OPENING.match(line)]
    for number, line in enumerate(lines[: starts[0] if starts else None], 1):
        if line.strip() and not line.startswith("#"):
            raise InputError(f"not a question: {line[:60]!r}", where=f"{path}:{number}", remedy=f"write {_FORM}")
    found = []
    for start, end in zip(starts, [*starts[1:], len(lines)]):
        question = _OPENING.fullmatch(lines[start].rstrip())
        body = start + 1
        while body < end and not lines[body].strip():
            body += 1
        if question is None or not question[1] or body == end or lines[body].strip() != "Program:":
            raise InputError("a question without a program", where=f"{path}:{start + 1}", remedy=f"write {_FORM}")
        kept = ["" if line.startswith("#") else line.rstrip() for line in lines[body + 1 : end]]
        blank = next((number for number, line in enumerate(kept) if line), len(kept))
        program = "\n".join(kept).strip("\n")
        if not program:
            raise InputError("a question without a program", where=f"{path}:{start + 1}", remedy=f"write {_FORM}")
        found.append((Example(question[1], program, start + 1), body + 2 + blank))
    return found


def rules_of(dsl: str, signatures: Mapping[str, Signature]) -> str:
    """The language in words: the shipped rules without lines that need an absent module, then modules they do not name."""
    own_needs = {*NEEDS.values(), *(match[1] for name in ("visprog", "viper") for match in _NEEDS.finditer(_rules_text(name)))}
    others = sorted(signatures.keys() - own_needs)
    lines = list[str]()
    for line in _rules_text(dsl).splitlines():
        needs = _NEEDS.fullmatch(line)
        if needs is None:
            lines.append(line)
        elif needs[1] == "STUB":
            lines += stub(signatures, without=("VideoSegment",)).splitlines()
        elif needs[1] == "OTHERS":
            lines += [f"  {name}({_arguments(signatures[name])}) -> {signatures[name].returns}" for name in others]
        elif needs[1] in signatures and needs[2]:
            lines.append(needs[2])
    return "\n".join(lines).strip()


def _rules_text(dsl: str) -> str:
    return (BUILT_IN / f"{dsl}-rules.txt").read_text(encoding="utf-8")


def _arguments(signature: Signature) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in signature.args.items())


def fixed(examples: Sequence[Example], shots: int = 8) -> Choose:
    """The first examples, for every question."""
    return lambda request, sample: examples[:shots]


def sampled(examples: Sequence[Example], shots: int = 8, seed: int = 0) -> Choose:
    """Examples at random, the same for every question of a sample, others for the next sample."""

    def choose(request: GenerationRequest, sample: int) -> Sequence[Example]:
        rng = random.Random(derive(seed, "in-context examples", sample))
        return rng.sample(examples, min(shots, len(examples)))

    return choose


def retrieved(examples: Sequence[Example], shots: int = 8, embed: Embed | None = None) -> Choose:
    """The examples whose questions are nearest to the request's, the nearest last; of equals the earlier in the file.

    ``embed`` maps n texts to an array [n, d]; without one, weighted words (:func:`~.embedding.hashed_words`).
    """
    questions = [example.question for example in examples]
    embed = embed or hashed_words(questions)
    known = _l2_normalize(embed(questions))

    def choose(request: GenerationRequest, sample: int) -> Sequence[Example]:
        near = known @ _l2_normalize(embed([request.question]))[0]
        order = np.argsort(-near, kind="stable")[:shots]
        return [examples[number] for number in reversed(order)]

    return choose


def _l2_normalize(vectors: Any) -> np.ndarray:
    array = np.asarray(vectors, dtype=np.float64)
    return array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)


@dataclass(eq=False)
class PromptBuilder:
    """Makes prompts for programs that may call modules of these ``signatures``.

    ``own`` maps (dsl, inputs) to a file of examples in place of the shipped ones; ``choice``, ``shots``, ``seed`` and
    ``embed`` say which examples a question is shown. Files are read when they are first needed.
    """

    signatures: Mapping[str, Signature]
    choice: Choice = "fixed"
    shots: int = 8
    seed: int = 0
    embed: Embed | None = None
    own: Mapping[tuple[str, tuple[str, ...]], str | Path] = field(default_factory=dict)
    _cached: dict[tuple[str, tuple[str, ...]], tuple[str, Choose]] = field(default_factory=dict, repr=False)

    def prompt(self, request: GenerationRequest, sample: int = 0) -> Prompt:
        """The prompt of a request.

        Raises:
            InputError: the file of examples does not hold.
            ParseFailure: there are no examples for such inputs.
        """
        rules, choose = self._rules_and_examples(request)
        turns = []
        for example in choose(request, sample):
            turns += [_question(example.question, request.inputs), example.program]
        return Prompt(rules, (*turns, _question(request.question, request.inputs)))

    def repair(self, failed: FailedProgram) -> Prompt:
        """The prompt that shows a failed program and its error, and asks for a better one."""
        prompt = self.prompt(failed.request)
        place = f"{failed.failure.where}: " if failed.failure.where is not None else ""
        instruction = f"This program fails ({failed.failure.kind}). {place}{failed.failure.message}\nWrite the whole program again."
        return Prompt(prompt.rules, (*prompt.turns, failed.text, instruction))

    def _rules_and_examples(self, request: GenerationRequest) -> tuple[str, Choose]:
        key = (request.dsl, request.inputs)
        if key not in self._cached:
            examples = self._examples(*key)
            rules = rules_of(request.dsl, self.signatures)
            if self.choice == "random":
                self._cached[key] = rules, sampled(examples, self.shots, self.seed)
            elif self.choice == "retrieved":
                self._cached[key] = rules, retrieved(examples, self.shots, self.embed)
            else:
                self._cached[key] = rules, fixed(examples, self.shots)
        return self._cached[key]

    def _examples(self, dsl: str, inputs: tuple[str, ...]) -> tuple[Example, ...]:
        own = self.own.get((dsl, inputs))
        if own is not None:
            return read_examples(own, self._parsers[dsl], inputs)
        if inputs not in (("IMAGE",), PAIR):
            raise ParseFailure(f"no examples for programs about {inputs}", remedy="give a file of examples")
        name = f"{dsl}-{'pair' if inputs == PAIR else 'one'}.txt"
        return read_examples(BUILT_IN / name, self._parsers[dsl], inputs, leave_out=True)

    @cached_property
    def _parsers(self) -> dict[str, Parser[Any]]:
        return {dsl: parser_for(dsl, self.signatures) for dsl in LANGUAGES}


def _question(text: str, inputs: tuple[str, ...]) -> str:
    return f"{'Statement' if inputs == PAIR else 'Question'}: {' '.join(text.split())}"
