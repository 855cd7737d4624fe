"""Modules and programs small enough to know every answer beforehand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tutelage.programs.types import Call, Module, ModuleOutputs, ProgramRun, Signature, Value
from tutelage.programs.values import Box, Image


@dataclass
class Stub:
    """A batched module that answers by a function of the call and keeps the batches it was given."""

    name: str
    signature: Signature
    answer: Callable[[Call], Value]
    version: str = "1"
    symbolic: bool = False
    batch_size: int = 4
    batches: list[list[Call]] = field(default_factory=list)

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        self.batches.append(list(calls))
        values = [self.answer(call) for call in calls]
        return ModuleOutputs(values, [{"sure": 1.0}] * len(calls), ["unknown" in str(call.args) for call in calls])

    @property
    def calls(self) -> list[Call]:
        return [call for batch in self.batches for call in batch]


def picture(number: int, size: int = 16) -> Image:
    """A noise image, another for each number."""
    return Image(np.random.default_rng(number).integers(0, 256, (3, size, size), dtype=np.uint8))


def find(call: Call) -> list[Box]:
    """As many boxes as the phrase has letters, less one, placed by the image."""
    x = int(call.args["image"].bytes[0, 0, 0]) % 8
    return [Box(x, 2.0, x + 6.0, 9.0, 0.9 - 0.1 * number) for number in range(len(call.args["object"]) - 1)]


def describe(call: Call) -> str:
    """A word drawn from the crop's pixels and the question."""
    seed = int(call.args["image"].bytes.sum()) + len(call.args["question"])
    return ("red", "blue", "yes", "no", "3")[seed % 5]


def loc(**fields: object) -> Stub:
    return Stub("LOC", Signature({"image": "image", "object": "text"}, "boxes"), find, **fields)


def vqa(**fields: object) -> Stub:
    return Stub("VQA", Signature({"image": "image", "question": "text"}, "text"), describe, **fields)


@dataclass
class Handwritten:
    """A program given as a Python generator: branches and loops that VisProg's lines cannot write."""

    body: Callable[[Mapping[str, Value]], ProgramRun]
    dsl: str = "handwritten"
    text: str = ""
    hash: str = "0"
    inputs: tuple[str, ...] = ("IMAGE",)

    def start(self, state: Mapping[str, Value]) -> ProgramRun:
        return self.body(state)


def by_name(*modules: Module) -> dict[str, Module]:
    return {module.name: module for module in modules}
