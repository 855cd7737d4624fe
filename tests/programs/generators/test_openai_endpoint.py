from __future__ import annotations

import json
import logging
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import InputError
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs import visprog
from tutelage.programs.generators.base import FailedProgram, GenerationFailed, GenerationRequest, tally
from tutelage.programs.generators.completions import Completion, CompletionCache, CompletionRequest
from tutelage.programs.generators.few_shot import Prompt, PromptBuilder
from tutelage.programs.generators.llm import LLMGenerator
from tutelage.programs.generators.openai_endpoint import Endpoint, EndpointSettings, RetryableError, read_completion, retry_after
from tutelage.programs.generators.pacing import Pace
from tutelage.programs.types import Signature

from .stub_server import PROGRAM, Asked, Reply, StubServer, in_turn, refused, said, serving

pytest.importorskip("httpx", reason="needs the extra `endpoint`")

SIGNATURES = {name: module.signature for name, module in symbolic_modules().items()} | {
    "LOC": Signature({"image": "image", "object": "text"}, "boxes"),
    "VQA": Signature({"image": "image", "question": "text"}, "text"),
    "VERIFY": Signature({"image": "image", "object": "text", "property": "text"}, "bool"),
}
PARSER = visprog.Parser(SIGNATURES)
KEY = "sk-very/secret+key"


def endpoint(server: StubServer, **options: Any) -> Endpoint:
    quick = {"backoff": 0.001, "timeout": 5.0, "attempts": 3}
    return Endpoint(EndpointSettings(server.url, "stub", **(quick | options)))


def writer(model: Endpoint, **options: Any) -> LLMGenerator:
    return LLMGenerator(model, PromptBuilder(SIGNATURES, shots=1), **options)


def ask(text: str = "What is it?", **options: Any) -> CompletionRequest:
    return CompletionRequest(Prompt("rules", (f"Question: {text}",)), **options)


def answer(model: Endpoint) -> Completion | GenerationFailed:
    ((number, found),) = model.complete([ask()])
    assert number == 0
    return found


@pytest.mark.parametrize("api", ["chat", "text"])
def test_a_program_is_asked_for_and_unwrapped(api: Any) -> None:
    with serving(in_turn(said(f"Sure!\n```python\n{PROGRAM}\n```\nDone.", logprobs=[0.0, -0.6931471805599453]))) as server:
        made = writer(endpoint(server, api=api))
        ((draft,),) = made.generate([GenerationRequest("What is it?")])
    (asked,) = server.asked
    assert asked.path == ("/v1/chat/completions" if api == "chat" else "/v1/completions")
    assert asked.question == "What is it?" and asked.body["temperature"] == 0 and "seed" not in asked.body
    assert draft.text == PROGRAM and draft.source == "endpoint:stub" and draft.probability == pytest.approx(0.75)
    assert tally([draft.program(PARSER, ("IMAGE",))]) == {"ok": 1}
    assert made.usage.to_json(2.0, 10.0) == {
        "answers": 1, "cached": 0, "failures": 0, "tokens_in": 100, "tokens_out": 20, "unreported": 0, "cost": pytest.approx(4e-4)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (refused(429, "slow down", retry_after="0"), "429"),
        (refused(500, "oops"), "500"),
        (refused(503, "busy"), "503"),
        (Reply(said(PROGRAM).body, cut=20), "connection"),
        (Reply(b"<html>gateway</html>"), "not JSON"),
        (Reply(said(PROGRAM).body[:40]), "not JSON"),
        (Reply(b'{"choices": []}'), "no choices"),
        (Reply(b'{"error": {"message": "overloaded"}}'), "no choices"),
        (Reply(b"[]"), "no choices"),
    ],
)
def test_a_fault_that_passes_is_tried_again_and_counted(fault: Reply, kind: str) -> None:
    with serving(in_turn(fault, said(PROGRAM))) as server:
        model = endpoint(server)
        found = answer(model)
    assert isinstance(found, Completion) and found.text == PROGRAM
    assert len(server.asked) == 2 and model.faults == {kind: 1}


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (refused(500, "oops"), "3 attempts: HTTP 500: oops"),
        (Reply(b"nonsense"), "not JSON"),
        (Reply(b'{"choices": []}'), "without choices"),
        (Reply(said(PROGRAM).body, cut=5), "3 attempts"),
    ],
)
def test_a_fault_that_stays_is_a_failure_of_that_ask_alone(fault: Reply, told: str) -> None:
    def script(asked: Any, number: int) -> Reply:
        return fault if asked.question == "bad" else said(PROGRAM)

    with serving(script) as server:
        made = writer(endpoint(server))
        drafts = [
            draft for (draft,) in made.generate([GenerationRequest("good"), GenerationRequest("bad"), GenerationRequest("fine")])
        ]
    assert [draft.failure is None for draft in drafts] == [True, False, True]
    failure = drafts[1].failure
    assert isinstance(failure, GenerationFailed) and failure.kind == "writer" and told in failure.message and failure.remedy
    assert tally(draft.program(PARSER, ("IMAGE",)) for draft in drafts) == {"ok": 2, "writer": 1}
    assert made.usage.failures == 1 and len(server.asked) == 5


