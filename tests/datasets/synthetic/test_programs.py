"""Gold programs run for real, on modules that answer as the scene would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tutelage.datasets.synthetic.oracle import Region
from tutelage.datasets.synthetic.program_noise import wrong_programs
from tutelage.datasets.synthetic.tasks import TASKS, Sample, make_task
from tutelage.programs import viper, visprog
from tutelage.programs.answers import normalize_answer
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.scheduler import run
from tutelage.programs.types import Program, Signature
from tutelage.programs.values import Box, Image

from .oracle_modules import modules, pictures


def parsed(dsl: str, text: str, signatures: Mapping[str, Signature], inputs: tuple[str, ...]) -> Program:
    return visprog.parse(text, signatures, inputs) if dsl == "visprog" else viper.parse(text, signatures)


def traces(samples: list[Sample], programs: list[str], dsl: str) -> list[Any]:
    scenes = {scene.id: scene for sample in samples for scene in sample.scenes.values()}
    context = RunContext(modules(scenes))
    jobs = []
    for sample, text in zip(samples, programs, strict=True):
        program = parsed(dsl, text, context.signatures, tuple(sample.images))
        jobs.append(Job(sample.id, program, pictures(sample.scenes)))
    return run(jobs, context)


def plain(value: Any) -> Any:
    """A program's value as gold values are written; regions without the picture's name."""
    if isinstance(value, Image):
        return value.region
    if isinstance(value, Region):
        return value[1:]
    if isinstance(value, list):
        return sorted(tuple(map(float, box[:4])) for box in value)
    return value


@pytest.mark.parametrize("dsl", ["visprog", "viper"])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_gold_programs_give_the_gold_answer_step_by_step(task: str, dsl: str) -> None:
    samples = make_task(task, 100, "select", 60)
    for sample, trace in zip(samples, traces(samples, [s.programs[dsl] for s in samples], dsl), strict=True):
        assert trace.status == "ok", (sample.question, trace.error)
        if task == "b_grounding":
            box = trace.answer[0] if dsl == "visprog" else trace.answer
            assert isinstance(box, Box) and box[:4] == sample.answer
        else:
            assert normalize_answer(trace.answer) == sample.answer, sample.question
        gold = sample.gold_steps[dsl]
        assert len(gold) == len(trace.steps)
        for step, value in zip(trace.steps, gold, strict=True):
            if dsl == "viper" and step.module == "LOC" and step.args["image"].region != (0, 0, 48, 48):
                assert len(step.output) == len(value)  # a patch has a margin: its boxes have another origin
            else:
                assert plain(step.output) == plain(value), (sample.question, step.module)


def test_wrong_programs_run_and_are_mostly_wrong() -> None:
    samples = make_task("b_gqa", 100, "select", 200) + make_task("b_nlvr", 100, "select", 100)
    samples += make_task("b_spatial", 100, "select", 50)
    rng = np.random.default_rng(0)
    wrong = [wrong_programs(sample.programs, rng) for sample in samples]
    answers = {}
    for dsl in ("visprog", "viper"):
        found = traces(samples, [programs[dsl] for programs in wrong], dsl)
        assert {trace.status for trace in found} == {"ok"}
        answers[dsl] = [normalize_answer(trace.answer) for trace in found]
        assert all(programs[dsl] != sample.programs[dsl] for programs, sample in zip(wrong, samples, strict=True))
    assert np.mean([a == b for a, b in zip(*answers.values(), strict=True)]) > 0.95
    assert np.mean([a == sample.answer for a, sample in zip(answers["visprog"], samples, strict=True)]) < 0.65
