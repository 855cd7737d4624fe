"""Programs in the sandbox mean what they mean in Python, within limits."""

from __future__ import annotations

import math
import random
import string
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tutelage.programs import viper
from tutelage.programs.sandbox_worker import Limits
from tutelage.programs.types import LimitExceeded, ProgramFailure, TimeoutFailure, UndefinedVariable
from tutelage.programs.values import Image

STATE = {"IMAGE": Image.from_array(np.zeros((3, 8, 8), np.uint8))}
PARSER = viper.Parser({}, keep=100)


def program(*lines: str) -> str:
    return "def execute_command(image):\n" + "\n".join("    " + line for line in lines)


def run(source: str, limits: Limits | None = None) -> Any:
    steps = (viper.parse(source, {}, limits=limits) if limits else PARSER.parse(source)).start(STATE)
    try:
        call = next(steps)
    except StopIteration as stop:
        return stop.value
    raise AssertionError(f"called {call}")


def value(expression: str) -> Any:
    return run(program(f"return {expression}"))


def failure(*lines: str, limits: Limits | None = None) -> ProgramFailure:
    with pytest.raises(ProgramFailure) as caught:
        run(program(*lines), limits)
    return caught.value


# What Python gives


def by_python(source: str) -> tuple[str, Any]:
    space: dict[str, Any] = {"math": math}
    with warnings.catch_warnings(action="ignore"):
        exec(source, space)  # noqa: S102  (the test's own text)
    try:
        return "ok", space["execute_command"](None)
    except NameError:
        return "undefined_var", None
    except (TypeError, AttributeError):
        return "type", None
    except Exception:
        return "runtime", None


def by_sandbox(source: str) -> tuple[str, Any]:
    try:
        return "ok", run(source)
    except ProgramFailure as error:
        return error.kind, None


NAMES = ("a", "b", "c", "xs", "s", "d")


def expressions(depth: int) -> st.SearchStrategy[str]:
    leaf = st.one_of(
        st.integers(-9, 20).map(str),
        st.sampled_from(["0.5", "-1.25", "2.0", "True", "False", "None", "'ab'", "'a b c'", "''", "[]", "[3, 1, 2]"]),
        st.sampled_from(["{'k': 1, 'j': 2}", "(1, 'x')"]),
        st.sampled_from(NAMES),
    )
    if depth == 0:
        return leaf
    e = expressions(depth - 1)
    small = st.integers(-3, 4).map(str)
    binary = st.sampled_from(["+", "-", "*", "/", "//", "%", "==", "!=", "<", "<=", ">", ">=", "in", "not in"])
    templates = [
        st.tuples(e, binary, e).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(e, st.sampled_from(["<", "<=", "==", "!="]), e, st.sampled_from(["<", ">=", "=="]), e).map(
            lambda t: f"({' '.join(t)})"
        ),
        st.tuples(e, st.sampled_from(["and", "or"]), e).map(lambda t: f"({' '.join(t)})"),
        st.tuples(e, e, e).map(lambda t: f"({t[0]} if {t[1]} else {t[2]})"),
        st.tuples(st.sampled_from(["not ", "-", "+", "~"]), e).map(lambda t: f"({t[0]}{t[1]})"),
        st.tuples(e, small).map(lambda t: f"{t[0]}[{t[1]}]" if t[0][0] not in "-0123456789" else f"({t[0]})[{t[1]}]"),
        st.tuples(e, small, small).map(lambda t: f"({t[0]})[{t[1]}:{t[2]}]"),
        st.tuples(e, small).map(lambda t: f"({t[0]})[::{t[1]}]"),
        st.tuples(st.sampled_from(["len", "sorted", "list", "str", "bool", "repr", "abs", "sum", "max", "min"]), e).map(
            lambda t: f"{t[0]}({t[1]})"
        ),
        st.tuples(st.sampled_from(["int", "float", "tuple", "any", "all", "round"]), e).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(e, e).map(lambda t: f"[{t[0]}, {t[1]}]"),
        st.tuples(e, e).map(lambda t: f"({t[0]}, {t[1]})"),
        st.tuples(e, e).map(lambda t: f"[*[{t[0]}], {t[1]}]"),
        st.tuples(e, e, e).map(lambda t: f"[{t[0]} for i in ({t[1]}) if {t[2]}]"),
        st.tuples(e, e).map(lambda t: f"[(i, j, {t[0]}) for i in range(3) for j in range(i) if {t[1]}]"),
        st.tuples(e, e).map(lambda t: f"{{str(i): {t[0]} for i in ({t[1]})}}"),
        st.tuples(e, e).map(lambda t: f"any({t[0]} == i for i in ({t[1]}))"),
        st.tuples(e, e).map(lambda t: f"next((i for i in ({t[0]}) if i), {t[1]})"),
        st.tuples(e, e).map(lambda t: f"(lambda v, w=2: {t[0]})({t[1]})"),
        e.map(lambda t: f"sorted({t}, key=lambda v: (str(v), v), reverse=True)"),
        e.map(lambda t: f"max({t}, key=str, default=0)"),
        st.tuples(e, e).map(lambda t: f"list(map(lambda v: ({t[0]}, v), {t[1]}))"),
        st.tuples(e, e).map(lambda t: f"list(zip({t[0]}, enumerate({t[1]})))"),
        st.tuples(e, e).map(lambda t: f"f'{{{t[0]}}}-{{{t[1]}!r}}'" if "'" not in t[0] + t[1] else t[0]),
        st.tuples(e, st.sampled_from(["upper", "strip", "title", "split", "isdigit", "capitalize"])).map(
            lambda t: f"str({t[0]}).{t[1]}()"
        ),
        st.tuples(e, e).map(lambda t: f"','.join([str({t[0]}), str({t[1]})]).replace('a', 'bb').count('b')"),
        st.tuples(e, e).map(lambda t: f"d.get({t[0]}, {t[1]})"),
        e.map(lambda t: f"(z := {t}, z)[1]"),
        e.map(lambda t: f"isinstance({t}, (int, list))"),
    ]
    return st.one_of(leaf, *templates)


