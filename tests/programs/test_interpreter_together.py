"""Questions that do not wait for each other are put together, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.programs.interpreter.library import viper_library
from tutelage.programs.interpreter.meter import Limits
from tutelage.programs.interpreter.patches import Found, Request, View
from tutelage.programs.interpreter.run import compile_program
from tutelage.programs.types import ProgramFailure, Signature

SIGNATURES = {
    "LOC": Signature({"image": "image", "object": "text"}, "boxes"),
    "VQA": Signature({"image": "image", "question": "text"}, "text"),
    "VERIFY": Signature({"image": "image", "object": "text", "property": "text"}, "bool"),
}
LIBRARY = viper_library(SIGNATURES)
IN_ORDER = replace(LIBRARY, once=frozenset())
"""The same library, of which no question goes with another."""

VIEW = View(0, 0, 0, 48, 48, 48, 48)


def answer(request: Request) -> Any:
    """A module's answer: a function of the question alone."""
    words = "".join(str(part) for part in request.args.values())
    number = sum(map(ord, words))
    if request.module == "LOC":
        return [Found(2.0 + at, 3.0, 20.0 + at, 30.0) for at in range(number % 3)]
    return str(number) if request.module == "VQA" else number % 2 == 0


def run(source: str, library: Any = LIBRARY, limits: Limits | None = None) -> tuple[Any, list[tuple[int, Any]], list[int]]:
    """The outcome, the questions by number, and how many were put at a time."""
    asked: list[tuple[int, Any]] = []
    sizes: list[int] = []
    try:
        steps = compile_program(source, library, limits or Limits()).run({"image": VIEW})
        request = next(steps)
        while True:
            many = request if isinstance(request, list) else [request]
            sizes.append(len(many))
            asked += [(one.number, (one.module, one.args)) for one in many]
            answers = [answer(one) for one in many]
            request = steps.send(answers if isinstance(request, list) else answers[0])
    except StopIteration as stop:
        return stop.value, sorted(asked, key=lambda it: it[0]), sizes
    except ProgramFailure as failure:
        return (failure.kind, failure.where), sorted(asked, key=lambda it: it[0]), sizes


def body(*lines: str) -> str:
    return "\n    ".join(["def execute_command(image):", "p = ImagePatch(image)", *lines])


def test_two_chains_go_side_by_side() -> None:
    source = body(
        'a = p.find("star")',
        "b = a[0] if len(a) > 0 else p",
        'c = b.simple_query("What color?")',
        'd = p.find("circle")',
        "e = d[0] if len(d) > 0 else p",
        'f = e.simple_query("What color?")',
        'return f"{c} {f} {c == f}"',
    )
    outcome, asked, sizes = run(source)
    assert sizes == [2, 2]
    assert [number for number, _ in asked] == [0, 1, 2, 3]
    assert [what for _, (what, _) in asked] == ["LOC", "VQA", "LOC", "VQA"]
    assert (outcome, asked) == run(source, IN_ORDER)[:2] and run(source, IN_ORDER)[2] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "between",
    [
        "seen = [1]\n    seen.append(2)",  # a statement that is no assignment
        "d = sorted([1, 2], key=lambda x: -x)",  # a function of the program's
        "d = [q for q in a]",
        'd = p.exists("star")',  # may ask more than once
        'd = True and p.find("star")',  # may not ask at all
        "for q in a:\n        d = q",
    ],
)
def test_what_might_do_more_than_look_keeps_its_place(between: str) -> None:
    source = body('a = p.find("star")', between, 'c = p.find("circle")', "return len(a) + len(c)")
    found = run(source)
    assert found == run(source, IN_ORDER)
    assert max(found[2]) == 1


def test_a_shadowed_name_is_no_library_function() -> None:
    source = body("len = 3", 'a = p.find("star")', 'c = p.find("circle")', "return len")
    outcome, _, sizes = run(source)
    assert outcome == 3 and sizes == [2]
    source = body("f = lambda x: x", 'a = p.find("star")', "b = f(a)", 'c = p.find("circle")', "return 1")
    assert max(run(source)[2]) == 1


def test_an_enclosing_variable_keeps_its_place() -> None:
    source = body(
        "x = 1",
        "def inner():",
        "    nonlocal x",
        '    x = p.find("star")',
        '    y = p.find("circle")',
        "    return len(x) + len(y)",
        "return inner() + len(x)",
    )
    assert run(source) == run(source, IN_ORDER)


def test_the_failure_that_stands_first_is_the_programs() -> None:
    # Line 5 fails at once, line 4 only after its question: read in order, line 4 is first.
    source = body('a = p.find("star")', "b = a[9]", 'c = p.find("circle")', "d = 1 / 0", "return 1")
    outcome, _, _ = run(source)
    assert outcome == ("runtime", "line 4") and outcome == run(source, IN_ORDER)[0]


def test_a_limit_on_calls_counts_each_question() -> None:
    source = body('a = p.find("star")', 'b = p.find("circle")', 'c = p.find("moon")', "return 1")
    assert run(source, limits=Limits(calls=3))[0] == 1
    assert run(source, limits=Limits(calls=2))[0] == ("limit", "line 5")


def test_a_text_that_is_searched_asks_nothing() -> None:
    source = body('s = "a star"', 'a = s.find("star")', 'b = p.find("circle")', 'c = p.find("moon")', "return a + len(b) + len(c)")
    outcome, _, sizes = run(source)
    assert outcome == run(source, IN_ORDER)[0] and sizes == [2]


NAMES = st.sampled_from(["a", "b", "c", "d"])
STATEMENTS = st.one_of(
    st.builds("{} = p.find('{}')".format, NAMES, st.sampled_from(["star", "circle", "moon"])),
    st.builds("{} = {}.simple_query('What is it?')".format, NAMES, NAMES),
    st.builds("{} = p.verify_property('star', '{}')".format, NAMES, st.sampled_from(["red", "blue"])),
    st.builds("{0} = {1}[0] if len({1}) > 0 else p".format, NAMES, NAMES),
    st.builds("{} = {}".format, NAMES, NAMES),
    st.builds("{} = {}[1]".format, NAMES, NAMES),
    st.builds("{} = str({}) + str({})".format, NAMES, NAMES, NAMES),
    st.builds("p = {}".format, NAMES),
    st.builds("{} = p.left".format, NAMES),
)


@given(st.lists(STATEMENTS, min_size=2, max_size=9))
@settings(max_examples=300, deadline=None)
def test_answers_numbers_and_failures_are_those_of_the_text_in_order(lines: list[str]) -> None:
    source = body('a = p.find("x")', "b = p", "c = a", "d = 'text'", *lines, "return [str(a), str(b), str(c), str(d)]")
    (outcome, asked, sizes), (wanted, in_order, ones) = run(source), run(source, IN_ORDER)
    assert outcome == wanted
    numbers = dict(asked)
    assert all(numbers[number] == what for number, what in in_order if number in numbers)
    if type(wanted) is list and all(".find" not in line or "p.find" in line for line in lines):
        assert asked == in_order and sum(sizes) == len(ones)
