from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import InputError
from tutelage.programs.serialization import ImageRef, decode, encode, input_hash, input_key
from tutelage.programs.trace import RecordOrigin, StepRecord
from tutelage.programs.values import Box, Image, Object

from .stubs import picture

_NUMBER = st.floats(allow_nan=False, allow_infinity=False) | st.integers()
_BOX = st.builds(Box, *[st.floats(-100, 100)] * 5)
_VALUE = st.recursive(
    st.none() | st.booleans() | _NUMBER | st.text(max_size=5) | _BOX,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


def same(a: object, b: object) -> bool:
    return repr(a) == repr(b)


@given(_VALUE)
def test_a_value_comes_back_from_json_as_it_went(value: object) -> None:
    assert same(decode(json.loads(json.dumps(encode(value)))), value)


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_a_mask_comes_back(height: int, width: int, data: st.DataObject) -> None:
    cells = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.array(cells, bool).reshape(height, width)
    found = decode(json.loads(json.dumps(encode(mask))))
    assert found.dtype == bool
    assert (found == mask).all()


def test_an_object_comes_back() -> None:
    thing = Object(Box(1, 2, 3, 4, 0.5), np.eye(3, dtype=bool), "sign", 7, "red", 0.25)
    found = decode(json.loads(json.dumps(encode([thing]))))[0]
    assert (found.box, found.category, found.inst_id, found.class_name, found.class_score) == (
        (1, 2, 3, 4, 0.5),
        "sign",
        7,
        "red",
        0.25,
    )
    assert (found.mask == thing.mask).all()


def test_an_image_comes_back_by_its_key() -> None:
    image = picture(1).crop(2, 3, 9, 8)
    data = json.loads(json.dumps(encode(image)))
    assert decode(data) == ImageRef(image.root_key, (2, 3, 9, 8))
    found = decode(data, lambda key, region: {image.root_key: image}[key].part(region))
    assert found.key == image.key
    assert (found.bytes == image.bytes).all()


@pytest.mark.parametrize("data", [{"opaque": "Foo"}, {}, {"image": "a", "region": [1]}, {"object": {}}, {"mask": {}}, {1}])
def test_what_was_not_written_here_is_refused(data: object) -> None:
    with pytest.raises(InputError):
        decode(data)


def test_an_opaque_value_is_named() -> None:
    assert encode([object()]) == [{"opaque": "object"}]
    assert input_key({"a": object()}) is None
    with pytest.raises(InputError, match="object"):
        input_hash("LOC", {"a": object()})


def test_different_inputs_have_different_keys() -> None:
    image = picture(1)
    mask = np.eye(3, dtype=bool)
    different = [1, 1.0, True, "1", None, [1], ["1"], [[1]], [], {}, {"a": 1}, {"b": 1}, image, picture(2)]
    different += [image.crop(0, 0, 5, 5), image.crop(0, 0, 5, 6), [Box(0, 0, 1, 1)], [Box(0, 0, 1, 1, 0.5)], [[]]]
    different += [[Object(Box(0, 0, 1, 1))], [Object(Box(0, 0, 1, 1), mask)], [Object(Box(0, 0, 1, 1), ~mask)]]
    keys = [input_key({"x": value}) for value in different]
    assert None not in keys
    assert len(set(keys)) == len(different)
    assert len({input_hash("M", {"x": value}) for value in different}) == len(different)


def test_equal_inputs_have_equal_keys() -> None:
    image = picture(1)
    again = Image(image.root.copy()).crop(0, 0, 5, 5)
    assert input_key({"x": image.crop(0, 0, 5, 5)}) == input_key({"x": again})
    assert input_key({"x": ImageRef(*again.key)}) == input_key({"x": again})
    assert input_hash("M", {"a": 1, "b": 2}) == input_hash("M", {"b": 2, "a": 1})
    assert input_hash("M", {"a": 1}) != input_hash("N", {"a": 1})


def record() -> StepRecord:
    image = picture(1).crop(0, 0, 8, 8)
    return StepRecord(
        RecordOrigin("q1", "b_gqa", "one", "visprog", "abc"),
        2,
        3,
        "VQA",
        "v1",
        {"image": image, "question": "What color?"},
        "red",
        {"red": 0.75, "blue": 0.25},
        True,
        0.5,
        teacher={"name": "small", "version": "t1", "hard": "blue", "dist": {"blue": 1.0}, "conf": 0.9},
        filters={"gate": True},
        weight=0.5,
    )


def test_a_step_record_is_a_line_that_comes_back() -> None:
    made = record()
    line = json.dumps(made.to_json())
    for name in "id task stage framework program_hash step module module_version call_no args input output".split():
        assert name in json.loads(line)
    whole = made.args["image"]
    found = StepRecord.from_json(json.loads(line), lambda key, region: whole.part(region))
    assert json.dumps(found.to_json()) == line
    assert found.input_hash == made.input_hash
    assert found.args["image"].key == made.args["image"].key
    assert StepRecord.from_json(json.loads(line)).input_hash == made.input_hash


def test_without_timing_equal_runs_are_equal_bytes() -> None:
    one, two = record(), record()
    two.ms = 99.0
    assert one.to_json(timing=False) == two.to_json(timing=False)
    assert one.to_json() != two.to_json()


@pytest.mark.parametrize("name", ["module", "args", "step", "output"])
def test_a_missing_field_is_named(name: str) -> None:
    data = record().to_json()
    del data[name]
    with pytest.raises(InputError, match=name):
        StepRecord.from_json(data)


@pytest.mark.parametrize("data", [{"step": "x", "call_no": 0, "module": "A", "module_version": "1"}, {"step": None}])
def test_a_field_of_another_type_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(InputError, match="step record"):
        StepRecord.from_json(data)