def typed(kind: str, depth: int) -> st.SearchStrategy[str]:
    """Expressions that mean something: of a number, a text or a list of numbers, over variables of that type."""
    leaves = {
        "number": st.one_of(st.integers(-5, 9).map(str), st.sampled_from(["a", "b", "c", "0.5", "True"])),
        "text": st.sampled_from(["s", "'ab c'", "'Zz-9'", "''"]),
        "list": st.sampled_from(["xs", "[3, 1, 2]", "[]", "list(range(4))"]),
    }
    if depth == 0:
        return leaves[kind]
    n, s, x = (typed(name, depth - 1) for name in ("number", "text", "list"))

    def form(template: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.tuples(*parts).map(lambda values: template.format(*values))

    truth = st.one_of(form("({} < {})", n, n), form("({} in {})", n, x), form("({} == {} != {})", s, s, s))
    common = {"number": n, "text": s, "list": x}[kind]
    forms = {
        "number": [
            *(form(f"({{}} {sign} {{}})", n, n) for sign in ("+", "-", "*", "and", "or")),
            *(form(f"{name}({{}})", x) for name in ("len", "sum")),
            *(form(f"({{}} {sign} 3)", n) for sign in ("//", "%", "/", "**")),
            form("max({}, key=lambda v: (v % 3, -v), default={})", x, n),
            form("{}.count('a')", s),
            form("{{'k': {}}}.get('k', 0)", n),
            form("(lambda v, w={}: v * w)({})", n, n),
            form("next((v for v in {} if v > {}), {})", x, n, n),
            form("f(int({}))", n),
            form("round({}, 1)", n),
            form("int(any(v == {} for v in {}))", n, x),
        ],
        "text": [
            form("({} + {})", s, s),
            form("str({})", n),
            form("f'{{{}}}|{{{}:>5}}'", st.just("a"), st.just("s")),
            form("{}.replace('a', {})", s, s),
            form("'-'.join(str(v) for v in {})", x),
            form("{}.upper()[::-1]", s),
            form("'x{{0}}y{{0!r}}'.format({})", s),
            form("' '.join(sorted({}.split()))", s),
        ],
        "list": [
            form("({} + {})", x, x),
            form("[{} for i in {} if {}]", n, x, truth),
            form("[i * j for i in {} for j in range(i % 3 if i == int(i) else 1)]", x),
            form("sorted({}, key=lambda v: v * {}, reverse=True)", x, n),
            form("{}[1:]", x),
            form("[*{}, {}]", x, n),
            form("list(map(lambda v: v + {}, {}))", n, x),
            form("[p + q for p, q in zip({}, {})]", x, x),
            form("list({{str(v): 1 for v in {}}})", x),
            form("sorted(set({}) | set({}))", x, x),
        ],
    }
    return st.one_of(leaves[kind], form("({} if {} else {})", common, truth, common), *forms[kind])


def typed_bodies(depth: int) -> st.SearchStrategy[list[str]]:
    n, s, x = typed("number", 2), typed("text", 2), typed("list", 2)
    lines = [
        st.tuples(st.sampled_from(["a", "b", "c"]), n).map(lambda t: [f"{t[0]} = {t[1]}"]),
        st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from("+-"), n).map(lambda t: [f"{t[0]} {t[1]}= {t[2]}"]),
        s.map(lambda t: [f"s = {t}"]),
        x.map(lambda t: [f"xs = {t}"]),
        x.map(lambda t: [f"xs += {t}"]),
        n.map(lambda t: [f"xs.append({t})"]),
        n.map(lambda t: [f"d['k'] += {t}"]),
        st.tuples(n, n).map(lambda t: [f"a, b = {t[0]}, {t[1]}"]),
    ]
    if depth:
        inner = typed_bodies(depth - 1)
        lines += [
            st.tuples(n, n, inner, inner).map(lambda t: [f"if {t[0]} <= {t[1]}:", *indented(t[2]), "else:", *indented(t[3])]),
            st.tuples(x, inner).map(lambda t: [f"for i, c in enumerate({t[0]}[:3]):", *indented(t[1])]),
            st.tuples(x, n, inner).map(
                lambda t: [f"for c in {t[0]}[:3]:", f"    if c > {t[1]}:", "        break", *indented(t[2])]
            ),
        ]
    return st.lists(st.one_of(lines), min_size=1, max_size=4).map(lambda parts: sum(parts, []))


