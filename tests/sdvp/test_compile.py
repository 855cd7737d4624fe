from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import pytest

from tutelage.errors import InputError
from tutelage.modules.visual_module import CallLabel
from tutelage.programs.types import Call
from tutelage.sdvp import compile as sdvp_compile
from tutelage.sdvp.attribution import attribute_errors, teacher_oracle
from tutelage.sdvp.collect import call_of, collect
from tutelage.sdvp.compile import distill_task
from tutelage.sdvp.continual.low_rank import LoRA
from tutelage.sdvp.final_answer import StepwiseWithFinalAnswer
from tutelage.sdvp.label import Filters
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.pipeline import replay_examples
from tutelage.sdvp.questions import accuracy
from tutelage.sdvp.task import SdvpTask
from tutelage.sdvp.teachers import ModuleTeacher, from_callable

from . import small

OPTIONS = SdvpOptions(settings=small.SETTINGS)


def test_a_black_box_teacher_makes_a_users_module_better_and_changes_nothing_in_place() -> None:
    modules, asked = small.modules(), small.questions(45)
    unlabelled = [replace(q, answer=None) for q in asked]
    result = sdvp_compile(unlabelled, modules, {"COLOR": small.brightest}, options=OPTIONS)
    assert accuracy(asked, result.modules) >= 0.9 > accuracy(asked, modules)
    assert accuracy(small.questions(30, first=1000), result.modules) > 0.8, "on pictures it has not seen"
    assert small.equal(modules["COLOR"].network, small.color().network)
    (taught,) = result.reports
    assert (taught.module, taught.records, taught.kept, taught.verdict.calls) == ("COLOR", 45, 45, 0)


def test_the_same_call_gives_the_same_bits() -> None:
    def once() -> str:
        result = sdvp_compile(small.questions(9), small.modules(), {"COLOR": small.brightest}, options=OPTIONS)
        return result.modules["COLOR"].version

    assert once() == once()


def test_a_teacher_that_loses_on_the_probe_teaches_nothing() -> None:
    asked = small.questions(9)
    modules = small.modules()
    known = [(call_of(r), CallLabel(q.answer)) for r, q in zip(collect(asked, modules)["COLOR"], asked, strict=True)]
    wrong = from_callable(lambda calls: [small.COLORS[(small.COLORS.index(a) + 1) % 3] for a in small.brightest(calls)])
    result = distill_task(modules, SdvpTask("s", asked, {"COLOR": wrong}, {"COLOR": known}), OPTIONS)
    assert result.modules["COLOR"] is modules["COLOR"]
    assert not result.reports[0].verdict.accepted and result.reports[0].kept == 0


def test_labels_below_the_gate_teach_nothing() -> None:
    modules = small.modules()
    unsure = from_callable(lambda calls: [{"red": 0.5, "blue": 0.3, "green": 0.2}] * len(calls))
    result = distill_task(
        modules, SdvpTask("s", small.questions(6), {"COLOR": unsure}), replace(OPTIONS, filters=Filters(min_confidence=0.6))
    )
    assert result.modules["COLOR"] is modules["COLOR"]
    assert (result.reports[0].records, result.reports[0].kept) == (6, 0)


def test_the_guard_rolls_back_a_lesson_that_harms_guarded_questions() -> None:
    modules = small.modules()
    good = sdvp_compile(small.questions(45), modules, {"COLOR": small.brightest}, options=OPTIONS).modules
    liar = from_callable(lambda calls: ["red"] * len(calls))
    stage = SdvpTask("s", small.questions(30), {"COLOR": liar}, guarded=small.questions(30, first=200))
    free = distill_task(good, stage, replace(OPTIONS, max_drop=None, replay=False)).modules
    guarded = distill_task(good, stage, replace(OPTIONS, max_drop=0.01, replay=False))
    asked = stage.guarded
    assert accuracy(asked, free) < 0.5
    assert accuracy(asked, guarded.modules) >= accuracy(asked, good) - 0.01
    (taught,) = guarded.reports
    assert taught.share < 1 and taught.guard_after >= taught.guard_before - 0.01


class Wide(small.Color):
    """A colour namer whose calls have siblings: any image, asked in two further ways."""

    name = "COLOR"
    signature: ClassVar = small.Color.signature

    def related_calls(self, call: Call) -> list[Call]:
        image = call.args["image"]
        w, h = image.width, image.height
        return [Call("COLOR", {"image": image.crop(0, 0, w / 2, h)}), Call("COLOR", {"image": image.crop(0, 0, w, h / 2)})]


