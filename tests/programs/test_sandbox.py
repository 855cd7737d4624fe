"""The sandbox: what its workers hold, what they survive, and what becomes of the programs in them."""

from __future__ import annotations

import ast
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.programs import sandbox_process, sandbox_worker, viper
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.sandbox import ROUND, SESSIONS, Sandbox
from tutelage.programs.sandbox_process import Limits
from tutelage.programs.scheduler import run, stream
from tutelage.programs.types import Call, LimitExceeded, ProgramFailure, RuntimeFailure, TimeoutFailure, TypeFailure
from tutelage.programs.values import Box, Image

from .stubs import Stub, by_name, loc, picture, vqa

SIGNATURES = {"LOC": loc().signature, "VQA": vqa().signature}
SHORT = Limits(seconds=0.2)


def program(body: str) -> str:
    return "def execute_command(image):\n" + "".join(f"    {line}\n" for line in body.splitlines())


ASKS = program("p = ImagePatch(image)\nreturn [p.simple_query(q) for q in ['a', 'bb']] + [p.find('ccc')[0].left]")
BRANCHES = program("p = ImagePatch(image)\nif p.simple_query('x') == 'red':\n    return p.find('dd')\nreturn p.simple_query('y')")
FAILS = program("return [1][ImagePatch(image).find('abc')[5].left]")
QUIET = program("return 1 + 1")
OWN = "class A:\n    def __init__(self, p):\n        self.p = p\n" + program("return A(ImagePatch(image)).p.simple_query('a')")
LOOP = program("while True:\n    pass")
BOMB = program("x = [0]\nwhile True:\n    x = x + x")
DONE = ["A", "BB", 4]
"""What ASKS answers to :func:`reply`."""
TEXTS = (ASKS, BRANCHES, FAILS, QUIET, OWN)


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def reply(call: Call) -> Any:
    return [Box(5, 5, 9, 9)] if call.module == "LOC" else call.args["question"].upper()


def start(sandbox: Sandbox, text: str = ASKS, client: str = "") -> Any:
    return viper.parse(text, SIGNATURES, sandbox=sandbox).for_client(client).start({"IMAGE": picture(0)})


def finish(steps: Any, value: Any = None) -> Any:
    try:
        while True:
            value = reply(steps.send(value))
    except StopIteration as stop:
        return stop.value


def posted(sandbox: Sandbox, texts: list[str]) -> list[Any]:
    runs = [start(sandbox, text) for text in texts]
    for steps in runs:
        steps.post(None)
    return runs


def outcomes(runs: list[Any]) -> list[Any]:
    found = []
    for steps in runs:
        try:
            found.append(finish(steps))
        except ProgramFailure as failure:
            found.append(failure.kind)
    return found


def traces(texts: list[str], sandbox: Sandbox, size: int = 4, **options: Any) -> list[str]:
    context = RunContext(by_name(loc(batch_size=size), vqa(batch_size=size)), **options)
    parser = viper.Parser(SIGNATURES, sandbox=sandbox)
    jobs = [Job(str(n), parser.try_parse(text), {"IMAGE": picture(n % 5)}) for n, text in enumerate(texts)]
    return [json.dumps(trace.to_json(timing=False)) for trace in run(jobs, context)]


# Together and alone


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(TEXTS), max_size=40), st.integers(1, 40), st.integers(1, 9))
def test_together_or_alone_the_traces_are_equal(shared: Sandbox, texts: list[str], window: int, size: int) -> None:
    alone = [traces([text], shared, size=1, window=1)[0] for text in TEXTS]
    assert traces(texts, shared, size, window=window) == traces(texts, shared, size=1, window=1)
    assert traces(list(TEXTS[:1]), shared) == alone[:1]


def test_more_programs_than_a_round_holds(shared: Sandbox) -> None:
    texts = list(TEXTS) * ROUND
    assert traces(texts, shared, 64) == traces(texts, shared, window=1)


def test_ten_thousand_programs_queued_lose_nothing(shared: Sandbox) -> None:
    found = traces([QUIET] * 10_000, shared)
    assert len(found) == 10_000 and all(json.loads(trace)["answer"] == 2 for trace in found)


def test_batches_are_full_though_programs_go_in_rounds(shared: Sandbox) -> None:
    finder = loc(batch_size=16)
    parser = viper.Parser(SIGNATURES, sandbox=shared)
    text = program("return len(ImagePatch(image).find('abc')) + len(ImagePatch(image).find('d'))")
    jobs = [Job(str(n), parser.parse(text), {"IMAGE": picture(n)}) for n in range(64)]
    run(jobs, RunContext(by_name(finder, vqa()), deduplicate=False))
    assert [len(batch) for batch in finder.batches] == [16] * 8


