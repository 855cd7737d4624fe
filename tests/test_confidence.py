"""How sure an answer is: the product of the steps' probabilities, and never sure where nothing was found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tutelage.agent import VisualAgent
from tutelage.modules.detection import Loc, LocConfig
from tutelage.programs.trace import RecordOrigin, StepRecord, Trace
from tutelage.programs.types import Call, Value
from tutelage.programs.values import Box, Image

from .modules.networks import loc, picture, vqa

WHOLE = Image(np.zeros((3, 8, 8), np.uint8))
BOX = Box(0, 0, 1, 1, 0.9)


def record(output: Value, dist: dict[str, float] | None = None, **args: Value) -> StepRecord:
    return StepRecord(RecordOrigin("x"), 0, 0, "M", "1", args, output, dist)


def trace(*steps: StepRecord) -> Trace:
    made = Trace("x")
    made.steps.extend(steps)
    return made


RED = record("red", {"red": 1.0})


@pytest.mark.parametrize(
    ("step", "probability"),
    [
        (record([BOX], {"found": 0.9}), 0.9),
        (record([], {"found": 0.1}), 0.9),
        (record([]), None),
        (record(WHOLE, image=WHOLE, box=[BOX]), None),
        (record(WHOLE, image=WHOLE, box=[]), 0.0),
        (record(0, box=[]), None),
    ],
    ids=["a box", "no box", "no box, unsure", "a crop", "a crop of nothing", "a count of nothing"],
)
def test_the_probability_of_a_step(step: StepRecord, probability: float | None) -> None:
    assert step.probability == (None if probability is None else pytest.approx(probability))


@pytest.mark.parametrize("dist", [None, {"found": 0.1}])
def test_an_answer_about_what_was_not_found_has_confidence_0(dist: dict[str, float] | None) -> None:
    found = trace(record([], dist), record(WHOLE, image=WHOLE, box=[]), RED)
    assert found.confidence == 0 and [step.output for step in found.fallback_steps] == [WHOLE]


def test_a_program_that_goes_on_without_a_box_is_as_sure_as_its_detector() -> None:
    assert trace(record([], {"found": 0.2}), record(0, box=[])).confidence == pytest.approx(0.8)
    assert trace(record([], {"found": 0.2}), RED).confidence == pytest.approx(0.8)
    assert trace(record([]), RED).confidence is None, "a detector that does not say how sure it is"
    assert trace(record(0, box=[])).confidence is None and not trace(RED).fallback_steps


def test_a_detector_says_how_probable_its_best_rejected_box_was() -> None:
    module = loc()
    calls = [Call("LOC", {"image": picture(seed), "object": name}) for seed in range(4) for name in ("circle", "star")]
    strict = Loc(LocConfig(module.config.classes, 4, threshold=0.999), module.network)
    said = strict.run(calls)
    best = [max(box.score for box in boxes) for boxes in strict.scored_boxes(calls, threshold=0.0)]
    assert [] in said.values
    for boxes, dist, score in zip(said.values, said.distributions, best, strict=True):
        assert dist == {"found": pytest.approx(score)} and bool(boxes) == (score >= 0.999)


@pytest.mark.parametrize("dsl", ["visprog", "viper"])
def test_an_agent_is_not_sure_of_the_colour_of_what_is_not_there(dsl: str, tmp_path: Path) -> None:
    fresh = Loc.build(LocConfig(("circle",), width=4), 0)  # sure that nothing is there
    found = VisualAgent({"LOC": fresh, "VQA": vqa()}, dsl=dsl).ask(picture(), "What color is the circle?")
    assert found.steps[0].output == []
    assert found.status == "ok" and found.answer
    if dsl == "visprog":
        assert found.confidence == 0 and [step.module for step in found.fallback_steps] == ["CROP"]
    else:  # the program itself chooses what to look at instead: that is no fallback of a module
        loc_step, vqa_step = found.steps
        assert found.confidence == pytest.approx((1 - loc_step.output_dist["found"]) * vqa_step.output_dist[found.answer])
