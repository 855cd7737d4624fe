from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tutelage.bench.workers import compare_stages, stage
from tutelage.cli import main
from tutelage.sdvp.collect import call_of, collect
from tutelage.sdvp.teachers import from_callable
from tutelage.workers import WorkerPool

from ..sdvp import small


def test_a_stage_by_one_worker_is_all_its_shards() -> None:
    calls = [call_of(record) for record in collect(small.questions(6), small.modules())["COLOR"]]
    seconds, wall, cpu = stage(WorkerPool("local", 1), {"VQA": from_callable(small.brightest)}, [calls[:3], calls[3:]])
    assert seconds >= wall > 0 and cpu > 0


def test_a_miss_says_why() -> None:
    fine = compare_stages([(10.0, 10.0, 10.0)] * 3, [(5.5, 10.5, 10.4)] * 3)
    assert fine["ratio"] == pytest.approx(10 / 5.5) and fine["met"] and not fine["reason"]
    crowded = compare_stages([(10.0, 10.0, 10.0)] * 3, [(8.0, 15.0, 10.0)] * 3)
    assert not crowded["met"] and "1.50 times as long" in crowded["reason"] and "33% of it waiting" in crowded["reason"]
    idle = compare_stages([(10.0, 10.0, 10.0)] * 3, [(8.0, 10.0, 10.0)] * 3)
    assert "busy 62% of the time" in idle["reason"]


@pytest.mark.slow
def test_the_command_says_how_much_sooner_two_workers_are(tmp_path: Path) -> None:
    given = ["bench", "workers", "--engine", "local", "--smoke", "--json", str(tmp_path / "w.json")]
    done = CliRunner().invoke(main.app, given)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "w.json").read_text())
    it = found["engines"]["local"]
    assert found["calls"] == 256 and it["ratio"] > 0 and "local: " in done.stdout
    assert it["met"] == (it["ratio"] >= it["target"]) and bool(it["reason"]) != it["met"]
