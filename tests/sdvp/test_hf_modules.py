"""Transformers models as students and teachers of SDVP, through programs of both languages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra `hf`")

from tutelage.distillation.job import TrainingSettings
from tutelage.modules import hf
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.values import Image
from tutelage.sdvp.attribution import attribute_errors, teacher_oracle
from tutelage.sdvp.compile import compile
from tutelage.sdvp.continual.base import CombinedStrategy
from tutelage.sdvp.continual.registry import parse
from tutelage.sdvp.label import Filters
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.questions import Question, solve
from tutelage.sdvp.teachers import teacher_from_module

from ..modules.hf import tiny
from . import small

VISPROG = (
    "B=LOC(image=IMAGE,object='star')\nI=CROP(image=IMAGE,box=B)\nA=VQA(image=I,question='what color is it ?')\n"
    "FINAL_RESULT=RESULT(var=A)"
)
VIPER = """def execute_command(image):
    patch = ImagePatch(image)
    if patch.verify_property('star', 'red'):
        return patch.best_text_match(['red', 'blue'])
    return patch.simple_query('what color is it ?')"""
OPTIONS = SdvpOptions(
    filters=Filters(min_confidence=0.0),
    settings=TrainingSettings(steps=3, batch_size=4, lr=1e-3, checkpoint_every=0),
    strategy=CombinedStrategy((parse("self_distill"), parse("peft"))),
)


@pytest.fixture(scope="module")
def modules(tmp_path_factory: Any) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("models")
    vilt, owl, clip = (make(place / make.__name__) for make in (tiny.vilt, tiny.owl, tiny.clip))
    opened = [hf.open_module("VQA", str(vilt), answers=("red", "blue"), square=8), hf.open_module("LOC", str(owl))]
    opened += [hf.open_module(name, str(clip)) for name in ("MATCH", "VERIFY")]
    return {**symbolic_modules(), **{module.name: module for module in opened}}


def questions(count: int) -> list[Question]:
    answers = ["red", "green", "blue"]
    images = [small.picture(i, answers[i % 3]) for i in range(count)]
    programs = {"visprog": VISPROG, "viper": VIPER}
    return [Question(f"q{i}", "own", {"IMAGE": image}, "?", programs, "red") for i, image in enumerate(images)]


@pytest.mark.parametrize("dsl", ["visprog", "viper"])
def test_they_answer_programs_of_both_languages(dsl: str, modules: dict[str, Any]) -> None:
    traces = solve(questions(4), modules, dsl)
    assert [trace.status for trace in traces] == ["ok"] * 4, traces[0].error
    assert all(trace.answer in ("red", "blue") for trace in traces)


def test_they_are_taught_and_teach_and_the_run_is_resumed(modules: dict[str, Any], tmp_path: Path) -> None:
    teachers = {name: teacher_from_module(modules[name]) for name in ("VQA", "LOC")}
    given = {"replay": questions(4)[2:], "guarded": questions(2), "options": OPTIONS, "folder": tmp_path}
    first = compile(questions(4), modules, teachers, **given)
    assert [(row.module, row.kept > 0, row.replayed > 0) for row in first.reports] == [("LOC", True, True), ("VQA", True, True)]
    assert first.modules["VQA"].version != modules["VQA"].version
    again = compile(questions(4), modules, teachers, **given)
    assert {n: m.version for n, m in again.modules.items()} == {n: m.version for n, m in first.modules.items()}
    with pytest.raises(Exception, match="other settings"):
        compile(questions(3), modules, teachers, **given)


def test_the_blame_for_wrong_answers_is_found(modules: dict[str, Any]) -> None:
    found = attribute_errors(questions(4), modules, teacher_oracle({"VQA": teacher_from_module(modules["VQA"])}), "visprog")
    assert found.to_json()["questions"] == 4


def test_a_teacher_is_as_sure_of_boxes_as_of_the_best(modules: dict[str, Any]) -> None:
    image = Image.from_array(small.picture(1, "red").bytes)
    (label,) = teacher_from_module(modules["LOC"]).label([small.Call("LOC", {"image": image, "object": "star"})])
    assert label.probabilities is None and label.confidence == (label.value[0].score if label.value else 1.0)
