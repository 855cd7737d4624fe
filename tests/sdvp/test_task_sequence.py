"""Stages one after the other, tasks routed to their own modules, and stages learned from final answers alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tutelage.errors import InputError
from tutelage.modules.function_module import module
from tutelage.programs.values import Box, Image
from tutelage.sdvp.final_answer.baseline import distill_from_answers
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.questions import accuracy
from tutelage.sdvp.task import SdvpTask
from tutelage.sdvp.task_sequence import distill_tasks
from tutelage.sdvp.teacher_check import answer_probe
from tutelage.sdvp.teachers import from_callable

from . import small

OPTIONS = SdvpOptions(settings=small.SETTINGS)


def stage(name: str, first: int = 0) -> SdvpTask:
    return SdvpTask(name, small.questions(30, first), {"COLOR": from_callable(small.brightest)})


def test_stages_go_on_from_one_another_or_start_anew_and_answer_their_own_task() -> None:
    modules, stages = small.modules(), [stage("one"), stage("two", 500)]
    merged = distill_tasks(modules, stages, OPTIONS)
    routed = distill_tasks(modules, stages, OPTIONS, by_task=True)
    assert [lesson.stage for lesson in merged.reports] == [lesson.stage for lesson in routed.reports] == ["one", "two"]
    assert merged.modules_for("one") is merged.modules_for("other") is merged.general
    assert routed.modules_for("other") is modules, "a task without its own modules keeps the first ones"
    assert routed.modules_for("one")["COLOR"].version != routed.modules_for("two")["COLOR"].version
    alone = distill_tasks(modules, stages[1:], OPTIONS)
    assert routed.modules_for("two")["COLOR"].version == alone.general["COLOR"].version != merged.general["COLOR"].version


def test_a_stage_is_learned_from_final_answers_and_read_back(tmp_path: Path) -> None:
    modules, options = small.modules(), replace(OPTIONS, settings=replace(small.SETTINGS, steps=30))
    learned = distill_tasks(modules, [stage("one")], options, tmp_path, learn=distill_from_answers)
    assert accuracy(small.questions(30), learned.general) >= 0.9 > accuracy(small.questions(30), modules)
    assert (learned.reports[0].teacher, learned.reports[0].kept) == ("final answers", 30)
    again = distill_tasks(modules, [stage("one")], options, tmp_path, learn=distill_from_answers)
    assert again.general["COLOR"].version == learned.general["COLOR"].version
    assert again.reports == learned.reports
    unlabelled = replace(stage("one"), questions=[replace(q, answer=None) for q in small.questions(3)])
    with pytest.raises(InputError, match="no question has an answer"):
        distill_from_answers(modules, unlabelled, options)


def test_final_answers_label_the_calls_whose_value_is_the_answer() -> None:
    asked, modules = small.questions(9), small.modules()
    found = answer_probe([*asked, replace(asked[0], answer=None)], modules)
    assert set(found) == {"COLOR"}
    assert [label.value for _, label in found["COLOR"]] == [q.answer for q in asked]
    changed = small.PROGRAM.replace("RESULT(var=ANSWER0)", "RESULT(var=ANSWER1)").replace(
        "FINAL", "ANSWER1=EVAL(expr=\"{ANSWER0} == 'red'\")\nFINAL"
    )
    assert answer_probe([replace(q, programs={"visprog": changed}) for q in asked], modules) == {}


def test_no_boxes_are_no_answer_no() -> None:
    @module
    def NOTHING(image: Image) -> list[Box]:
        """Finds nothing."""
        return []

    program = {"visprog": "BOX0=NOTHING(image=IMAGE)\nFINAL_RESULT=RESULT(var=BOX0)"}
    asked = small.questions(2, programs=program, answer="no")
    assert accuracy(asked, small.modules(NOTHING=NOTHING)) == 1, "as an answer it reads no"
    assert answer_probe(asked, small.modules(NOTHING=NOTHING)) == {}, "as a label of boxes it says nothing"
