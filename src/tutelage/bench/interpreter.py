"""What restricted Python costs: the same functions run by the interpreter and by CPython, side by side."""

from __future__ import annotations

import inspect
import textwrap
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from tutelage.programs.interpreter.library import viper_library
from tutelage.programs.interpreter.meter import Limits
from tutelage.programs.interpreter.run import CompiledProgram, compile_program

_LIMITS = Limits(steps=10**9, items=10**9, seconds=600)

Sample = Callable[[], Any]


def _loops() -> int:
    total = 0
    for i in range(2000):
        total = total + i * 2
        if total > 100000:
            total = 0
    n = 0
    while n < 2000:
        n += 1
        if n % 3 == 0 and n % 2 == 1:
            total += 1
    return total


def _comprehensions() -> int:
    return sum([x * x for x in range(2000) if x % 2 == 0]) + len({str(x): x for x in range(200)})


def _texts() -> str:
    words = []
    for i in range(500):
        words.append(f"w{i % 7}".upper())
    counts = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return sorted(counts.items(), key=lambda pair: pair[1])[0][0]


def _calls() -> int:
    def fibonacci(n):  # type: ignore[no-untyped-def]
        if n < 2:
            return n
        return fibonacci(n - 1) + fibonacci(n - 2)

    return fibonacci(14)  # type: ignore[no-any-return]


def _sorting() -> str:
    rows = [{"name": str(i % 50), "value": i * 37 % 101} for i in range(300)]
    rows = sorted(rows, key=lambda row: (row["value"], row["name"]))
    best = rows[0]
    return best["name"] + str(max(row["value"] for row in rows))


SAMPLES: tuple[Sample, ...] = (_loops, _comprehensions, _texts, _calls, _sorting)


def symbolic_cost(rounds: int = 9, clock: Callable[[], float] = time.process_time) -> dict[str, Any]:
    """How many times CPython's time the interpreter takes, for each of :data:`SAMPLES` and at worst.

    Rounds are interleaved and the median ratio is given. Both answers must agree.

    Returns:
        {"times_cpython": {name: ratio}, "worst": ratio, "rounds": rounds}.
    """
    ratios: dict[str, list[float]] = {}
    for sample in SAMPLES:
        program = _program(sample)
        assert _run(program) == sample()
        kept = ratios[sample.__name__.strip("_")] = []
        for _ in range(rounds):
            started = clock()
            for _ in range(5):
                _run(program)
            between = clock()
            for _ in range(25):
                sample()
            kept.append(5 * (between - started) / (clock() - between))
    middle = {name: median(values) for name, values in ratios.items()}
    return {"times_cpython": middle, "worst": max(middle.values()), "rounds": rounds}


def _program(sample: Sample) -> CompiledProgram:
    lines = textwrap.dedent(inspect.getsource(sample)).splitlines()
    return compile_program("\n".join(["def execute_command(image):", *lines[1:]]), viper_library({}), _LIMITS)


def _run(program: CompiledProgram) -> Any:
    try:
        next(program.run({}))
    except StopIteration as stop:
        return stop.value
    raise AssertionError("a symbolic program asks nothing")
