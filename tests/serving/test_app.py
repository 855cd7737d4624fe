"""What clients see: answers, limits and faults, each with its status code, kind and remedy."""

from __future__ import annotations

import base64
import io
import json
import logging
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import sleep
from typing import Any

import numpy as np
import PIL.Image
import pydantic
import pytest

from tutelage import assets
from tutelage.programs.generators.base import Candidate, GenerationFailed, GenerationRequest
from tutelage.programs.generators.grammar import generate
from tutelage.serving import schemas
from tutelage.serving.engine import FAST_BATCH_S
from tutelage.serving.sample_images import photograph, scene

from .conftest import VIPER, VISPROG, Echo, held, picture, run, until, waiting

Served = Callable[..., Any]


def problem(response: Any) -> tuple[int, str]:
    body = response.json()["error"]
    assert body["message"] and body["remedy"]
    return response.status_code, body["kind"]


@pytest.mark.parametrize(("dsl", "text"), [("visprog", VISPROG), ("viper", VIPER)])
def test_a_program_runs_on_a_picture(served: Served, dsl: str, text: str) -> None:
    with served() as client:
        response = client.post("/v1/run", json={"images": [picture(9)], "program": text.format("what"), "dsl": dsl})
    answer = schemas.RunResponse(**response.json())
    assert response.status_code == 200 and answer.answer == "what 9" and answer.status == "ok"
    assert [step["module"] for step in answer.steps or []][:1] == ["VQA"]
    assert answer.program == schemas.ProgramInfo(dsl=dsl, text=text.format("what"), source="client")
    assert (answer.images[0].width, answer.images[0].notes) == (8, [])


def test_a_question_becomes_a_program(served: Served) -> None:
    with served() as client:
        asked = {"images": [picture(1)], "question": "What color is the circle?", "trace": False}
        answer = schemas.RunResponse(**client.post("/v1/solve", json=asked).json())
        unread = client.post("/v1/solve", json=asked | {"question": "Tell me a joke"})
    assert answer.program is not None and "VQA" in answer.program.text and answer.program.source == "grammar"
    assert str(answer.answer).endswith(" 1") and answer.steps is None
    assert problem(unread) == (422, "parse")


def test_two_pictures_are_left_and_right(served: Served) -> None:
    text = "B=VQA(image=RIGHT,question='r')\nFINAL_RESULT=RESULT(var=B)"
    with served() as client:
        answer = client.post("/v1/run", json={"images": [picture(1), picture(2)], "program": text}).json()
    assert answer["answer"] == "r 2"


def test_a_batch_answers_each_item_by_itself(served: Served, echo: Echo) -> None:
    items = [
        {"images": ["a"], "program": VISPROG.format("x")},
        {"images": ["b"], "program": VISPROG.format("x")},
        {"images": ["b"], "program": "no program"},
        {"images": ["a"], "question": "What color is the circle?"},
        {"images": ["a"], "question": "Tell me a joke"},
    ]
    with served() as client:
        asked = {"pictures": {"a": picture(1), "b": picture(2), "unused": "not base64"}, "items": items}
        response = client.post("/v1/batch", json=asked)
    answers = schemas.BatchResponse(**response.json()).answers
    assert response.status_code == 200
    assert [answer.status for answer in answers] == ["ok", "ok", "parse", "ok", "parse"]
    assert [answer.answer for answer in answers][:3] == ["x 1", "x 2", None]
    assert sum(echo.batches) == 3
    assert all(answer.error is not None and answer.error.remedy for answer in answers if answer.status != "ok")


