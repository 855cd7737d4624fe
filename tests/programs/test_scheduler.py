from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import InputError
from tutelage.modules.function_module import module
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.run_context import USE_MODULE, Job, RunContext, direct_vqa
from tutelage.programs.scheduler import COLLECT_AFTER, run, stream
from tutelage.programs.types import Call, ModuleOutputs, ProgramRun, RuntimeFailure, Signature, TypeFailure, Value
from tutelage.programs.value_types import has_type
from tutelage.programs.values import Box, Image
from tutelage.programs.visprog import Parser

from .stubs import Handwritten, Stub, by_name, loc, picture, vqa

COLOR = """BOX0=LOC(image=IMAGE,object='{noun}')
IMAGE0=CROP(image=IMAGE,box=BOX0)
ANSWER0=VQA(image=IMAGE0,question='What color is the {noun}?')
FINAL_RESULT=RESULT(var=ANSWER0)"""
COUNT = """BOX0=LOC(image=IMAGE,object='{noun}')
ANSWER0=COUNT(box=BOX0)
ANSWER1=EVAL(expr="'yes' if {{ANSWER0}} > 3 else 'no'")
FINAL_RESULT=RESULT(var=ANSWER1)"""


def context(*modules: object, **options: object) -> RunContext:
    return RunContext(symbolic_modules() | by_name(*(modules or (loc(), vqa()))), **options)


def jobs(where: RunContext, number: int = 30) -> list[Job]:
    parser = Parser(where.signatures)
    nouns = ("circle", "star", "sign")
    texts = [template.format(noun=noun) for noun in nouns for template in (COLOR, COUNT)]
    pictures = [picture(index) for index in range(7)]
    return [Job(str(index), parser.parse(texts[index % len(texts)]), {"IMAGE": pictures[index % 7]}) for index in range(number)]


def plain(traces: list) -> list[str]:
    return [json.dumps(trace.to_json(timing=False)) for trace in traces]


def test_a_trace_holds_every_step() -> None:
    where = context()
    (trace,) = run(jobs(where, 1), where)
    assert trace.status == "ok"
    assert [record.module for record in trace.steps] == ["LOC", "CROP", "VQA", "RESULT"]
    assert [record.step for record in trace.steps] == [record.call_no for record in trace.steps] == [0, 1, 2, 3]
    assert trace.steps[1].args["box"] == trace.steps[0].output
    assert trace.steps[2].args["image"] is trace.steps[1].output
    assert trace.steps[2].output_dist == {"sure": 1.0}
    assert trace.answer == trace.steps[2].output
    assert trace.steps[0].origin.framework == "visprog"
    assert trace.steps[0].module_version == "1"


def test_equal_calls_that_are_answered_once_keep_their_own_step() -> None:
    where = context()
    parser = Parser(where.signatures)
    late = "N=EVAL(expr='1')\nBOX0=LOC(image=IMAGE,object='star')\nFINAL_RESULT=RESULT(var=BOX0)"
    early = "BOX0=LOC(image=IMAGE,object='star')\nFINAL_RESULT=RESULT(var=BOX0)"
    state = {"IMAGE": picture(0)}
    traces = run([Job(str(i), parser.parse(text), state) for i, text in enumerate((late, early, early))], where)
    assert [[(record.step, record.module) for record in trace.steps] for trace in traces] == [
        [(0, "EVAL"), (1, "LOC"), (2, "RESULT")],
        [(0, "LOC"), (1, "RESULT")],
        [(0, "LOC"), (1, "RESULT")],
    ]


def test_the_garbage_collector_is_as_before_when_a_run_ends_or_is_left() -> None:
    before = gc.get_threshold()
    where = context()
    started = stream(jobs(where), where)
    next(started)
    assert gc.get_threshold()[0] >= COLLECT_AFTER
    started.close()
    assert gc.get_threshold() == before
    run(jobs(where), where)
    assert gc.get_threshold() == before


