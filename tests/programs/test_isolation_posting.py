"""Many programs at once in one child: answers posted without waiting, and what becomes of those that end or block it."""

from __future__ import annotations

import ast
import gc
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.programs import viper
from tutelage.programs.channel import MESSAGES, PIPE
from tutelage.programs.interpreter.meter import Limits
from tutelage.programs.interpreter.reader import MARK, shape_of
from tutelage.programs.interpreter.wire import LONGEST
from tutelage.programs.isolation import Sandbox
from tutelage.programs.scheduler import AHEAD, Job, RunContext, run, stream
from tutelage.programs.types import Call, LimitExceeded, ProgramFailure, TypeFailure
from tutelage.programs.values import Box, Image

from .stubs import Stub, by_name, loc, picture, vqa

SIGNATURES = {"LOC": loc().signature, "VQA": vqa().signature}
LARGE = Limits(length=10**8, items=10**12, steps=10**9)
"""So large that a program can use up what its child may grow by."""


def program(body: str) -> str:
    return "def execute_command(image):\n" + "".join(f"    {line}\n" for line in body.splitlines())


ASKS = program("p = ImagePatch(image)\nreturn [p.simple_query(q) for q in ['a', 'bb']] + [p.find('ccc')[0].left]")
BRANCHES = program("p = ImagePatch(image)\nif p.simple_query('x') == 'red':\n    return p.find('dd')\nreturn p.simple_query('y')")
FAILS = program("return [1][ImagePatch(image).find('abc')[5].left]")
QUIET = program("return 1 + 1")
DONE = ["A", "BB", 4]
"""What ASKS answers to :func:`reply`."""
TEXTS = (ASKS, BRANCHES, FAILS, QUIET)


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def traces(texts: list[str], how: bool | Sandbox, size: int = 4, **options: Any) -> list[str]:
    context = RunContext(by_name(loc(batch_size=size), vqa(batch_size=size)), **options)
    parser = viper.Parser(SIGNATURES, isolate=how)
    jobs = [Job(str(n), parser.try_parse(text), {"IMAGE": picture(n % 5)}) for n, text in enumerate(texts)]
    return [json.dumps(trace.to_json(timing=False)) for trace in run(jobs, context)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(TEXTS), max_size=40), st.integers(1, 40), st.integers(1, 9))
def test_posted_or_not_the_traces_are_equal(shared: Sandbox, texts: list[str], window: int, size: int) -> None:
    assert traces(texts, shared, size, window=window) == traces(texts, False, size=1, window=1)


def test_more_programs_than_are_gathered_or_go_ahead(shared: Sandbox) -> None:
    texts = list(TEXTS) * AHEAD
    assert traces(texts, shared, 64) == traces(texts, False)


def test_batches_are_full_though_programs_go_ahead(shared: Sandbox) -> None:
    finder = loc(batch_size=16)
    parser = viper.Parser(SIGNATURES, isolate=shared)
    text = program("return len(ImagePatch(image).find('abc')) + len(ImagePatch(image).find('d'))")
    jobs = [Job(str(n), parser.parse(text), {"IMAGE": picture(n)}) for n in range(64)]
    run(jobs, RunContext(by_name(finder, vqa()), deduplicate=False))
    assert [len(batch) for batch in finder.batches] == [16] * 8


def test_memory_is_bounded_by_the_window(shared: Sandbox) -> None:
    parser, taken = viper.Parser(SIGNATURES, isolate=shared), 0

    def endless() -> Iterator[Job]:
        nonlocal taken
        while True:
            taken += 1
            yield Job(str(taken), parser.parse(ASKS), {"IMAGE": picture(taken)})

    given_out = stream(endless(), RunContext(by_name(loc(), vqa()), window=8))
    for number in range(1, 100):
        assert next(given_out).id == str(number)
        assert taken - number <= 17 * 8


def start(sandbox: Sandbox, text: str = ASKS) -> Any:
    return viper.parse(text, SIGNATURES, isolate=sandbox).start({"IMAGE": picture(0)})


def reply(call: Call) -> Any:
    return [Box(5, 5, 9, 9)] if call.module == "LOC" else call.args["question"].upper()


