"""From the text of a ViperGPT program to a run of it: a generator of requests. Runs here or in a child process."""

from __future__ import annotations

import ast
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.programs.interpreter.compiler import Compiler, parse_tree
from tutelage.programs.interpreter.functions import bind
from tutelage.programs.interpreter.meter import Limits, Meter
from tutelage.programs.interpreter.patches import Asked, Patch, View
from tutelage.programs.interpreter.pieces import Library, as_failure
from tutelage.programs.interpreter.values import SCALARS, Function, FunctionCode, in_order, measure, name_of, sequence
from tutelage.programs.types import LimitExceeded, ParseFailure, TypeFailure

ENTRY = "execute_command"
IMAGES = {"image": ("IMAGE",), "image_dict": ("LEFT", "RIGHT"), "video": ("VIDEO",)}
"""From the first argument of ``execute_command`` to the initial variables it stands for."""
OPTIONAL = ("possible_answers", "query")


@dataclass(frozen=True)
class CompiledProgram:
    """A checked program: ``inputs`` are the initial variables it reads, ``args`` the arguments it is called with.

    ``texts`` stand for the marks of a program that shares its code with others of its shape.
    """

    code: FunctionCode
    slot: int
    args: tuple[str, ...]
    inputs: tuple[str, ...]
    limits: Limits
    texts: tuple[str, ...] = ()

    def run(self, arguments: Mapping[str, Any]) -> Generator[Asked, Any, Any]:
        """Run on ``arguments`` (by name); yields requests, one or several together, is sent the values, returns the answer.

        Raises:
            ProgramFailure: whatever stopped the program, limits included.
        """
        meter = Meter(self.limits, self.texts)
        try:
            top = [None, meter, None, *self.code.blank]
            if self.code.yields:
                yield from self.code.run(top)
            else:
                self.code.run(top)
            function = top[self.slot]
            if type(function) is not Function or function.code.params != self.args:
                raise ParseFailure(f"{ENTRY} is set again", remedy="define it once")
            frame = bind(meter, function, tuple([arguments.get(name) for name in self.args]), {})
            if function.code.yields:
                yield from function.code.run(frame)
            else:
                function.code.run(frame)
            answer = frame[2]
            if measure(meter, answer) > 4 * meter.length:
                raise LimitExceeded(f"an answer longer than {4 * meter.length:,}")
            answer = _answer(meter, answer)
            meter.pause()
            return answer
        except Exception as error:
            raise as_failure(error) from None


def compile_program(source: str, library: Library, limits: Limits, marks: Mapping[str, int] | None = None) -> CompiledProgram:
    """Parse and check ``source``, which may use what ``library`` holds.

    ``marks`` are texts that stand for others, which each run brings along, by their number.

    Raises:
        ProgramFailure: not a program of the language (parse, refused, undefined_var, unknown_module, type, limit);
            ``where`` names the line.
    """
    tree = parse_tree(source, limits)
    try:
        compiler = Compiler(library, limits, ":=" in source, marks or {})
        code, functions = compiler.compile(tree)
    except (RecursionError, MemoryError):
        raise LimitExceeded("the source is nested too deeply") from None
    if len(compiler.marked) < len(compiler.marks):
        raise ParseFailure("a text stands where it is no value")
    if ENTRY not in functions:
        raise ParseFailure(f"the program defines no function {ENTRY}", remedy=f"write def {ENTRY}(image): …")
    slot, node = functions[ENTRY]
    names = tuple(arg.arg for arg in node.args.args)
    _check_entry(names, node)
    return CompiledProgram(code, slot, names, IMAGES[names[0]], limits)


def _check_entry(names: tuple[str, ...], node: ast.FunctionDef) -> None:
    if not names or names[0] not in IMAGES or set(names[1:]) - set(OPTIONAL):
        given = ", ".join(names)
        raise ParseFailure(
            f"{ENTRY}({given}) takes image, image_dict or video, then possible_answers and query if it likes",
            where=f"line {node.lineno}",
            remedy=f"write def {ENTRY}(image): …",
        )


def _answer(meter: Meter, value: Any) -> Any:
    """What the program returned, as it leaves the interpreter: a patch as the box it was found at."""
    kind = type(value)
    if kind in SCALARS or kind is View:
        return value
    if kind is Patch:
        return value.box
    if kind is range:
        value = sequence(meter, value)
    if kind in (list, tuple, range):
        return [_answer(meter, part) for part in value]
    if kind is set:
        return [_answer(meter, part) for part in in_order(meter, value)]
    if kind is dict:
        return {str(name): _answer(meter, part) for name, part in value.items()}
    raise TypeFailure(f"an answer is a text, number, patch or a list of these, not {name_of(value)}")
