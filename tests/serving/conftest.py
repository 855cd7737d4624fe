"""A server over modules small enough to know every answer beforehand, one of which can be held up."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed: pip install 'tutelage[serve]'")
pytest.importorskip("prometheus_client", reason="prometheus-client is not installed: pip install 'tutelage[serve]'")

from starlette.testclient import TestClient

from tutelage.modules.function_module import module
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.generators.base import ProgramGenerator, grammar_generator
from tutelage.programs.types import Call, Module, ModuleOutputs, Signature
from tutelage.programs.values import Box, Image
from tutelage.serving.app import application
from tutelage.serving.sample_images import Sample, scene
from tutelage.serving.settings import ServerSettings

VISPROG = "A=VQA(image=IMAGE,question='{}')\nFINAL_RESULT=RESULT(var=A)"
VIPER = "def execute_command(image):\n    return ImagePatch(image).simple_query('{}')"


@dataclass
class Echo:
    """VQA that answers with the question and the image's first byte, and keeps its batches; ``gate`` holds it up."""

    name: str = "VQA"
    version: str = "1"
    signature: Signature = Signature({"image": "image", "question": "text"}, "text")
    symbolic: bool = False
    batch_size: int = 1000
    batches: list[int] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        self.batches.append(len(calls))
        self.entered.set()
        assert self.gate.wait(30)
        if any(call.args["question"] == "die" for call in calls):
            raise SystemExit("no module should do this")
        return ModuleOutputs([f"{call.args['question']} {call.args['image'].bytes[0, 0, 0]}" for call in calls])


def picture(shade: int, size: int = 8, format: str = "PNG") -> str:
    """A flat picture in base64."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((size, size, 3), shade, np.uint8)).save(file, format)
    return base64.b64encode(file.getvalue()).decode()


@module(name="LOC")
def loc(image: Image, object: str) -> list[Box]:
    """One box, wherever one looks."""
    return [Box(1, 1, image.width - 1, image.height - 1, 0.9)]


@pytest.fixture
def echo() -> Iterator[Echo]:
    module = Echo()
    yield module
    module.gate.set()


@pytest.fixture
def served(echo: Echo) -> Callable[..., Any]:
    """``with served(queue=3) as client``: a server with these settings over the echo and the symbolic modules."""

    @contextmanager
    def served(
        key: str | None = None, writer: ProgramGenerator | None = None, sample: Sample = scene, **settings: Any
    ) -> Iterator[TestClient]:
        modules: dict[str, Module] = {**symbolic_modules(), "VQA": echo, "LOC": loc}
        app = application(modules, writer or grammar_generator(), ServerSettings(**settings), key=key, sample=sample)
        with TestClient(app) as client:
            yield client

    return served


def run(client: TestClient, question: str, shade: int = 7, **more: Any) -> Any:
    return client.post("/v1/run", json={"images": [picture(shade)], "program": VISPROG.format(question)} | more)


def held(client: TestClient) -> int:
    """How many programs the server holds."""
    line = next(line for line in client.get("/metrics").text.splitlines() if line.startswith("tutelage_held_programs "))
    return int(float(line.split()[1]))


def waiting(client: TestClient) -> int:
    """How many programs the engine has not begun."""
    return client.app._app.state.service.engine._inbox.qsize()


def until(condition: Callable[[], bool]) -> None:
    """Come back when ``condition`` holds; fail if it never does."""
    deadline = monotonic() + 20
    while not condition():
        assert monotonic() < deadline, "it never came to that"
        sleep(0.005)