def test_requests_under_way_meet_in_one_batch_and_get_the_answers_they_get_alone(served: Served, echo: Echo) -> None:
    questions = [f"q{number}" for number in range(12)]

    def asked(client: Any) -> list[Any]:
        with ThreadPoolExecutor(13) as pool:
            first = pool.submit(run, client, "first")
            assert echo.entered.wait(10)
            rest = [pool.submit(run, client, question, number) for number, question in enumerate(questions)]
            until(lambda: waiting(client) == 12)
            sleep(2 * FAST_BATCH_S)  # the first batch is no brief one, for which few would be gathered
            echo.gate.set()
            first.result()
            return [future.result().json() for future in rest]

    found = {}
    for batching in (True, False):
        echo.gate.clear()
        echo.entered.clear()
        echo.batches.clear()
        with served(batching=batching) as client:
            found[batching] = asked(client)
        assert echo.batches == ([1, 12] if batching else [1] * 13)
    for row in (*found[True], *found[False]):
        row.pop("ms")
        for step in row["steps"]:
            step.pop("ms")
    assert found[True] == found[False]
    assert [row["answer"] for row in found[True]] == [f"q{number} {number}" for number in range(12)]


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("hello", "refused"),
        ("A=VQA(image=IMAGE", "parse"),
        ("A=NOPE(image=IMAGE)\nFINAL_RESULT=RESULT(var=A)", "unknown_module"),
        ("A=VQA(image=LEFT,question='x')\nFINAL_RESULT=RESULT(var=A)", "undefined_var"),
        ("A=VQA(picture=IMAGE)\nFINAL_RESULT=RESULT(var=A)", "type"),
    ],
)
def test_a_program_that_fails_has_a_kind(served: Served, program: str, kind: str) -> None:
    with served() as client:
        response = client.post("/v1/run", json={"images": [picture(1)], "program": program})
    assert response.status_code == 422 and response.json()["status"] == response.json()["error"]["kind"] == kind


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("import os\ndef execute_command(image):\n    return os.getcwd()", "refused"),
        ("def execute_command(image):\n    return image.__class__", "refused"),
        ("def execute_command(image):\n    while True:\n        pass", "timeout"),
        ("def execute_command(image):\n    return [1, 2][10]", "runtime"),
    ],
)
def test_a_hostile_program_is_stopped_and_the_next_is_served(served: Served, body: str, kind: str) -> None:
    with served(program_seconds=0.5) as client:
        response = client.post("/v1/run", json={"images": [picture(1)], "program": body, "dsl": "viper"})
        assert response.status_code == 422 and response.json()["status"] == kind, response.text
        good = {"images": [picture(3)], "program": VIPER.format("next"), "dsl": "viper"}
        assert client.post("/v1/run", json=good).json()["answer"] == "next 3"


def test_a_program_may_not_ask_for_ever(served: Served) -> None:
    text = "def execute_command(image):\n    return [ImagePatch(image).simple_query(str(i)) for i in range(9)]"
    with served(program_calls=5) as client:
        asked = {"images": [picture(1)], "program": text, "dsl": "viper"}
        assert client.post("/v1/run", json=asked).json()["status"] == "limit"


def bomb() -> str:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return base64.b64encode(
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    ).decode()


@pytest.mark.parametrize(
    ("data", "code", "kind"),
    [
        (bomb(), 413, "too_large"),
        (picture(1, 40), 413, "too_large"),  # 1,600 pixels where 1,000 are allowed
        ("", 422, "input"),
        ("%%%", 422, "input"),
        (base64.b64encode(b"hello, I am a text").decode(), 422, "input"),
        (picture(1, 20)[:40], 422, "input"),
    ],
)
def test_a_picture_that_is_none_or_too_large(served: Served, data: str, code: int, kind: str) -> None:
    with served(image_pixels=1000) as client:
        response = client.post("/v1/run", json={"images": [data], "program": VISPROG.format("x")})
        assert problem(response) == (code, kind)
        assert response.json()["error"]["where"] == "images[0]"
        assert run(client, "still here").status_code == 200


