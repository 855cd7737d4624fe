from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.datasets.synthetic.question_types import QUESTION_TYPES
from tutelage.datasets.synthetic.scene import make_scene
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs import viper, visprog
from tutelage.programs.generators.gqa_functional import translate
from tutelage.programs.types import ParseFailure, Signature

SIGNATURES = {name: module.signature for name, module in symbolic_modules().items()} | {
    "LOC": Signature({"image": "image", "object": "text"}, "boxes"),
    "VQA": Signature({"image": "image", "question": "text"}, "text"),
    "VERIFY": Signature({"image": "image", "object": "text", "property": "text"}, "bool"),
}
Ops = list[tuple[str, str, list[int]]]


@settings(max_examples=25)
@given(st.integers(0, 10**9))
def test_functional_programs_of_the_world_become_the_gold_programs(index: int) -> None:
    scene, rng = make_scene(31, index, "B"), np.random.default_rng(index)
    for kind in QUESTION_TYPES:
        for draft in QUESTION_TYPES[kind](scene, rng):
            question = draft.build(rng, "q")
            written = translate(question.semantic)
            assert written.visprog == question.programs["visprog"], question.semantic
            assert written.viper == question.programs["viper"]


def lines(ops: Ops) -> list[str]:
    keys = ("operation", "argument", "dependencies")
    written = translate([dict(zip(keys, op, strict=True)) for op in ops])
    visprog.parse(written.visprog, SIGNATURES)
    viper.parse(written.viper, SIGNATURES)
    return written.visprog.splitlines()


DOG, CAT = ("select", "dog (1)", []), ("select", "cat (2)", [])


@pytest.mark.parametrize(
    ("ops", "wanted"),
    [
        ([DOG, ("filter color", "black", [0]), ("exist", "?", [1])], "LOC(image=IMAGE,object='black dog')"),
        ([DOG, ("filter", "not(black)", [0]), ("exist", "?", [1])], "LOC(image=IMAGE,object='not black dog')"),
        ([DOG, ("relate", "_,to the left of,s (3)", [0]), ("query", "name", [1])], "CROP_LEFTOF(image=IMAGE,box=BOX0)"),
        ([DOG, ("relate", "man,to the left of,o (3)", [0]), ("query", "hposition", [1])], "CROP_RIGHTOF"),
        ([DOG, ("relate", "man,holding,s (3)", [0]), ("verify age", "old", [1])], "LOC(image=IMAGE0,object='man')"),
        ([DOG, ("verify color", "not(red)", [0])], 'EVAL(expr="not {ANSWER0}")'),
        ([DOG, ("verify rel", "cat,above,s (2)", [0])], "CROP_ABOVE(image=IMAGE,box=BOX0)"),
        ([("select", "scene", []), ("verify weather", "cloudy", [0])], "VERIFY(image=IMAGE,object='scene',property='cloudy')"),
        ([("select", "scene", []), ("query", "place", [0])], "VQA(image=IMAGE,question='What is the place?')"),
        ([("select", "scene", []), ("choose location", "indoors|outdoors", [0])], "question='Is it indoors or outdoors?'"),
        ([DOG, ("choose color", "red|blue", [0])], "question='Is the dog red or blue?'"),
        ([DOG, ("choose name", "dog|cat", [0])], "question='Is the object dog or cat?'"),
        ([DOG, CAT, ("choose older", "", [0, 1])], "question='Which is older, the dog or the cat?'"),
        ([DOG, CAT, ("choose less healthy", "", [0, 1])], "'Which is less healthy, the dog or the cat?'"),
        ([DOG, ("choose rel", "cat,chasing|facing,o (2)", [0])], "question='Is the dog chasing or facing the cat?'"),
        ([DOG, ("choose rel", "cat,chasing|facing,s (2)", [0])], "question='Is the cat chasing or facing the dog?'"),
        ([DOG, CAT, ("same color", "", [0, 1])], 'EVAL(expr="{ANSWER0} == {ANSWER1}")'),
        ([DOG, CAT, ("different shape", "", [0, 1])], 'EVAL(expr="{ANSWER0} != {ANSWER1}")'),
        ([DOG, ("same color", "", [0])], "question='Are all the dog the same color?'"),
        ([DOG, CAT, ("common", "", [0, 1])], "question='What do the dog and the cat have in common?'"),
        ([DOG, ("exist", "?", [0]), CAT, ("exist", "?", [2]), ("or", "", [1, 3])], '"{ANSWER0} > 0 or {ANSWER1} > 0"'),
        ([("select", "driver's seat (1)", []), ("exist", "?", [0])], 'object="driver\'s seat"'),
    ],
)
def test_operations(ops: Ops, wanted: str) -> None:
    assert any(wanted in line for line in lines(ops)), lines(ops)


def test_a_side_is_chosen_by_looking_there() -> None:
    assert lines([DOG, ("choose rel", "cat,to the right of|to the left of,s (2)", [0])])[1:5] == [
        "IMAGE0=CROP_LEFTOF(image=IMAGE,box=BOX0)",
        "BOX1=LOC(image=IMAGE0,object='dog')",
        "ANSWER0=COUNT(box=BOX1)",
        "ANSWER1=EVAL(expr=\"'right' if {ANSWER0} > 0 else 'left'\")",
    ]


def test_mixed_logic_is_grouped() -> None:
    ops: Ops = [DOG, ("verify color", "red", [0]), ("verify color", "blue", [0]), ("or", "", [1, 2])]
    assert 'expr="({ANSWER0} or {ANSWER1}) and {ANSWER2} > 0"' in "\n".join(
        lines([*ops, CAT, ("exist", "?", [4]), ("and", "", [3, 5])])
    )


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ([], "without operations"),
        ([("sing", "", [])], "step 0: unknown operation 'sing'"),
        ([DOG, ("query", "color", [1])], "step 1: depends on a later step"),
        ([DOG, ("relate", "cat", [0])], "step 1: relate: cat does not fit"),
        ([DOG, ("and", "", [0, 0])], "step 1: and:  does not fit"),
        ([("exist", "?", [])], "step 0: exist"),
    ],
)
def test_what_does_not_fit_is_a_parse_failure(ops: Ops, message: str) -> None:
    with pytest.raises(ParseFailure, match=message):
        lines(ops)


def test_an_operation_without_its_fields_is_a_parse_failure() -> None:
    with pytest.raises(ParseFailure, match="step 0: an operation has"):
        translate([{"operation": "select"}])