def indented(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]


def bodies(depth: int, loop: bool = False) -> st.SearchStrategy[list[str]]:
    e, name = expressions(2), st.sampled_from(NAMES)
    simple = [
        st.tuples(name, e).map(lambda t: [f"{t[0]} = {t[1]}"]),
        st.tuples(name, st.sampled_from(["+", "-", "*", "//", "%"]), e).map(lambda t: [f"{t[0]} {t[1]}= {t[2]}"]),
        e.map(lambda t: [f"xs.append({t})"]),
        st.tuples(e, e).map(lambda t: [f"d[str({t[0]})] = {t[1]}"]),
        st.tuples(st.integers(-1, 2), e).map(lambda t: [f"xs[{t[0]}] = {t[1]}"]),
        st.tuples(st.integers(-1, 2), e).map(lambda t: [f"xs[{t[0]}] += {t[1]}"]),
        e.map(lambda t: [f"a, b = {t}"]),
        e.map(lambda t: [f"a, *xs = {t}"]),
        st.tuples(e, e).map(lambda t: [f"a, (b, c) = {t[0]}, ({t[1]}, 1)"]),
        st.tuples(name, name, e).map(lambda t: [f"{t[0]} = {t[1]} = {t[2]}"]),
        e.map(lambda t: [f"return repr({t})"]),
        st.just(["xs.sort(key=str)"]),
        *([st.sampled_from([["break"], ["continue"]])] if loop else []),
    ]
    if depth == 0:
        return st.lists(st.one_of(simple), min_size=1, max_size=3).map(lambda parts: sum(parts, []))
    inner, turn = bodies(depth - 1, loop), bodies(depth - 1, True)
    compound = [
        st.tuples(e, inner, inner).map(lambda t: [f"if {t[0]}:", *indented(t[1]), "else:", *indented(t[2])]),
        st.tuples(e, inner).map(lambda t: [f"if {t[0]}:", *indented(t[1])]),
        st.tuples(name, turn).map(lambda t: [f"for {t[0]} in range(3):", *indented(t[1])]),
        st.tuples(e, turn, inner).map(lambda t: [f"for q, i in enumerate({t[0]}):", *indented(t[1]), "else:", *indented(t[2])]),
        turn.map(lambda t: ["n = 3", "while n > 0:", "    n -= 1", *indented(t)]),
        st.tuples(bodies(depth - 1), e).map(
            lambda t: ["def f(a, b=2):", "    c = xs = s = d = a", *indented(t[0]), f"a = f({t[1]})"]
        ),
        st.tuples(e, e).map(
            lambda t: [
                "def g(v):",
                "    nonlocal c",
                f"    c = {t[0]}",
                "    return v",
                f"b = [g(1), c, {t[1]}]",
            ]
        ),
        st.just(["fs = [lambda: i for i in range(3)]", "xs = [f() for f in fs]"]),
        st.just(["def h(n):", "    return n if n < 2 else h(n - 1) + h(n - 2)", "a = h(7)"]),
    ]
    return st.lists(st.one_of(*simple, *compound), min_size=1, max_size=4).map(lambda parts: sum(parts, []))


