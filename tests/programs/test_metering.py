"""What a run may take is counted before it is taken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.modules.connected_components import MAX_RUNS, segment
from tutelage.modules.function_module import module
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs import visprog
from tutelage.programs.eval_expression import MAX_ITEMS as EVAL_ITEMS
from tutelage.programs.eval_expression import Expression
from tutelage.programs.image_cache import FileImage, ImageCache
from tutelage.programs.metering import MAX_ITEMS, MAX_LEVELS, Meter, measure
from tutelage.programs.metering import MAX_RUNS as MASK_RUNS
from tutelage.programs.run_context import Job, RunContext, direct_vqa
from tutelage.programs.scheduler import run
from tutelage.programs.trace import Trace
from tutelage.programs.types import Call, LimitExceeded, TypeFailure
from tutelage.programs.values import Box, Image, Object

CHILD = Path(__file__).with_name("metered_child.py")
SMALL = Image.from_array(np.full((3, 8, 8), 9, np.uint8))


@pytest.mark.skipif(sys.platform != "linux", reason="the child limits its memory as Linux does")
@pytest.mark.parametrize("share", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_no_operator_and_no_symbolic_module_takes_more_than_64_mib_on_any_value(share: int) -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", CHILD, str(share)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["faults"] == []
    assert report["runs"] > 24_000 // share
    assert {"ok", "type", "limit", "runtime"} <= set(report["statuses"])


def answer(text: str, images: int = 1, **given: Any) -> Trace:
    """The trace of a program whose module GIVE answers the value of that name."""

    @module(name="GIVE", version="1", symbolic=True)
    def give(name: str) -> Any:
        return given[name]

    modules = {**symbolic_modules(), "GIVE": give}
    parser = visprog.Parser({name: entry.signature for name, entry in modules.items()})
    (trace,) = run([Job("1", parser.try_parse(text), {"IMAGE": SMALL})], RunContext(modules))
    return trace


@pytest.mark.parametrize(
    ("expression", "value", "failure"),
    [
        ("{A} * 100000000", ["red"], TypeFailure),
        ("100000000 * {A}", ["red"], TypeFailure),
        ("{A} + {A}", ["red"], TypeFailure),
        ("'{A}'", ["x"] * 1_001, LimitExceeded),
        ("{A} == {A}", ["x"] * (EVAL_ITEMS + 1), LimitExceeded),
        ("'x' in {A}", [["x"] * 200] * 100, LimitExceeded),
        ("{A} == 1", 10**5_000, LimitExceeded),
        ("{A} == 'red'", "x" * 10_001, LimitExceeded),
    ],
    ids=["times", "times_2", "plus", "quoted", "long", "deep", "integer", "text"],
)
def test_an_expression_refuses_what_would_grow(expression: str, value: Any, failure: type[Exception]) -> None:
    with pytest.raises(failure):
        Expression(expression).evaluate({"A": value})


def test_lists_are_compared_and_searched() -> None:
    colors = ["red", "blue"]
    assert Expression("'red' in {A} and {A} == {B}").evaluate({"A": colors, "B": list(colors)}) is True
    assert Expression("'{A}' == '{B}'").evaluate({"A": colors, "B": str(colors)}) is True
    assert Expression("{A} + {B}").evaluate({"A": np.int64(2), "B": np.float32(0.5)}) == 2.5


def test_what_is_passed_on_again_and_again_is_counted_each_time() -> None:
    lines = "".join(f"A{number}=RESULT(var=A)\n" for number in range(200))
    text = f"A=GIVE(name='words')\n{lines}FINAL_RESULT=RESULT(var=A)"
    assert answer(text, words=["red"] * 100).status == "ok"
    trace = answer(text, words=["red"] * (MAX_ITEMS // 100))
    assert trace.status == "limit" and "items" in str(trace.error)
    assert sum(len(record.args.get("var", ())) for record in trace.steps) <= MAX_ITEMS
    json.dumps(trace.to_json())


@pytest.mark.parametrize(
    "value", [10**5_000, [10**5_000], "x" * 2_000_000, [0] * (MAX_ITEMS + 1)], ids=["int", "in_list", "text", "list"]
)
def test_an_answer_that_is_too_large_is_a_failure_of_its_program(value: Any) -> None:
    trace = answer("A=GIVE(name='value')\nFINAL_RESULT=RESULT(var=A)", value=value)
    assert trace.status == "limit" and trace.answer is None
    assert len(json.dumps(trace.to_json())) < 10_000


def test_a_batch_goes_on_after_the_program_that_took_too_much() -> None:
    @module(name="GIVE", version="1")
    def give(name: str) -> Any:
        return [0] * (MAX_ITEMS + 1) if name == "many" else "yes"

    @module(name="VQA", version="1")
    def vqa(image: Image, question: str) -> str:
        return "fallen back"

    modules = {**symbolic_modules(), "GIVE": give, "VQA": vqa}
    parser = visprog.Parser({name: entry.signature for name, entry in modules.items()})
    texts = [f"A=GIVE(name='{name}')\nFINAL_RESULT=RESULT(var=A)" for name in ("few", "many", "few")]
    jobs = [Job(str(place), parser.try_parse(text), {"IMAGE": SMALL}, "what?") for place, text in enumerate(texts)]
    assert [trace.status for trace in run(jobs, RunContext(modules))] == ["ok", "limit", "ok"]
    fallen = run(jobs, RunContext(modules, fallback=direct_vqa))
    assert [trace.answer for trace in fallen] == ["yes", "fallen back", "yes"]


def test_pictures_and_masks_are_counted_once() -> None:
    meter, mask = Meter(bytes=1_000), np.zeros((30, 30), bool)
    things = [Object(Box(0, 0, 9, 9), mask)] * 3
    meter.charge(things)
    meter.charge(things)
    assert meter.bytes == 100 and meter.items == MAX_ITEMS - 6
    with pytest.raises(LimitExceeded):
        meter.charge([Object(Box(0, 0, 9, 9), mask.copy())])


def test_a_crop_takes_no_bytes_and_room_for_a_picture_is_there_before_it_is_made() -> None:
    meter, call = Meter(bytes=300), Call("CROP", {"image": SMALL})
    meter.reserve_image(call)
    meter.charge(SMALL.crop(0, 0, 2, 2))
    assert meter.bytes == 300
    meter.charge(Image.from_array(np.zeros((3, 8, 8), np.uint8)))
    with pytest.raises(LimitExceeded):
        meter.reserve_image(call)


def test_a_picture_that_lies_in_a_file_is_not_opened_to_be_counted(tmp_path: Path) -> None:
    SMALL.to_pil().save(tmp_path / "a.png")
    album = ImageCache()
    image = FileImage(album, tmp_path / "a.png", "key", (0, 0, 8, 8))
    (tmp_path / "a.png").unlink()
    meter, call = Meter(bytes=200), Call("VQA", {"image": image})
    meter.charge_call(call)
    meter.charge([image, image.part((0, 0, 2, 2))])
    assert meter.bytes == 200


def test_masks_of_noise_are_refused_before_they_are_written() -> None:
    noise = np.arange(1_000_000).reshape(1_000, 1_000) % 2 == 0
    meter = Meter()
    with pytest.raises(LimitExceeded, match="masks"):
        for _ in range(MASK_RUNS // 1_000_000 + 1):
            meter.charge([Object(Box(0, 0, 9, 9), noise)])


def test_nesting_is_bounded_even_where_a_list_holds_itself() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(LimitExceeded):
        Meter().charge(endless)
    nested: Any = 1
    for _ in range(MAX_LEVELS):
        nested = [nested]
    Meter().charge(nested)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=30,
)


def _count(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_count, value.values()))
    return len(value) + sum(map(_count, value)) if isinstance(value, list) else 0


@given(_values, st.integers(0, 40))
def test_items_are_counted_through_every_level(value: Any, allowed: int) -> None:
    if _count(value) <= allowed:
        measure([value], allowed, 1_000)
    else:
        with pytest.raises(LimitExceeded, match="items"):
            measure([value], allowed, 1_000)


def test_noise_is_not_parted_into_regions() -> None:
    rows, columns = 1_000, 2 * MAX_RUNS // 1_000 + 10
    dots = np.zeros((3, rows, columns), np.uint8)
    dots[:, :, ::2] = 255
    dots[:, [0, -1]] = dots[:, :, [0, -1]] = 0
    with pytest.raises(LimitExceeded, match="regions"):
        segment(Image.from_array(dots))