def shapes(calls: Sequence[Call]) -> set[tuple[int, int]]:
    return {(call.args["image"].width, call.args["image"].height) for call in calls}


def test_replay_never_asks_for_what_the_teacher_covers() -> None:
    """The new calls and the tall siblings are the teacher's; what is kept is the flat siblings, and old calls whole."""
    module = Wide.with_classes(*small.COLORS, pixels=8)
    seen: list[Call] = []

    class Spy(Wide):
        def training_examples(self, calls, labels):  # noqa: ANN001, ANN202
            seen.extend(calls)
            return super().training_examples(calls, labels)

    spy = Spy.with_classes(*small.COLORS, pixels=8)
    covered = lambda call: call.args["image"].height >= call.args["image"].width  # noqa: E731
    teacher = ModuleTeacher("t", "1", covered, lambda calls: [CallLabel("red")] * len(calls))
    new = collect(small.questions(4), small.modules(COLOR=module))["COLOR"]
    stage = SdvpTask("s", small.questions(4), {"COLOR": teacher})
    found = replay_examples(small.modules(COLOR=spy), spy, stage, "COLOR", teacher, new, OPTIONS)
    assert len(found) == len(seen) == 4 and not any(teacher.supports(call) for call in seen)
    assert not found.targets, "replay has no labels"

    seen.clear()
    old = replace(stage, replay=small.questions(3, first=50))
    replay_examples(small.modules(COLOR=spy), spy, old, "COLOR", teacher, new, OPTIONS)
    keys = {q.images["IMAGE"].root_key for q in old.replay}
    earlier = [call for call in seen if call.args["image"].root_key in keys]
    assert len(earlier) == 9 and len(seen) == 9 + 4, "old calls with all their siblings, whoever covers them"
    assert len({call.args["image"].key for call in seen}) == len(seen)


def test_replay_is_cut_to_size_by_whole_images_with_equal_room() -> None:
    module = Wide.with_classes(*small.COLORS, pixels=8)
    teacher = ModuleTeacher("t", "1", lambda call: False, lambda calls: [])
    new = collect(small.questions(20), small.modules(COLOR=module))["COLOR"]
    stage = SdvpTask("s", (), {"COLOR": teacher}, replay=small.questions(20, first=50))
    found = replay_examples(small.modules(COLOR=module), module, stage, "COLOR", teacher, new, replace(OPTIONS, max_replay=40))
    assert 20 <= len(found) <= 60
    again = replay_examples(small.modules(COLOR=module), module, stage, "COLOR", teacher, new, replace(OPTIONS, max_replay=40))
    assert (found.inputs["pixels"] == again.inputs["pixels"]).all()


def test_self_distillation_keeps_what_naive_tuning_forgets() -> None:
    """Task two shows only red pictures; naive tuning forgets the other colours, replayed inputs keep them."""
    modules, old = small.modules(), small.questions(45)
    knows = sdvp_compile(old, modules, {"COLOR": small.brightest}, options=OPTIONS).modules
    new = [q for q in small.questions(45, first=300) if q.answer == "red"]
    stage = SdvpTask("two", new, {"COLOR": from_callable(small.brightest)}, replay=[replace(q, answer=None) for q in old])
    naive = distill_task(knows, stage, replace(OPTIONS, replay=False)).modules
    kept = distill_task(knows, stage, OPTIONS).modules
    assert accuracy(old, naive) < accuracy(old, knows) - 0.2
    assert accuracy(old, kept) >= accuracy(old, knows) - 0.05


class Tint(small.Color):
    """The same skill under another name, asked later."""

    name = "TINT"


BOTH = "ANSWER0=COLOR(image=IMAGE)\nANSWER1=TINT(image=IMAGE)\nFINAL_RESULT=RESULT(var=ANSWER1)"


def two() -> tuple[Mapping, SdvpTask]:
    modules = small.modules(TINT=Tint.with_classes(*small.COLORS, pixels=8, seed=3))
    teacher = from_callable(small.brightest)
    return modules, SdvpTask("s", small.questions(12, programs={"visprog": BOTH}), {"COLOR": teacher, "TINT": teacher})


