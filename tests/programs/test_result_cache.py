from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tutelage.errors import StaleError, StorageError
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.result_cache import CachedResult, ResultCache
from tutelage.programs.run_context import Job, RunContext
from tutelage.programs.scheduler import run
from tutelage.programs.serialization import input_key
from tutelage.programs.types import Call, RuntimeFailure
from tutelage.programs.values import Box
from tutelage.programs.visprog import Parser

from .stubs import Stub, by_name, loc, picture, vqa

TEXT = """B=LOC(image=IMAGE,object='star')
I=CROP(image=IMAGE,box=B)
X=VQA(image=I,question='?')
FINAL_RESULT=RESULT(var=X)"""


def traces(cache: ResultCache, *modules: Stub) -> list[str]:
    where = RunContext(symbolic_modules() | by_name(*modules), cache=cache)
    program = Parser(where.signatures).parse(TEXT)
    work = [Job(str(number), program, {"IMAGE": picture(number)}) for number in range(9)]
    return [str(trace.to_json(timing=False)) for trace in run(work, where)]


def test_a_second_run_asks_nothing_and_gives_the_same_traces(tmp_path: Path) -> None:
    finder, asker = loc(), vqa()
    with ResultCache(tmp_path / "results.sqlite") as cache:
        first = traces(cache, finder, asker)
        assert (cache.hits, cache.misses) == (0, 18)
        asked = len(finder.calls)
        assert traces(cache, finder, asker) == first
        assert len(finder.calls) == asked
    with ResultCache(tmp_path / "results.sqlite") as cache:
        assert traces(cache, finder, asker) == first
        assert len(finder.calls) == asked
        assert cache.misses == 0
    assert traces(ResultCache(), loc(), vqa()) == first


def test_another_version_or_module_is_asked_again(tmp_path: Path) -> None:
    with ResultCache(tmp_path / "results.sqlite") as cache:
        traces(cache, loc(), vqa())
        newer, asker = loc(version="2"), vqa()
        traces(cache, newer, asker)
        assert len(newer.calls) == 9
        assert asker.calls == []
        key = input_key({"image": picture(0), "object": "star"})
        assert cache.get(Stub("OTHER", loc().signature, len), key) is None


def test_failures_and_values_json_cannot_hold_are_not_kept_on_disk(tmp_path: Path) -> None:
    failing = Stub("VQA", vqa().signature, lambda call: RuntimeFailure("not today"))
    edit = Stub("LOC", loc().signature, lambda call: call.args["image"])
    with ResultCache(tmp_path / "results.sqlite") as cache:
        traces(cache, loc(), failing)
        asked = len(failing.calls)
        traces(cache, loc(), failing)
        assert len(failing.calls) == 2 * asked
        cache.put(edit, "key", CachedResult(picture(0)))
        assert cache.get(edit, "key") is not None
    with ResultCache(tmp_path / "results.sqlite") as cache:
        assert cache.get(edit, "key") is None


def test_values_come_back_as_they_went(tmp_path: Path) -> None:
    module = loc()
    values = [[Box(1.5, 2.0, 3.0, 4.0, 0.25)], [], "yes", True, 1, 1.0, None, [1, 2.5, 3, 4, 5], [["a"], "b"]]
    with ResultCache(tmp_path / "a") as cache:
        for number, value in enumerate(values):
            cache.put(module, ("key", number), CachedResult(value, {"a": 0.1}, True))
    with ResultCache(tmp_path / "a") as cache:
        for number, value in enumerate(values):
            found = cache.get(module, ("key", number))
            assert found == CachedResult(value, {"a": 0.1}, True)
            assert type(found.value) is type(value)
            assert repr(found.value) == repr(value)


def test_memory_is_bounded() -> None:
    cache, module = ResultCache(capacity=3), loc()
    for number in range(5):
        cache.put(module, number, CachedResult(number))
    assert [cache.get(module, number) is not None for number in range(5)] == [False, False, True, True, True]


def test_calls_with_arguments_that_have_no_key_are_always_asked() -> None:
    finder = loc()
    where = RunContext(symbolic_modules() | by_name(finder), cache=ResultCache())
    program = Parser(where.signatures).parse("X=LOC(image=IMAGE,object='a')\nFINAL_RESULT=RESULT(var=X)")

    class Odd:
        bytes = picture(0).bytes

    for _ in range(2):
        run([Job(str(number), program, {"IMAGE": Odd()}) for number in range(3)], where)
    assert len(finder.calls) == 6


def test_two_processes_share_a_file(tmp_path: Path) -> None:
    module = loc()
    with ResultCache(tmp_path / "a") as one, ResultCache(tmp_path / "a") as two:
        one.put(module, 1, CachedResult("one"))
        one.commit()
        two.put(module, 1, CachedResult("two"))
        two.put(module, 2, CachedResult("two"))
        two.commit()
        assert one.get(module, 2) == CachedResult("two")


@pytest.mark.parametrize("content", [b"not a database, but long enough to have a header to look at" * 20, b"\x00" * 4096])
def test_a_file_that_is_no_cache_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results.sqlite"
    path.write_bytes(content)
    with pytest.raises(StaleError, match="results.sqlite"):
        ResultCache(path)
    assert path.read_bytes() == content


def test_a_cache_of_another_format_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a") as file:
        file.execute("PRAGMA user_version = 99")
    with pytest.raises(StaleError, match="format 99"):
        ResultCache(tmp_path / "a")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        ResultCache(tmp_path / "file" / "results.sqlite")


def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    cache = ResultCache(tmp_path / "a")
    cache._file.execute("PRAGMA max_page_count = 4")
    with pytest.raises(StorageError, match="full"):
        for number in range(1_000):
            cache.put(loc(), number, CachedResult("x" * 500))
            cache.commit()
    assert cache.get(loc(), 0) is not None


WRITER = """
import sys
from tutelage.programs.result_cache import CachedResult, ResultCache
class M: name, version = "LOC", "1"
cache = ResultCache(sys.argv[1])
for number in range(10**9):
    cache.put(M, number, CachedResult([number, "x" * (number % 700)]))
    if number % 7 == 6:
        cache.commit()
        print(number, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.07])
def test_kill_minus_nine_leaves_every_committed_answer_and_a_whole_file(tmp_path: Path, delay: float) -> None:
    path = tmp_path / "results.sqlite"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "6\n"
        time.sleep(delay)
        os.kill(writer.pid, signal.SIGKILL)
        lines = [line for line in writer.stdout.read().splitlines() if line]
    last = int(lines[-2]) if len(lines) > 1 else 6
    module = Stub("LOC", loc().signature, lambda call: Call)
    with ResultCache(path) as cache:
        for number in range(last + 1):
            assert cache.get(module, number) == CachedResult([number, "x" * (number % 700)])
        assert cache._file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        cache.put(module, "after", CachedResult("alive"))
        cache.commit()
        assert cache.get(module, "after") == CachedResult("alive")
