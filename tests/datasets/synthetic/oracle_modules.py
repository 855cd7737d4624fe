"""Modules that answer as the scene itself would: LOC, VQA and VERIFY without error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tutelage.datasets.synthetic import oracle
from tutelage.datasets.synthetic.oracle import Region
from tutelage.datasets.synthetic.render import render
from tutelage.datasets.synthetic.scene import Scene
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.types import Call, Module, ModuleOutputs, Signature, Value
from tutelage.programs.values import Box, Image


@dataclass
class Oracle:
    name: str
    signature: Signature
    scenes: Mapping[str, Scene]
    answer: Callable[[Scene, Region, Call], Value]
    version: str = "1"
    symbolic: bool = False
    batch_size: int = 64

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        values = []
        for call in calls:
            image = call.args["image"]
            values.append(self.answer(self.scenes[image.root_key], Region("", *image.region), call))
        return ModuleOutputs(values)


def modules(scenes: Mapping[str, Scene]) -> dict[str, Module]:
    """``scenes`` by the keys of their images."""
    image = {"image": "image"}
    made = [
        Oracle(
            "LOC",
            Signature({**image, "object": "text"}, "boxes"),
            scenes,
            lambda scene, region, call: [Box(*b) for b in oracle.locate(scene, region, call.args["object"])],
        ),
        Oracle(
            "VQA",
            Signature({**image, "question": "text"}, "text"),
            scenes,
            lambda scene, region, call: oracle.answer_question(scene, region, call.args["question"]),
        ),
        Oracle(
            "VERIFY",
            Signature({**image, "object": "text", "property": "text"}, "bool"),
            scenes,
            lambda scene, region, call: oracle.verify(scene, region, call.args["object"], call.args["property"]),
        ),
    ]
    return {**symbolic_modules(), **{module.name: module for module in made}}


def pictures(scenes: Mapping[str, Scene]) -> dict[str, Image]:
    """The images of ``scenes`` by their names in programs, keyed by scene id."""
    return {name: Image.from_array(render(scene), scene.id) for name, scene in scenes.items()}
