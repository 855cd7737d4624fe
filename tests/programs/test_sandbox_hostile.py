"""Programs that try to get out, or to use more than they may: none does. The corpus lies in ``hostile/``."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tutelage.programs import viper
from tutelage.programs.sandbox import REPLAY, Sandbox
from tutelage.programs.sandbox_process import Limits
from tutelage.programs.types import STATUSES, Call, ProgramFailure, Signature
from tutelage.programs.values import Box, Image

CORPUS = Path(__file__).parent / "hostile"
SIGNATURES = {
    "LOC": Signature({"image": "image", "object": "text"}, "boxes"),
    "VQA": Signature({"image": "image", "question": "text"}, "text"),
    "VERIFY": Signature({"image": "image", "object": "text", "property": "text"}, "bool"),
    "MATCH": Signature({"image": "image", "options": "any"}, "text"),
    "LLM": Signature({"question": "text", "long_answer": "bool"}, "text", frozenset({"long_answer"})),
}
IMAGE = Image.from_array(np.arange(3 * 48 * 48, dtype=np.uint8).reshape(3, 48, 48))
SECONDS = 0.25
MEMORY = Limits().memory_mib
SECRET = "a secret of the parent's"


def blocks(name: str) -> list[str]:
    return [text.strip("\n") for text in (CORPUS / name).read_text().split("\n---\n")]


def as_program(block: str) -> str:
    if "def execute_command" in block:
        return block
    return "def execute_command(image):\n" + "\n".join("    " + line for line in block.split("\n"))


ESCAPES = [
    as_program(f"return {line}")
    for line in (CORPUS / "escapes.txt").read_text().splitlines()
    if line.strip() and not line.startswith("#")
]
STATEMENTS = [as_program(block) for block in blocks("statements.txt")]
BOMBS = [as_program(block) for block in blocks("bombs.txt")]
RAW = [
    "",
    "\0",
    "def execute_command(image):\n    return '\0'",
    "\ud800",
    "\ufeff",
    "(" * 5000,
    "(" * 90 + ")" * 90,
    "[" * 150 + "]" * 150,
    "-" * 9000 + "1",
    "not " * 4000 + "1",
    "~" * 9000 + "1",
    "1" + "+1" * 9000,
    "1" + "**1" * 4000,
    "1" + " if 1 else 1" * 1500,
    "a" + ".a" * 9000,
    "a" + "[0]" * 6000,
    "a" + "()" * 9000,
    "lambda: " * 2000 + "1",
    "lambda a=" * 2000 + "1",
    "1" + "<1" * 9000,
    "1" + " and 1" * 3000,
    "[" + "1," * 9000 + "]",
    "{" * 2000,
    "f'{" * 500 + "1" + "}'" * 500,
    'f"{f"{f"{1}"}"}"',
    "[x " + "for x in [1] " * 1400 + "]",
    "x" * 19_999,
    "x" * 20_001,
    "é" * 10_001,
    "9" * 19_000,
    "0x" + "f" * 19_000,
    "1e" + "9" * 19_000,
    "'" + "\\N{DIGIT ONE}" * 1500 + "'",
    "if 1:\n" + "".join(" " * (depth + 1) + "if 1:\n" for depth in range(120)) + " " * 121 + "pass",
    "\n".join(" " * depth + f"def f{depth}():" for depth in range(99)) + "\n" + " " * 99 + "pass",
    "\n".join("x = 1" for _ in range(3300)),
    "x = " * 4900 + "1",
    "def execute_command(): return 1",
    "def execute_command(video, image): return 1",
    "def execute_command(image, os): return os",
    "def execute_command(image, query=open): return query",
    "execute_command = 1",
    "execute_command = lambda image: 1",
    "def execute_command(image): return 1\nexecute_command = 1",
    "def execute_command(image): return 1\ndef execute_command(image, query): return query",
    "while True: pass\ndef execute_command(image): return 1",
    "def execute_command(image): return 1\nopen('/etc/passwd')",
    "def helper(): import os\ndef execute_command(image): return 1",
    "class execute_command: pass",
    "# coding: utf-7\n+AGE-",
    "# coding: nonsense\ndef execute_command(image): return 1",
    "\x0c\x0b\t" * 100,
]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    os.environ["TUTELAGE_TEST_SECRET"] = SECRET
    global children_before
    children_before = children()
    with Sandbox(Limits(seconds=SECONDS)) as sandbox:
        yield sandbox
    del os.environ["TUTELAGE_TEST_SECRET"]


def answer_of(call: Call) -> object:
    return {"LOC": [Box(1, 1, 9, 9)], "VERIFY": True}.get(call.module, "red")


def attempt(text: str, sandbox: Sandbox) -> tuple[str, object]:
    """The program's status and answer."""
    try:
        steps = viper.parse(text, SIGNATURES, sandbox=sandbox).start({"IMAGE": IMAGE})
        value = None
        while True:
            asked = steps.send(value)
            value = [answer_of(call) for call in asked] if isinstance(asked, list) else answer_of(asked)
    except StopIteration as stop:
        return "ok", stop.value
    except ProgramFailure as failure:
        assert failure.kind in STATUSES
        return failure.kind, str(failure)