def test_what_had_to_be_done_to_a_picture_is_said_and_counted(served: Served) -> None:
    file = io.BytesIO()
    red, blue = PIL.Image.new("RGB", (40, 20), (255, 0, 0)), PIL.Image.new("RGB", (40, 20), (0, 0, 255))
    red.save(file, "GIF", save_all=True, append_images=[blue])
    with served(longest_side=10) as client:
        asked = {"images": [base64.b64encode(file.getvalue()).decode()], "program": VISPROG.format("x")}
        answer = client.post("/v1/run", json=asked).json()
        figures = client.get("/metrics").text
    seen = answer["images"][0]
    assert (answer["answer"], seen["width"], seen["height"]) == ("x 255", 10, 5)
    assert seen["notes"] == ["the first of several frames", "reduced from 40 x 20"]
    assert 'tutelage_images_total{note="reduced"} 1.0' in figures


def test_a_body_over_the_limit(served: Served) -> None:
    with served(body_mib=0.01) as client:
        stated = client.post("/v1/run", json={"images": ["A" * 20_000], "program": "x"})
        chunks = client.post("/v1/run", content=iter([b"x" * 6000] * 3), headers={"content-type": "application/json"})
        assert problem(stated) == problem(chunks) == (413, "too_large")
        assert run(client, "still here").status_code == 200


def test_a_body_that_is_no_request(served: Served) -> None:
    bad: list[Any] = [
        {"images": [], "program": "x"},
        {"images": [picture(1)] * 3, "program": "x"},
        {"images": [picture(1)]},
        {"images": [picture(1)], "program": "x", "dsl": "cobol"},
        {"images": [picture(1)], "program": "x" * 20_001},
        {"images": [picture(1)], "program": "x", "surprise": 1},
        [],
    ]
    with served() as client:
        for body in bad:
            assert problem(client.post("/v1/run", json=body)) == (422, "input")
        assert problem(client.post("/v1/run", content=b"{", headers={"content-type": "application/json"})) == (422, "input")
        both = {"pictures": {"a": picture(1)}, "items": [{"images": ["a"], "program": "x", "question": "y"}]}
        assert problem(client.post("/v1/batch", json=both)) == (422, "input")
        absent = {"pictures": {}, "items": [{"images": ["a"], "program": "x"}]}
        assert problem(client.post("/v1/batch", json=absent)) == (422, "input")
        assert problem(client.get("/v1/run")) == (405, "request")
        assert problem(client.get("/nothing")) == (404, "request")


def test_beyond_the_queue_clients_are_told_to_come_back(served: Served, echo: Echo) -> None:
    echo.gate.clear()
    with served(queue=3) as client, ThreadPoolExecutor(9) as pool:
        waiting = [pool.submit(run, client, f"q{number}") for number in range(3)]
        until(lambda: held(client) == 3)
        refused = [run(client, "no room") for _ in range(4)]
        assert {problem(response) for response in refused} == {(429, "busy")}
        assert {response.headers["Retry-After"] for response in refused} == {"1"}
        echo.gate.set()
        assert [future.result().json()["answer"] for future in waiting] == ["q0 7", "q1 7", "q2 7"]
        assert run(client, "again").json()["answer"] == "again 7"
        assert held(client) == 0
        items = [{"images": ["a"], "program": VISPROG.format("x")}] * 4
        assert problem(client.post("/v1/batch", json={"pictures": {"a": picture(1)}, "items": items})) == (429, "busy")
        assert held(client) == 0


def test_pictures_that_do_not_fit_into_memory_are_refused(served: Served) -> None:
    with served(memory_mib=1) as client:
        assert problem(run(client, "x", images=[picture(1, 700)])) == (429, "busy")
        assert run(client, "x").status_code == 200


def test_an_answer_that_comes_too_late(served: Served, echo: Echo) -> None:
    echo.gate.clear()
    with served(timeout_s=0.2) as client:
        assert problem(run(client, "slow")) == (504, "timeout")
        echo.gate.set()
        assert run(client, "fast").json()["answer"] == "fast 7"
        assert held(client) == 0


