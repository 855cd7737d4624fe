from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tutelage.bench.programs import ONE, PAIRS, on_device, synthetic_questions
from tutelage.cli import main

from ..modules.networks import ask, crops, vqa

runner = CliRunner()
KEYS = {
    "batched_programs_per_s",
    "one_at_a_time_programs_per_s",
    "ceiling_programs_per_s",
    "speedup",
    "share_of_ceiling",
    "own_us_per_step",
}


@pytest.mark.parametrize("dsl", ["visprog", "viper"])
def test_the_benchmark_of_programs_writes_its_figures(dsl: str, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    result = runner.invoke(main.app, ["bench", "programs", "--smoke", "--dsl", dsl, "--json", str(out)])
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())
    assert set(figures) >= KEYS and all(figures[key] > 0 for key in KEYS)
    assert (figures["programs"], figures["dsl"], figures["smoke"]) == (60, dsl, True)
    assert ("share_of_visprog" in figures) == (dsl == "viper")
    assert "of the ceiling" in result.stdout and "smoke test" in result.stdout


def test_the_measured_programs_are_2000_over_500_images() -> None:
    questions = synthetic_questions(0, ONE, PAIRS)
    images = {image.key for question in questions for image in question.images.values()}
    assert (len(questions), len(images)) == (2000, 500)
    assert {(image.width, image.height) for question in questions for image in question.images.values()} == {(48, 48)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_told() -> None:
    result = runner.invoke(main.app, ["bench", "programs", "--smoke", "--device", "cuda"])
    assert result.exit_code == 2 and "finds no cuda" in result.stderr


def test_a_module_elsewhere_answers_the_same() -> None:
    module = vqa()
    calls = [ask(image, "What color is the star?") for image in crops(3)]
    moved = on_device(module, "cpu")
    assert moved.network is not module.network and moved.run(calls).values == module.run(calls).values
