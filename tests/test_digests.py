"""Every single changed bit of a sealed file is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage import digests, reading, storage
from tutelage.errors import InputError

ROWS: list[Any] = [{"id": number, "text": "red \n cube", "box": [1.5, 2, 3]} for number in range(3)]


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_bit_of_sealed_json_lines_is_noticed(tmp_path: Path) -> None:
    file = storage.write_json_lines(tmp_path / "a.jsonl", ROWS, sealed=True)
    assert [row for _, row in reading.read_json_lines(file, sealed=True)] == ROWS
    data = file.read_bytes()
    for bit in range(8 * len(data)):
        file.write_bytes(flip(data, bit))
        with pytest.raises(InputError):
            list(reading.read_json_lines(file, sealed=True))


def test_every_bit_of_sealed_json_is_noticed(tmp_path: Path) -> None:
    file = storage.write_json(tmp_path / "a.json", {"rows": ROWS[:1], "width": 7}, sealed=True)
    assert reading.read_json(file, sealed=True) == {"rows": ROWS[:1], "width": 7}
    data = file.read_bytes()
    for bit in range(8 * len(data)):
        file.write_bytes(flip(data, bit))
        with pytest.raises(InputError):
            reading.read_json(file, sealed=True)


def test_lines_that_are_missing_or_added_are_noticed(tmp_path: Path) -> None:
    file = storage.write_json_lines(tmp_path / "a.jsonl", ROWS, sealed=True)
    lines = file.read_bytes().splitlines(keepends=True)
    for changed in (lines[1:], lines[:-1], lines[:-2] + lines[-1:], [*lines, lines[0]], []):
        file.write_bytes(b"".join(changed))
        with pytest.raises(InputError, match="digest|damaged"):
            list(reading.read_json_lines(file, sealed=True))


def test_a_file_without_digest_is_read_where_none_is_required(tmp_path: Path) -> None:
    file = storage.write_json_lines(tmp_path / "a.jsonl", ROWS)
    assert len(list(reading.read_json_lines(file))) == 3
    assert digests.check_seal(b"{}", "f", "", required=False) is False
    with pytest.raises(InputError, match="no digest"):
        digests.check_seal(b"{}", "f", "")


@settings(max_examples=30)
@given(st.binary(max_size=200), st.binary(max_size=200), st.data())
def test_any_bytes_are_sealed(head: bytes, tail: bytes, data: st.DataObject) -> None:
    sealed = digests.seal(head + digests.BLANK.encode() + tail)
    assert digests.check_seal(sealed, "f", "") is True
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    with pytest.raises(InputError):
        digests.check_seal(flip(sealed, bit), "f", "")


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    for data in (b"", b"abc", bytes(100_000)):
        (tmp_path / "f").write_bytes(data)
        assert digests.digest_of_file(tmp_path / "f") == digests.digest(data[:2], data[2:])