def test_memory_is_bounded_by_the_window(shared: Sandbox) -> None:
    parser, taken = viper.Parser(SIGNATURES, sandbox=shared), 0

    def endless() -> Iterator[Job]:
        nonlocal taken
        while True:
            taken += 1
            yield Job(str(taken), parser.parse(ASKS), {"IMAGE": picture(taken)})

    given_out = stream(endless(), RunContext(by_name(loc(), vqa()), window=8))
    for number in range(1, 100):
        assert next(given_out).id == str(number)
        assert taken - number <= 17 * 8


def test_programs_of_a_session_take_turns(shared: Sandbox) -> None:
    runs = [start(shared) for _ in range(20)]
    calls = [next(steps) for steps in runs]
    for _ in range(2):
        calls = [steps.send(reply(call)) for steps, call in zip(runs, calls)]
    for steps, call in zip(runs, calls):
        with pytest.raises(StopIteration) as stop:
            steps.send(reply(call))
        assert stop.value.value == DONE


def test_a_session_is_renewed_and_programs_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.programs.sandbox.RENEW", 10)
    with Sandbox() as sandbox:
        assert outcomes(posted(sandbox, [ASKS] * 35)) == [DONE] * 35


def test_a_program_given_up_is_forgotten(shared: Sandbox) -> None:
    for _ in range(50):
        steps = start(shared)
        next(steps)
        steps.close()
        with pytest.raises(StopIteration):
            steps.send(None)
    runs = posted(shared, [ASKS] * 30)
    del runs
    gc.collect()
    assert finish(start(shared)) == DONE


# What a worker holds


def test_a_worker_has_nothing_to_misuse(shared: Sandbox) -> None:
    assert finish(start(shared)) == DONE
    proc, granted = Path(f"/proc/{shared.pid}"), shared.granted
    assert (proc / "environ").read_bytes() == b""
    assert not any("TUTELAGE" in os.readlink(entry).upper() for entry in (proc / "fd").iterdir())
    assert os.readlink(proc / "fd" / "2") == os.devnull
    assert list(Path(os.readlink(proc / "cwd")).iterdir()) == []
    limits = {line[:26].strip(): line[26:].split() for line in (proc / "limits").read_text().splitlines()[1:]}
    assert limits["Max file size"][0] == limits["Max core file size"][0] == "0"
    assert limits["Max address space"][0] != "unlimited" and limits["Max cpu time"][0] != "unlimited"
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    assert not granted["no_new_privileges"] or status["NoNewPrivs"].strip() == "1"
    assert not granted["no_root"] or "0" not in status["Uid"].split()
    if granted["network_namespace"]:
        assert os.readlink(proc / "ns" / "net") != os.readlink("/proc/self/ns/net")


def test_without_the_wall_programs_run_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_process, "_launcher", lambda folder, report, limits: "/nowhere/worker")
    with Sandbox() as sandbox:
        with pytest.warns(RuntimeWarning, match="without the wall of the system"):
            assert finish(start(sandbox)) == DONE
        assert sandbox.granted == {} and sandbox.pid is None


@pytest.mark.parametrize("binary", ["/nowhere/monty", "/bin/false", "/bin/cat"])
def test_a_missing_or_wrong_binary_says_what_to_install(monkeypatch: pytest.MonkeyPatch, binary: str) -> None:
    monkeypatch.setenv("MONTY_BIN", binary)
    monkeypatch.setattr(sandbox_process, "START_SECONDS", 1.0)
    with Sandbox() as sandbox, pytest.raises(RuntimeFailure) as caught:
        finish(start(sandbox))
    assert "pip install" in str(caught.value.remedy)


def test_programs_of_different_clients_never_share_a_session(shared: Sandbox) -> None:
    runs = {client: start(shared, client=client) for client in "abcdefgh"}
    for steps in runs.values():
        steps.post(None)
    calls = {client: steps.send(None) for client, steps in runs.items()}
    sessions = {runs[client].session for client in runs}
    assert len(sessions) == len(runs) and len(shared.pids) <= SESSIONS
    assert [finish(runs[client], reply(calls[client])) for client in runs] == [DONE] * 8


