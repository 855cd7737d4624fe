"""Blame finds the step that was made wrong on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage import storage
from tutelage.errors import InputError
from tutelage.modules.symbolic import symbolic_modules
from tutelage.modules.visual_module import CallLabel
from tutelage.programs.run_context import USE_MODULE
from tutelage.programs.types import Call, ModuleOutputs, Signature, Value
from tutelage.programs.values import Box, Image
from tutelage.sdvp.attribution import StepOracle, attribute_errors, gold_oracle, shapley, teacher_oracle
from tutelage.sdvp.collect import collect
from tutelage.sdvp.questions import Question
from tutelage.sdvp.teachers import ModuleTeacher

LOC_VQA = """BOX0=LOC(image=IMAGE,object='star')
IMAGE0=CROP(image=IMAGE,box=BOX0)
ANSWER0=VQA(image=IMAGE0,question='What color is the star?')
FINAL_RESULT=RESULT(var=ANSWER0)"""
COMPARE = """ANSWER0=VQA(image=IMAGE,question='first?')
ANSWER1=VQA(image=IMAGE,question='second?')
ANSWER2=EVAL(expr="{ANSWER0} == 'red' and {ANSWER1} == 'red'")
FINAL_RESULT=RESULT(var=ANSWER2)"""
COUNT = """BOX0=LOC(image=IMAGE,object='star')
ANSWER0=COUNT(box=BOX0)
FINAL_RESULT=RESULT(var=ANSWER0)"""
RIGHT, WRONG = Box(8, 8, 12, 12), Box(0, 0, 4, 4)


class Says:
    """A module that says what a function says, and counts the calls it was asked."""

    symbolic, batch_size = False, 8

    def __init__(self, name: str, signature: Signature, answer: Callable[[Call], Value]):
        self.name, self.signature, self.answer, self.version = name, signature, answer, "1"
        self.asked = 0

    def run(self, calls):  # noqa: ANN001, ANN201
        self.asked += len(calls)
        return ModuleOutputs([self.answer(call) for call in calls])


def picture(number: int) -> Image:
    return Image(np.full((3, 16, 16), number, np.uint8), f"picture {number}")


def question(number: int, program: str, answer: Value, gold: list[Value], kind: str = "color") -> Question:
    return Question(
        f"q{number}", "t", {"IMAGE": picture(number)}, "?", {"visprog": program}, answer, kind, f"i{number}", {"visprog": gold}
    )


def modules(loc: Callable[[Call], Value], vqa: Callable[[Call], Value]) -> dict:
    loc_module = Says("LOC", Signature({"image": "image", "object": "text"}, "boxes"), loc)
    vqa_module = Says("VQA", Signature({"image": "image", "question": "text"}, "text"), vqa)
    return {**symbolic_modules(), "LOC": loc_module, "VQA": vqa_module}


def sees(call: Call) -> str:
    """Red where the crop reaches the star, else blue."""
    return "red" if call.args["image"].region[2] > 8 else "blue"


GOLD = [[RIGHT], None, "red", "red"]


def test_wrong_box_is_blamed_on_both_that_repair_it_and_wrong_answer_on_vqa_alone():
    asked = [question(1, LOC_VQA, "red", GOLD), question(2, LOC_VQA, "red", GOLD), question(3, LOC_VQA, "red", GOLD)]
    found = attribute_errors(
        asked,
        modules(
            lambda c: [WRONG] if c.args["image"].root_key == "picture 1" else [RIGHT],
            lambda c: "green" if c.args["image"].root_key == "picture 2" else sees(c),
        ),
        gold_oracle(),
    )
    by_step = {(s.id, s.module): (s.blame, s.share) for s in found.steps}
    assert by_step == {("q1", "LOC"): (1, 0.5), ("q1", "VQA"): (1, 0.5), ("q2", "VQA"): (1, 1)}
    rows = {row.module: row for row in found.rows}
    assert [row.module for row in found.rows] == ["VQA", "LOC"]
    assert rows["VQA"].errors == 1.5 and rows["LOC"].error_share == 0.25
    assert rows["LOC"].recoverable == pytest.approx(100 / 3) and rows["VQA"].recoverable == pytest.approx(200 / 3)
    assert rows["VQA"].low <= rows["VQA"].recoverable <= rows["VQA"].high
    assert found.ceiling == 100 and found.accuracy == pytest.approx(100 / 3)
    assert found.kinds[0].modules == 2 and found.kinds[0].program == 0


def test_two_steps_that_are_wrong_together_share_the_blame():
    asked = [question(1, COMPARE, "yes", ["red", "red", None, None], "logic")]
    found = attribute_errors(asked, modules(lambda c: [], lambda c: "blue"), gold_oracle())
    assert [(s.step, s.blame, s.share, s.joint) for s in found.steps] == [(0, 0.5, 0.5, True), (1, 0.5, 0.5, True)]


def test_many_steps_are_swapped_by_module():
    lines = [f"ANSWER{i}=VQA(image=IMAGE,question='{i}?')" for i in range(7)]
    every = " and ".join(f"{{ANSWER{i}}} == 'red'" for i in range(7))
    text = "\n".join([*lines, f'ANSWER7=EVAL(expr="{every}")', "FINAL_RESULT=RESULT(var=ANSWER7)"])
    found = attribute_errors(
        [question(1, text, "yes", ["red"] * 7 + [None, None])], modules(lambda c: [], lambda c: "blue"), gold_oracle()
    )
    assert [s.blame for s in found.steps] == pytest.approx([1 / 7] * 7)


def test_errors_of_the_program_stand_apart():
    asked = [
        question(1, LOC_VQA, "green", GOLD),  # every step is true and the answer is not the gold one
        question(2, "ANSWER0=NOTHING(image=IMAGE)\nFINAL_RESULT=RESULT(var=ANSWER0)", "red", []),
        question(3, LOC_VQA, "red", [None, None, None, None]),  # nothing is known of the steps
    ]
    found = attribute_errors(asked, modules(lambda c: [WRONG], sees), gold_oracle())
    assert found.program_errors == ("q1",)
    assert found.failures == {"unknown_module": 1}
    (kind,) = found.kinds
    assert (kind.wrong, kind.modules, kind.program, kind.unresolved, kind.failed) == (3, 0, 1, 1, 1)
    assert not found.steps and found.ceiling == 0


def test_true_values_answer_only_the_lines_they_belong_to():
    wrong = LOC_VQA.replace("What color", "What size")
    asked = [question(1, wrong, "red", GOLD)]
    said = modules(lambda c: [WRONG], lambda c: "small" if "size" in c.args["question"] else "red")
    assert attribute_errors(asked, said, gold_oracle()).program_errors == ()  # the true colour in the size's place hides the error
    programs = {"q1": LOC_VQA}
    assert attribute_errors(asked, said, gold_oracle("visprog", programs), gold_programs=programs).program_errors == ("q1",)


def test_a_right_answer_from_two_wrongs_is_lost_by_one_perfect_module():
    asked = [question(1, COUNT, "1", [[RIGHT, WRONG], 2, 2], "count")]
    found = attribute_errors(asked, modules(lambda c: [WRONG], sees), gold_oracle())
    assert found.rows[0].recoverable == -100 and found.accuracy == 100 and found.ceiling == 0


def test_prefix_comes_from_the_cache():
    said = modules(lambda c: [WRONG], lambda c: "green")
    attribute_errors([question(1, LOC_VQA, "red", GOLD)], said, gold_oracle())
    assert said["LOC"].asked == 1
    assert said["VQA"].asked == 2  # the crop as it was, and the crop of the true box


def test_the_teacher_answers_in_place_of_a_module_and_may_not_know():
    teacher = ModuleTeacher("t", "1", lambda call: call.module == "VQA", lambda calls: [CallLabel("red") for _ in calls])
    source = teacher_oracle({"VQA": teacher, "LOC": teacher})
    asked = [question(1, LOC_VQA, "red", []), question(2, LOC_VQA, "green", [])]
    found = attribute_errors(asked, modules(lambda c: [WRONG], sees), source)
    assert [(s.id, s.module) for s in found.steps] == [("q1", "VQA")]
    assert found.source == "teacher" and found.kinds[0].unresolved == 1 and not found.program_errors


def test_a_source_of_ones_own_may_keep_the_answer():
    source = StepOracle("crop reader", lambda question, call: USE_MODULE if call.module == "VQA" else [RIGHT])
    found = attribute_errors([question(1, LOC_VQA, "red", [])], modules(lambda c: [WRONG], sees), source)
    assert [(s.module, s.blame) for s in found.steps] == [("LOC", 1)]


def test_blame_is_a_weight_of_records():
    said = modules(lambda c: [RIGHT], lambda c: "green" if c.args["image"].root_key == "picture 2" else sees(c))
    asked = [question(1, LOC_VQA, "red", GOLD), question(2, LOC_VQA, "red", GOLD)]
    found = attribute_errors(asked, said, gold_oracle())
    from tutelage.sdvp.questions import solve

    records = [r for trace in solve([*asked, question(3, LOC_VQA, "red", GOLD)], said) for r in trace.steps if r.module == "VQA"]
    weighted = found.weight_records(records, floor=0.2)
    assert [record.weight for record in weighted] == pytest.approx([0.2, 1.0, 0.2])
    assert weighted[0].filters == {"blame": 0.2}
    assert collect(asked, said) == {}  # none of these modules can be taught


def test_json_holds_the_table():
    found = attribute_errors([question(1, LOC_VQA, "red", GOLD)], modules(lambda c: [WRONG], sees), gold_oracle())
    data = json.loads(json.dumps(storage.to_plain(found.to_json())))
    assert data["rows"][0].keys() >= {"module", "kind", "error_share", "recoverable", "low", "high"}
    assert "inputs" not in data and found.inputs


def test_questions_without_answers_are_refused():
    with pytest.raises(InputError, match="q1"):
        attribute_errors([question(1, LOC_VQA, None, GOLD)], modules(lambda c: [], sees), gold_oracle())
    with pytest.raises(InputError, match="no questions"):
        attribute_errors([], modules(lambda c: [], sees), gold_oracle())


@given(st.integers(1, 5), st.data())
def test_shapley_values_add_up_and_dummies_get_nothing(n: int, data: st.DataObject):
    players = range(n)
    subsets = [frozenset(chosen) for size in range(n + 1) for chosen in combinations(players, size)]
    value = {s: data.draw(st.floats(-1, 1)) for s in subsets if 0 not in s}
    value |= {s: value[s - {0}] for s in subsets if 0 in s}
    credit = shapley(value, players)
    assert sum(credit.values()) == pytest.approx(value[frozenset(players)] - value[frozenset()])
    assert credit[0] == pytest.approx(0)


def test_shapley_of_a_known_game():
    """One left glove and two right ones: 2/3 to the left, 1/6 to each right (Shapley, 1953)."""
    subsets = [frozenset(chosen) for size in range(4) for chosen in combinations("LRr", size)]
    value = {s: float("L" in s and len(s) > 1) for s in subsets}
    assert shapley(value, "LRr") == pytest.approx({"L": 2 / 3, "R": 1 / 6, "r": 1 / 6})


def test_only_the_folder_of_a_study_can_be_blamed(tmp_path):
    from tutelage.sdvp.study.attribution import attribute_run

    storage.write_json(tmp_path / "run.json", {"settings": {"plan": {"seeds": []}}})
    with pytest.raises(InputError, match="not the folder of a study"):
        attribute_run(tmp_path)
    storage.write_json(tmp_path / "run.json", {"settings": {"plan": {"seeds": [3], "quick": True}}})
    with pytest.raises(InputError, match="no seed 4"):
        attribute_run(tmp_path, seed=4)


@pytest.mark.slow
def test_blame_of_a_study_in_both_languages(tmp_path, monkeypatch):
    from tutelage.sdvp.study import attribution

    store = storage.ContentStore(tmp_path / "modules")
    monkeypatch.setattr(attribution, "module_store", lambda: store)
    storage.write_json(tmp_path / "run.json", {"settings": {"plan": {"seeds": [3], "quick": True}}})
    with pytest.raises(InputError, match="no arm 'sdvp'"):
        attribution.attribute_run(tmp_path, arm="sdvp")
    lines = attribution.attribute_run(tmp_path, count=20)
    python = attribution.attribute_run(tmp_path, count=20, dsl="viper")
    assert lines.ceiling == python.ceiling == 100
    assert {row.module for row in lines.rows} == {"LOC", "VQA", "VERIFY"}
    assert not lines.program_errors and not python.program_errors
    for found in (lines, python):
        repaired = sum(kind.modules for kind in found.kinds)
        assert sum(row.errors for row in found.rows) == pytest.approx(repaired) and repaired > 0
