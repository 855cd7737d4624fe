from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tutelage.modules.visual_module import CallLabel
from tutelage.programs.types import Call
from tutelage.programs.values import Box
from tutelage.sdvp.collect import collect
from tutelage.sdvp.label import Filters, apply_filters, calibrate, label, label_of, program_agreement
from tutelage.sdvp.teacher_check import check_teacher, gold_probe, value_matches
from tutelage.sdvp.teachers import ModuleTeacher, from_callable

from . import small


def teacher(answers: Sequence[object], **fields: object) -> ModuleTeacher:
    """It says ``answers`` in turn, whatever it is asked."""
    from dataclasses import replace

    return replace(from_callable(lambda calls: list(answers)[: len(calls)], "t"), **fields)


def calls(count: int) -> list[Call]:
    return [Call("COLOR", {"image": small.picture(i, "red")}) for i in range(count)]


def test_calibration_finds_the_temperature_of_an_overconfident_teacher() -> None:
    """It says 0.99 and is right three times in four: the best T makes p near 0.75."""
    said = [{"red": 0.99, "blue": 0.01}] * 4
    known = list(zip(calls(4), [CallLabel("red")] * 3 + [CallLabel("blue")], strict=True))
    found = calibrate(teacher(said), known)
    grid = [0.5 * 2 ** (i / 4) for i in range(13)]
    best = min(grid, key=lambda t: abs(math.log(0.99 / 0.01) / t - math.log(3)))
    assert found.temperature == pytest.approx(best) == 4.0
    assert found.label(calls(1))[0].confidence < 0.8


def test_calibration_sharpens_a_diffident_teacher_and_starts_from_scratch() -> None:
    said = [{"red": 0.6, "blue": 0.4}] * 4
    known = list(zip(calls(4), [CallLabel("red")] * 4, strict=True))
    assert calibrate(teacher(said, temperature=3.0), known).temperature == 0.5


def test_without_a_probe_or_probabilities_the_teacher_stays_as_it_is() -> None:
    plain = teacher(["red"], temperature=1.7)
    assert calibrate(plain, []) is plain
    assert calibrate(plain, [(calls(1)[0], CallLabel("red"))]) is plain


def test_a_worse_teacher_is_not_accepted_a_better_one_is() -> None:
    module = small.color()
    asked = [Call("COLOR", {"image": q.images["IMAGE"]}) for q in small.questions(12)]
    known = [(call, CallLabel(q.answer)) for call, q in zip(asked, small.questions(12), strict=True)]
    good, bad = from_callable(small.brightest), from_callable(lambda found: ["none"] * len(found))
    better, worse = check_teacher(good, module, known), check_teacher(bad, module, known)
    assert better.accepted and better.teacher == 1.0 and better.calls == 12
    assert (
        better.student
        == worse.student
        == sum(value == q.answer for value, q in zip(module.run(asked).values, small.questions(12), strict=True)) / 12
    )
    assert not worse.accepted and worse.teacher == 0.0


def test_an_equal_teacher_is_skipped_and_an_unprobed_one_accepted() -> None:
    module = small.color()
    known = [(call, CallLabel("red")) for call in calls(4)]
    same = from_callable(lambda found: module.run(found).values)
    assert not check_teacher(same, module, known).accepted
    assert check_teacher(same, module, []).accepted
    nowhere = ModuleTeacher("t", "1", lambda call: False, lambda found: [])
    assert check_teacher(nowhere, module, known).teacher is None


def test_boxes_agree_when_there_are_as_many_and_each_is_met() -> None:
    a, b = Box(0, 0, 10, 10), Box(20, 20, 30, 30)
    assert value_matches([b, a], [a, b]) == 1
    assert value_matches([a], [a, b]) == value_matches([a, a], [a, b]) == value_matches("none", [a]) == value_matches([a], []) == 0
    assert value_matches([], []) == 1 and value_matches("Red.", "red") == 1 and value_matches(True, "yes") == 1


