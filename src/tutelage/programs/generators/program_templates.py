"""Programs taken apart: what a question shares with others of its form (lines), and what is its own (arguments).

A line of a VisProg program becomes a template in which each argument that the question itself names is a hole, ``@``:
``BOX0=LOC(image=IMAGE,object='@')``. So a writer may predict lines from a closed set and copy the arguments from the
question, whatever words those are. All of it is our choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tutelage.programs import visprog
from tutelage.programs.generators.grammar import singular
from tutelage.programs.generators.program_builder import BooleanExpr, BoxesRef, ImageRef, ProgramBuilder, ProgramPair
from tutelage.programs.types import ParseFailure

HOLE = "@"
PLURAL = "+s"
"""The word that follows a noun which stood in the plural."""
_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*|\d+|[?.!:;]")
_NUMBERS = {word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_KEPT = frozenset({"?", ".", "!", ":", ";"})
_ARGUMENTS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?:object|property)='([\w-]+)'",
        r"question='What number is on the ([\w-]+)\?'",
        r"question='Is the ([\w-]+) ([\w-]+) or ([\w-]+)\?'",
        r"image=\w+\d,question='What ([\w-]+) is the ([\w-]+)\?'",
        r"'(?!(?:yes|no)')([\w-]+)'(?= if | else |\")",
        r"[=<>] (?:'([\w-]+)'|([1-9]\d*))(?=\"|$| )",
        r" else '(?!no')([\w-]+)'",
    )
)
_SIDES = {"CROP_LEFTOF": "left", "CROP_RIGHTOF": "right", "CROP_ABOVE": "above", "CROP_BELOW": "below"}


class ProgramPart(NamedTuple):
    """One line: its template, and the words that belong into its holes, in order."""

    line: str
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        pieces = self.line.split(HOLE)
        return "".join(piece + word for piece, word in zip(pieces, (*self.arguments, "")))


def words(question: str) -> tuple[str, ...]:
    """The question in small letters, word by word; a plural is its singular and ``+s``, a number its digits."""
    found: list[str] = []
    for word in _WORD.findall(question.lower().replace("colour", "color").replace("'s ", " of ")):
        if word in _KEPT:
            continue
        word = _NUMBERS.get(word, word)
        single = singular(word) if len(word) > 3 and not word.endswith(("ss", "us", "is")) else word
        found += [single] if single == word else [single, PLURAL]
    return tuple(found)


def split_program(program: str, words_in_question: Sequence[str]) -> list[ProgramPart]:
    """The lines of a VisProg program; an argument among the words ``words_in_question`` becomes a hole."""
    return [_program_part(line, frozenset(words_in_question)) for line in program.splitlines()]


def _program_part(line: str, words_in_question: frozenset[str]) -> ProgramPart:
    spans = {
        found.span(group)
        for pattern in _ARGUMENTS
        for found in pattern.finditer(line)
        for group in range(1, pattern.groups + 1)
        if found[group] in words_in_question
    }
    text, last, arguments = "", 0, []
    for start, end in sorted(spans):
        text += line[last:start] + HOLE
        arguments.append(line[start:end])
        last = end
    return ProgramPart(text + line[last:], tuple(arguments))


def join_program(parts: Iterable[ProgramPart]) -> str:
    """The program that :func:`split_program` took apart."""
    return "\n".join(map(str, parts))


def to_program_pair(program: str, inputs: tuple[str, ...] = ("IMAGE",)) -> ProgramPair:
    """A VisProg program of the kind that :class:`ProgramBuilder` writes, in both languages.

    Raises:
        ParseFailure: not such a program: a line of another form, or one that reads what no earlier line sets.
        Refused, TypeFailure, LimitExceeded: as :func:`visprog.read`.
    """
    composer = ProgramBuilder(inputs)
    views: dict[str, ImageRef] = {name: composer.view(name) for name in inputs}
    boxes: dict[str, BoxesRef] = {}
    answers: dict[str, tuple[int, bool]] = {}  # number, and whether it is a bare truth
    for step in visprog.read(program):
        given = {name: value for name, _, value in step.arguments}
        try:
            match step.module:
                case "LOC":
                    boxes[step.target] = composer.locate(views[given["image"]], given["object"])
                case "CROP":
                    views[step.target] = composer.crop(boxes[given["box"]])
                case "CROP_LEFTOF" | "CROP_RIGHTOF" | "CROP_ABOVE" | "CROP_BELOW":
                    views[step.target] = composer.crop_side(boxes[given["box"]], _SIDES[step.module])
                case "VQA":
                    answers[step.target] = composer.ask(views[given["image"]], given["question"]), False
                case "VERIFY":
                    verified = composer.verify(views[given["image"]], given["object"], given["property"])
                    answers[step.target] = verified, True
                case "COUNT":
                    answers[step.target] = composer.count(boxes[given["box"]]), False
                case "EVAL":
                    text = re.sub(r"\{(\w+)\}", lambda found: f"{{{answers[found[1]][0]}}}", str(given["expr"]))
                    answers[step.target] = composer.evaluate(text), " if " not in text
                case "RESULT" if given["var"] in boxes:
                    return composer.finish_boxes(boxes[given["var"]])
                case "RESULT":
                    number, truth = answers[given["var"]]
                    return composer.finish_boolean(BooleanExpr(f"{{{number}}}")) if truth else composer.finish(number)
                case _:
                    raise ParseFailure(f"{step.module} has no counterpart in ViperGPT programs", where=f"line {step.line}")
        except KeyError as error:
            raise ParseFailure(f"{error} is not set, or not given", where=f"line {step.line}") from None
    raise ParseFailure("the program gives no result", remedy="end with FINAL_RESULT=RESULT(var=X)")
