"""The child process: what it holds, what it survives, and what becomes of the programs in it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.programs import viper
from tutelage.programs.handles import Handles
from tutelage.programs.interpreter import wire
from tutelage.programs.interpreter.meter import Limits
from tutelage.programs.interpreter.patches import Found, Request, Video, View
from tutelage.programs.isolation import Sandbox
from tutelage.programs.types import Call, LimitExceeded, ProgramFailure, RuntimeFailure, Signature, TimeoutFailure
from tutelage.programs.values import Box, Image

SIGNATURES = {
    "LOC": Signature({"image": "image", "object": "text"}, "boxes"),
    "VQA": Signature({"image": "image", "question": "text"}, "text"),
}
STATE = {"IMAGE": Image.from_array(np.zeros((3, 48, 48), np.uint8))}
THREE = """
def execute_command(image):
    p = ImagePatch(image)
    return [p.simple_query(q) for q in ["a", "b", "c"]] + [p.find("d")[0].left]
"""


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def answer(call: Any) -> Any:
    return [Box(5, 5, 9, 9)] if call.module == "LOC" else call.args["question"].upper()


def finish(steps: Any, value: Any = None) -> Any:
    while True:
        try:
            value = answer(steps.send(value))
        except StopIteration as stop:
            return stop.value


def test_isolated_gives_what_not_isolated_gives(sandbox: Sandbox) -> None:
    answers = [finish(viper.parse(THREE, SIGNATURES, isolate=how).start(STATE)) for how in (sandbox, False)]
    assert answers[0] == answers[1] == ["A", "B", "C", 3]


def test_programs_in_one_child_take_turns(sandbox: Sandbox) -> None:
    program = viper.parse(THREE, SIGNATURES, isolate=sandbox)
    runs = [program.start(STATE) for _ in range(20)]
    calls = [next(steps) for steps in runs]
    for _ in range(3):
        calls = [steps.send(answer(call)) for steps, call in zip(runs, calls)]
    for steps, call in zip(runs, calls):
        with pytest.raises(StopIteration) as stop:
            steps.send(answer(call))
        assert stop.value.value == ["A", "B", "C", 3]


def test_the_child_has_nothing_to_misuse(sandbox: Sandbox) -> None:
    proc = Path(f"/proc/{sandbox.pid}")
    assert (proc / "environ").read_bytes() == b""
    assert {entry.name for entry in (proc / "fd").iterdir()} == {"0", "1", "2"}
    assert os.readlink(proc / "fd" / "2") == "/dev/null"
    assert os.readlink(proc / "cwd") == "/"
    libraries = (proc / "maps").read_text()
    assert "torch" not in libraries and "numpy" not in libraries and "PIL" not in libraries
    limits = {line[:26].strip(): line[26:].split() for line in (proc / "limits").read_text().splitlines()[1:]}
    assert limits["Max open files"][0] == limits["Max file size"][0] == limits["Max processes"][0] == "0"
    assert limits["Max address space"][0] != "unlimited" and limits["Max core file size"][0] == "0"
    if sandbox.granted["no_root"]:
        users = next(line for line in (proc / "status").read_text().splitlines() if line.startswith("Uid")).split()[1:]
        assert "0" not in users
    if sandbox.granted["network_namespace"]:
        assert os.readlink(proc / "ns" / "net") != os.readlink("/proc/self/ns/net")


def test_the_child_loads_only_the_interpreter() -> None:
    import subprocess
    import sys

    code = "import sys; import tutelage.programs.interpreter.child; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {name.partition(".")[0] for name in loaded} & {"torch", "numpy", "PIL", "socket", "subprocess", "pickle"}
    ours = {name for name in loaded if name.startswith("tutelage.")}
    allowed = ("tutelage.errors", "tutelage.programs", "tutelage.programs.types", "tutelage.programs.interpreter")
    assert all(name in allowed or name.startswith("tutelage.programs.interpreter.") for name in ours)


def test_programs_go_on_when_their_child_is_killed(sandbox: Sandbox) -> None:
    program = viper.parse(THREE, SIGNATURES, isolate=sandbox)
    runs = [program.start(STATE) for _ in range(5)]
    calls = [next(steps) for steps in runs]
    calls = [steps.send(answer(call)) for steps, call in zip(runs, calls)]
    first = sandbox.pid
    os.kill(first, signal.SIGKILL)
    while Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        pass
    assert [finish(steps, answer(call)) for steps, call in zip(runs, calls)] == [["A", "B", "C", 3]] * 5
    assert sandbox.pid != first


def test_a_program_that_blocks_the_child_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(Limits(seconds=0.2)) as sandbox:
        program = viper.parse(THREE, SIGNATURES, isolate=sandbox)
        innocent = program.start(STATE)
        call = next(innocent)
        first = sandbox.pid
        os.kill(first, signal.SIGSTOP)  # the child hangs while it works on another program
        monkeypatch.setattr("tutelage.programs.channel.WALL", 2.0)
        with pytest.raises(TimeoutFailure):
            next(program.start(STATE))
        assert finish(innocent, answer(call)) == ["A", "B", "C", 3]
        assert sandbox.pid != first


def test_a_program_that_is_too_large_for_the_child_fails_alone() -> None:
    with Sandbox(Limits(length=10**8, items=10**12, steps=10**9), memory_mib=32) as sandbox:
        with pytest.raises(LimitExceeded):
            finish(viper.parse("def execute_command(image): return [0] * 10**8", SIGNATURES, isolate=sandbox).start(STATE))
        assert finish(viper.parse(THREE, SIGNATURES, isolate=sandbox).start(STATE)) == ["A", "B", "C", 3]


def test_a_program_given_up_is_forgotten(sandbox: Sandbox) -> None:
    program = viper.parse(THREE, SIGNATURES, isolate=sandbox)
    for _ in range(50):
        steps = program.start(STATE)
        next(steps)
        steps.close()
    assert finish(program.start(STATE)) == ["A", "B", "C", 3]


def test_failures_come_through_with_line_and_remedy(sandbox: Sandbox) -> None:
    text = "def execute_command(image):\n    return sortd([1])"
    caught = []
    for how in (sandbox, False):
        with pytest.raises(ProgramFailure) as failure:
            viper.parse(text, SIGNATURES, isolate=how)
        caught.append((failure.value.kind, failure.value.message, failure.value.where, failure.value.remedy))
    assert caught[0] == caught[1] and caught[0][2] == "line 2"


def test_a_module_answer_that_no_program_can_hold(sandbox: Sandbox) -> None:
    steps = viper.parse(THREE, SIGNATURES, isolate=sandbox).start(STATE)
    next(steps)
    with pytest.raises(ProgramFailure) as caught:
        steps.send(object())
    assert caught.value.kind == "type"


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 2.5, "é", [1, ["a"]], {"a": [1]}, View(0, 1, 2, 3, 4, 5, 6), Found(1, 2, 3, 4.5, 0.5)],
)
def test_values_cross_the_wire(value: Any) -> None:
    (there,) = wire.unpack(wire.frame(wire.dump([wire.encode(value)]))[4:])
    back = wire.decode(there)
    assert back == value and type(back) is type(value)
    video = wire.decode(wire.encode(Video((View(0, 0, 0, 1, 1, 1, 1),))))
    assert video.frames == (View(0, 0, 0, 1, 1, 1, 1),)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"nonsense", b"\xff", b"[" * 100_000, b'"text"'],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(wire.NotAMessage):
        wire.unpack(data)


@pytest.mark.parametrize(
    "data",
    [
        {"view": [1, 2]},
        {"view": "1 2"},
        {"view": "0 0 0 1 1 1 x"},
        {"view": "0 0 0 1 1 1 1 1"},
        {"box": [1]},
        {"pickle": "x"},
        {"table": [[1]]},
        {"video": [1]},
    ],
)
def test_what_is_no_value_is_refused(data: Any) -> None:
    with pytest.raises(wire.NotAMessage):
        wire.decode(data)
    with pytest.raises(wire.NotAMessage):
        wire.decode_calls(["ask", data], wire.decode)
    with pytest.raises(wire.NotAMessage):
        wire.decode_failure(data)


def test_a_child_that_lies_about_images_is_caught() -> None:
    images = Handles()
    images.view(STATE["IMAGE"])
    for view in (View(7, 0, 0, 9, 9, 48, 48), View(-1, 0, 0, 9, 9, 48, 48), View(0, 90, 90, 99, 99, 48, 48)):
        with pytest.raises(RuntimeFailure):
            images.outward(view)
        with pytest.raises(RuntimeFailure):
            images.decoded(wire.encode(view))
    assert images.outward(View(0, -9, -9, 999, 999, 48, 48)).region == (0, 0, 48, 48)
    whole = wire.encode(View(0, 0, 0, 48, 48, 48, 48))
    assert images.decoded(whole) is images.decoded(dict(whole)) is STATE["IMAGE"]


@pytest.mark.parametrize("count", [1, 2])
def test_requests_cross_the_wire(count: int) -> None:
    requests = [Request("VQA", {"image": View(0, 0, 0, 48, 48, 48, 48), "question": "a"}, number) for number in range(count)]
    asked = requests if count > 1 else requests[0]
    calls = [Call(*request) for request in requests]
    received = wire.unpack(wire.frame(wire.dump(wire.encode_requests(asked)))[4:])
    assert wire.decode_calls(received, wire.decode) == (calls if count > 1 else calls[0])


@pytest.mark.parametrize("data", [[], [[]], [["VQA", {}]], [["VQA", {}, True]], [["VQA", [], 0]], [["VQA", {"a": {"b": []}}, 0]]])
def test_what_is_no_request_is_refused(data: Any) -> None:
    with pytest.raises(wire.NotAMessage):
        wire.decode_calls(["ask", *data], wire.decode)