def test_nobody_waits_so_the_program_ends(served: Served, echo: Echo) -> None:
    """Of a program whose client gave up, the step under way is the last."""
    text = "def execute_command(image):\n    return [ImagePatch(image).simple_query(word) for word in 'ab']"
    with served(timeout_s=0.5) as client:
        until(lambda: run(client, "x", program=VIPER.format("x"), dsl="viper").status_code == 200)  # the sandbox has begun
        echo.gate.clear()
        echo.batches.clear()
        late = client.post("/v1/run", json={"images": [picture(1)], "program": text, "dsl": "viper"})
        assert problem(late) == (504, "timeout")
        echo.gate.set()
        assert run(client, "next").json()["answer"] == "next 7"
    assert len(echo.batches) == 2


def test_the_key(served: Served) -> None:
    with served(key="s3cret") as client:
        assert problem(run(client, "x")) == (401, "key")
        for wrong in ("", "s3cre", "s3cret2", "Bearer"):
            headers = {"Authorization": f"Bearer {wrong}"}
            refused = client.get("/v1/modules", headers=headers)
            assert problem(refused) == (401, "key") and refused.headers["WWW-Authenticate"] == "Bearer"
        assert client.get("/v1/modules", headers={"Authorization": "Bearer s3cret"}).status_code == 200
        assert client.get("/v1/modules", headers={"X-API-Key": "s3cret"}).status_code == 200
        assert [client.get(path).status_code for path in ("/", "/healthz", "/metrics", "/openapi.json")] == [200, 200, 401, 401]