def test_calls_of_many_programs_are_batches_of_one_module() -> None:
    finder, asker = loc(), vqa()
    where = context(finder, asker, deduplicate=False)
    run(jobs(where, 30), where)
    assert len(finder.calls) == 30
    assert len(asker.calls) == 15
    assert {call.module for call in finder.calls} == {"LOC"}
    assert [len(batch) for batch in finder.batches] == [4] * 7 + [2]


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"window": 1}, {"window": 3}, {"deduplicate": False}])
def test_batches_change_nothing(options: dict[str, object]) -> None:
    whole, other = context(), context(**options)
    assert plain(run(jobs(whole), whole)) == plain(run(jobs(other), other))


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 40))
def test_every_batch_size_and_window_gives_the_same_traces_in_order(size: int, window: int, number: int) -> None:
    finder, asker = loc(batch_size=size), vqa(batch_size=3)
    where, single = context(finder, asker, window=window), context(batch_size=1, window=1)
    traces = run(jobs(where, number), where)
    assert [trace.id for trace in traces] == [str(index) for index in range(number)]
    assert plain(traces) == plain(run(jobs(single, number), single))
    assert all(len(batch) <= size for batch in finder.batches)


PAIR = """B0=LOC(image=IMAGE,object='star')
I0=CROP(image=IMAGE,box=B0)
A0=VQA(image=I0,question='What color is the star?')
B1=LOC(image=IMAGE,object='sign')
I1=CROP(image=IMAGE,box=B1)
A1=VQA(image=I1,question='What color is the sign?')
A2=EVAL(expr="{A0} == {A1}")
FINAL_RESULT=RESULT(var=A2)"""


def test_steps_that_do_not_need_one_another_are_asked_together() -> None:
    finder, asker = loc(), vqa()
    where = context(finder, asker)
    (trace,) = run([Job("a", Parser(where.signatures).parse(PAIR), {"IMAGE": picture(0)})], where)
    assert [len(batch) for batch in finder.batches] == [len(batch) for batch in asker.batches] == [2]
    assert [record.step for record in trace.steps] == list(range(8))
    assert [record.call_no for record in trace.steps] == [0, 2, 4, 1, 3, 5, 6, 7]
    assert trace.answer == (trace.steps[2].output == trace.steps[5].output)
    assert trace.steps[4].args["box"] == trace.steps[3].output


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}, {"window": 1}, {"fallback": direct_vqa}])
def test_the_first_failing_step_of_those_asked_together_ends_the_program(options: dict[str, object]) -> None:
    blind = Stub("VQA", vqa().signature, lambda call: RuntimeFailure(call.args["question"]))
    where = context(loc(batch_size=1), blind, **options)
    job = Job("a", Parser(where.signatures).parse(PAIR), {"IMAGE": picture(0)}, "Same?")
    (trace,) = run([job], where)
    assert trace.status == "runtime"
    assert trace.error.splitlines()[0] == "step 2, VQA: What color is the star?"
    expected = [0, 1, 2, 3, 4, 5] + ([-1] if options.get("fallback") else [])
    assert [record.step for record in trace.steps] == expected
    assert trace.steps[5].error == "What color is the sign?"


def test_equal_waiting_calls_are_asked_once() -> None:
    finder = loc(batch_size=100)
    where = context(finder, vqa(batch_size=100))
    traces = run(jobs(where, 42), where)
    assert len(finder.calls) == len({(call.args["image"].key, call.args["object"]) for call in finder.calls}) == 21
    boxes = [trace.steps[0].output for trace in traces if trace.steps[0].input_hash == traces[0].steps[0].input_hash]
    assert len(boxes) == 2
    assert boxes[0] == boxes[1]


def test_memory_is_bounded_by_the_window() -> None:
    where = context(window=8)
    program = Parser(where.signatures).parse(COLOR.format(noun="star"))
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield Job(str(taken), program, {"IMAGE": picture(taken)})

    traces = stream(endless(), where)
    for number in range(1, 300):
        assert next(traces).id == str(number)
        assert taken - number <= 17 * 8


