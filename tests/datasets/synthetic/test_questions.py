from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.datasets.synthetic.export import scene_graph
from tutelage.datasets.synthetic.functional_executor import answer, execute
from tutelage.datasets.synthetic.question_types import QUESTION_TYPES
from tutelage.datasets.synthetic.questions.base import AnswerBalancer, FunctionalStep, SceneQuestion, object_id, pointers, unique
from tutelage.datasets.synthetic.scene import Scene, SceneObject, make_scene
from tutelage.errors import InputError


def asked(scene: Scene) -> Iterator[SceneQuestion]:
    """Every question of every kind."""
    rng = np.random.default_rng(0)
    for kind in QUESTION_TYPES:
        for number, draft in enumerate(QUESTION_TYPES[kind](scene, rng)):
            question = draft.build(rng, f"{kind.replace(' ', '_')}-{number}")
            assert question.answer == draft.answer
            yield question


@settings(max_examples=40)
@given(st.integers(0, 10**9), st.sampled_from("ABC"), st.sampled_from([None, 1]))
def test_functional_programs_give_the_answer(index: int, domain: str, count: int | None) -> None:
    scene = make_scene(7, index, domain, count=count)
    graph, kinds = scene_graph(scene), set()
    for question in asked(scene):
        values = execute(question.semantic, graph)
        assert answer(values[-1]) == question.answer, question.text
        assert question.answer in question.choices
        for op, value in zip(question.semantic, values, strict=True):
            if op.operation in ("select", "relate"):  # the ids that the argument names are those that are found
                ids = op.argument.partition("(")[2].rstrip(")")
                assert sorted(ids.replace("-", "").split(",")) == (sorted(value) or [""])
        kinds.add(question.kind)
    assert "queryShape" in kinds if count == 1 else {"exist", "count"} <= kinds


def scene_of(*things: tuple[str, str, int, int]) -> Scene:
    made = (SceneObject(shape, color, "plain", "small", None, x, y, 10, 10) for shape, color, x, y in things)
    return Scene("s", "A", 48, 48, tuple(made), 12345678)


ROW = scene_of(("circle", "red", 2, 20), ("star", "blue", 19, 20), ("circle", "teal", 36, 20), ("cross", "red", 19, 36))


def by_kind(scene: Scene, kind: str) -> dict[str, SceneQuestion]:
    rng = np.random.default_rng(0)
    return {q.topic: q for q in (draft.build(rng, "q") for draft in QUESTION_TYPES[kind](scene, rng))}


def test_a_relation_is_asked_where_one_thing_lies_beyond() -> None:
    found = by_kind(ROW, "color relation")
    assert found["s-circle_left_star_color"].answer == "red"
    assert found["s-circle_right_star_color"].answer == "teal"
    assert "s-circle_above_star_color" not in found  # both stand level with the star: they straddle the cut
    question = found["s-circle_left_star_color"]
    circle, star = object_id(ROW, ROW.things[0]), object_id(ROW, ROW.things[1])
    assert question.semantic == (
        FunctionalStep("select", f"star ({star})"),
        FunctionalStep("relate", f"circle,to the left of,s ({circle})", (0,)),
        FunctionalStep("query", "color", (1,)),
    )
    assert question.programs["visprog"].splitlines() == [
        "BOX0=LOC(image=IMAGE,object='star')",
        "IMAGE0=CROP_LEFTOF(image=IMAGE,box=BOX0)",
        "BOX1=LOC(image=IMAGE0,object='circle')",
        "IMAGE1=CROP(image=IMAGE0,box=BOX1)",
        "ANSWER0=VQA(image=IMAGE1,question='What color is the circle?')",
        "FINAL_RESULT=RESULT(var=ANSWER0)",
    ]
    assert question.gold_steps["visprog"] == [
        [(19, 20, 29, 30)],
        ("IMAGE", 0, 0, 24, 48),
        [(2, 20, 12, 30)],
        ("IMAGE", 0, 17, 15, 33),
        "red",
        "red",
    ]


def test_only_unique_things_are_referred_to() -> None:
    assert [thing.shape for thing in unique(ROW)] == ["star", "cross"]
    assert set(by_kind(ROW, "color query")) == {"s-star_color", "s-cross_color"}
    assert by_kind(ROW, "count")["s-count_circle"].answer == "2"
    assert by_kind(ROW, "exist")["s-exist_triangle"].answer == "no"


def test_truth_tables_of_logic_and_comparison() -> None:
    rng = np.random.default_rng(3)
    drafts = [draft for _ in range(30) for draft in QUESTION_TYPES["color logic"](ROW, rng)]
    seen = set()
    for draft in drafts:
        values = draft.build(rng, "q").gold_steps["visprog"]
        a, b, both = (value for value in values[:-1] if isinstance(value, bool))
        assert both == ((a and b) if draft.group == "logic and" else (a or b))
        seen.add((draft.group, a, b))
    assert len(seen) == 8
    same = {q.kind: q.answer for q in by_kind(ROW, "color compare").values()}
    assert same == {"sameColor": "no", "differentColor": "yes"}


def test_answers_are_level() -> None:
    rng, balance, said = np.random.default_rng(0), AnswerBalancer(), defaultdict(Counter)
    for index in range(300):
        scene = make_scene(11, index, "B")
        for kind in QUESTION_TYPES:
            draft = balance.take(list(QUESTION_TYPES[kind](scene, rng)), rng)
            if draft is not None:
                said[draft.group][draft.answer] += 1
    for group in ("exist", "count", "color", "verify color", "logic and", "same color", "relation exist"):
        assert max(said[group].values()) - min(said[group].values()) <= 3, group
    assert said["exist"].total() > 250


def test_pointers_name_the_words() -> None:
    objects = (("circle", "7"), ("star", "9"))
    assert pointers("Is the Circle above the star?", objects) == {"2": "7", "5": "9"}
    assert pointers("no", objects) == {}


GRAPH = scene_graph(ROW)


@pytest.mark.parametrize(
    ("ops", "value"),
    [
        ([("select", "circle (1)", ()), ("filter color", "red", (0,)), ("count", "", (1,))], 1),
        ([("select", "circle (-)", ()), ("filter", "not(red)", (0,)), ("query", "color", (1,))], "teal"),
        ([("select", "_", ()), ("count", "", (0,))], 4),
        ([("select", "star (1)", ()), ("relate", "_,to the left of,o (2)", (0,)), ("query", "name", (1,))], "circle"),
        ([("select", "star (1)", ()), ("verify rel", "circle,above,s (-)", (0,))], False),
        ([("select", "star (1)", ()), ("choose name", "cross|star", (0,))], "star"),
        ([("select", "star (1)", ()), ("choose rel", "cross,above|below,o (2)", (0,))], "above"),
        ([("select", "circle (1)", ()), ("same color", "", (0,))], False),
        ([("select", "star (1)", ()), ("select", "cross (2)", ()), ("common", "", (0, 1))], "pattern"),
    ],
)
def test_operations_of_functional_programs(ops: list[tuple[str, str, tuple[int, ...]]], value: object) -> None:
    assert execute([FunctionalStep(*op) for op in ops], GRAPH)[-1] == value


def test_what_cannot_be_answered_names_the_step() -> None:
    with pytest.raises(InputError, match="step 1: query: color"):
        execute([FunctionalStep("select", "sign (-)"), FunctionalStep("query", "color", (0,))], GRAPH)
    with pytest.raises(InputError, match="unknown operation 'guess it'"):
        execute([FunctionalStep("guess it", "")], GRAPH)