def test_a_line_in_the_log_a_request_and_no_key_in_it(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tutelage.serving")
    with served(key="s3cret") as client:
        client.headers["X-API-Key"] = "s3cret"
        run(client, "x")
        client.post("/v1/run", json={}, headers={"X-API-Key": "wrong"})
        client.post("/v1/run", json={})
    rows = [json.loads(record.message) for record in caplog.records if record.name == "tutelage.serving"]
    assert [(row["path"], row["code"]) for row in rows] == [("/v1/run", 200), ("/v1/run", 401), ("/v1/run", 422)]
    assert rows[0]["status"] == "ok" and rows[0]["ms"] > 0 and rows[1]["kind"] == "key"
    assert "s3cret" not in caplog.text and "wrong" not in caplog.text


class Broken:
    """A writer that is asked for what it cannot do: a model that gives nothing, then a fault of its own."""

    name = "broken"

    def generate(self, requests: Sequence[GenerationRequest], n: int = 1) -> list[list[Candidate]]:
        if any("joke" in request.question for request in requests):
            raise ZeroDivisionError("secret of the inside")
        return [[Candidate("", self.name, failure=GenerationFailed("the model is away", remedy="wait"))] for _ in requests]


def test_a_writer_that_gives_nothing_and_one_that_breaks(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with served(writer=Broken()) as client:
        asked = {"images": [picture(1)], "question": "What color is the circle?"}
        assert problem(client.post("/v1/solve", json=asked)) == (502, "writer")
        broken = client.post("/v1/solve", json=asked | {"question": "a joke"})
        assert problem(broken) == (500, "fault") and "secret" not in broken.text
        assert run(client, "next").json()["answer"] == "next 7"
    assert "secret of the inside" in caplog.text, "the log says more"


def test_an_engine_that_ends_is_told_of(served: Served, echo: Echo) -> None:
    """Whatever ends it, those who wait and those who come get a typed answer, and the health check turns."""
    with served() as client:
        assert problem(run(client, "die")) == (503, "stopped")
        assert problem(run(client, "later")) == (503, "stopped")
        assert client.get("/healthz").status_code == 503


def test_the_pictures_that_steps_looked_at(served: Served) -> None:
    with served() as client:
        answer = run(client, "x", pictures=True).json()
        large = run(client, "x", images=[picture(5, 1200)], pictures=True).json()
    (key,) = answer["pictures"]
    assert key == answer["steps"][0]["args"]["image"]["image"]
    shown = PIL.Image.open(io.BytesIO(base64.b64decode(answer["pictures"][key]["src"].partition(",")[2])))
    np.testing.assert_array_equal(np.asarray(shown), np.full((8, 8, 3), 7))
    (big,) = large["pictures"].values()
    assert (big["width"], big["src"][:15]) == (1200, "data:image/jpeg")


def test_the_schema_describes_examples_that_work(served: Served) -> None:
    models = {"/v1/solve": schemas.SolveRequest, "/v1/run": schemas.RunRequest, "/v1/batch": schemas.BatchRequest}
    with served() as client:
        schema = client.get("/openapi.json").json()
        for path, model in models.items():
            described = schema["components"]["schemas"][model.__name__]
            assert schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"] == {
                "$ref": f"#/components/schemas/{model.__name__}"
            }
            for example in described["examples"]:
                assert model.model_validate(example).model_dump(exclude_unset=True) == example
                response = client.post(path, json=example)
                assert response.status_code == 200, response.text
                (schemas.BatchResponse if path == "/v1/batch" else schemas.RunResponse).model_validate(response.json())
        for example in schema["components"]["schemas"]["ErrorResponse"]["examples"]:
            schemas.ErrorResponse.model_validate(example)
        with pytest.raises(pydantic.ValidationError):
            schemas.RunRequest.model_validate({"images": [], "program": "x"})
        assert {"/v1/solve", "/v1/run", "/v1/batch", "/v1/modules", "/v1/sample", "/healthz", "/metrics"} == set(schema["paths"])


def test_a_scene_to_try(served: Served) -> None:
    with served() as client:
        first, again, other = (client.get(f"/v1/sample?number={number}").json() for number in (1, 1, 2))
        assert first == again != other
        assert client.post("/v1/run", json={"images": [first["picture"]], "program": VISPROG.format("x")}).status_code == 200
        assert problem(client.get("/v1/sample?number=-1")) == (422, "input")
    for number in range(200):
        for question in scene(number)["questions"]:
            assert generate(question, ("IMAGE",)).visprog, question


def test_a_photograph_to_try(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(sample=photograph) as client:
        if assets.asset("photos").find() is not None:
            first = client.get("/v1/sample?number=0").json()
            assert {"picture", "type", "questions"} == set(first) and first == client.get("/v1/sample?number=9").json()
            program = {"images": [first["picture"]], "program": VISPROG.format("x")}
            assert client.post("/v1/run", json=program).json()["images"][0]["width"] == 512
            for question in first["questions"]:
                assert generate(question, ("IMAGE",), photo=True).visprog, question
        monkeypatch.setattr(assets.Asset, "find", lambda self: None)
        refused = client.get("/v1/sample")
        assert problem(refused) == (422, "input") and refused.json()["error"]["remedy"] == "tutelage assets fetch photos"


def test_a_key_without_its_scheme_is_refused(served: Served) -> None:
    with served(key="s3cret") as client:
        for given in ("s3cret", "Basic s3cret", "Bearers3cret", "Token s3cret"):
            assert problem(client.get("/v1/modules", headers={"Authorization": given})) == (401, "key")
        assert client.get("/v1/modules", headers={"Authorization": "bearer s3cret"}).status_code == 200


def test_every_answer_tells_browsers_to_take_it_as_it_is(served: Served) -> None:
    with served(key="s3cret") as client:
        answers = [client.get(path) for path in ("/", "/healthz", "/metrics", "/none")]
        answers.append(client.post("/v1/run", json={}, headers={"X-API-Key": "s3cret"}))
    for answer in answers:
        assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


def test_a_long_path_is_cut_in_the_log(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with served() as client:
        client.get("/" + "a" * 20_000)
    assert caplog.records and all(
        len(record.getMessage()) < 1_000 for record in caplog.records if record.name == "tutelage.serving"
    )