def branching(state: Mapping[str, Value]) -> ProgramRun:
    """Asks A of an image again and again, and B of what A said, along branches that depend on the answers."""
    said = []
    for turn in range(3):
        answer = yield Call("A", {"image": state["IMAGE"], "text": f"{state['SECRET']}-{turn}"}, turn)
        said.append(answer)
        if len(answer) % 2:
            said.append((yield Call("B", {"text": answer}, 10 + turn)))
            said.append((yield Call("A", {"image": state["IMAGE"], "text": said[-1]}, 20 + turn)))
    if len(said) > 4:
        said.append((yield Call("B", {"text": "".join(said)}, 30)))
    return said


def expected_steps(secret: str) -> tuple[list[tuple[str, str]], list[str]]:
    """What ``branching`` must ask and answer, worked out without the scheduler."""
    asked: list[tuple[str, str]] = []
    generator, value = branching({"IMAGE": None, "SECRET": secret}), None
    try:
        while True:
            call = generator.send(value)
            asked.append((call.module, call.args["text"]))
            value = f"{call.module.lower()}<{call.args['text']}>" + "!" * (call.args["text"].count("0"))
    except StopIteration as stop:
        return asked, stop.value


@given(st.lists(st.text("0ab", min_size=1, max_size=3), min_size=1, max_size=12), st.integers(1, 5), st.booleans())
def test_a_step_of_one_module_never_reaches_the_data_of_another(secrets: list[str], size: int, merge: bool) -> None:
    def answer(call: Call) -> str:
        return f"{call.module.lower()}<{call.args['text']}>" + "!" * (call.args["text"].count("0"))

    a = Stub("A", Signature({"image": "image", "text": "text"}, "text"), answer, batch_size=size)
    b = Stub("B", Signature({"text": "text"}, "text"), answer, batch_size=size)
    image = picture(0)
    work = [Job(str(n), Handwritten(branching), {"IMAGE": image, "SECRET": s}) for n, s in enumerate(secrets)]
    traces = run(work, RunContext(by_name(a, b), deduplicate=merge, window=5))
    assert all(call.module == "A" and set(call.args) == {"image", "text"} for call in a.calls)
    assert all(call.module == "B" and set(call.args) == {"text"} for call in b.calls)
    for trace, secret in zip(traces, secrets, strict=True):
        asked, said = expected_steps(secret)
        assert [(record.module, record.args["text"]) for record in trace.steps] == asked
        assert [record.output for record in trace.steps] == [answer(Call(*step)) for step in _calls(asked)]
        assert trace.answer == said
        assert {record.id for record in trace.steps} == {trace.id}


def _calls(asked: list[tuple[str, str]]) -> list[tuple[str, dict[str, str]]]:
    return [(module, {"text": text}) for module, text in asked]


def test_what_a_program_does_to_its_values_reaches_nobody_else() -> None:
    def body(state: Mapping[str, Value]) -> ProgramRun:
        boxes = yield Call("LOC", {"image": state["IMAGE"], "object": "star"})
        boxes.clear()
        return len(boxes)

    where = context(loc())
    traces = run([Job(str(n), Handwritten(body), {"IMAGE": picture(0)}) for n in range(3)], where)
    assert [len(trace.steps[0].output) for trace in traces] == [3, 3, 3]


def failing(call: Call) -> Value:
    if "star" in call.args["question"]:
        return RuntimeFailure("no stars here", remedy="look elsewhere")
    if "sign" in call.args["question"]:
        raise ZeroDivisionError("a bug")
    return "red"


@pytest.mark.parametrize("size", [1, 100])
def test_a_failure_ends_its_program_alone(size: int) -> None:
    asker = Stub("VQA", vqa().signature, failing, batch_size=size)
    where = context(loc(), asker)
    traces = run(jobs(where, 12), where)
    colors = {noun: traces[2 * index] for index, noun in enumerate(("circle", "star", "sign"))}
    assert (colors["circle"].status, colors["circle"].answer) == ("ok", "red")
    assert (colors["star"].status, colors["star"].answer) == ("runtime", None)
    assert colors["star"].error == "step 2, VQA: no stars here\n  remedy: look elsewhere"
    assert colors["star"].steps[-1].error == "no stars here\n  remedy: look elsewhere"
    assert colors["sign"].status == "runtime"
    assert "VQA raised ZeroDivisionError: a bug" in colors["sign"].error
    assert all(trace.status == "ok" for trace in traces[1::2])


