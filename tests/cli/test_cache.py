from __future__ import annotations

import json
from pathlib import Path

import pytest

from .recipes import CACHE, tutelage, written

VIEWS = "[views]\ncrop = 1\n"


def test_a_cache_is_built_verified_and_described(tmp_path: Path) -> None:
    file = written(tmp_path, CACHE)
    code, out, said = tutelage("cache", "build", file, "--json", "-")
    assert code == 0 and "pays off" in said, said
    (built,) = json.loads(out)
    assert (built["rows"], built["heads"]["logits"]) == (64, {"store": "fp16", "shape": [4]})
    assert {"build_seconds", "break_even_passes", "teacher_ms", "read_ms"} <= set(built["estimate"])
    (checked,) = json.loads(tutelage("cache", "verify", file, "--json", "-")[1])
    assert checked["asked"] == 64 and 0 < checked["largest_error"]["logits"] < 1e-3
    (read,) = json.loads(tutelage("cache", "verify", tmp_path / "cache", "--json", "-")[1])
    assert (read["rows"], read["asked"]) == (64, 0)
    described = json.loads(tutelage("cache", "info", tmp_path / "cache", "--json", "-")[1])
    assert described["rows"] == 64 and described["bytes"] > 0


def test_training_reads_the_cache_that_was_built(tmp_path: Path) -> None:
    file = written(tmp_path, CACHE)
    tutelage("cache", "build", file)
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    code, out, said = tutelage("distill", file, "--json", "-")
    assert code == 0, said
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == shards
    assert json.loads(out)["cache"]["rows"] == 64


def test_views_without_a_cycle_need_a_cache_a_seed(tmp_path: Path) -> None:
    file = written(tmp_path, CACHE + VIEWS)
    built = json.loads(tutelage("cache", "build", file, "--json", "-")[1])
    assert [Path(one["folder"]).name for one in built] == ["seed-0", "seed-1"]
    once = json.loads(tutelage("cache", "build", file, "--set", "settings.views=2", "--set",
                               f"cache.folder={tmp_path}/two", "--json", "-")[1])  # fmt: skip
    assert len(once) == 1 and once[0]["rows"] == 128


def test_a_stale_cut_or_absent_cache_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, CACHE)
    tutelage("cache", "build", file)
    code, _, said = tutelage("cache", "build", file, "--set", "data.limit=32")
    assert code == 3 and "built from another data" in said
    (shard,) = (tmp_path / "cache").glob("shard-*")
    shard.write_bytes(shard.read_bytes()[:-40])
    code, _, said = tutelage("cache", "verify", tmp_path / "cache")
    assert code == 2 and shard.name in said and "remedy" in said
    code, _, said = tutelage("cache", "info", tmp_path / "nothing")
    assert code == 2 and "no such file" in said


@pytest.mark.parametrize("change", ["method=supervised", "method=tinyvitt"])
def test_a_recipe_that_cannot_be_cached_is_refused(tmp_path: Path, change: str) -> None:
    file = written(tmp_path)
    code, _, said = tutelage("cache", "build", file)
    assert code == 2 and "no [cache]" in said
    file = written(tmp_path, CACHE)
    text = file.read_text()
    if change == "method=supervised":
        file.write_text(text[: text.index("[teacher]")] + text[text.index("[data]") :])
    code, _, said = tutelage("cache", "build", file, "--set", change)
    assert code == 2 and ("no teacher" in said or "did you mean" in said)