def peak_mib(pid: int) -> float:
    """The most memory that the process has held at once."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def largest_ended() -> float:
    """The most memory, in MiB, that any process started here has held that has ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def own_peak() -> float:
    """The most memory, in MiB, that this process has held: what it starts begins with that much in the system's books."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def children() -> set[int]:
    """The processes that this one has started."""
    return set(map(int, Path("/proc/self/task", str(os.getpid()), "children").read_text().split()))


children_before: set[int] = set()


def processor_seconds(sandbox: Sandbox) -> float:
    """Of this process, of the workers that have ended, and of those that live."""
    deadline = time.monotonic() + 5
    while children() - sandbox.pids - children_before:
        assert time.monotonic() < deadline, "a worker that was given up lives"
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime + sum(time.clock_gettime((~pid << 3) | 2) for pid in sandbox.pids)


def test_the_corpus_is_large() -> None:
    assert len({*ESCAPES, *STATEMENTS, *BOMBS, *RAW}) >= 500


@pytest.mark.parametrize("text", ESCAPES)
def test_no_expression_gets_out(text: str, sandbox: Sandbox) -> None:
    status, answer = attempt(text, sandbox)
    if status == "ok":  # it looks like an attack, and is plain arithmetic on plain values
        assert type(answer) in (str, int, float, bool, list, dict, Box, Image, type(None))
    assert SECRET not in str(answer) and "root:" not in str(answer) and "object at 0x" not in str(answer)
    if any(word in text for word in (".__class__", ".__globals__", "open(")):
        assert status in ("refused", "undefined_var", "runtime")


@pytest.mark.parametrize("text", STATEMENTS)
def test_no_statement_gets_out(text: str, sandbox: Sandbox) -> None:
    status, answer = attempt(text, sandbox)
    assert SECRET not in str(answer) and "root:" not in str(answer)
    if status == "ok":
        forbidden = ("import os", "import sys", "builtins", "open(", "yield", "await ", ".__", "__builtins__")
        assert not any(word in text for word in forbidden)
    assert not Path("/tmp/tutelage-hostile").exists()


@pytest.mark.parametrize("text", RAW, ids=range(len(RAW)))
def test_no_text_breaks_the_parser(text: str, sandbox: Sandbox) -> None:
    status, _ = attempt(text, sandbox)
    assert status in ("parse", "refused", "limit", "undefined_var", "type", "timeout") or "return" in text


@pytest.mark.parametrize("text", BOMBS, ids=range(len(BOMBS)))
def test_no_bomb_passes_its_limits(text: str, sandbox: Sandbox) -> None:
    largest_before = largest_ended()

    def spent() -> float:
        before = processor_seconds(sandbox)
        status, _ = attempt(text, sandbox)
        assert status in ("limit", "timeout", "runtime", "type", "refused", "undefined_var", "ok")
        assert all(peak_mib(pid) < MEMORY + 64 for pid in sandbox.pids)
        assert largest_ended() < max(MEMORY + 64, largest_before, own_peak() + 1)
        return processor_seconds(sandbox) - before

    # all runs from its beginning together, and two workers that begin; twice, for this process has other threads
    allowed = 1.1 * REPLAY * SECONDS + 0.5
    assert spent() < allowed or spent() < allowed


def test_the_sandbox_outlived_the_bombs(sandbox: Sandbox) -> None:
    assert attempt(as_program("return 1 + 1"), sandbox) == ("ok", 2)
