"""The engine gives each program what it gets alone, whatever comes with it."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs import viper, visprog
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.scheduler import run as run_all
from tutelage.programs.trace import Trace
from tutelage.programs.types import Call, Signature
from tutelage.programs.values import Box, Image
from tutelage.serving import engine as engine_module
from tutelage.serving.engine import BatchingEngine, PendingRun
from tutelage.serving.errors import ServiceUnavailable
from tutelage.serving.metrics import Metrics
from tutelage.serving.settings import ServerSettings

from .conftest import VISPROG, Echo

PROGRAMS = [
    ("visprog", "B=LOC(image=IMAGE,object='{}')\nN=COUNT(box=B)\nFINAL_RESULT=RESULT(var=N)"),
    (
        "visprog",
        "B=LOC(image=IMAGE,object='{}')\nI=CROP(image=IMAGE,box=B)\nA=VQA(image=I,question='{}')\nFINAL_RESULT=RESULT(var=A)",
    ),
    ("visprog", "A=VQA(image=IMAGE,question='{}')\nB=VQA(image=IMAGE,question='z')\nFINAL_RESULT=RESULT(var=A)"),
    ("visprog", "this is no program {}"),
    (
        "viper",
        "def execute_command(image):\n    patch = ImagePatch(image)\n    return [p.simple_query('{}') for p in patch.find('{}')]",
    ),
    ("viper", "def execute_command(image):\n    return 1 // len(ImagePatch(image).find(''))"),
]


class Finder(Echo):
    """LOC that finds as many boxes as the phrase has letters."""

    def run(self, calls: Any) -> Any:
        answers = super().run([Call("VQA", {"image": call.args["image"], "question": ""}) for call in calls])
        answers.values = [[Box(0, 0, 2 + number, 4) for number in range(len(call.args["object"]))] for call in calls]
        return answers


def pixels(shade: int) -> np.ndarray:
    return np.full((3, 8, 8), shade, np.uint8)


def modules(batch_size: int) -> dict[str, Any]:
    loc = Finder("LOC", signature=Signature({"image": "image", "object": "text"}, "boxes"), batch_size=batch_size)
    return {**symbolic_modules(), "LOC": loc, "VQA": Echo(batch_size=batch_size)}


def seen(trace: Trace) -> dict[str, Any]:
    return trace.to_json(timing=False) | {"id": ""}


@given(
    st.lists(st.tuples(st.sampled_from(PROGRAMS), st.sampled_from(["", "a", "bc"]), st.integers(0, 3)), min_size=1, max_size=12),
    st.integers(1, 5),
    st.booleans(),
)
@settings(max_examples=12)
def test_each_program_gets_what_it_gets_alone(wanted: list[Any], batch_size: int, batching: bool) -> None:
    images = [Image(pixels(shade)) for shade in range(4)]
    asked = [(dsl, text.replace("{}", word), {"IMAGE": images[shade]}) for (dsl, text), word, shade in wanted]
    own = modules(batch_size)
    signatures = {name: module.signature for name, module in own.items()}
    parsers = {"visprog": visprog.Parser(signatures), "viper": viper.Parser(signatures)}
    alone = [run_all([Job("", parsers[dsl].try_parse(text, ("IMAGE",)), state)], RunContext(own))[0] for dsl, text, state in asked]

    async def together() -> list[Trace]:
        engine = BatchingEngine(modules(batch_size), ServerSettings(batching=batching, max_wait_ms=1), Metrics())
        tickets = [PendingRun(dsl, text, state) for dsl, text, state in asked]
        for ticket in tickets:
            engine.submit([ticket])
            await asyncio.sleep(0)
        found = await asyncio.gather(*(ticket.future for ticket in tickets))
        await asyncio.to_thread(engine.close)
        return list(found)

    assert list(map(seen, asyncio.run(together()))) == list(map(seen, alone))


def test_what_was_submitted_before_the_end_is_finished() -> None:
    async def go() -> list[Any]:
        engine = BatchingEngine(modules(4), ServerSettings(), Metrics())
        tickets = [PendingRun("visprog", PROGRAMS[0][1].replace("{}", "ab"), {"IMAGE": Image(pixels(1))}) for _ in range(9)]
        engine.submit(tickets)
        await asyncio.to_thread(engine.close)
        with pytest.raises(ServiceUnavailable, match="stopping"):
            engine.submit(tickets)
        return [(await ticket.future).answer for ticket in tickets]

    assert asyncio.run(go()) == [2] * 9


def test_a_module_that_does_not_answer_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    async def go() -> Echo:
        echo = Echo()
        echo.gate.clear()
        engine = BatchingEngine({**symbolic_modules(), "VQA": echo}, ServerSettings(), Metrics())
        engine.submit([PendingRun("visprog", VISPROG.format("x"), {"IMAGE": Image(pixels(1))})])
        await asyncio.to_thread(echo.entered.wait)
        await asyncio.to_thread(engine.close, 0.05)
        return echo

    echo = asyncio.run(go())
    assert "a module does not answer" in caplog.text
    echo.gate.set()


def test_a_lone_client_never_waits_and_clients_in_step_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an hour to wait for others: alone, nobody was expected; after two at once, two are, and a third comes in time."""

    monkeypatch.setattr(engine_module, "MAX_WAIT_SHARE", 1e12)

    async def go() -> list[int]:
        echo = Echo()
        engine = BatchingEngine({**symbolic_modules(), "VQA": echo}, ServerSettings(max_wait_ms=3_600_000), Metrics())

        def ticket(shade: int) -> PendingRun:
            return PendingRun("visprog", VISPROG.format("x"), {"IMAGE": Image(pixels(shade))})

        for shade in range(3):
            alone = ticket(shade)
            engine.submit([alone])
            await alone.future
        echo.gate.clear()
        echo.entered.clear()
        pair = [ticket(1), ticket(2), ticket(3)]
        engine.submit(pair[:1])
        await asyncio.to_thread(echo.entered.wait)
        engine.submit(pair[1:])
        echo.gate.set()
        await asyncio.gather(*(one.future for one in pair))
        first, second = ticket(4), ticket(5)
        engine.submit([first])
        await asyncio.sleep(0.05)
        engine.submit([second])
        await asyncio.gather(first.future, second.future)
        await asyncio.to_thread(engine.close)
        return echo.batches

    assert asyncio.run(go()) == [1, 1, 1, 1, 2, 2]