def test_failures_of_every_kind_have_their_status() -> None:
    where = context()
    parser = Parser(where.signatures)

    def body(name: str):
        def steps(state: Mapping[str, Value]) -> ProgramRun:
            if name == "bug":
                raise KeyError("oops")
            if name == "type":
                raise TypeFailure("a program's own")
            if name == "unknown":
                yield Call("NOTHING", {})
            while True:
                yield Call("COUNT", {"box": []})

        return Handwritten(steps)

    broken = {
        "parse": parser.try_parse("("),
        "refused": parser.try_parse("import os"),
        "unknown_module": body("unknown"),
        "undefined_var": parser.parse(COUNT.format(noun="a"), ("IMAGE",)),
        "type": body("type"),
        "runtime": body("bug"),
        "limit": body("endless"),
    }
    work = [Job(kind, program, {}) for kind, program in broken.items()]
    traces = run(work, where)
    assert [trace.status for trace in traces] == list(broken)
    assert all(trace.error and trace.answer is None for trace in traces)
    assert "KeyError" in traces[5].error
    assert len(traces[6].steps) == 1001  # the last was refused


def test_a_module_that_answers_too_few_is_at_fault() -> None:
    class Short:
        name, version, signature, symbolic, batch_size = "VQA", "1", vqa().signature, False, 8

        def run(self, calls):
            return ModuleOutputs([])

    where = context(loc(), Short())
    traces = run(jobs(where, 4), where)
    assert [trace.status for trace in traces] == ["runtime", "ok", "runtime", "ok"]
    assert "0 answers to 1 calls" in traces[0].error


def test_a_zero_area_crop_is_a_runtime_failure() -> None:
    nowhere = Stub("LOC", loc().signature, lambda call: [Box(0.0, 0.0, 0.0, 9.0)])
    where = context(nowhere, vqa())
    text = "B=LOC(image=IMAGE,object='a')\nI=CROP_LEFTOF(image=IMAGE,box=B)\nFINAL_RESULT=RESULT(var=I)"
    (trace,) = run([Job("a", Parser(where.signatures).parse(text), {"IMAGE": picture(0)})], where)
    assert trace.status == "runtime"
    assert "zero area" in trace.error


def test_the_fallback_is_counted_and_does_not_hide_the_failure() -> None:
    where = context(fallback=direct_vqa)
    bad = Parser(where.signatures).try_parse("(")
    good = Parser(where.signatures).parse(COLOR.format(noun="star"))
    state = {"IMAGE": picture(3)}
    failed, fine = run([Job("a", bad, state, "What color?"), Job("b", good, state, "What color?")], where)
    assert (failed.status, failed.fallback) == ("parse", True)
    assert failed.answer == vqa().answer(Call("VQA", {"image": state["IMAGE"], "question": "What color?"}))
    assert [(record.module, record.step) for record in failed.steps] == [("VQA", -1)]
    assert (fine.status, fine.fallback) == ("ok", False)
    with pytest.raises(InputError, match="question"):
        run([Job("a", bad, state)], where)


def test_a_fallback_that_fails_too_says_both() -> None:
    where = context(loc(), Stub("VQA", vqa().signature, lambda call: RuntimeFailure("blind")), fallback=direct_vqa)
    program = Parser(where.signatures).parse(COLOR.format(noun="star"))
    (trace,) = run([Job("a", program, {"IMAGE": picture(3)}, "What color?")], where)
    assert (trace.status, trace.answer, trace.fallback) == ("runtime", None, True)
    assert trace.error == "step 2, VQA: blind\nfallback, VQA: blind"


def test_a_substitute_stands_in_for_one_step() -> None:
    asked = []

    def substitute(job: Job, call: Call, number: int) -> Value:
        asked.append((job.id, call.module, number))
        return [Box(0, 0, 4, 4)] if call.step == 0 else USE_MODULE

    finder = loc()
    where = context(finder, vqa(), substitute=substitute)
    traces = run(jobs(where, 2), where)
    assert finder.calls == []
    assert [record.substituted for record in traces[0].steps] == [True, False, False, False]
    assert traces[0].steps[1].args["box"] == [Box(0, 0, 4, 4)]
    assert traces[1].steps[1].output == 1
    assert ("0", "VQA", 2) in asked


