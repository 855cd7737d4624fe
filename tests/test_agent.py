from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import tutelage
from tutelage.agent import VisualAgent, VisualQuestion
from tutelage.errors import InputError
from tutelage.programs.generators.base import Candidate, FailedProgram, GenerationRequest
from tutelage.programs.types import Call, Module, ModuleOutputs, RuntimeFailure, Signature, Value
from tutelage.programs.values import Box, Image

COLOR = "What color is the circle?"
COUNT = "How many circles are there?"


class Detector:
    """Finds as many boxes as the image's first pixel says, with probability 0.8."""

    name, version, symbolic, batch_size = "LOC", "1", False, 8
    signature = Signature({"image": "image", "object": "text"}, "boxes")

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        self.batches.append(len(calls))
        found: list[Value] = [[Box(0, 0, 4, 4)] * int(call.args["image"].bytes[0, 0, 0]) for call in calls]
        return ModuleOutputs(found, [{"found": 0.8}] * len(calls))


class Answerer:
    """Answers ``red`` with probability 0.5."""

    name, version, symbolic, batch_size = "VQA", "1", False, 8
    signature = Signature({"image": "image", "question": "text"}, "text")

    def run(self, calls: Sequence[Call]) -> ModuleOutputs:
        return ModuleOutputs(["red"] * len(calls), [{"red": 0.5, "blue": 0.5}] * len(calls))


class Writer:
    """Gives fixed programs, and one repaired program."""

    name = "fixed"

    def __init__(self, *texts: str, repaired: str = "") -> None:
        self.texts, self.repaired = texts, repaired
        self.failures: list[FailedProgram] = []

    def generate(self, requests: Sequence[GenerationRequest], n: int = 1) -> list[list[Candidate]]:
        return [[Candidate(text, self.name) for text in self.texts[:n]] for _ in requests]

    def repair(self, failed_programs: Sequence[FailedProgram]) -> list[Candidate]:
        self.failures.extend(failed_programs)
        return [Candidate(self.repaired, self.name) for _ in failed_programs]


def modules() -> dict[str, Module]:
    return {"LOC": Detector(), "VQA": Answerer()}


def image(count: int = 1) -> Image:
    return Image.from_array(np.full((3, 16, 16), count, np.uint8))


def says(expression: str) -> str:
    return f'ANSWER0=EVAL(expr="{expression}")\nFINAL_RESULT=RESULT(var=ANSWER0)'


BROKEN = "ANSWER0=NOSUCH(image=IMAGE)\nFINAL_RESULT=RESULT(var=ANSWER0)"


@pytest.mark.parametrize("dsl", ["visprog", "viper"])
def test_an_answer_comes_with_its_confidence_and_steps(dsl: Any) -> None:
    trace = tutelage.VisualAgent(modules(), dsl=dsl).ask(image(), COLOR)
    assert (trace.status, trace.answer, trace.fallback) == ("ok", "red", False)
    assert trace.confidence == pytest.approx(0.8 * 0.5)
    assert {"LOC", "VQA"} <= {step.module for step in trace.steps}


def test_a_batch_is_answered_in_order_and_its_calls_share_batches() -> None:
    parts = modules()
    counts = [3, 0, 2, 1]
    traces = VisualAgent(parts).ask_many([(image(count), COUNT) for count in counts])
    assert [trace.answer for trace in traces] == counts
    assert [trace.id for trace in traces] == ["0", "1", "2", "3"]
    assert parts["LOC"].batches == [4]  # type: ignore[attr-defined]
    assert VisualAgent(parts).ask_many([]) == []


def test_a_question_that_no_generator_can_write_is_a_typed_failure_and_harms_no_other() -> None:
    failed, answered = VisualAgent(modules()).ask_many([(image(), "Tell me a joke"), (image(2), COUNT)])
    assert (failed.status, failed.answer, failed.confidence) == ("parse", None, None)
    assert "Tell me a joke" in str(failed.error)
    assert (answered.status, answered.answer) == ("ok", 2)


def test_a_program_that_calls_an_unknown_module_is_a_typed_failure() -> None:
    trace = VisualAgent(modules(), Writer(BROKEN)).ask(image(), COLOR)
    assert trace.status == "unknown_module" and "NOSUCH" in str(trace.error)