def test_a_slow_answer_times_out_even_when_it_drips() -> None:
    slow = Reply(said(PROGRAM).body, pause=0.2)  # each half comes in time, both together do not
    with serving(in_turn(slow, said(PROGRAM))) as server:
        model = endpoint(server, timeout=0.3)
        assert isinstance(answer(model), Completion)
    assert model.faults == {"timeout": 1}
    with serving(in_turn(Reply(b"{}", pause=0.5))) as server:
        model = endpoint(server, timeout=0.05, attempts=2)
        found = answer(model)
    assert isinstance(found, GenerationFailed) and "no answer in 0.05 s" in found.message and model.faults == {"timeout": 2}


def test_nobody_listens() -> None:
    with serving(in_turn(said(PROGRAM))) as server:
        pass
    found = answer(endpoint(server))
    assert isinstance(found, GenerationFailed) and "3 attempts: Connect" in found.message


def test_retry_after_is_waited_for() -> None:
    with serving(in_turn(refused(429, retry_after="1"), said(PROGRAM))) as server:
        begun = time.monotonic()
        assert isinstance(answer(endpoint(server)), Completion)
        assert time.monotonic() - begun >= 1


def test_a_wait_that_is_too_long_is_not_begun() -> None:
    with serving(in_turn(refused(429, "quota", retry_after="3600"))) as server:
        found = answer(endpoint(server))
    assert isinstance(found, GenerationFailed) and "HTTP 429: quota; it asks to wait 3600 s" in found.message
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("0.5", 0.5), (formatdate(1060, usegmt=True), 60), (formatdate(900, usegmt=True), 0), ("-3", 0)]
    + [("soon", None), ("nan", None), ("inf", None), (None, None), ("", None)],
)
def test_both_forms_of_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, now=lambda: 1000.0) == seconds


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "set TUTELAGE_API_KEY"), (404, "check the address"), (302, "check the address")]
)
def test_what_no_retry_can_mend_ends_the_run(status: int, remedy: str) -> None:
    with serving(in_turn(refused(status, "no such thing", location="http://127.0.0.1:1/"))) as server:
        with pytest.raises(InputError, match=f"HTTP {status}: no such thing") as error:
            writer(endpoint(server)).generate([GenerationRequest("a"), GenerationRequest("b")])
    assert remedy in str(error.value.remedy)


def test_a_request_that_is_refused_fails_alone() -> None:
    with serving(in_turn(refused(400, "too long"))) as server:
        found = answer(endpoint(server))
    assert isinstance(found, GenerationFailed) and found.message == "HTTP 400: too long" and len(server.asked) == 1


def test_nonsense_is_a_parse_failure_and_a_cut_answer_a_limit() -> None:
    replies = {"a": said("I cannot see any image."), "b": said(PROGRAM, finish="length"), "c": said(None), "d": said("")}
    with serving(lambda asked, number: replies[asked.question]) as server:
        drafts = [draft for (draft,) in writer(endpoint(server)).generate([GenerationRequest(name) for name in replies])]
    programs = [draft.program(PARSER, ("IMAGE",)) for draft in drafts]
    assert tally(programs) == {"parse": 2, "limit": 1, "writer": 1}
    assert drafts[1].text == PROGRAM


def numbered(asked: Any, number: int) -> Reply:
    return said(f"ANSWER0=VQA(image=IMAGE,question='{asked.body.get('seed')}')\nFINAL_RESULT=RESULT(var=ANSWER0)")


