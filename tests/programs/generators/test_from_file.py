from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.errors import InputError
from tutelage.programs.generators.from_file import read_programs

LINE = {"id": "a", "dsl": "visprog", "program": "FINAL_RESULT=RESULT(var=IMAGE)", "images": {"IMAGE": "x.png"}}


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_lines_are_read_in_order(tmp_path: Path) -> None:
    pair = {**LINE, "id": "b", "dsl": "viper", "images": {"LEFT": "l", "RIGHT": "r"}, "question": "?", "answer": 3, "k": 1}
    first, second = read_programs(write(tmp_path / "p.jsonl", LINE, "\n", pair))
    assert (first.id, first.dsl, first.program, first.question, first.line) == ("a", "visprog", LINE["program"], None, 1)
    assert (second.images, second.answer, second.extra, second.line) == ({"LEFT": "l", "RIGHT": "r"}, 3, {"k": 1}, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dsl": "visprg"}, "p.jsonl:1: unknown dsl 'visprg'"),
        ({"id": 3}, "p.jsonl:1: field 'id' is not a text"),
        ({"program": None}, "field 'program'"),
        ({"images": {"LEFT": "x"}}, "IMAGE, or LEFT and RIGHT"),
        ({"images": {"IMAGE": 3}}, "names to paths"),
        ({"question": 3}, "'question'"),
    ],
)
def test_bad_fields_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(read_programs(write(tmp_path / "p.jsonl", {**LINE, **change})))


def test_missing_fields_cut_lines_and_doubled_ids(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with pytest.raises(InputError, match="field 'dsl' is missing"):
        list(read_programs(write(path, {"id": "a"})))
    with pytest.raises(InputError, match="p.jsonl:2"):
        list(read_programs(write(path, LINE, '{"id": "b", ')))
    with pytest.raises(InputError, match="stands on line 1 too"):
        list(read_programs(write(path, LINE, LINE)))
    with pytest.raises(InputError, match="not a JSON object"):
        list(read_programs(write(path, "[]\n")))