def check(body: list[str], start: bool) -> None:
    head = ["a, b, c, xs, s, d = 1, 2, 0.5, [3, 1], 'ab', {'k': 1}"] if start else ["if False:", "    a = b = c = xs = s = d = 0"]
    source = program(*head, *body, "return repr([a, b, c, xs, s, d])")
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(source, "test", "exec")
    except SyntaxError:
        return  # a name both argument and nonlocal, or the like
    found, expected = by_sandbox(source), by_python(source)
    if expected[0] == "ok" and found[0] != "limit":
        assert found == expected, source
    elif found[0] != "limit":  # which error it is may differ
        assert found[0] != "ok", source


def check_typed(body: list[str]) -> None:
    check(["def f(n):", "    return n if n < 2 or n > 9 else f(n - 1) + 1", *body], start=True)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(typed_bodies(1))
def test_random_sensible_programs_give_what_python_gives(body: list[str]) -> None:
    check_typed(body)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(bodies(2), st.booleans())
def test_random_programs_give_what_python_gives(body: list[str], start: bool) -> None:
    check(body, start)


@pytest.mark.slow
@settings(max_examples=2_000, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(typed_bodies(2), bodies(2), st.booleans())
def test_many_random_programs_give_what_python_gives(sensible: list[str], body: list[str], start: bool) -> None:
    check_typed(sensible)
    check(body, start)


WORDS = """if for while else: lambda in is not import yield async await try: with del global match case return
    x image ImagePatch find math len sorted key 1 0.5 'a' f"{ }" None True __class__ ( ) [ ] { } : , . = + - * ** // < ==
    @ # \\ ''' " 1e999 0x 0b2 é … _ ; ! ~ % pass and or :=""".split()
TOKENS = (
    *WORDS,
    *(word + " " for word in WORDS),
    "\n",
    "\n    ",
    "def execute_command(image):\n",
    "\0",
    "\t",
    "\ud800",
    "\x0c",
)


def survive(rng: random.Random, count: int) -> int:
    compiled = 0
    for _ in range(count):
        text = "".join(rng.choices(TOKENS, k=rng.randint(1, 14)))
        if rng.random() < 0.5:
            text = program("x = image", text)
        try:
            PARSER.parse(text)
            compiled += 1
        except ProgramFailure:
            pass
    return compiled


def test_random_tokens_never_break_the_parser() -> None:
    assert survive(random.Random(0), 4_000) > 0


@pytest.mark.slow
def test_a_million_random_token_strings_never_break_the_parser() -> None:
    assert survive(random.Random(1), 1_000_000) > 0


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(string.printable + "é\0\ud800"), max_size=80))
def test_random_characters_never_break_the_parser(text: str) -> None:
    try:
        PARSER.parse(text)
    except ProgramFailure:
        return
    assert "execute_command" in text