def test_what_one_program_defines_another_does_not_see(shared: Sandbox) -> None:
    leaves = "SEEN = []\nclass Patch:\n    n = 0\n" + program("SEEN.append(1)\nPatch.n += 1\nreturn [len(SEEN), Patch.n]")
    assert outcomes(posted(shared, [leaves] * 3)) == [[1, 1]] * 3
    body = "SEEN.append(ImagePatch(image).simple_query('a'))\nImagePatch(image).find('b')\nreturn len(SEEN)"
    grows = "SEEN = []\n" + program(body)
    assert outcomes(posted(shared, [grows] * 3)) == [1] * 3


# What programs cannot do to others


def test_a_loop_and_a_bomb_cost_their_own_programs_alone() -> None:
    with Sandbox(SHORT) as sandbox:
        texts = [ASKS] * 70
        texts[7], texts[40] = LOOP, BOMB
        expected: list[Any] = [DONE] * 70
        expected[7], expected[40] = "timeout", "limit"
        assert outcomes(posted(sandbox, texts)) == expected


def test_a_program_that_takes_its_time_in_many_small_parts_is_stopped() -> None:
    text = program("p = ImagePatch(image)\nfor i in range(200):\n    p.simple_query('a')\n    sum(range(100000))")
    with Sandbox(SHORT) as sandbox, pytest.raises(TimeoutFailure):
        finish(start(sandbox, text))


def test_a_program_that_never_ends_asking_is_stopped() -> None:
    with Sandbox(Limits(calls=20)) as sandbox, pytest.raises(LimitExceeded, match="more than 20 module calls"):
        finish(start(sandbox, program("while True:\n    ImagePatch(image).simple_query('a')")))
    swallows = program("while True:\n    try:\n        ImagePatch(image).simple_query('a')\n    except:\n        pass")
    with Sandbox(SHORT) as sandbox, pytest.raises((LimitExceeded, TimeoutFailure)):
        finish(start(sandbox, swallows))


@pytest.mark.parametrize("text", ["return 'a' * 10 ** 8", "return ImagePatch(image).simple_query('a' * 10 ** 8)"])
def test_a_hundred_megabytes_of_output_fail_alone(shared: Sandbox, text: str) -> None:
    assert outcomes(posted(shared, [ASKS, program(text), ASKS])) == [DONE, "limit", DONE]


def test_what_programs_print_costs_nothing(shared: Sandbox, capfd: pytest.CaptureFixture[str]) -> None:
    assert finish(start(shared, program("print('a' * 1000)\nreturn 1"))) == 1
    assert capfd.readouterr() == ("", "")


def test_a_worker_killed_from_outside_costs_nobody(shared: Sandbox) -> None:
    runs = posted(shared, [ASKS] * 50)
    calls = [steps.send(None) for steps in runs]
    for pid in shared.pids:
        os.kill(pid, signal.SIGKILL)
    for steps, call in zip(runs, calls):
        steps.post(reply(call))
    assert outcomes(runs) == [DONE] * 50


def test_a_worker_that_hangs_costs_time_and_nobody() -> None:
    with Sandbox(SHORT) as sandbox:
        runs = posted(sandbox, [ASKS] * 3)
        calls = [steps.send(None) for steps in runs]
        for pid in sandbox.pids:
            os.kill(pid, signal.SIGSTOP)
        for steps, call in zip(runs, calls):
            steps.post(reply(call))
        assert outcomes(runs) == [DONE] * 3


def test_a_worker_that_always_dies_is_the_programs_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox() as sandbox:
        steps = start(sandbox)
        turn = sandbox_worker.Worker._follow

        def die(worker: Any, single: bool) -> Any:
            os.kill(worker.pid, signal.SIGKILL)
            time.sleep(0.02)
            return turn(worker, single)

        monkeypatch.setattr(sandbox_worker.Worker, "_follow", die)
        with pytest.raises(LimitExceeded, match="ended the worker"):
            next(steps)
        monkeypatch.undo()
        assert finish(start(sandbox)) == DONE


def test_given_up_workers_do_not_live_on() -> None:
    children = Path("/proc/self/task", str(os.getpid()), "children")
    before = set(children.read_text().split())
    with Sandbox(SHORT) as sandbox:
        for _ in range(3):
            assert outcomes(posted(sandbox, [LOOP])) == ["timeout"]
    deadline = time.monotonic() + 5
    while set(children.read_text().split()) - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not set(children.read_text().split()) - before


# Values and failures