def test_words_outside_a_vocabulary_are_counted() -> None:
    where = context()
    parser = Parser(where.signatures)
    work = [Job(noun, parser.parse(COLOR.format(noun=noun)), {"IMAGE": picture(1)}) for noun in ("unknown", "star")]
    assert [trace.out_of_vocabulary for trace in run(work, where)] == [2, 0]


def test_traces_as_json() -> None:
    where = context()
    (trace,) = run(jobs(where, 1), where)
    data = json.loads(json.dumps(trace.to_json()))
    assert list(data)[:5] == ["id", "status", "answer", "steps", "error"]
    step = data["steps"][2]
    assert step["input"]["question"] == "What color is the circle?"
    assert step["input"]["image"] == trace.steps[2].args["image"].root_key
    assert step["input"]["crop_box"] == list(trace.steps[2].args["image"].region)
    assert data["steps"][0]["output"][0] == list(trace.steps[0].output[0])
    assert step["ms"] >= 0


@pytest.mark.parametrize(
    ("build", "shown"),
    [
        (loc, "LOC declares that it returns boxes, and returned str 'red'"),
        (vqa, "VQA declares that it returns text, and returned int 3"),
    ],
)
@pytest.mark.parametrize("batch_size", [None, 1])
def test_an_output_of_a_type_not_declared_fails_at_its_module(
    build: Callable[[], Stub], shown: str, batch_size: int | None
) -> None:
    wrong = build()
    wrong.answer = {"LOC": lambda call: "red", "VQA": lambda call: 3}[wrong.name]
    where = replace(context(*(wrong if make is build else make() for make in (loc, vqa))), batch_size=batch_size)
    for trace in run(jobs(where, 1), where):
        assert trace.status == "runtime" and trace.answer is None
        assert trace.steps[-1].module == wrong.name and trace.steps[-1].output is None
        assert f"{wrong.name}: {shown}" in trace.error and f"correct the module {wrong.name}" in trace.error


@pytest.mark.parametrize(
    ("value", "kind", "right"),
    [
        ([], "boxes", True),
        ([Box(0, 0, 1, 1)], "boxes", True),
        (Box(0, 0, 1, 1), "boxes", False),
        ([Box(0, 0, 1, 1), "red"], "boxes", False),
        ((Box(0, 0, 1, 1),), "boxes", False),
        ([Box(0, 0, 1, 1)], "objects", False),
        (None, "boxes", False),
        (None, "text", False),
        ("", "text", True),
        (1, "bool", False),
        (np.bool_(True), "bool", True),
        (np.float32(1), "number", True),
        ("3", "number", False),
        (picture(0), "image", True),
        (picture(0).bytes, "image", False),
        (object(), "any", True),
    ],
)
def test_which_values_have_a_declared_type(value: object, kind: str, right: bool) -> None:
    assert has_type(value, kind) is right


def test_symbolic_modules_and_functions_are_held_to_their_types_too() -> None:
    @module(symbolic=True)
    def CORNER(image: Image) -> list[Box]:
        return "top"  # type: ignore[return-value]

    @module
    def NAME(image: Image) -> str | None:
        return None

    where = RunContext({**symbolic_modules(), "CORNER": CORNER, "NAME": NAME})
    lines = "BOX0=CORNER(image=IMAGE)\nFINAL_RESULT=RESULT(var=BOX0)", "A=NAME(image=IMAGE)\nFINAL_RESULT=RESULT(var=A)"
    wrong, none = run([Job("x", Parser(where.signatures).parse(text), {"IMAGE": picture(1)}) for text in lines], where)
    assert (wrong.status, none.status, none.answer) == ("runtime", "ok", None)
    assert "step 0, CORNER: CORNER declares that it returns boxes, and returned str 'top'" in wrong.error
