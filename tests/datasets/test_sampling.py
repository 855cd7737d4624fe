"""Samples: seeded, independent of order, even, nested; kept with a hash and given again."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tutelage.datasets.sampling import SampledIds, Subset, sample_records, select
from tutelage.errors import InputError


class Row(NamedTuple):
    id: str
    kind: str


def typed(count: int) -> list[Row]:
    types = ["attrC", "existC", "weather"]
    return [Row(str(n), types[0 if n % 10 else 1 + n % 20 // 10]) for n in range(count)]


def drawn(rows: list[Row], seed: int, **limits: int) -> list[str]:
    chosen = sample_records(rows, seed=seed, task="gqa", id_of=lambda row: row.id, kind_of=lambda row: row.kind, **limits)
    return [row.id for row in chosen]


def test_a_sample_by_type_is_seeded_and_independent_of_order() -> None:
    rows = typed(400)
    kinds = dict(rows)
    chosen = drawn(rows, 1, per_kind=30)
    assert Counter(kinds[name] for name in chosen) == {"attrC": 30, "existC": 20, "weather": 20}
    assert chosen == sorted(chosen) == drawn(random.Random(0).sample(rows, len(rows)), 1, per_kind=30)
    assert chosen != drawn(rows, 2, per_kind=30)
    assert set(drawn(rows, 1, per_kind=10)) < set(chosen)
    assert drawn(rows, 1) == sorted(name for name, _ in rows)


def test_a_sample_of_all_is_even() -> None:
    counts = Counter(name for seed in range(300) for name in drawn(typed(40), seed, total=10))
    assert sum(counts.values()) == 3000 and len(counts) == 40
    assert 45 <= min(counts.values()) and max(counts.values()) <= 105  # 75 expected, 4 standard deviations


def test_an_id_that_comes_twice_is_named() -> None:
    with pytest.raises(InputError, match="'7' appears twice"):
        drawn([*typed(10), Row("7", "weather")], 0, per_kind=20)
    with pytest.raises(InputError, match="'7' appears twice"):
        select([*typed(10), Row("7", "x")], ["7"], id_of=lambda row: row.id, where="here")


@pytest.mark.parametrize("limits", [{"per_kind": 1, "total": 1}, {"per_kind": 0}, {"total": 0}])
def test_limits_that_make_no_sense(limits: dict[str, int]) -> None:
    with pytest.raises(InputError, match="one of per_kind and total"):
        drawn(typed(3), 0, **limits)


def test_records_are_taken_by_id() -> None:
    found = select(typed(30), ["12", "3"], id_of=lambda row: row.id, where="here")
    assert [row.id for row in found] == ["12", "3"]
    with pytest.raises(InputError, match="here: 2 ids are not in the file, such as 99, x"):
        select(typed(30), ["12", "99", "x"], id_of=lambda row: row.id, where="here")


def sample() -> SampledIds:
    return SampledIds(
        {"seed": 3}, {"learn": Subset("train", "balanced", ("1", "2")), "report": Subset("testdev", "balanced", ("9",))}
    )


def test_a_sample_is_kept_with_its_hash_and_given_again(tmp_path: Path) -> None:
    file = sample().save(tmp_path / "ids.json")
    assert SampledIds.load(file) == sample() and json.loads(file.read_text())["hash"] == sample().hash
    other = SampledIds({"seed": 4}, {**sample().parts, "report": Subset("testdev", "balanced", ("8",))})
    assert other.hash != sample().hash == SampledIds({"seed": 4}, sample().parts).hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "'format' is 'x'"),
        ({"parts": {"learn": {"split": "train", "subset": "all", "ids": ["1", "1"]}}}, "parts, learn.*'ids'.*each id once"),
        ({"parts": {"learn": {"split": "train", "subset": "all", "ids": [1]}}}, "'ids'.*list of strings"),
        ({"parts": {"learn": {"split": "train", "subset": "all", "ids": ["1"]}}}, "'hash'.*changed by hand"),
        ({"drawn": None}, "'drawn'"),
    ],
)
def test_a_file_that_is_no_sample(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = sample().save(tmp_path / "ids.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        SampledIds.load(file)