def test_samples_have_their_own_seeds_and_repeat() -> None:
    with serving(numbered) as server:
        first = writer(endpoint(server), temperature=0.9).generate([GenerationRequest("a"), GenerationRequest("b")], 3)
        again = writer(endpoint(server), temperature=0.9).generate([GenerationRequest("a"), GenerationRequest("b")], 3)
        other = writer(endpoint(server), temperature=0.9, seed=1).generate([GenerationRequest("a")], 3)
    assert first == again and [len(drafts) for drafts in first] == [3, 3]
    texts = {draft.text for draft in first[0]}
    assert len(texts) == 3 and texts.isdisjoint(draft.text for draft in other[0])
    assert {asked.body["temperature"] for asked in server.asked} == {0.9}


def test_answers_are_kept_on_disk_and_failures_are_not(tmp_path: Path) -> None:
    def script(asked: Any, number: int) -> Reply:
        return refused(500) if asked.question == "bad" else said(PROGRAM, logprobs=[-0.1])

    requests = [GenerationRequest("good"), GenerationRequest("bad"), GenerationRequest("good")]
    with serving(script) as server:
        first = writer(endpoint(server), cache=CompletionCache(tmp_path))
        drafts = first.generate(requests)
        assert len(server.asked) == 4  # the second "good" is the first
        second = writer(endpoint(server), cache=CompletionCache(tmp_path))
        again = second.generate(requests)
        assert len(server.asked) == 7
        writer(endpoint(server, max_tokens=9), cache=CompletionCache(tmp_path)).generate([GenerationRequest("good")])
        assert len(server.asked) == 8
    assert [d.text for (d,) in drafts] == [d.text for (d,) in again] == [PROGRAM, "", PROGRAM]
    assert drafts[0][0].probability == again[0][0].probability
    assert (first.usage.cached, second.usage.cached, second.usage.answers, second.usage.tokens_in) == (0, 1, 0, 0)


def test_the_key_is_sent_and_stands_nowhere_else(tmp_path: Path, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    replies = {"a": said(f"# {KEY}\n{PROGRAM}"), "b": refused(400, "x" * 290 + KEY), "c": Reply(f"not {KEY} JSON".encode())}
    with serving(lambda asked, number: replies[asked.question]) as server:
        model = endpoint(server, key_variable="MY_KEY")
        drafts = writer(model, cache=CompletionCache(tmp_path)).generate([GenerationRequest(name) for name in replies])
        with pytest.raises(InputError) as error:
            server.script = in_turn(refused(401, f"Incorrect API key provided: {KEY}"))
            answer(model)
    assert all(asked.headers["authorization"] == f"Bearer {KEY}" for asked in server.asked)
    kept = [path.read_text() for path in tmp_path.rglob("*.json")]
    shown = "\n".join([repr(drafts), str(error.value), caplog.text, repr(model), repr(model.settings), *kept])
    assert len(kept) == 1 and KEY not in shown and KEY[:8] not in shown


def test_a_named_key_must_be_there_and_the_default_need_not(monkeypatch: Any) -> None:
    monkeypatch.delenv("TUTELAGE_API_KEY", raising=False)
    with pytest.raises(InputError, match="NO_SUCH_KEY: the environment variable is not set"):
        Endpoint(EndpointSettings("http://127.0.0.1:1/v1", "m", key_variable="NO_SUCH_KEY"))
    with serving(in_turn(said(PROGRAM))) as server:
        answer(endpoint(server))
    assert "authorization" not in server.asked[0].headers
    monkeypatch.setenv("TUTELAGE_API_KEY", "two\nlines")
    with pytest.raises(InputError, match="not a key") as error:
        Endpoint(EndpointSettings("http://127.0.0.1:1/v1", "m"))
    assert "two" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"url": "ftp://host/v1"}, "url"),
        ({"url": "host/v1"}, "url"),
        ({"url": "http://[::1/v1"}, "url"),
        ({"url": "http://host:port/v1"}, "url"),
        ({"url": "https://me:hunter2@host/v1"}, "url"),
        ({"url": "https://host/v1?key=hunter2"}, "url"),
        ({"attempts": 0}, "attempts"),
        ({"timeout": float("nan")}, "timeout"),
        ({"per_minute": 0.0}, "per_minute"),
        ({"price_in": -1.0}, "price_in"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError) as error:
        EndpointSettings(**({"url": "https://host/v1", "model": "m"} | change))
    assert error.value.where == where and error.value.remedy and "hunter2" not in str(error.value)


