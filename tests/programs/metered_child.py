"""Runs every operator and every symbolic module on values of every type, in a process that may take 64 MiB more and no more.

Its argument is n: one of n cases is run. Prints {"runs", "statuses", "faults"} as JSON: a fault is anything but an answer or
a typed failure.
"""

from __future__ import annotations

import itertools
import json
import random
import resource
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tutelage.modules.function_module import module
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs import visprog
from tutelage.programs.eval_expression import Expression
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.scheduler import run
from tutelage.programs.serialization import strict_json
from tutelage.programs.types import ProgramFailure
from tutelage.programs.values import Box, Image, Object

ALLOWED = 64 << 20
SECONDS = 60
OPERATORS = ["+", "-", "*", "/", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or", "xor"]
OTHERS = ["not {A}", "-{A}", "+{A}", "'{A}{B}'", "'{A}' in {B}", "{A} if {B} else {A}", "{A} * 100000000", "100000000 * {A}"]
CHAINS = ["+".join(["{A}"] * 60), "*".join(["{A}"] * 60), "'" + "{A}" * 600 + "'", " in ".join(["{A}"] * 300)]


def values() -> dict[str, Any]:
    """A value of every type, small and large; they share what they hold."""
    nested: Any = ["red"]
    for _ in range(40):
        nested = [nested, nested]
    image = Image.from_array(np.full((3, 48, 48), 7, np.uint8))
    noise = np.random.default_rng(0).random((400, 400)) > 0.5
    return {
        "none": None,
        "true": True,
        "zero": 0,
        "number": 7,
        "large": 10**18,
        "huge": 10**5_000,
        "float": 2.5,
        "inf": float("inf"),
        "nan": float("nan"),
        "empty": "",
        "word": "red",
        "digits": "9" * 39,
        "many_digits": "9" * 20_000,
        "text": "red cube, " * 500,
        "long_text": "a b " * 2_000_000,
        "surrogate": "\ud800",
        "no_items": [],
        "words": ["red", "blue"],
        "numbers": list(range(10_000)),
        "million": [0] * 1_000_000,
        "texts": ["x" * 9_000] * 1_000,
        "nested": nested,
        "tuple": (1, "a"),
        "dict": {"a": [1], "b": {"c": None}},
        "boxes": [Box(1, 2, 30, 40, 0.5)] * 50,
        "many_boxes": [Box(1, 2, 30, 40, 0.5)] * 500_000,
        "objects": [Object(Box(0, 0, 9, 9), np.ones((48, 48), bool), "cube", 1, "red")] * 5,
        "noise": [Object(Box(0, 0, 400, 400), noise, "cube", 1)] * 200,
        "image": image,
        "images": [image] * 1_000,
        "numpy": np.int64(7),
        "array": np.zeros(1_000_000),
        "other": object(),
    }


def evaluate(held: dict[str, Any], share: int, report: Counter[str], faults: list[str]) -> None:
    texts = [f"{{A}} {sign} {{B}}" for sign in OPERATORS] + OTHERS
    pairs = [(text, a, b) for text in texts for a, b in itertools.product(held, repeat=2)]
    random.Random(1).shuffle(pairs)
    pairs = pairs[: len(pairs) // share]
    pairs += [(text, a, a) for text in CHAINS for a in held]
    for text, a, b in pairs:
        try:
            Expression(text).evaluate({"A": held[a], "B": held[b]})
            report["ok"] += 1
        except ProgramFailure as failure:
            report[failure.kind] += 1
        except BaseException as error:
            faults.append(f"{text} on {a}, {b}: {type(error).__name__}: {error}"[:200])


def run_programs(held: dict[str, Any], share: int, report: Counter[str], faults: list[str]) -> None:
    """Steps that make, pass on and answer each value, as a program asks for them; every trace is written as JSON."""

    @module(name="GIVE", version="1", symbolic=True)
    def give(name: str) -> Any:
        return held[name]

    @module(name="SLOWLY", version="1")
    def slowly(name: str) -> Any:
        return held[name]

    modules = {**symbolic_modules(), "GIVE": give, "SLOWLY": slowly}
    parser = visprog.Parser({name: entry.signature for name, entry in modules.items()})
    draw = random.Random(0)
    names = list(held)
    texts = []
    for source, name in itertools.product(("GIVE", "SLOWLY"), names):
        head = f"A={source}(name='{name}')\n"
        texts.append(head + "FINAL_RESULT=RESULT(var=A)")
        texts.append(head + "".join(f"A{i}=RESULT(var=A)\n" for i in range(200)) + "FINAL_RESULT=RESULT(var=A)")
        texts.append(head + 'B=EVAL(expr="{A} * 100000000")\nFINAL_RESULT=RESULT(var=B)')
    for made, entry in symbolic_modules().items():
        for _ in range(24 // share):
            if made == "EVAL":
                break
            given = {name: draw.choice(names) for name in entry.signature.args}
            given = {k: "image" if entry.signature.args[k] == "image" and draw.random() < 0.8 else v for k, v in given.items()}
            lines = [f"V{k}=GIVE(name='{v}')" for k, v in given.items()]
            call = ",".join(f"{k}=V{k}" for k in given)
            texts.append("\n".join([*lines, f"B={made}({call})", "FINAL_RESULT=RESULT(var=B)"]))
    for text in texts:
        program = parser.try_parse(text)
        try:
            (trace,) = run([Job("1", program, {"IMAGE": held["image"]})], RunContext(modules))
            strict_json(trace.to_json())
            report[trace.status] += 1
            if "MemoryError" in str(trace.error):
                faults.append(f"{text[:80]}: {trace.error}"[:200])
        except BaseException as error:
            faults.append(f"{text[:80]}: {type(error).__name__}: {error}"[:200])


def main(share: int) -> None:
    held = values()
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ALLOWED, taken + ALLOWED))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    report: Counter[str] = Counter()
    faults: list[str] = []
    evaluate(held, share, report, faults)
    run_programs(held, share, report, faults)
    print(json.dumps({"runs": report.total() + len(faults), "statuses": report, "faults": faults}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