@pytest.mark.parametrize(
    "expression",
    [
        "sorted({3, 1, 2} | {9} - {1})",
        "sorted({1, 2} & {2, 3}), sorted({1, 2} ^ {2, 3})",
        "{1, 2} == {2, 1}, {1} < {1, 2}, 1 in {1}",
        "sorted({c for c in 'hello'})",
        "'{0} {1!r} {name:>5}'.format(1, 'b', name='x')",
        'f\'{3.14159:.2f}|{7:03d}|{"x":^5}|{[1, "a"]}|{None!s}\'',
        "'a-b-c'.rsplit('-', 1), 'a b'.partition(' '), 'x'.zfill(3), ' x '.strip()",
        "'a,b'.split(sep=',', maxsplit=1)",
        "max([3, 1, 2], key=lambda v: -v), min('b', 'a'), max({'x': 1, 'y': 3}, key={'x': 1, 'y': 3}.get)",
        "max(['a', 'b', 'b'], key=['a', 'b', 'b'].count), sorted(['b', 'A'], key=str.lower)",
        "[*range(3), *'ab'], (*[1], 2)",
        "[y for x in [[1, 2], [3]] for y in x if y != 2]",
        "{k: v for k, v in sorted({'b': 1, 'a': 2}.items())}",
        "1 < 2 < 3 != 4, not 1 < 2 > 3",
        "7 // -2, -7 % 3, 2 ** 10, 2 ** -1, 1 << 4, 255 >> 2, 5 & 3, 5 | 3, 5 ^ 3, ~5",
        "round(2.5), round(3.14159, 2), round(1234, -2), int('12'), int(3.9), float('1.5'), str(1.0), bool('')",
        "math.sqrt(9), math.floor(2.7), math.ceil(2.1), math.pi, math.hypot(3, 4), math.inf > 1",
        "list(zip([1, 2], 'ab')), list(enumerate('ab', 1)), list(map(str, [1, 2])), list(filter(None, [0, 1]))",
        "list(reversed([1, 2])), sum([0.5, 1]), sum([[1], [2]], []), any([]), all([])",
        "isinstance(1, int), isinstance(True, int), isinstance('a', (int, str)), isinstance([], list)",
        "[1, 2, 3][::-1], 'abc'[1:], (1, 2)[-1], range(10)[2:8:3][1]",
        "{'a': 1}.get('b', 5), {'a': 1} | {'b': 2}, list({'a': 1}), 'a' in {'a': 1}, dict([('a', 1)], b=2)",
        "(lambda a, b=2: a + b)(1), (lambda: 3)()",
        "next((x for x in [1, 2, 3] if x > 1), None), any(x > 2 for x in [1, 2, 3]), all(x for x in [])",
        "None is None, (1 if None else 2), [] or 'x', 0 and 1",
        "[1, 2] < [1, 3], (1, 'a') < (1, 'b'), 'a' < 'b', [1] == [1.0], 1 == True",
        "3 in range(5), 2.0 in range(5), 2.5 in range(5), 'a' in range(5)",
        "[x := 5, x + 1]",
        "'abc'.find('c'), 'abc'.index('b'), 'aXbX'.count('X'), 'abc'.startswith(('a', 'b'))",
        "str([1, 'a', None, (1,), {'k': 2}])",
    ],
)
def test_expressions_mean_what_python_means(expression: str) -> None:
    source = program(f"return repr([{expression}])")
    status, expected = by_python(source)
    assert status == "ok" and run(source) == expected


@pytest.mark.parametrize(
    "body",
    [
        ["x = [1]", "y = x", "x += [2]", "return repr(y)"],
        ["d = {'a': [1]}", "d['a'] += [2]", "d.setdefault('b', []).append(3)", "return repr(d)"],
        ["def f(x, acc=[]):", "    acc.append(x)", "    return acc", "f(1)", "return repr(f(2))"],
        ["def outer():", "    n = 0", "    def inc():", "        nonlocal n", "        n += 1", "        return n",
         "    inc()", "    return inc()", "return outer()"],
        ["fs = []", "for k in range(3):", "    fs.append([lambda: i for i in range(k + 1)])",
         "return repr([[f() for f in row] for row in fs])"],
        ["for i in range(5):", "    if i == 3:", "        break", "else:", "    return 'none'", "return i"],
        ["for i in []:", "    pass", "else:", "    return 'else'"],
        ["n = 0", "while n < 5:", "    n += 1", "    if n == 2:", "        continue", "else:", "    n = 9", "return n"],
        ["x: int = 3", "y: list", "'''text'''", "pass", "print('nothing', x)", "return x"],
        ["(a, b), *rest = [(1, 2), 3, 4]", "return repr([a, b, rest])"],
        ["a = b = []", "a.append(1)", "return repr(b)"],
        ["x = [3, 1, 2]", "x.sort(reverse=True)", "x.insert(1, 9)", "x.remove(3)", "return repr([x, x.pop(), x])"],
        ["def even(n):", "    return True if n == 0 else odd(n - 1)", "def odd(n):",
         "    return False if n == 0 else even(n - 1)", "return even(10)"],
        ["xs = [1, 2, 3]", "for x in xs:", "    if x < 3:", "        xs.append(x + 2)", "return repr(xs)"],
        ["total = 0", "for i, (a, b) in enumerate([(1, 2), (3, 4)]):", "    total += i * a * b", "return total"],
    ],
)  # fmt: skip
def test_statements_mean_what_python_means(body: list[str]) -> None:
    source = program(*body)
    status, expected = by_python(source)
    assert (status, expected) == ("ok", run(source))


