from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tutelage.bench.cost_estimate import GQA, HOUR, CostAssumptions, extrapolate, photograph
from tutelage.bench.worker_simulation import (
    MARGIN,
    TimedStub,
    WorkerFleet,
    check,
    expected_seconds,
    predicted_seconds,
    simulate,
    stub_seconds,
    stub_shards,
)
from tutelage.cli import main
from tutelage.modules.symbolic import symbolic_modules

from ..sdvp import small


@pytest.fixture
def measured() -> dict:
    return {
        "calls_a_question": {"LOC": 1.0, "VQA": 0.5},
        "labels_a_question": {"VQA": 2.0},
        "seconds_a_call": {"LOC": 0.002, "VQA": 0.002},
        "seconds_a_question": {"read": 0.001, "collect": 0.005, "merge records": 0.001, "label": 0.003, "merge labels": 0.002},
        "bytes_a_question": 1024.0,
        "photograph": {"read_seconds": 0.01, "keep_seconds": 0.02, "png_bytes": 2**20},
    }


def test_hours_and_bytes_are_what_a_question_costs_times_their_number(measured: dict) -> None:
    plain = CostAssumptions("x", 512 * 4, 1024, workers=1, jobs=1, failures_a_worker_hour=1e-12)
    found = extrapolate(measured, plain)
    assert found["worker_core_hours"] == pytest.approx(2048 * (0.008 + 0.5 * 0.02) / HOUR)
    assert found["driver_core_hours"] == pytest.approx(2048 * (0.004 + 0.5 * 0.01) / HOUR)
    tail = 512 * 0.018 / 2 / HOUR  # the formula adds half a shard where workers may fail
    assert found["hours"] == pytest.approx(found["worker_core_hours"] + found["driver_core_hours"] + tail)
    assert (found["shards"], found["pictures_gib"], found["records_gib"]) == (4, 1.0, 2048 * 1024 / 2**30)
    shared = extrapolate(measured, replace(plain, questions=512 * 64, images=0, workers=8, jobs=4))
    assert shared["hours"] == pytest.approx((512 * 16 * 0.004 + 16 * 512 * 0.008 / 2 + 512 * 0.008 / 2) / HOUR)


def test_a_calls_seconds_can_be_assumed(measured: dict) -> None:
    assumed = CostAssumptions("x", 1000, 0, seconds_a_call=0.1)
    own = 0.005 - 1.5 * 0.002  # what collecting takes beyond its calls
    assert extrapolate(measured, assumed)["worker_core_hours"] == pytest.approx(1000 * (own + 3.5 * 0.1) / HOUR)


def test_failures_cost_what_the_formula_says() -> None:
    assert expected_seconds(10, WorkerFleet(1)) == 10
    assert expected_seconds(10, WorkerFleet(1, 1e9, 5)) == pytest.approx(10, rel=1e-6)
    assert expected_seconds(10, WorkerFleet(1, 10.0, 2)) == pytest.approx((math.e - 1) * 12)
    alone = [simulate([10.0], WorkerFleet(1, 10.0, 2), seed)[0] for seed in range(4000)]
    assert sum(alone) / len(alone) == pytest.approx(expected_seconds(10, WorkerFleet(1, 10.0, 2)), rel=0.05)


def test_without_failures_formula_and_simulation_agree() -> None:
    for shards in (1, 7, 8, 9, 64):
        assert simulate([3.0] * shards, WorkerFleet(8), 0) == (predicted_seconds(shards, 3.0, WorkerFleet(8)), 0)


def test_a_lost_shard_is_done_again_and_no_time_is_slept() -> None:
    seconds, lost = simulate([1000.0] * 50, WorkerFleet(5, 5000.0, 100.0), 1)
    assert lost > 0 and seconds > 10_000


def test_a_stub_moves_its_clock_and_answers_as_the_other() -> None:
    questions, modules, clock = small.questions(12), small.modules(), [0.0]
    stub = TimedStub(modules["COLOR"], clock, 1.0, 0.25)
    assert stub.signature is modules["COLOR"].signature and stub.version == modules["COLOR"].version
    shards, calls = stub_shards(questions, modules, 6, 1.0, 0.25)
    assert calls == {"MIDDLE": 1.0, "COLOR": 1.0}
    assert shards == [2 * (1.0 + 6 * 0.25)] * 2 == [stub_seconds(6, calls, modules, 1.0, 0.25)] * 2


def test_the_formula_is_within_its_margin_of_the_simulation() -> None:
    modules = {**symbolic_modules(), **small.modules()}
    for seed in range(5):
        found = check(small.questions(256), modules, shard_size=64, workers=16, seed=seed)
        assert found["shards_lost"] > 100 and found["within"] and abs(found["difference"]) <= MARGIN


def test_a_photograph_is_read_and_kept() -> None:
    found = photograph((64, 48), rounds=1)
    assert found["png_bytes"] > 1000 and found["read_seconds"] > 0 and found["keep_seconds"] > 0


def test_the_command_prints_hours_and_writes_its_assumptions(tmp_path: Path) -> None:
    done = CliRunner().invoke(main.app, ["bench", "capacity", "--smoke", "--json", str(tmp_path / "c.json")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "c.json").read_text())
    first = found["scenarios"][0]
    assert first["assumptions"]["questions"] == GQA.questions == 14_000_000 and first["hours"] > 0
    assert all(value > 0 for value in found["measured"]["seconds_a_question"].values())
    assert found["simulation"]["within"] and "smoke test" in done.stdout and "virtual clock" in done.stdout