def test_modules_are_taught_in_order_and_only_those_asked_for() -> None:
    modules, stage = two()
    said: list[str] = []
    brief = replace(OPTIONS, settings=replace(small.SETTINGS, steps=3))
    distill_task(modules, stage, replace(brief, order=("TINT", "COLOR")), report=said.append)
    assert said == ["s: teaching TINT", "s: teaching COLOR"]
    result = distill_task(modules, stage, replace(brief, modules=("TINT",)))
    assert [t.module for t in result.reports] == ["TINT"] and result.modules["COLOR"] is modules["COLOR"]


def test_a_retain_option_that_wraps_the_student_leaves_a_plain_module() -> None:
    result = sdvp_compile(
        small.questions(9), small.modules(), {"COLOR": small.brightest}, options=replace(OPTIONS, strategy=LoRA())
    )
    network = result.modules["COLOR"].network
    assert network.state_dict().keys() == small.color().network.state_dict().keys()
    assert result.reports[0].kept == 9


@pytest.mark.parametrize(
    ("programs", "teachers", "words"),
    [
        ([], {"COLOR": small.brightest}, "no programs"),
        (None, {"COLOUR": small.brightest}, "no trainable module 'COLOUR'"),
        (None, {"MIDDLE": small.brightest}, "no trainable module 'MIDDLE'"),
    ],
)
def test_what_cannot_be_taught_is_said(programs, teachers, words: str) -> None:  # noqa: ANN001
    with pytest.raises(InputError, match=words):
        sdvp_compile(small.questions(1) if programs is None else programs, small.modules(), teachers)


def test_calls_that_spoil_answers_count_more_than_those_that_do_not() -> None:
    """The module is right about one colour by chance: its calls there carry no blame."""
    modules, asked = small.modules(), small.questions(30)
    stage = SdvpTask("s", asked, {"COLOR": from_callable(small.brightest)})
    result = distill_task(modules, stage, replace(OPTIONS, attribution_floor=0.25))
    assert accuracy(asked, result.modules) > accuracy(asked, modules)
    right = accuracy(asked, modules)
    found = attribute_errors(asked, modules, teacher_oracle(stage.teachers))
    records = collect(asked, modules)["COLOR"]
    weights = [record.weight for record in found.weight_records(records, 0.25)]
    assert 0 < right < 1
    assert sorted(set(weights)) == [0.25, 1.0]
    assert sum(weight == 0.25 for weight in weights) == round(right * len(asked))


def test_final_answers_are_a_term_of_the_lesson() -> None:
    modules, asked = small.modules(), small.questions(30)
    stage = SdvpTask("s", asked, {"COLOR": from_callable(small.brightest)})
    options = replace(OPTIONS, loss=StepwiseWithFinalAnswer.Config(mu=0.5))
    taught = distill_task(modules, stage, options)
    assert {"step", "final"} <= set(taught.reports[0].loss)
    assert accuracy(asked, taught.modules) >= 0.9
    alone = distill_task(modules, stage, replace(options, loss=StepwiseWithFinalAnswer.Config(mu=1.0, step=0.0)))
    assert accuracy(asked, alone.modules) >= 0.9, "final answers teach without the teacher's labels"
    plain = distill_task(modules, stage, replace(options, loss=StepwiseWithFinalAnswer.Config(mu=0.0)))
    assert "final" not in plain.reports[0].loss


@pytest.mark.parametrize(
    "changed", [{"attribution_floor": 0.5}, {"loss": StepwiseWithFinalAnswer.Config()}], ids=["attribution", "final"]
)
def test_options_that_need_answers_say_so(changed: dict) -> None:
    unlabelled = [replace(q, answer=None) for q in small.questions(6)]
    stage = SdvpTask("s", unlabelled, {"COLOR": from_callable(small.brightest)})
    with pytest.raises(InputError, match="no question has an answer"):
        distill_task(small.modules(), stage, replace(OPTIONS, **changed))


def test_final_answers_without_a_visprog_program_are_refused() -> None:
    asked = small.questions(6, programs={"viper": small.VIPER})
    stage = SdvpTask("s", asked, {"COLOR": from_callable(small.brightest)})
    options = replace(OPTIONS, dsl="viper", loss=StepwiseWithFinalAnswer.Config())
    with pytest.raises(InputError, match="need VisProg programs"):
        distill_task(small.modules(), stage, options)