def test_functions_beside_the_entry_can_be_called() -> None:
    assert run("LIMIT = 3\ndef double(x):\n    return x * 2\n" + program("return double(LIMIT)")) == 6


def test_sets_are_walked_in_one_order() -> None:
    assert value("[x for x in {'b', 'a', 'c'}]") == ["b", "a", "c"]
    assert value("str({3, 1, 2})") == "{3, 1, 2}"


# What is stopped, and how


@pytest.mark.parametrize(
    ("limits", "body"),
    [
        (Limits(depth=10), ["def f(n):", "    return 0 if n == 0 else f(n - 1)", "return f(90)"]),
        (Limits(bits=64), ["return 2 ** 65"]),
        (Limits(length=100), ["return 'a' * 401"]),
        (Limits(length=100), ["return [0] * 101"]),
        (Limits(memory_mib=8), ["x = [0]", "while True:", "    x = x + x"]),
        (Limits(memory_mib=8), ["return 'a' * 10 ** 8"]),
        (Limits(source=50), ["return 1" + " " * 50]),
    ],
)
def test_each_limit_is_a_typed_failure(limits: Limits, body: list[str]) -> None:
    assert isinstance(failure(*body, limits=limits), LimitExceeded)
    if limits.source != 50:
        assert run(program("return 1"), limits) == 1


def test_just_inside_the_limits_runs() -> None:
    assert run(program("def f(n):", "    return 0 if n == 0 else f(n - 1)", "return f(8)"), Limits(depth=10)) == 0
    assert run(program("return 2 ** 63"), Limits(bits=64)) == 2**63
    assert run(program("return 'a' * 400"), Limits(length=100)) == "a" * 400


def test_a_program_is_stopped_at_its_time() -> None:
    body = ["x = 0", "while True:", "    x = sum([i * 1.5 for i in range(200)])"]
    found = failure(*body, limits=Limits(seconds=0.05))
    assert isinstance(found, TimeoutFailure)


def test_a_failure_names_its_line() -> None:
    source = program("x = [1]", "for i in range(3):", "    if i == 1:", "        x[i] = 5", "return x")
    with pytest.raises(ProgramFailure) as caught:
        run(source)
    assert caught.value.where == "line 5" and caught.value.kind == "runtime"


def test_static_failures_name_their_line_and_a_remedy() -> None:
    with pytest.raises(UndefinedVariable) as caught:
        PARSER.parse(program("x = 1", "return sortd([x])"))
    assert caught.value.where == "line 3" and "sorted" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("return later", "undefined_var"),
        ("return missing", "undefined_var"),
        ("import os", "refused"),
        ("return image._x", "refused"),
        ("return (", "parse"),
        ("break", "parse"),
        ("return 'a' + 1", "type"),
        ("return [].upper()", "type"),
        ("return 1 / 0", "runtime"),
        ("return {}['a']", "runtime"),
        ("return 'a' * 10 ** 9", "limit"),
        ("return ImagePatch(image).simple_query('a')", "unknown_module"),
        ("return ImagePatch(image).crop(1)", "type"),
        ("return ImagePatch(image).crop(1, 2, 3, up=4)", "type"),
    ],
)
def test_every_kind_of_failure(line: str, kind: str) -> None:
    with pytest.raises(ProgramFailure) as caught:
        run(program(line, "later = 1"))
    assert caught.value.kind == kind


def test_two_runs_of_one_program_do_not_mix() -> None:
    source = "def execute_command(image, query, seen=[]):\n    seen.append(query)\n    return seen"
    program = PARSER.parse(source)
    for query in ("one", "two"):
        with pytest.raises(StopIteration) as stop:
            next(program.start({**STATE, "query": query}))
        assert stop.value.value == [query]