def test_requests_run_together_up_to_the_limit() -> None:
    """Three are held until all three are there; a fourth at that time would have been one too many."""
    counted: list[int] = []
    meeting = threading.Barrier(3, lambda: counted.append(len(server.asked)))

    def script(asked: Asked, number: int) -> Reply:
        meeting.wait(30)
        return said(PROGRAM)

    with serving(script) as server:
        writer(endpoint(server, concurrency=3)).generate([GenerationRequest(str(number)) for number in range(9)])
    assert counted == [3, 6, 9]


def test_a_pace_spaces_its_turns_and_holds() -> None:
    now, waits = [0.0], list[float]()

    def wait(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    pace = Pace(30, clock=lambda: now[0])
    for _ in range(3):
        pace.start(wait)
    assert waits == [2, 2]
    pace.hold(10)
    pace.start(wait)
    assert waits[-1] == 10
    now[0] += 100
    pace.start(wait)
    assert len(waits) == 3


@pytest.mark.parametrize(
    ("logprobs", "probability"),
    [
        ({"content": [{"logprob": 0}]}, 1),
        ({"token_logprobs": [None, 0.0]}, 1),
        ({"content": ["x"]}, None),
        ("x", None),
        (None, None),
    ]
    + [({"content": [{"logprob": float("nan")}, {"logprob": 5}]}, None), ({}, None)],
)
def test_probabilities_are_read_where_they_make_sense(logprobs: Any, probability: float | None) -> None:
    body = {
        "choices": [{"message": {"content": "x"}, "logprobs": logprobs}],
        "usage": {"prompt_tokens": -1, "completion_tokens": True},
    }
    found = read_completion(json.dumps(body).encode())
    assert found.probability == probability and (found.tokens_in, found.tokens_out) == (None, None)


def test_unreported_tokens_are_told_apart() -> None:
    with serving(in_turn(said(PROGRAM, usage=False))) as server:
        made = writer(endpoint(server))
        made.generate([GenerationRequest("a")])
    assert made.usage.unreported == 1 and made.usage.cost(1.0, 1.0) == 0 and made.usage.cost(None, 1.0) is None


def test_a_repair_asks_with_the_error() -> None:
    with serving(in_turn(said(PROGRAM))) as server:
        made = writer(endpoint(server))
        failure = PARSER.try_parse("ANSWER0=CONT()")
        (draft,) = made.repair([FailedProgram(GenerationRequest("What is it?"), "ANSWER0=CONT()", failure)])  # type: ignore[arg-type]
    messages = server.asked[0].body["messages"]
    assert draft.text == PROGRAM and messages[-2] == {"role": "assistant", "content": "ANSWER0=CONT()"}
    assert "This program fails" in messages[-1]["content"]


def test_progress_is_told() -> None:
    told = list[tuple[float, float]]()
    with serving(in_turn(said(PROGRAM))) as server:
        writer(endpoint(server), on_progress=lambda done, total: told.append((done, total))).generate(
            [GenerationRequest("a"), GenerationRequest("b")]
        )
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_who_stops_listening_stops_the_asking() -> None:
    with serving(in_turn(Reply(said(PROGRAM).body, pause=0.05))) as server:
        answers = endpoint(server, concurrency=2).complete([ask(str(number)) for number in range(50)])
        next(answers)
        answers.close()  # type: ignore[attr-defined]
        time.sleep(0.3)
        assert len(server.asked) <= 6


def test_halves_of_characters_neither_stop_the_asking_nor_the_keeping(tmp_path: Path) -> None:
    with serving(in_turn(Reply(b'{"choices": [{"message": {"content": "a\\ud800b"}}]}'))) as server:
        made = writer(endpoint(server), cache=CompletionCache(tmp_path))
        ((draft,),) = made.generate([GenerationRequest("What is \udcff?")])
    assert draft.text == "a?b" and server.asked[0].question == "What is \udcff?"
    assert len(list(tmp_path.rglob("*.json"))) == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "text", "logprobs", "logprob", "token_logprobs", "error", "usage"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    JSON | st.builds(lambda inner: {"choices": [{"message": {"content": "x"}, "logprobs": inner}], "usage": inner}, JSON),
    st.sampled_from(["chat", "text"]),
)
def test_any_json_is_an_answer_or_a_typed_fault(body: Any, api: str) -> None:
    try:
        found = read_completion(json.dumps(body).encode(), api)
    except (GenerationFailed, RetryableError) as fault:
        assert len(str(fault)) < 600
    else:
        assert isinstance(found.text, str) and (found.probability is None or 0 <= found.probability <= 1)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_typed_fault(content: bytes) -> None:
    with pytest.raises((GenerationFailed, RetryableError)):
        read_completion(content)
