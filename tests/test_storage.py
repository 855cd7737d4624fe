from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage import storage
from tutelage.errors import InputError, StaleError, StorageError

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    storage.write_json(path, value)
    assert storage.read_json(path) == value
    first = path.read_bytes()
    assert storage.write_json(path, value).read_bytes() == first


def test_atomic_leaves_nothing_when_the_block_fails(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.bin"
    with pytest.raises(ZeroDivisionError), storage.atomic_write(target) as file:
        file.write(b"half")
        _ = 1 / 0
    assert list(target.parent.iterdir()) == []


def test_atomic_keeps_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = storage.write_text(tmp_path / "file", "old")
    with storage.atomic_write(target) as file:
        file.write(b"new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left") as caught:
        storage.write_text(tmp_path / "file", "text")
    assert "free space" in str(caught.value) and str(tmp_path / "file") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(StorageError):
        storage.write_text(tmp_path / "taken" / "file", "text")


def test_plain_makes_json_of_what_we_hold() -> None:
    @dataclass
    class Point:
        x: int
        path: Path

    given = {"p": Point(1, Path("a")), "s": {3, 1, 2}, "n": np.float32(0.5), "a": np.arange(3), 4: (1, 2)}
    plain = {"p": {"x": 1, "path": "a"}, "s": [1, 2, 3], "n": 0.5, "a": [0, 1, 2], "4": [1, 2]}
    assert storage.to_plain(given) == plain == json.loads(json.dumps(plain))


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b'{"a": 1,\n "b": ', ":2: not JSON"), (b"\xff\xfe", "not UTF-8")],
)
def test_bad_json_names_the_file_and_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "data.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        storage.read_json(path)
    assert str(path) in str(caught.value) and caught.value.remedy


def test_json_lines_are_numbered_and_a_cut_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n\n[2]\n{"a": ')
    lines = storage.read_json_lines(path)
    assert [next(lines), next(lines)] == [(1, {"a": 1}), (3, [2])]
    with pytest.raises(InputError, match=f"{path}:4"):
        next(lines)


@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_fingerprints_are_equal_only_for_equal_parts(a: list[str], b: list[str]) -> None:
    assert (storage.fingerprint(*a) == storage.fingerprint(*b)) == (a == b)


def test_a_fingerprint_does_not_see_the_order_of_a_dict() -> None:
    assert storage.fingerprint({"a": 1, "b": 2}) == storage.fingerprint({"b": 2, "a": 1})


def test_the_store_gives_back_what_was_put(tmp_path: Path) -> None:
    store = storage.ContentStore(tmp_path)
    assert store.get("abcdef") is None
    store.put("abcdef", b"data", ".bin")
    assert store.get("abcdef", ".bin") == b"data" and store.get("abcdef") is None
    for key in ("", "../x", ".hidden", "a/b"):
        with pytest.raises(InputError):
            store.path(key)


def test_a_run_folder_refuses_other_settings_versions_and_foreign_files(tmp_path: Path) -> None:
    run = storage.RunFolder(tmp_path / "run", {"seed": 0, "sizes": (1, 2)})
    storage.RunFolder(tmp_path / "run", {"seed": 0, "sizes": (1, 2)})
    assert run.done("part.json") is None
    storage.write_json(run.root / "part.json", 1)
    assert run.done("part.json") == run.root / "part.json"
    with pytest.raises(StaleError, match="other settings: seed: 0, now 1"):
        storage.RunFolder(tmp_path / "run", {"seed": 1, "sizes": (1, 2)})
    storage.write_json(tmp_path / "old" / "run.json", {"format": "tutelage-run", "version": 0})
    with pytest.raises(StaleError, match="format 0"):
        storage.RunFolder(tmp_path / "old", {})
    storage.write_json(tmp_path / "foreign" / "run.json", ["something else"])
    with pytest.raises(StaleError, match="not a run folder"):
        storage.RunFolder(tmp_path / "foreign", {})


def test_a_run_folder_names_what_differs(tmp_path: Path) -> None:
    old = {"settings": {"lr": 0.1, "nan": float("nan"), 3: 4}, "teacher": "0123456789abcdef", "texts": ["long"] * 20}
    remedies = {"teacher": "give the teacher of May"}
    storage.RunFolder(tmp_path, old)
    storage.RunFolder(tmp_path, old)

    def refusal(**new: object) -> StaleError:
        with pytest.raises(StaleError) as caught:
            storage.RunFolder(tmp_path, old | new, remedies)
        return caught.value

    alone = refusal(teacher="fedcba9876543210")
    assert alone.message.endswith("settings: teacher") and alone.remedy == "give the teacher of May"
    both = refusal(teacher="fedcba9876543210", settings=old["settings"] | {"lr": 0.2})
    assert "settings.lr: 0.1, now 0.2; teacher" in both.message and both.remedy == "choose a new folder"
    assert refusal(texts=["long"] * 21, more=1).message.endswith("texts; more: null, now 1")


def test_bytes_without_a_name_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    held = storage.unnamed(3 << 20)
    held[-1:] = b"x"
    assert (len(held), held[0], held[-1]) == (3 << 20, 0, ord("x")) and list(tmp_path.iterdir()) == []
    with pytest.raises(StorageError, match="no room") as caught:
        storage.unnamed(1 << 60)
    assert caught.value.where == str(tmp_path) and "TMPDIR" in caught.value.remedy


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUTELAGE_HOME", str(tmp_path))
    assert storage.cache_home() == tmp_path
    monkeypatch.delenv("TUTELAGE_HOME")
    assert storage.cache_home() == Path.home() / ".cache" / "tutelage"


def test_a_folder_appears_whole_its_last_file_last(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    for text in ("old", "new"):
        with storage.atomic_folder(target, last="head.json") as place:
            (place / "sub").mkdir()
            (place / "sub" / "a.bin").write_text(text)
            (place / "head.json").write_text(text)
        assert (target / "head.json").read_text() == (target / "sub" / "a.bin").read_text() == text
    with pytest.raises(ZeroDivisionError), storage.atomic_folder(target, last="head.json") as place:
        (place / "head.json").write_text("half")
        _ = 1 / 0
    assert (target / "head.json").read_text() == "new" and list(tmp_path.iterdir()) == [target]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError), storage.atomic_folder(tmp_path / "file" / "kept", last="head.json"):
        pass


def test_a_sweep_removes_what_killed_writers_left_and_nothing_else(tmp_path: Path) -> None:
    kept = storage.write_text(tmp_path / "deep" / "whole.part", "text")
    (tmp_path / "deep" / ".a.json.x1.part").write_text("ha")
    storage.remove_temporary_files(tmp_path)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [kept]
