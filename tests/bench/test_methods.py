from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from tutelage.bench.methods import bench, recorded
from tutelage.cli import main
from tutelage.errors import InputError


def test_a_row_counts_the_passes_and_times_them() -> None:
    (row,) = bench(rounds=1, steps=1, systems=["kd"])["rows"]
    assert (row["student_passes"], row["teacher_passes"]) == (1, 1)
    assert row["over_own"] == pytest.approx(row["step_ms"] / row["own_ms"])
    assert row["over_passes"] == pytest.approx(row["step_ms"] / row["passes_ms"])


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
    (row,) = json.loads(result.stdout)["rows"]
    assert row["system"] == "kd" and row["teacher_passes"] == 1