def test_image_files_are_read_one_or_a_pair(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    PIL.Image.fromarray(np.full((16, 16, 3), 2, np.uint8)).save(path)
    agent = VisualAgent(modules())
    assert agent.ask(path, COUNT).answer == agent.ask(str(path), COUNT).answer == 2
    pair = agent.ask((path, image(1)), "The left image contains a circle.")
    assert (pair.status, pair.answer) == ("ok", True)


def test_images_that_cannot_be_read_name_themselves(tmp_path: Path) -> None:
    agent = VisualAgent(modules())
    with pytest.raises(InputError, match="absent.png"):
        agent.ask(tmp_path / "absent.png", COLOR)
    with pytest.raises(InputError, match="3 images"):
        agent.ask([image()] * 3, COLOR)
    with pytest.raises(InputError, match="int is no image"):
        agent.ask(3, COLOR)  # type: ignore[arg-type]


def test_a_fallback_is_shown_as_such() -> None:
    agent = VisualAgent(modules(), fallback=True)
    trace, other = agent.ask_many([(image(), "Tell me a joke"), (image(), COLOR)])
    assert (trace.status, trace.answer, trace.fallback, trace.confidence) == ("parse", "red", True, 0.5)
    assert trace.error and (other.status, other.fallback) == ("ok", False)


def test_a_fallback_has_no_vote() -> None:
    writer = Writer(BROKEN, BROKEN, says("3"))
    (solution,) = VisualAgent(modules(), writer, samples=3, fallback=True).solve([(image(), COLOR)]).solutions
    assert (solution.trace.answer, solution.trace.fallback, solution.vote.winner) == (3, False, 2)
    assert solution.vote.failures == {"unknown_module": 2} and solution.text == says("3")


def test_the_majority_of_several_programs_is_taken() -> None:
    agent = VisualAgent(modules(), Writer(says("1"), says("2"), says("1 + 1")), samples=3)
    (solution,) = agent.solve([VisualQuestion(image(), COLOR, "q7")]).solutions
    assert (solution.trace.answer, solution.trace.id) == (2, "q7")
    assert solution.vote.share == pytest.approx(2 / 3) and solution.text == says("2")


def test_a_failed_program_goes_back_to_its_generator_once() -> None:
    writer = Writer(BROKEN, repaired=says("5"))
    solutions, repairs = VisualAgent(modules(), writer, repair=True).solve([(image(), COLOR)])
    assert solutions[0].trace.answer == 5 and solutions[0].text == says("5")
    assert [failure.failure.kind for failure in writer.failures] == ["unknown_module"]
    assert repairs is not None and dict(repairs.mended) == {"unknown_module": 1}


def test_a_module_that_fails_gives_a_typed_failure() -> None:
    class Failing(Detector):
        def run(self, calls: Sequence[Call]) -> ModuleOutputs:
            raise RuntimeFailure("no weights")

    trace = VisualAgent({**modules(), "LOC": Failing()}).ask(image(), COUNT)
    assert trace.status == "runtime" and "no weights" in str(trace.error)


def test_a_symbolic_module_of_the_user_stands_before_the_built_in_one() -> None:
    @tutelage.module(name="COUNT", symbolic=True)
    def count(box: list[Box]) -> int:
        return 100 + len(box)

    assert VisualAgent({**modules(), "COUNT": count}).ask(image(2), COUNT).answer == 102


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repair": True}, "cannot repair"),
        ({"samples": 0}, "0 programs per question"),
        ({"dsl": "sql"}, "unknown language 'sql'"),
    ],
)
def test_settings_that_do_not_hold_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VisualAgent(modules(), **settings)


def test_modules_that_do_not_hold_are_refused() -> None:
    with pytest.raises(InputError, match="VQA"):
        VisualAgent({"LOC": Detector()}, fallback=True)
    with pytest.raises(InputError, match="LOC: str is no module"):
        VisualAgent({"LOC": "detector"})  # type: ignore[dict-item]


def test_a_generator_that_gives_no_candidate_is_refused() -> None:
    with pytest.raises(InputError, match="fixed: .*empty"):
        VisualAgent(modules(), Writer()).ask(image(), COLOR)


def test_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "agent.md").read_text()
    script = tmp_path / "page.py"
    script.write_text(page.partition("```python\n")[2].partition("```")[0])
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *steps = done.stdout.splitlines()
    assert first == "red ok" and [line.split()[0] for line in steps] == ["LOC", "CROP", "VQA", "RESULT"]
