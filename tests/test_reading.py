"""Whatever is in a file, reading it gives a value or a typed error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage import reading
from tutelage.errors import InputError
from tutelage.reading import MAX_LEVELS

DEEP = {
    "lists": "[" * 100_000 + "]" * 100_000,
    "unclosed": "[" * 100_000,
    "objects": '{"a":' * 5_000 + "1" + "}" * 5_000,
    "just_over": "[" * (MAX_LEVELS + 2) + "]" * (MAX_LEVELS + 2),
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_nesting_is_bounded(text: str) -> None:
    with pytest.raises(InputError, match="nested more than 100 levels"):
        reading.parse_json(text, "a.json")
    with pytest.raises(InputError, match="nested"):
        reading.parse_toml("a = " + text.replace('{"a":', "{a = "), "a.toml")


def test_brackets_in_texts_are_no_nesting() -> None:
    value = ["[" * 500, "]" * 500, {"{": "}" * 300}]
    assert reading.parse_json(json.dumps(value), "a.json") == value


@pytest.mark.parametrize("number", ["9" * 5_000, "-" + "9" * 5_000, "1" + "0" * 19])
def test_integers_are_bounded(number: str) -> None:
    with pytest.raises(InputError, match="digits"):
        reading.parse_json(f'{{"seed": {number}}}', "a.json")
    with pytest.raises(InputError, match="digits|integer"):
        reading.parse_toml(f"seed = {number}", "a.toml")


def test_numbers_that_only_look_long_are_read() -> None:
    value = {"a": 2**63, "b": 0.1234567890123456789, "c": "9" * 50}
    assert reading.parse_json(json.dumps(value), "a.json") == value


@pytest.mark.parametrize(
    "text", ["a = 1\na = 2", "a = [", "a = 1979-13-01", "= 1", "a" + ".a" * 60_000 + " = 1", "a = '\0'", "a = 1e", "\ufeff["]
)
def test_what_is_no_toml_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        reading.parse_toml(text, "a.toml")


def test_messages_name_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b'{\n "a": 1,\n oops\n}\n')
    with pytest.raises(InputError) as caught:
        reading.read_json(file)
    assert caught.value.where == f"{file}:3" and caught.value.remedy
    file.write_bytes(b'{"a": 1}\n\n{"a": "\xff"}\n')
    with pytest.raises(InputError) as caught:
        list(reading.read_json_lines(file))
    assert caught.value.where == f"{file}:3" and "UTF-8" in caught.value.message


@pytest.mark.parametrize("name", ["absent", "folder", "pipe", "link", "a\0b", "\ud800", "x" * 300])
def test_what_is_no_regular_file_is_refused_at_once(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for read in (reading.read_bytes, reading.read_json, reading.read_toml, lambda path: list(reading.read_json_lines(path))):
        with pytest.raises(InputError) as caught:
            read(tmp_path / name)
        assert caught.value.remedy and caught.value.where is not None


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match="bytes; at most"):
        reading.read_json(tmp_path / "large.json")
    with pytest.raises(InputError, match="a line of more than"):
        list(reading.read_json_lines(tmp_path / "large.json"))


_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(_json)
def test_what_json_writes_is_read(value: Any) -> None:
    assert reading.parse_json(json.dumps(value), "a") == value
    assert reading.parse_json(json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace"), "a") == value


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for parse in (reading.parse_json, reading.parse_toml):
        try:
            parse(data, "a")
        except InputError as error:
            assert error.where is not None
