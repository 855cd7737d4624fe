from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tutelage.bench import data
from tutelage.bench.data_memory import MadeItems, pass_through
from tutelage.cli import main
from tutelage.distillation.data.dataset import DatasetData
from tutelage.distillation.data.images import ImageFolder
from tutelage.errors import InputError


def measured(ratio: float, growth: float, peak: float, cached: float) -> dict:
    memory = {"rows": [{"items": 10}, {"items": 100}], "ratio": growth, "peak_mib": peak}
    return {"loading": {"ratio": ratio}, "memory": memory, "cached": {"ratio": cached}}


def test_each_figure_is_held_against_its_target() -> None:
    assert [one["met"] for one in data.verdicts(measured(0.95, 1.05, 1023, 1.05))] == [True] * 4
    assert [one["met"] for one in data.verdicts(measured(0.94, 1.06, 1024, 1.06))] == [False] * 4
    with pytest.raises(InputError, match="nothing to measure"):
        data.bench(0)


def test_both_loops_read_the_files_that_were_made(tmp_path: Path) -> None:
    data.make_files(tmp_path / "images", 20, 32)
    found = ImageFolder(tmp_path / "images")
    assert len(found) == 20 and found.classes == [f"class-{n}" for n in range(10)] and found[3][0].size == (32, 32)
    assert data.plain_seconds(tmp_path / "images", 1) > 0 and data.loader_seconds(tmp_path / "images", 1) > 0


def test_items_are_made_from_their_number_and_seed() -> None:
    made = DatasetData(MadeItems(10))
    batch = made.batch(torch.arange(10), torch.arange(10))
    assert made.random and batch.inputs.shape == (10, 3, 64, 64) and batch.labels.tolist() == list(range(10))
    assert torch.equal(batch.inputs[4], made.batch(torch.tensor([4]), torch.tensor([4])).inputs[0])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_items() -> None:
    few, many = pass_through(25_600, 2, 100), pass_through(256_000, 2, 100)
    assert many["peak_mib"] - few["peak_mib"] < 64 and many["peak_mib"] < 1024


@pytest.mark.slow
def test_the_command_writes_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "data.json"
    done = CliRunner().invoke(main.app, ["bench", "data", "--smoke", "--json", str(out)])
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    assert found["smoke"] and len(found["verdicts"]) == 4 and found["memory"]["rows"][1]["items"] == 16_384
    assert found["loading"]["ratio"] > 0 and found["cached"]["ratio"] > 0 and "mean nothing" in done.stdout
