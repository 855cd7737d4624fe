"""Known answers check the teachers, and a changed teacher, picture or option is never taken for the old one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage import sdvp
from tutelage.errors import InputError, StaleError
from tutelage.programs.types import Call
from tutelage.programs.values import Box, Image
from tutelage.sdvp.questions import Question
from tutelage.sdvp.stages import collect_to_folder, label_to_folder
from tutelage.sdvp.tally import SdvpWarning
from tutelage.sdvp.teacher_check import check_in_programs, split_off_probe
from tutelage.sdvp.teachers import from_callable

from . import small

OPTIONS = sdvp.SdvpOptions(settings=small.SETTINGS)
QUICK = replace(OPTIONS, settings=replace(small.SETTINGS, steps=3, warmup=0))


def shifted(by: int) -> Callable[[Sequence[Call]], list[str]]:
    def teacher(calls: Sequence[Call]) -> list[str]:
        return [small.COLORS[(small.COLORS.index(answer) + by) % 3] for answer in small.brightest(calls)]

    return teacher


def test_a_wrong_teacher_is_refused_by_the_answers_that_are_there() -> None:
    questions, modules = small.questions(45), small.modules()
    with pytest.warns(SdvpWarning, match="is right on 0% of the 9 probe calls"):
        result = sdvp.compile(questions, modules, {"COLOR": shifted(1)}, options=OPTIONS)
    assert result.modules["COLOR"] is modules["COLOR"]
    right = sdvp.compile(questions, modules, {"COLOR": small.brightest}, options=OPTIONS)
    (report,) = right.reports
    assert (report.verdict.teacher, report.verdict.calls, report.records) == (1.0, 9, 36)


def test_without_answers_a_teacher_is_accepted_unseen_and_that_is_said(tmp_path: Path) -> None:
    questions, modules = [replace(question, answer=None) for question in small.questions(12)], small.modules()
    with pytest.warns(SdvpWarning, match="accepted unseen: brightest of COLOR"):
        sdvp.compile(questions, modules, {"COLOR": small.brightest}, options=QUICK)
    records = collect_to_folder(tmp_path / "collected", questions, modules)
    with pytest.warns(SdvpWarning, match="accepted unseen"):
        label_to_folder(tmp_path / "labelled", records, modules, {"COLOR": from_callable(small.brightest)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sdvp.compile(small.questions(45), modules, {"COLOR": small.brightest}, options=QUICK)


@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 3))
def test_a_probe_shares_no_image_with_what_is_learned(images: int, asked: int, seed: int) -> None:
    made = [
        Question(f"{i}-{k}", "own", {}, "?", {}, answer="red" if k or i % 2 else None, image_id=str(i))
        for i in range(images)
        for k in range(asked)
    ]
    rest, held = split_off_probe(made, seed)
    assert not {q.image_id for q in rest} & {q.image_id for q in held}
    assert rest and all(q.answer is not None for q in held)
    assert split_off_probe(made, seed) == (rest, held)
    if not held:
        assert rest == made


def test_a_module_whose_values_are_no_answers_is_checked_in_its_programs() -> None:
    """MIDDLE gives the box that COLOR looks at: a teacher of boxes in the border of another colour loses answers."""

    def framed(question: Question) -> Question:
        pixels = small.picture(7, small.COLORS[(small.COLORS.index(question.answer) + 1) % 3]).bytes.copy()
        pixels[:, 3:9, 3:9] = question.images["IMAGE"].bytes[:, 3:9, 3:9]
        return replace(question, images={"IMAGE": Image(pixels)})

    modules = small.modules()
    good = sdvp.compile(small.questions(45), modules, {"COLOR": small.brightest}, options=OPTIONS).modules
    questions = [framed(question) for question in small.questions(20, first=300)]
    blind = from_callable(lambda calls: [[Box(0, 0, 3, 3)]] * len(calls))
    found = check_in_programs(blind, "MIDDLE", questions, good)
    assert not found.accepted and found.teacher < found.student and found.calls == 20
    same = from_callable(lambda calls: [small.MIDDLE.function(**call.args) for call in calls])
    assert check_in_programs(same, "MIDDLE", questions, good).accepted, "equal is enough"


def test_another_function_of_the_same_name_is_another_teacher(tmp_path: Path) -> None:
    assert from_callable(shifted(0)).version == from_callable(shifted(0)).version != from_callable(shifted(1)).version
    assert from_callable(shifted(0), version="May").version == from_callable(shifted(1), version="May").version
    with open(__file__) as file, pytest.raises(InputError, match="it holds TextIOWrapper"):
        from_callable(lambda calls: [file.read() for _ in calls])
    questions, modules = [replace(question, answer=None) for question in small.questions(12)], small.modules()
    records = collect_to_folder(tmp_path / "collected", questions, modules)
    label_to_folder(tmp_path / "labelled", records, modules, {"COLOR": from_callable(shifted(0))})
    with pytest.raises(StaleError, match="teachers"):
        label_to_folder(tmp_path / "labelled", records, modules, {"COLOR": from_callable(shifted(1))})


def test_a_compile_folder_is_refused_by_the_name_of_what_differs(tmp_path: Path) -> None:
    questions, modules = small.questions(9), small.modules()

    def run(**changed: object) -> None:
        given = {"programs": questions, "modules": modules, "teachers": {"COLOR": shifted(0)}, "options": QUICK} | changed
        sdvp.compile(folder=tmp_path, **given)

    run()
    run()
    repainted = [replace(questions[0], images={"IMAGE": small.picture(99, "red")}), *questions[1:]]
    steps = replace(QUICK, settings=replace(QUICK.settings, steps=4))
    for changed, named in (
        ({"teachers": {"COLOR": shifted(1)}}, "teachers.COLOR.version"),
        ({"programs": repainted}, "pictures"),
        ({"programs": [replace(questions[0], answer="blue"), *questions[1:]]}, "questions"),
        ({"options": steps}, "options.settings.steps: 3, now 4"),
        ({"options": replace(QUICK, max_drop=None)}, "options.max_drop: 0.005, now null"),
        ({"guarded": small.questions(3, first=50)}, "guarded"),
        ({"modules": small.modules(COLOR=small.color(seed=1))}, "modules.COLOR"),
    ):
        with pytest.raises(StaleError) as caught:
            run(**changed)
        assert caught.value.message == f"the folder holds a run with other settings: {named}"
