"""GQA's functional programs as visual programs of both languages.

A selection is kept as a phrase until something is asked of it, so that filters become adjectives of the phrase that is
looked for (a detector has no filter). ``count``, ``more`` and ``fewer`` are our extensions of GQA's operations.
Source of the operations: Hudson and Manning, "GQA", CVPR 2019. The translation is our choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from tutelage.errors import did_you_mean
from tutelage.programs.generators.program_builder import (
    OPPOSITE,
    SIDES,
    BooleanExpr,
    BoxesRef,
    ImageRef,
    ProgramBuilder,
    ProgramPair,
    attribute_question,
)
from tutelage.programs.types import ParseFailure

_IDS = re.compile(r"\s+\([^()]*\)\s*$")
_NOT = re.compile(r"not\((.*)\)")


class Operation(NamedTuple):
    """One operation of a functional program; ``dependencies`` are numbers of earlier operations."""

    operation: str
    argument: str
    dependencies: tuple[int, ...]


@dataclass
class SelectedObjects:
    """Things that are looked for only when something is asked of them: a phrase within a view."""

    view: ImageRef
    noun: str
    adjectives: tuple[str, ...] = ()
    boxes: BoxesRef | None = None

    @property
    def phrase(self) -> str:
        """What a detector is asked for."""
        return " ".join((*self.adjectives, self.noun))

    def locate(self, c: ProgramBuilder) -> BoxesRef:
        """The search, made once."""
        if self.boxes is None:
            self.boxes = c.locate(self.view, self.phrase)
        return self.boxes

    def crop(self, c: ProgramBuilder) -> ImageRef:
        """The first thing found, cut out; the scene is the whole image."""
        return self.view if self.noun == "scene" else c.crop(self.locate(c))


Node = SelectedObjects | BooleanExpr | int | ProgramPair
"""What an operation is worth while a program is written: things, a truth, or the number of an answer."""


def translate(operations: Sequence[Any]) -> ProgramPair:
    """The programs of a functional program: {operation, argument, dependencies} as mappings or as attributes.

    Raises:
        ParseFailure: an unknown operation, or operations that do not fit together; the step is named.
    """
    c, nodes = ProgramBuilder(), list[Any]()
    for number, raw in enumerate(operations):
        op = _operation(raw, number)
        name, _, detail = op.operation.partition(" ")
        if name not in _TRANSLATORS:
            remedy = did_you_mean(name, list(_TRANSLATORS))
            raise ParseFailure(f"unknown operation {op.operation!r}", where=f"step {number}", remedy=remedy)
        try:
            inputs = [nodes[at] for at in op.dependencies]
            nodes.append(_TRANSLATORS[name](c, detail.strip(), _IDS.sub("", op.argument), inputs))
        except (IndexError, AttributeError, TypeError, ValueError) as error:
            message = f"{op.operation}: {op.argument} does not fit what it depends on"
            raise ParseFailure(message, where=f"step {number}") from error
    if not nodes:
        raise ParseFailure("a functional program without operations")
    last = nodes[-1]
    if isinstance(last, SelectedObjects):
        return c.finish_boxes(last.locate(c))
    return c.finish_boolean(last) if isinstance(last, BooleanExpr) else c.finish(last)


def _operation(raw: Any, number: int) -> Operation:
    try:
        if isinstance(raw, Mapping):
            raw = Operation(raw["operation"], raw["argument"], tuple(raw["dependencies"]))
        op = Operation(str(raw.operation), str(raw.argument), tuple(map(int, raw.dependencies)))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise ParseFailure("an operation has operation, argument and dependencies", where=f"step {number}") from error
    if any(not 0 <= at < number for at in op.dependencies):
        raise ParseFailure(f"depends on a later step: {list(op.dependencies)}", where=f"step {number}")
    return op


def _select(c: ProgramBuilder, detail: str, text: str, inputs: list[Any]) -> Node:
    return SelectedObjects(c.view(), _noun(text))


def _noun(text: str) -> str:
    return "object" if text in ("_", "this", "") else text


def _filter(c: ProgramBuilder, detail: str, text: str, inputs: list[SelectedObjects]) -> Node:
    negated = _NOT.fullmatch(text)
    word = f"not {negated[1]}" if negated else text
    return SelectedObjects(inputs[0].view, inputs[0].noun, (word, *inputs[0].adjectives))


def _relate(c: ProgramBuilder, detail: str, text: str, inputs: list[SelectedObjects]) -> Node:
    name, predicate, role = _relation(text)
    return SelectedObjects(_related(c, inputs[0], predicate, role), _noun(name))


def _relation(text: str) -> tuple[str, str, str]:
    name, predicate, role = (part.strip() for part in text.split(","))
    if role not in ("s", "o"):
        raise ValueError(role)
    return name, predicate, role


def _related(c: ProgramBuilder, anchor: SelectedObjects, predicate: str, role: str) -> ImageRef:
    """Where to look for what is related: on that side, or else round the anchor.

    Role s: what is looked for is the subject ("it is left of the anchor"); role o: the anchor is.
    """
    if predicate not in SIDES:
        return anchor.crop(c)
    side = SIDES[predicate] if role == "s" else OPPOSITE[SIDES[predicate]]
    return c.crop_side(anchor.locate(c), side)


def _query(c: ProgramBuilder, detail: str, text: str, inputs: list[SelectedObjects]) -> Node:
    kind, things = detail or text, inputs[0]
    if kind == "name":
        question = f"What is the {things.noun}?"
    elif things.noun == "scene":
        question = f"What is the {kind}?"
    else:
        question = attribute_question(kind, things.noun)
    return c.ask(things.crop(c), question)


def _verify(c: ProgramBuilder, detail: str, text: str, inputs: list[SelectedObjects]) -> Node:
    if detail == "rel":
        return _exist(c, "", "", [_relate(c, "", text, inputs)])
    negated = _NOT.fullmatch(text)
    number = c.verify(inputs[0].crop(c), inputs[0].noun, negated[1] if negated else text)
    return BooleanExpr(f"not {{{number}}}" if negated else f"{{{number}}}")


def _choose(c: ProgramBuilder, detail: str, text: str, inputs: list[SelectedObjects]) -> Node:
    if detail == "rel":
        return _choose_relation(c, text, inputs[0])
    if len(inputs) == 2:  # a comparative: older, taller, less healthy …
        return c.ask(inputs[0].view, f"Which is {detail or text}, the {inputs[0].phrase} or the {inputs[1].phrase}?")
    noun = "object" if detail == "name" else inputs[0].noun
    question = " or ".join(text.split("|"))
    return c.ask(inputs[0].crop(c), f"Is it {question}?" if noun == "scene" else f"Is the {noun} {question}?")


def _choose_relation(c: ProgramBuilder, text: str, things: SelectedObjects) -> Node:
    name, predicates, role = _relation(text)
    options = predicates.split("|")
    if len(options) == 2 and all(option in SIDES for option in options):
        # The one named in the argument is the anchor: it is what the question compares with.
        anchor = SelectedObjects(c.view(), _noun(name))
        first, second = (SIDES[p] if role == "o" else OPPOSITE[SIDES[p]] for p in options)
        side = c.crop_side(anchor.locate(c), first)
        number = c.count(c.locate(side, things.phrase))
        words = [SIDES[option] for option in options]
        return c.evaluate(f"'{words[0]}' if {{{number}}} > 0 else '{words[1]}'")
    subject, other = (things.phrase, name) if role == "o" else (name, things.phrase)
    return c.ask(things.view, f"Is the {subject} {' or '.join(options)} the {other}?")


def _exist(c: ProgramBuilder, detail: str, text: str, inputs: list[Any]) -> Node:
    return BooleanExpr(f"{{{c.count(inputs[0].locate(c))}}} > 0", as_words=True)


def _logic(word: str) -> Callable[[ProgramBuilder, str, str, list[Any]], Node]:
    def write(c: ProgramBuilder, detail: str, text: str, inputs: list[Any]) -> Node:
        return BooleanExpr(f" {word} ".join(_grouped(truth.text, word) for truth in inputs))

    return write


def _grouped(text: str, word: str) -> str:
    return f"({text})" if f" {'or' if word == 'and' else 'and'} " in text else text


def _same(sign: str) -> Callable[[ProgramBuilder, str, str, list[Any]], Node]:
    def write(c: ProgramBuilder, detail: str, text: str, inputs: list[Any]) -> Node:
        kind = detail or text
        if len(inputs) == 1:
            word = "the same" if sign == "==" else "different in"
            number = c.ask(inputs[0].view, f"Are all the {inputs[0].phrase} {word} {kind}?")
            return BooleanExpr(f"{{{number}}} == 'yes'")
        a, b = (c.ask(things.crop(c), attribute_question(kind, things.noun)) for things in inputs)
        return BooleanExpr(f"{{{a}}} {sign} {{{b}}}")

    return write


def _common(c: ProgramBuilder, detail: str, text: str, inputs: list[Any]) -> Node:
    names = " and the ".join(things.phrase for things in inputs)
    return c.ask(inputs[0].view, f"What do the {names} have in common?")


def _count(c: ProgramBuilder, detail: str, text: str, inputs: list[Any]) -> Node:
    return c.count(inputs[0].locate(c))


def _amounts(sign: str) -> Callable[[ProgramBuilder, str, str, list[Any]], Node]:
    return lambda c, detail, text, inputs: BooleanExpr(f"{{{inputs[0]}}} {sign} {{{inputs[1]}}}", as_words=True)


_TRANSLATORS: Mapping[str, Callable[[ProgramBuilder, str, str, list[Any]], Node]] = MappingProxyType(
    {
        "select": _select,
        "filter": _filter,
        "relate": _relate,
        "query": _query,
        "verify": _verify,
        "choose": _choose,
        "exist": _exist,
        "and": _logic("and"),
        "or": _logic("or"),
        "same": _same("=="),
        "different": _same("!="),
        "common": _common,
        "count": _count,
        "more": _amounts(">"),
        "fewer": _amounts("<"),
    }
)
