"""ViperGPT programs by themselves: texts that repeat or are all new, beside VisProg's programs, and beside smolagents."""

from __future__ import annotations

import ast
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tutelage.programs import viper, viper_prelude
from tutelage.programs.languages import parser_for
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.scheduler import run
from tutelage.programs.types import Call, Module, ModuleOutputs, Value
from tutelage.programs.values import Box
from tutelage.programs.viper_api import prelude_names

Item = tuple[str, Mapping[str, Value]]
"""A program's text, and the images it runs on."""

CALL_S, ITEM_S = 0.020, 0.001
"""What a module of an accelerator's shape takes: for a batch, and for each call in it."""
SINGLE, SMOLAGENTS = 200, 200
"""Programs that are run one after the other, and that smolagents runs too."""

_TEXT = re.compile(r"'[^'\n{}]*'|\"[^\"\n{}]*\"")
_KNOWN = frozenset({"image", "image_dict", "left", "right", "yes", "no", "query", "possible_answers", "math"})


class Fixed:
    """A module of the others' signature that gives one answer, after ``call_s`` seconds a batch and ``item_s`` a call."""

    symbolic = False

    def __init__(self, module: Module, call_s: float = 0.0, item_s: float = 0.0):
        self.name, self.version, self.signature, self.batch_size = module.name, "1", module.signature, module.batch_size
        self._call_s, self._item_s = call_s, item_s

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        """The same answer to every call."""
        if self._call_s:
            time.sleep(self._call_s + self._item_s * len(calls))
        return ModuleOutputs([fixed_answer(call.module, call.args) for call in calls])


def fixed_answer(module: str, args: Mapping[str, Value]) -> Value:
    """One answer for each module, whatever it is asked."""
    answers: dict[str, Value] = {"LOC": [Box(2, 2, 20, 20), Box(10, 5, 30, 40)], "VERIFY": True, "DEPTH": 1.5, "SCORE": 0.5}
    return args["options"][0] if module == "MATCH" else answers.get(module, "red")


