"""Composes one program in both languages at once, so that its two texts mean the same.

Where a search finds nothing, both go on with the whole image that was searched.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from tutelage.programs.types import ParseFailure


class ProgramPair(NamedTuple):
    """One program as VisProg lines and as a ViperGPT function."""

    visprog: str
    viper: str


class ImageRef(NamedTuple):
    """An image in a program: its VisProg name and its Python name."""

    name: str
    patch: str


class BoxesRef(NamedTuple):
    """The result of a search: its number, and the view that was searched."""

    number: int
    view: ImageRef


class BooleanExpr(NamedTuple):
    """An expression over answers; in ``text`` each ``{n}`` stands for answer number n.

    ``as_words`` is set where ``text`` compares, and the program should say yes or no in words.
    """

    text: str
    as_words: bool = False


_CROPS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "left": ("CROP_LEFTOF", "0, 0, {a}.horizontal_center, {w}.height"),
        "right": ("CROP_RIGHTOF", "{a}.horizontal_center, 0, {w}.width, {w}.height"),
        "above": ("CROP_ABOVE", "0, {a}.vertical_center, {w}.width, {w}.height"),
        "below": ("CROP_BELOW", "0, 0, {w}.width, {a}.vertical_center"),
    }
)

SIDES: Mapping[str, str] = MappingProxyType(
    {
        "to the left of": "left",
        "left of": "left",
        "on the left of": "left",
        "to the right of": "right",
        "right of": "right",
        "on the right of": "right",
        "above": "above",
        "on top of": "above",
        "below": "below",
        "under": "below",
        "underneath": "below",
        "beneath": "below",
    }
)
"""Predicates that name a side: what stands in them to a thing lies on that side of it."""

OPPOSITE: Mapping[str, str] = MappingProxyType({"left": "right", "right": "left", "above": "below", "below": "above"})


def attribute_question(kind: str, noun: str) -> str:
    """The question put to VQA about an attribute of a thing."""
    return f"What number is on the {noun}?" if kind == "number" else f"What {kind} is the {noun}?"


class ProgramBuilder:
    """Writes one program about ``inputs``: ("IMAGE",), or ("LEFT", "RIGHT") for pairs of images."""

    def __init__(self, inputs: tuple[str, ...] = ("IMAGE",)):
        self.lines: list[str] = []
        self._boxes = self._images = self._answers = 0
        if inputs == ("IMAGE",):
            self.python = ["def execute_command(image):", "    image_patch = ImagePatch(image)"]
        elif inputs == ("LEFT", "RIGHT"):
            self.python = ["def execute_command(image_dict):"]
            self.python += [f'    {side}_patch = ImagePatch(image_dict["{side}"])' for side in ("left", "right")]
        else:
            raise ParseFailure(f"no programs are written about {inputs}", remedy="IMAGE, or LEFT and RIGHT")

    def view(self, name: str = "IMAGE") -> ImageRef:
        """One of the inputs."""
        return ImageRef(name, f"{name.lower()}_patch")

    def locate(self, view: ImageRef, noun: str) -> BoxesRef:
        """Look for ``noun``."""
        number, self._boxes = self._boxes, self._boxes + 1
        self.lines.append(f"BOX{number}=LOC(image={view.name},object={quoted(noun)})")
        self._python(f"patches{number} = {view.patch}.find({python_text(noun)})")
        return BoxesRef(number, view)

    def crop(self, boxes: BoxesRef) -> ImageRef:
        """Cut out the first thing found."""
        number, self._images = self._images, self._images + 1
        self.lines.append(f"IMAGE{number}=CROP(image={boxes.view.name},box=BOX{boxes.number})")
        self._pick(f"patch{number}", boxes)
        return ImageRef(f"IMAGE{number}", f"patch{number}")

    def crop_side(self, boxes: BoxesRef, side: str) -> ImageRef:
        """Cut off what lies left, right, above or below of the first thing found."""
        number, self._images = self._images, self._images + 1
        module, corners = _CROPS[side]
        self.lines.append(f"IMAGE{number}={module}(image={boxes.view.name},box=BOX{boxes.number})")
        self._pick(f"anchor{number}", boxes)
        self._python(f"patch{number} = {boxes.view.patch}.crop({corners.format(a=f'anchor{number}', w=boxes.view.patch)})")
        return ImageRef(f"IMAGE{number}", f"patch{number}")

    def ask(self, view: ImageRef, question: str) -> int:
        """Put a question to VQA; returns the answer's number, as all below do."""
        number = self._answer(f"VQA(image={view.name},question={quoted(question)})")
        self._python(f"answer{number} = {view.patch}.simple_query({python_text(question)})")
        return number

    def verify(self, view: ImageRef, noun: str, word: str) -> int:
        """Have a property verified."""
        number = self._answer(f"VERIFY(image={view.name},object={quoted(noun)},property={quoted(word)})")
        self._python(f"answer{number} = {view.patch}.verify_property({python_text(noun)}, {python_text(word)})")
        return number

    def count(self, boxes: BoxesRef) -> int:
        """Count what was found."""
        number = self._answer(f"COUNT(box=BOX{boxes.number})")
        self._python(f"answer{number} = len(patches{boxes.number})")
        return number

    def evaluate(self, expression: str) -> int:
        """An expression in which each ``{n}`` stands for answer number n and texts stand in single quotes."""
        number = self._answer(f'EVAL(expr="{_filled(expression, "{ANSWER%s}")}")')
        self._python(f"answer{number} = {_filled(expression, 'answer%s')}".replace("'", '"'))
        return number

    def finish(self, answer: int) -> ProgramPair:
        """End with an answer as it is."""
        return self._end(f"ANSWER{answer}", f"answer{answer}")

    def finish_boolean(self, expression: BooleanExpr) -> ProgramPair:
        """End with yes or no."""
        if expression.as_words:
            return self.finish(self.evaluate(f"'yes' if {expression.text} else 'no'"))
        bare = expression.text.strip("{}")
        number = int(bare) if bare.isdigit() else self.evaluate(expression.text)
        return self._end(f"ANSWER{number}", f"bool_to_yesno(answer{number})")

    def finish_boxes(self, boxes: BoxesRef) -> ProgramPair:
        """End with where the thing is."""
        self._pick("answer", boxes)
        return self._end(f"BOX{boxes.number}", "answer")

    def _end(self, variable: str, python: str) -> ProgramPair:
        self.lines.append(f"FINAL_RESULT=RESULT(var={variable})")
        self._python(f"return {python}")
        return ProgramPair("\n".join(self.lines), "\n".join(self.python))

    def _answer(self, call: str) -> int:
        number, self._answers = self._answers, self._answers + 1
        self.lines.append(f"ANSWER{number}={call}")
        return number

    def _pick(self, name: str, boxes: BoxesRef) -> None:
        patches = f"patches{boxes.number}"
        self._python(f"{name} = {patches}[0] if len({patches}) > 0 else {boxes.view.patch}")

    def _python(self, line: str) -> None:
        self.python.append(f"    {line}")


def python_text(text: str) -> str:
    """``text`` as a literal of the ViperGPT function."""
    return quoted(text, '"')


def quoted(text: str, quote: str = "'") -> str:
    """``text`` as a literal: in ``quote``, or where that will not do as Python writes it.

    Raises:
        ParseFailure: a text of several lines.
    """
    if "\n" in text or "\r" in text:
        raise ParseFailure(f"a text of several lines: {text[:60]!r}")
    plain = f"{quote}{text}{quote}"
    return plain if "\\" not in text and quote not in text and ast.literal_eval(plain) == text else repr(text)


def _filled(expression: str, name: str) -> str:
    out, rest = "", expression
    while "{" in rest:
        before, _, rest = rest.partition("{")
        number, _, rest = rest.partition("}")
        out += before + name % number
    return out + rest