def test_a_module_answer_that_no_program_can_hold(shared: Sandbox) -> None:
    steps = start(shared)
    next(steps)
    with pytest.raises(TypeFailure):
        steps.send(object())
    with pytest.raises(StopIteration):
        steps.send(None)
    bad = Stub("VQA", replace(vqa().signature, returns="any"), lambda call: object())
    job = Job("a", viper.parse(ASKS, SIGNATURES, sandbox=shared), {"IMAGE": picture(0)})
    (trace,) = run([job], RunContext(by_name(loc(), bad)))
    assert trace.status == "type"


def test_images_among_answers_are_told_apart(shared: Sandbox) -> None:
    text = program("a = ImagePatch(image).simple_query('a')\nb = ImagePatch(a).simple_query('b')\nreturn [a, b, image]")
    steps = start(shared, text)
    next(steps)
    with pytest.raises(StopIteration) as stop:
        for number in (1, 2):
            steps.send(picture(number))
    answers: list[Image] = stop.value.value
    assert [image.key for image in answers] == [image.key for image in (picture(1), picture(2), picture(0))]


@pytest.mark.parametrize("said", ["\ud800", "é\0", "a" * 10**6, {"a": [1, None]}, 10**30, -1.5, float("inf"), True, [[], ["b"]]])
def test_answers_of_modules_cross_whole(shared: Sandbox, said: Any) -> None:
    steps = start(shared, program("return [ImagePatch(image).simple_query('a') == 0, 1]"))
    next(steps)
    with pytest.raises(StopIteration) as stop:
        steps.send(said)
    assert stop.value.value == [False, 1]


def test_a_forged_value_is_refused() -> None:
    pictures = viper.Pictures()
    pictures.view(picture(0))
    images = [
        ("image", 7, (0, 0, 1, 1), ()),
        ("image", 0, (0, 0, 99, 1), ()),
        ("image", -1, (0, 0, 1, 1), ()),
        ("image", 0, (0, 0), ()),
    ]
    for data in (*images, ("image", 0, (0, 0), ()), ("box", "a"), ("x",), ()):
        with pytest.raises(RuntimeFailure):
            pictures.decode(data)


def test_failures_have_line_and_kind(shared: Sandbox) -> None:
    for line, kind in (("1 / 0", "runtime"), ("[].left", "type"), ("{}['a']", "runtime"), ("len(3)", "type"), ("f(1)", "limit")):
        with pytest.raises(ProgramFailure) as caught:
            finish(start(shared, "def f(n): return f(n)\n" + program(f"x = 1\nreturn {line}")))
        assert (caught.value.kind, caught.value.where) == (kind, "line 1" if kind == "limit" else "line 4")


# Forks and interrupts

_FORK = """
import os, sys
sys.path.insert(0, {tests!r})
from tests.programs.test_sandbox import ASKS, DONE, finish, start
from tutelage.programs.types import RuntimeFailure
from tutelage.programs.sandbox import Sandbox

def main():
    sandbox = Sandbox()
    assert finish(start(sandbox)) == DONE
    child = os.fork()
    if not child:
        try:
            finish(start(sandbox))
        except RuntimeFailure as failure:
            assert "spawn" in failure.remedy
            sys.exit(7)  # as a careless child does
        sys.exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert finish(start(sandbox)) == DONE
    print("both well")

main()
"""


def in_python(code: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([f"{root}/src", root])}
    return subprocess.run(
        [sys.executable, "-c", code.format(tests=root)], capture_output=True, text=True, timeout=60, env=environment, cwd=root
    )


def test_a_forked_child_is_refused_and_harms_nobody() -> None:
    found = in_python(_FORK)
    assert found.stdout.strip() == "both well", found.stderr


def test_ctrl_c_ends_the_round_and_not_the_sandbox() -> None:
    code = """
import os, signal, threading
from tests.programs.test_sandbox import ASKS, DONE, LOOP, finish, start
from tutelage.programs.sandbox import Sandbox
sandbox = Sandbox()
assert finish(start(sandbox)) == DONE
threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    finish(start(sandbox, LOOP))
except KeyboardInterrupt:
    print("heard")
assert finish(start(sandbox)) == DONE
print("well")
"""
    found = in_python(code)
    assert found.stdout.split() == ["heard", "well"], found.stderr


def test_the_files_that_run_inside_are_python_the_sandbox_has() -> None:
    for text in sandbox_worker._inside():
        assert not any(isinstance(node, (ast.Yield, ast.Delete, ast.With)) for node in ast.walk(ast.parse(text)))