def finish(steps: Any) -> Any:
    """The answer of a run that was posted something."""
    value = None
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


@pytest.mark.parametrize("place", [0, 1, MESSAGES - 1, 2 * MESSAGES + 5])
def test_the_program_that_ends_the_child_is_the_one_that_fails(place: int) -> None:
    with Sandbox(LARGE, memory_mib=32) as sandbox:
        texts = [ASKS] * (2 * MESSAGES + 10)
        texts[place] = program("return 'a' * 25_000_000")  # there is no memory left to say so
        first = sandbox.pid
        runs = posted(sandbox, texts)
        with pytest.raises(LimitExceeded, match="ended the isolated process"):
            finish(runs.pop(place))
        assert outcomes(runs) == [DONE] * len(runs)
        assert sandbox.pid != first


def test_a_reply_too_long_for_a_message_fails_alone() -> None:
    with Sandbox(LARGE) as sandbox:
        texts = [ASKS] * 10
        texts[4] = program(f"return 'a' * {LONGEST}")
        texts[7] = program(f"return ImagePatch(image).simple_query('a' * {LONGEST})")
        first = sandbox.pid
        assert outcomes(posted(sandbox, texts)) == [DONE] * 4 + ["limit", DONE, DONE, "limit", DONE, DONE]
        assert sandbox.pid == first


def test_a_program_that_runs_too_long_holds_up_the_others_no_longer_than_it_may() -> None:
    with Sandbox(Limits(seconds=0.2, steps=10**9, items=10**9)) as sandbox:
        runs = posted(sandbox, [ASKS] * 7 + [program("while True:\n    pass")] + [ASKS] * 40)
        first = sandbox.pid
        assert outcomes(runs) == [DONE] * 7 + ["timeout"] + [DONE] * 40
        assert sandbox.pid == first


def test_a_child_that_hangs_costs_the_program_it_is_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.programs.channel.WALL", 2.0)
    with Sandbox(Limits(seconds=0.2)) as sandbox:
        runs = posted(sandbox, [ASKS] * 3)
        calls = [steps.send(None) for steps in runs]
        first = sandbox.pid
        os.kill(first, signal.SIGSTOP)
        for steps, call in zip(runs, calls):
            steps.post(reply(call))
        assert outcomes(runs) == ["timeout", DONE, DONE]
        assert sandbox.pid != first


def test_a_child_that_dies_at_rest_costs_nobody(shared: Sandbox) -> None:
    runs = posted(shared, [ASKS] * 50)
    calls = [steps.send(None) for steps in runs]
    first = shared.pid
    os.kill(first, signal.SIGKILL)
    for steps, call in zip(runs, calls):
        steps.post(reply(call))
    assert outcomes(runs) == [DONE] * 50
    assert shared.pid != first


def test_messages_and_replies_larger_than_the_pipes() -> None:
    limits = Limits(length=PIPE, items=10**9, steps=10**9)
    text = program("a = ImagePatch(image).simple_query('a')\nreturn [len(ImagePatch(image).simple_query(a)), a]")
    with Sandbox(limits) as sandbox:
        runs = posted(sandbox, [text] * 12)
        said = "x" * (PIPE - 1)
        for steps in runs:
            assert steps.send(None).args["question"] == "a"
            steps.post(said)  # nobody reads the questions as long that come back meanwhile
        for steps in runs:
            assert steps.send(None).args["question"] == said
            steps.post("é" * 3)
        for steps in runs:
            with pytest.raises(StopIteration) as stop:
                steps.send(None)
            assert stop.value.value == [3, said]


def test_a_run_closed_before_its_reply_is_fetched(shared: Sandbox) -> None:
    runs = posted(shared, [ASKS] * 30)
    for steps in runs[::2]:
        steps.close()
        with pytest.raises(StopIteration):
            steps.send(None)
    assert outcomes(runs[1::2]) == [DONE] * 15
    runs = posted(shared, [ASKS] * 30)
    del runs
    gc.collect()
    assert finish(start(shared)) == DONE


