from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import InputError
from tutelage.modules.detection import Loc, LocConfig
from tutelage.modules.visual_module import CallLabel
from tutelage.modules.vocabulary import Vocabulary
from tutelage.modules.vqa import FiLMConfig, Vqa
from tutelage.programs.types import Call
from tutelage.sdvp.teachers import (
    ModuleTeacher,
    apply_temperature,
    as_label,
    from_callable,
    teacher_from_module,
    verify_teacher_from_vqa,
)

from . import small

IMAGE = small.picture(0, "red", 32)
COLORS = Vocabulary((("color", ("red", "green", "blue")),), ("object", "circle"))


def ask(question: str) -> Call:
    return Call("VQA", {"image": IMAGE, "question": question})


def test_a_call_outside_the_capability_gets_no_label_and_is_never_put_to_the_teacher() -> None:
    asked: list[str] = []

    def answer(calls):  # noqa: ANN001, ANN202
        asked.extend(call.args["question"] for call in calls)
        return [CallLabel("red")] * len(calls)

    teacher = ModuleTeacher("t", "1", lambda call: "color" in call.args["question"], answer)
    said = teacher.label([ask("color?"), ask("size?"), ask("what color")])
    assert [label and label.value for label in said] == ["red", None, "red"]
    assert asked == ["color?", "what color"]


def test_a_teacher_may_decline_a_call_it_covers() -> None:
    teacher = from_callable(lambda calls: ["red", None, {"red": 0.2, "blue": 0.8}], "t")
    first, second, third = teacher.label([ask("a"), ask("b"), ask("c")])
    assert first == CallLabel("red") and second is None
    assert third == CallLabel("blue", {"red": 0.2, "blue": 0.8}, 0.8)


def test_labels_pass_through() -> None:
    label = CallLabel("red", {"red": 1.0}, 0.4)
    assert as_label(label) is label


def test_a_specialist_covers_the_questions_its_vocabulary_answers() -> None:
    teacher = teacher_from_module(Vqa.build(FiLMConfig(COLORS, 4), 0))
    assert teacher.supports(ask("What color is the circle?"))
    for other in ("What size is the circle?", "Is the color red?", "Is the circle red or blue?"):
        assert not teacher.supports(ask(other))
    (label,) = teacher.label([ask("What color is the circle?")])
    assert set(label.probabilities) == {"red", "green", "blue"} and label.confidence == max(label.probabilities.values())
    assert label.value == max(label.probabilities, key=label.probabilities.__getitem__)


def test_a_locating_specialist_covers_what_is_one_class_to_it() -> None:
    teacher = teacher_from_module(Loc.build(LocConfig(("circle", "star"), 4), 0))
    covered = {phrase: teacher.supports(Call("LOC", {"image": IMAGE, "object": phrase})) for phrase in ("circle", "object", "LEFT")}
    assert covered == {"circle": True, "object": False, "LEFT": False}
    assert teacher.label_related_calls


def test_an_answering_specialist_judges_properties_of_its_types() -> None:
    specialist = Vqa.build(FiLMConfig(COLORS, 4), 0)
    teacher = verify_teacher_from_vqa(specialist)
    call = Call("VERIFY", {"image": IMAGE, "object": "circle", "property": "red"})
    (label,) = teacher.label([call])
    (answer,) = teacher_from_module(specialist).label([ask("What color is the circle?")])
    assert label.probabilities["yes"] == pytest.approx(answer.probabilities["red"]) and label.value == (
        label.probabilities["yes"] >= 0.5
    )
    assert label.confidence == max(label.probabilities.values())
    assert teacher.label([Call("VERIFY", {"image": IMAGE, "object": "circle", "property": "striped"})]) == [None]


def test_an_unknown_class_of_module_needs_an_adapter_of_its_own() -> None:
    with pytest.raises(InputError, match="no ready adapter for Color"):
        teacher_from_module(small.color())


@given(
    shares=st.lists(st.floats(0.01, 1), min_size=2, max_size=6),
    temperature=st.floats(0.3, 5),
)
def test_temperature_keeps_the_order_and_sums_to_one(shares: list[float], temperature: float) -> None:
    dist = {str(i): share / sum(shares) for i, share in enumerate(shares)}
    label = apply_temperature(CallLabel("0", dist, max(dist.values())), temperature)
    assert sum(label.probabilities.values()) == pytest.approx(1) and label.confidence == max(label.probabilities.values())
    hot = temperature >= 1
    top = max(dist.values())
    assert label.confidence <= top + 1e-9 if hot else label.confidence >= top - 1e-9
    pairs = [(dist[a], label.probabilities[a]) for a in sorted(dist, key=dist.__getitem__)]
    assert all(b[1] >= a[1] - 1e-12 for a, b in zip(pairs, pairs[1:]))


def test_temperature_by_hand() -> None:
    label = apply_temperature(CallLabel("a", {"a": 0.8, "b": 0.2}, 0.8), 2.0)
    assert label.probabilities["a"] == pytest.approx(2 / 3) and label.value == "a"
    boxes = CallLabel([], None, 0.7)
    assert apply_temperature(boxes, 2.0) is boxes


def test_ready_teachers_can_be_sent_to_another_process() -> None:
    vqa, loc = Vqa.build(FiLMConfig(COLORS), 0), Loc.build(LocConfig(("circle", "square")), 0)
    color = ask("What color is the object?")
    found = Call("LOC", {"image": IMAGE, "object": "circle"})
    red = Call("VERIFY", {"image": IMAGE, "object": "circle", "property": "red"})
    shape = Call("COLOR", {"image": IMAGE})
    pairs = (
        (teacher_from_module(vqa), color),
        (teacher_from_module(loc), found),
        (verify_teacher_from_vqa(vqa), red),
        (from_callable(small.brightest), shape),
    )
    for teacher, call in pairs:
        sent = pickle.loads(pickle.dumps(teacher))
        assert (sent.version, sent.label_related_calls) == (teacher.version, teacher.label_related_calls)
        assert sent.label([call]) == teacher.label([call]) != [None]
