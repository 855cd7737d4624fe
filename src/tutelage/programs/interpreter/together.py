"""Statements that only look and ask: questions that do not wait for each other's answers are put together.

A program that finds two things asks LOC twice. In the order of its text, the second question waits for all that is done
with the first one's answer; but an assignment that looks at its operands and puts at most one question changes nothing
but its variable, so a run of such statements may be taken as its data allow. Their questions keep the numbers that
they have in the order of the text, and of two failures the one that stands first in the text is the program's.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

from tutelage.programs.interpreter.patches import Request
from tutelage.programs.interpreter.pieces import Library, as_failure, at_line
from tutelage.programs.interpreter.values import Frame

_QUIET = frozenset({"len", "str", "int", "float", "bool", "abs", "round"})
_LOOKS = (
    *(ast.Name, ast.Constant, ast.Attribute, ast.Subscript, ast.Slice, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.BinOp),
    *(ast.IfExp, ast.List, ast.Tuple, ast.JoinedStr, ast.FormattedValue, ast.keyword),
    *(ast.expr_context, ast.operator, ast.cmpop, ast.boolop, ast.unaryop),
)


class Statement(NamedTuple):
    """``variable = …``, as far as its order matters: what it ``reads``, and whether it ``asks`` its one question."""

    variable: str
    reads: frozenset[str]
    asks: bool


class Step(NamedTuple):
    """A compiled statement: a generator function where it asks, its question being number ``rank`` of the run of them."""

    run: Callable[[Frame], Any]
    line: int
    asks: bool
    rank: int


def statement(node: ast.stmt, library: Library, is_variable: Callable[[str], bool]) -> Statement | None:
    """What is to know of a statement that only looks, and asks once at most; None of any other.

    It is ``name = expression`` of names, constants, fields, items, comparisons and calls of the library; no function of
    the program's own and none that changes a value takes part. Its question, if any, is the outermost call.
    """
    if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
        return None
    called, asks = {}, False
    for part in ast.walk(node.value):
        if isinstance(part, ast.Call):
            function = part.func
            if isinstance(function, ast.Attribute):
                name, known = function.attr, any(function.attr in methods for methods in library.methods.values())
            elif isinstance(function, ast.Name) and not is_variable(function.id):
                name, known = function.id, function.id in library.names or function.id in _QUIET
                called[id(function)] = name
            else:
                return None
            builtin = library.names.get(name)
            if (
                not known
                or (yields := name in library.yielding or (builtin is not None and builtin.yields))
                and (part is not node.value or name not in library.once)
            ):
                return None
            asks |= yields
        elif not isinstance(part, _LOOKS):
            return None
    reads = {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name) and id(part) not in called}
    return Statement(node.targets[0].id, frozenset(reads), asks)


def rounds(statements: Sequence[Statement]) -> list[list[int]]:
    """The statements by number, in rounds: each round's questions wait for those of the rounds before it alone."""
    levels: list[int] = []
    for at, this in enumerate(statements):
        level = 0
        for before, other in enumerate(statements[:at]):
            if other.variable in this.reads or other.variable == this.variable or this.variable in other.reads:
                level = max(level, levels[before] + other.asks)
        levels.append(level)
    return [[at for at, its in enumerate(levels) if its == level] for level in range(max(levels, default=-1) + 1)]


def worthwhile(statements: Sequence[Statement]) -> bool:
    """Whether two of the questions go together."""
    return any(sum(statements[at].asks for at in each) > 1 for each in rounds(statements))


def together_block(steps: Sequence[Step], order: Sequence[Sequence[int]]) -> Callable[[Frame], Any]:
    """Statements in rounds: yields a request, or several in a list, and is sent an answer or a list of them."""
    plan = [[(at, *steps[at]) for at in each] for each in order]

    def flow(frame: Frame) -> Generator[Request | list[Request], Any, None]:
        meter = frame[1]
        first, end, failure = meter.calls, len(steps), None
        for each in plan:
            asking: list[tuple[int, int, Any]] = []
            requests: list[Request] = []
            for at, run, line, asks, rank in each:
                if at >= end:
                    break
                try:
                    if asks:
                        question = run(frame)
                        requests.append(next(question)._replace(number=first + rank))
                        asking.append((at, line, question))
                    else:
                        run(frame)
                except StopIteration:  # it had nothing to ask: a text's find
                    pass
                except Exception as error:
                    end, failure = at, at_line(as_failure(error), line)
            if not asking:
                continue
            answers = (yield requests) if len(requests) > 1 else [(yield requests[0])]
            for (at, line, question), answer in zip(asking, answers, strict=True):
                try:
                    question.send(answer)
                except StopIteration:
                    meter.pause()  # the next one resumes
                except Exception as error:
                    end, failure = at, at_line(as_failure(error), line)
                    break
            meter.resume()
        if failure is not None:
            raise failure from None

    return flow