def fresh(text: str, number: int) -> str:
    """``text`` with other words in its plain texts and other names for its variables; equal numbers give equal texts."""
    rng = random.Random(number)

    def reworded(match: re.Match[str]) -> str:
        inside = match[0][1:-1]
        if inside in _KNOWN or not inside.isascii():
            return match[0]
        return match[0][0] + "".join(rng.choice("bcdfgklmnprst") if c.islower() else c for c in inside) + match[0][0]

    text = _TEXT.sub(reworded, text)
    names = {part.id for part in ast.walk(ast.parse(text)) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    for name in sorted(names - _KNOWN - prelude_names()):
        text = re.sub(rf"(?<![\w.]){name}\b", f"{name}_{number}", text)
    return text


def overhead(programs: Sequence[Item], modules: Mapping[str, Module], rounds: int) -> dict[str, float]:
    """Microseconds a program where modules answer at once: batched and one at a time, texts repeated and all new."""
    fixed: dict[str, Module] = {name: module if module.symbolic else Fixed(module) for name, module in modules.items()}
    context = RunContext(fixed, deduplicate=False)
    found: dict[str, list[float]] = {}
    for turn in range(rounds):
        first = turn * len(programs)
        renewed = [(fresh(text, first + number), state) for number, (text, state) in enumerate(programs)]
        for kind, items in (("repeated", list(programs)), ("fresh", renewed)):
            parser = viper.Parser(context.signatures)
            found.setdefault(f"batched_{kind}", []).append(_seconds(items, parser, context) / len(items))
            singles = items[:SINGLE]
            parser = viper.Parser(context.signatures)
            found.setdefault(f"one_at_a_time_{kind}", []).append(
                median([_seconds([item], parser, context) for item in singles])  # a first one starts a process
            )
    return {f"{name}_us": 1e6 * median(values) for name, values in found.items()}


def accelerated(
    viper_programs: Sequence[Item], visprog_programs: Sequence[Item], modules: Mapping[str, Module]
) -> dict[str, float]:
    """Programs a second with modules of an accelerator's shape, and the share of VisProg's rate for the same questions."""
    slow: dict[str, Module] = {name: m if m.symbolic else Fixed(m, CALL_S, ITEM_S) for name, m in modules.items()}
    context = RunContext(slow, deduplicate=False)
    rates = {}
    for name, programs in (("viper", viper_programs), ("visprog", visprog_programs)):
        parser: Any = parser_for(name, context.signatures)
        rates[name] = len(programs) / _seconds(programs, parser, context)
    alone = viper_programs[:16]
    one = RunContext(slow, batch_size=1, window=1, deduplicate=False)
    rates["one_at_a_time"] = len(alone) / _seconds(alone, viper.Parser(one.signatures), one)
    return {
        "programs_per_s": rates["viper"],
        "visprog_programs_per_s": rates["visprog"],
        "share_of_visprog": rates["viper"] / rates["visprog"],
        "speedup": rates["viper"] / rates["one_at_a_time"],
    }


def beside_smolagents(programs: Sequence[Item], modules: Mapping[str, Module]) -> dict[str, Any]:
    """Milliseconds a program, and programs refused, of smolagents' local executor and of ours, on the same new texts.

    Both have the same library and module answers. smolagents interprets in the caller's process; ours runs in another.
    """
    try:
        from smolagents.local_python_executor import LocalPythonExecutor
    except ImportError:
        return {"skipped": "smolagents is not installed"}
    texts = [(fresh(text, 10**6 + number), state) for number, (text, state) in enumerate(programs[:SMOLAGENTS])]
    library = _library()
    seconds, refused = [], 0
    for text, state in texts:
        pictures = [library["Image"](0, (0, 0, image.width, image.height), (image.width, image.height)) for image in state.values()]
        given: Any = pictures[0] if len(pictures) == 1 else {"left": pictures[0], "right": pictures[1]}
        executor = LocalPythonExecutor([])
        executor.send_variables({"given": given})
        executor.send_tools({name: library[name] for name in prelude_names()})
        started = time.perf_counter()
        try:
            executor(f"{text}\nexecute_command(given)")
        except Exception:
            refused += 1
        seconds.append(time.perf_counter() - started)
    fixed: dict[str, Module] = {name: module if module.symbolic else Fixed(module) for name, module in modules.items()}
    context = RunContext(fixed)
    parser = viper.Parser(context.signatures)
    seconds_here, failed = [], 0
    for number, (text, state) in enumerate(texts):
        started = time.perf_counter()
        (trace,) = run([Job(str(number), parser.try_parse(text, tuple(state)), state)], context)
        seconds_here.append(time.perf_counter() - started)
        failed += trace.status != "ok"
    return {
        "programs": len(texts),
        "smolagents_ms": 1000 * median(seconds),
        "smolagents_refused": refused,
        "ms": 1000 * median(seconds_here),
        "refused": failed,
    }


def _library() -> dict[str, Any]:
    """The prelude as Python runs it here, with the fixed answers."""
    library: dict[str, Any] = {"__name__": "prelude"}
    exec(compile(Path(viper_prelude.__file__).read_text(encoding="utf-8"), viper_prelude.__file__, "exec"), library)

    def call_modules(calls: Sequence[tuple[str, Mapping[str, Any]]], make: Callable[[list[Any]], Any] | None = None) -> Any:
        found = [fixed_answer(name, args) for name, args in calls]
        values = [[("box", *box) for box in value] if isinstance(value, list) else value for value in found]
        return values if make is None else make(values)

    library["call_modules"] = call_modules
    return library


def _seconds(programs: Sequence[Item], parser: Any, context: RunContext) -> float:
    started = time.perf_counter()
    jobs = (Job(str(number), parser.try_parse(text, tuple(state)), state) for number, (text, state) in enumerate(programs))
    run(jobs, context)
    return time.perf_counter() - started