def test_the_probe_holds_every_steps_true_value() -> None:
    asked = [replace(q, gold={"visprog": [[Box(3, 3, 9, 9)], None, q.answer, None]}) for q in small.questions(3)]
    found = gold_probe(asked, {k: v for k, v in small.modules().items()})
    assert [label.value for _, label in found["COLOR"]] == [q.answer for q in asked]


def records(count: int = 6, **fields: object):  # noqa: ANN201
    asked = small.questions(count, **fields)
    return asked, collect(asked, small.modules())["COLOR"]


def test_labels_are_kept_in_the_teacher_field_and_uncovered_calls_dropped() -> None:
    _, found = records(3)
    labelled = label(found, small.color(), teacher([{"red": 0.9, "green": 0.1}, None, "blue"]))
    assert [r.id for r in labelled] == ["q0", "q2"]
    assert labelled[0].teacher["dist"] == {"red": 0.9, "green": 0.1} and labelled[0].teacher["name"] == "t"
    assert label_of(labelled[0]) == CallLabel("red", {"red": 0.9, "green": 0.1}, 0.9)
    assert found[0].teacher is None, "the collected record itself is not changed"


def test_a_teacher_that_expands_labels_sibling_calls_once() -> None:
    from tutelage.modules.detection import Loc, LocConfig

    module = Loc.build(LocConfig(("circle", "star"), 4), 0)
    from tutelage.programs.trace import RecordOrigin, StepRecord

    image = small.picture(0, "red", 48)
    asked = [StepRecord(RecordOrigin("q"), 0, i, "LOC", "v", {"image": image, "object": "circle"}) for i in range(2)]
    boxes = ModuleTeacher("t", "1", lambda call: True, lambda found: [CallLabel([])] * len(found), label_related_calls=True)
    assert sorted(r.args["object"] for r in label(asked[:1], module, boxes)) == ["circle", "star"]


def test_the_gate_is_a_least_confidence() -> None:
    asked, found = records(3)
    labelled = label(found, small.color(), teacher([{"red": 0.79, "blue": 0.21}, {"red": 0.8, "blue": 0.2}, "blue"]))
    kept = apply_filters(labelled, Filters(min_confidence=0.8), asked, small.modules(), {}, "visprog")
    assert [r.weight for r in kept] == [0.0, 1.0, 1.0]
    assert [r.filters["gate"] for r in kept] == [False, True, True]
    assert all(r.weight == 1 for r in apply_filters(labelled, Filters(min_confidence=0), asked, small.modules(), {}, "visprog"))


def test_final_agreement_keeps_samples_whose_forced_run_is_right() -> None:
    asked, found = records(6)
    asked[2] = replace(asked[2], answer=None)
    teachers = {"COLOR": from_callable(lambda calls: ["red"] * len(calls))}
    kept = apply_filters(
        label(found, small.color(), teachers["COLOR"]), Filters(0, True), asked, small.modules(), teachers, "visprog"
    )
    right = {"q0": 1.0, "q1": 0.0, "q2": 1.0, "q3": 1.0, "q4": 0.0, "q5": 0.0}
    assert {r.id: r.weight for r in kept} == right, "q2 has no known answer: it is kept"


def test_votes_of_several_programs_must_agree() -> None:
    constant = "ANSWER0=EVAL(expr=\"'{}'\")\nFINAL_RESULT=RESULT(var=ANSWER0)"
    programs = {"visprog": constant.format("a"), "visprog:1": constant.format("a"), "visprog:2": constant.format("b")}
    broken = programs | {"visprog:2": "nonsense"}
    asked = [*small.questions(1, programs=programs), *small.questions(1, first=1, programs=broken)]
    assert program_agreement(asked, small.modules(), "visprog") == pytest.approx({"q0": 2 / 3, "q1": 1.0})
    _, found = records(2)
    labelled = label(found, small.color(), teacher(["red", "green"]))
    kept = apply_filters(labelled, Filters(min_confidence=0, min_agreement=0.9), asked, small.modules(), {}, "visprog")
    assert {r.id: r.weight for r in kept} == {"q0": 0.0, "q1": 1.0}
