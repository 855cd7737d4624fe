"""Reads programs; those that differ in their texts alone share their code.

Written by a grammar or a language model, a thousand programs have a few dozen shapes. A shape is compiled once, with
its texts as constants that each run brings along: it is read in microseconds, and leaves nothing for the garbage
collector to walk through.
"""

from __future__ import annotations

import re
from dataclasses import replace

from tutelage.programs.interpreter.meter import Limits
from tutelage.programs.interpreter.pieces import Library
from tutelage.programs.interpreter.run import CompiledProgram, compile_program
from tutelage.programs.types import ProgramFailure

# Left to right: a comment or an f-string without quotes inside, kept; a plain text; or, alone, any other character that
# begins a string or continues a line, for which the program is compiled as it stands. The mark below is in none of them.
# The search is for the first character, which is what makes it fast.
_PARTS = re.compile(
    r"""[\#"'\\§](?:
      (?<=\#)[^\n]*(?P<comment>)
    | (?<=(?<!\w)")(?P<double>[\w\ ,.?!:;()/+-]*)"(?!["'])
    | (?<=(?<!\w)')(?P<single>[\w\ ,.?!:;()/+-]*)'(?!["'])
    | (?<=(?<!\w)[fF]")[^"'\\\n§]*"(?!["'])(?P<f_double>)
    | (?<=(?<!\w)[fF]')[^"'\\\n§]*'(?!["'])(?P<f_single>)
    )?""",
    re.VERBOSE,
)
MARK = "§{}§"


def shape_of(source: str) -> tuple[str, tuple[str, ...]] | None:
    """``source`` with its texts replaced by marks, and the texts; None where that cannot be told safely."""
    pieces: list[str] = []
    texts: list[str] = []
    end = 0
    for part in _PARTS.finditer(source):
        kind = part.lastgroup
        if kind is None:
            return None
        if kind == "double" or kind == "single":
            pieces += (source[end : part.start()], f"'{MARK.format(len(texts))}'")
            texts.append(part[kind])
            end = part.end()
    return "".join(pieces) + source[end:], tuple(texts)


def shape_within(source: str, limits: Limits) -> tuple[str, tuple[str, ...]] | None:
    """:func:`shape_of` a program that is not too long to be read, else None."""
    if len(source) > limits.source or (not source.isascii() and len(source.encode(errors="replace")) > limits.source):
        return None
    return shape_of(source)


class Reader:
    """Compiles programs against one library; at most ``keep`` shapes are remembered."""

    def __init__(self, library: Library, limits: Limits, keep: int = 1024):
        self.library, self.limits, self._keep = library, limits, keep
        self._shapes: dict[str, CompiledProgram | None] = {}

    def read(self, source: str) -> CompiledProgram:
        """The program of ``source``.

        Raises:
            ProgramFailure: as :func:`compile_program`.
        """
        if (shape := shape_within(source, self.limits)) is not None:
            skeleton, texts = shape
            if skeleton not in self._shapes:
                self._remember(skeleton, len(texts))
            program = self._shapes[skeleton]
            if program is not None:
                return replace(program, texts=texts)
        return compile_program(source, self.library, self.limits)

    def _remember(self, skeleton: str, count: int) -> None:
        while len(self._shapes) >= self._keep:
            del self._shapes[next(iter(self._shapes))]
        marks = {MARK.format(number): number for number in range(count)}
        try:
            self._shapes[skeleton] = compile_program(skeleton, self.library, self.limits, marks)
        except ProgramFailure:  # the program itself says better what is wrong with it
            self._shapes[skeleton] = None