def test_a_posted_answer_that_no_program_can_hold_ends_the_run(shared: Sandbox) -> None:
    steps = start(shared)
    next(steps)
    with pytest.raises(TypeFailure):
        steps.post(object())
    with pytest.raises(StopIteration):
        steps.send(None)
    bad = Stub("VQA", vqa().signature, lambda call: object())
    job = Job("a", viper.parse(ASKS, SIGNATURES, isolate=shared), {"IMAGE": picture(0)})
    (trace,) = run([job], RunContext(by_name(loc(), bad)))
    assert trace.status == "type"


def test_images_among_answers_are_the_same_posted_or_not(shared: Sandbox) -> None:
    text = program("a = ImagePatch(image).simple_query('a')\nb = ImagePatch(a).simple_query('b')\nreturn [a, b, image]")
    state, others = {"IMAGE": picture(0)}, [picture(1), picture(2)]

    def answers(post: bool) -> list[Image]:
        steps = viper.parse(text, SIGNATURES, isolate=shared).start(state)
        next(steps)
        with pytest.raises(StopIteration) as stop:
            for image in others:
                if post:
                    steps.post(image)
                steps.send(image)
        return stop.value.value

    assert [image.key for image in answers(True)] == [image.key for image in answers(False)]
    assert [image.key for image in answers(True)] == [image.key for image in (*others, picture(0))]


def test_a_check_is_asked_once_a_shape(shared: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    text = program("return ImagePatch(image).simple_query('{}')")
    parser = viper.Parser(SIGNATURES, isolate=shared)
    parser.parse(text.format("one of them"))
    monkeypatch.setattr(Sandbox, "_ready", lambda *_: pytest.fail("the child was asked"))
    assert [parser.parse(text.format(word)).inputs for word in ("two", "three")] == [("IMAGE",)] * 2


LIKE = ["a", "b b", "", "é", "x" * 30, "§", "\\n", "a'b", "{q}", "\0", "\ud800", "x" * 400]


@pytest.mark.parametrize("template", ["'{}'", '"{}"', "f'{}'", "len('{}')", "{{'{}': 1}}", "'{}'.find('a')", "'a' '{}'", "'{}"])
def test_programs_of_a_shape_keep_their_own_statuses(template: str) -> None:
    """What programs of the same shape said before changes nothing: each ends as it does in a sandbox of its own."""
    limits = Limits(source=300)
    texts = [program("'" + word + "'\nreturn " + template.format(word)) for word in LIKE]

    def status(text: str, how: bool | Sandbox) -> tuple[str, Any]:
        try:
            steps = viper.parse(text, SIGNATURES, isolate=how, limits=limits).start({"IMAGE": picture(0)})
            next(steps)
        except StopIteration as stop:
            return "ok", stop.value
        except ProgramFailure as failure:
            return failure.kind, failure.message
        return "asked", None

    with Sandbox(limits) as sandbox:
        assert [status(text, sandbox) for text in texts] == [status(text, False) for text in texts]


words = st.text(st.sampled_from("ab f F \"'#\n\\§é{}()=,"), max_size=12)


@given(st.lists(words, max_size=6))
def test_a_shape_with_its_texts_is_the_program(parts: list[str]) -> None:
    source = "\n".join(parts)
    shape = shape_of(source)
    try:
        tree = ast.dump(ast.parse(source))
    except (SyntaxError, ValueError):
        return
    if shape is not None:
        whole = shape[0]
        for number, text in enumerate(shape[1]):
            whole = whole.replace(MARK.format(number), text)
        assert ast.dump(ast.parse(whole)) == tree


def test_a_shape_is_found_in_time_that_grows_with_the_text() -> None:
    for part in ('"', "'a\"", "f'{", '# "', "'a' ", 'ff"', "a'b"):
        shape_of(part * (10**6 // len(part)))  # a quadratic search would not end


def test_after_a_fork_each_side_has_its_own_process(shared: Sandbox) -> None:
    right, mine, (reading, writing) = traces([ASKS], False), shared.pid, os.pipe()
    fork = os.fork()
    if not fork:
        try:
            said = shared.pid if traces([ASKS], shared) == right else 0  # not the other side's
            os.write(writing, str(said).encode())
            shared.close()
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(fork, 0)
    with os.fdopen(reading) as answer:
        theirs = int(answer.read())
    assert theirs not in (0, mine) and shared.pid == mine and traces([ASKS], shared) == right
