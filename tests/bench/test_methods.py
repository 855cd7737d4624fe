from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tutelage.bench.methods import bench, recorded, row
from tutelage.cli import main
from tutelage.errors import InputError
from tutelage.systems.kd import KD


def test_two_rows_count_the_passes_and_time_them() -> None:
    rows = bench(rounds=1, steps=1, systems=["kd"])["rows"]
    assert [one["size"] for one in rows] == ["tiny", "large"]
    for one in rows:
        assert (one["student_passes"], one["teacher_passes"]) == (1, 1)
        assert one["over_own"] == pytest.approx(one["step_ms"] / one["own_ms"])
        assert one["over_passes"] == pytest.approx(one["step_ms"] / one["passes_ms"])
    assert rows[1]["batch"] % rows[0]["batch"] == 0 and rows[1]["passes_ms"] > rows[0]["passes_ms"]


def test_a_batch_larger_than_the_data_repeats_them() -> None:
    data = KD.tiny_job(0).data
    found = row("kd", 1, 1, 2 * len(data) + 1)
    assert found["batch"] == 2 * len(data) + 1 and found["student_passes"] == 1


def test_the_phase_that_trains_the_student_is_timed() -> None:
    found = row("label-assisted-distillation", 1, 1)
    assert found["student_passes"] == 1


def test_calls_of_whole_networks_are_recorded_with_their_mode() -> None:
    network, other = nn.Linear(2, 2), nn.Linear(2, 2).eval()
    with recorded(network, other, None) as passes:
        network(torch.ones(1, 2))
        with torch.no_grad():
            other(input=torch.zeros(1, 2))
    network(torch.ones(1, 2))
    assert [(one.network, one.graded, one.train) for one in passes] == [(network, True, True), (other, False, False)]
    assert torch.equal(passes[1].kwargs["input"], torch.zeros(1, 2))


def test_a_system_that_trains_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="no system 'kb'"):
        bench(systems=["kb"])


def test_the_command_prints_a_row_and_writes_it() -> None:
    words = ["bench", "methods", "--system", "kd", "--rounds", "1", "--steps", "1", "--json", "-"]
    result = CliRunner().invoke(main.app, words)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [(one["system"], one["size"], one["teacher_passes"]) for one in rows] == [("kd", "tiny", 1), ("kd", "large", 1)]
