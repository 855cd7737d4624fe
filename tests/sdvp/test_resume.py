"""A stage killed at any point, and run again on its folder, ends with the same bits as one that was left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tutelage.sdvp.compile import distill_task
from tutelage.sdvp.options import SdvpOptions
from tutelage.sdvp.stages import collect_to_folder
from tutelage.sdvp.task import CompileResult, SdvpTask
from tutelage.sdvp.teachers import from_callable

from . import small
from .test_compile import BOTH, Tint

OPTIONS = SdvpOptions(settings=replace(small.SETTINGS, steps=120, checkpoint_every=5, log_every=10))


def stage(folder: Path) -> CompileResult:
    modules = small.modules(TINT=Tint.with_classes(*small.COLORS, pixels=8, seed=3))
    teacher = from_callable(small.brightest)
    asked = small.questions(12, programs={"visprog": BOTH})
    task = SdvpTask("s", asked, {"COLOR": teacher, "TINT": teacher}, replay=small.questions(4, first=40), guarded=asked[:3])
    return distill_task(modules, task, OPTIONS, folder)


def collecting(folder: Path) -> None:
    collect_to_folder(folder, small.questions(60), small.modules(), shard_size=3)


def killed(work: Callable[[Path], object], folder: Path, when: Callable[[float], bool]) -> bool:
    """Run ``work`` in a child process and kill it as soon as ``when(seconds)``; whether it was still at work."""
    child = multiprocessing.get_context("fork").Process(target=work, args=(folder,))
    child.start()
    began = time.monotonic()
    while child.is_alive() and not when(time.monotonic() - began):
        time.sleep(0.001)
    alive = child.is_alive()
    if alive:
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert alive or child.exitcode == 0
    return alive


def bits(result: CompileResult) -> tuple[dict[str, str], list[dict]]:
    versions = {name: module.version for name, module in result.modules.items()}
    return versions, [{k: v for k, v in vars(taught).items() if k != "seconds"} for taught in result.reports]


def written(folder: Path) -> dict[str, object]:
    """Every file that is left, without the seconds that runs took."""
    found: dict[str, object] = {}
    for file in sorted(folder.rglob("*")):
        if not file.is_file():
            continue
        name = str(file.relative_to(folder))
        if file.name == "taught.json":
            found[name] = {k: v for k, v in json.loads(file.read_text()).items() if k != "seconds"}
        elif file.name == "log.jsonl":
            found[name] = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in file.open()]
        elif not file.name.startswith("checkpoint-"):  # their headers hold seconds
            found[name] = file.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompileResult, float]:
    folder = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    return folder, stage(folder), time.monotonic() - began


def test_a_stage_killed_in_its_second_lesson_goes_on(whole: tuple[Path, CompileResult, float], tmp_path: Path) -> None:
    checkpoints = tmp_path / "s" / "TINT" / "lesson"
    assert killed(stage, tmp_path, lambda _: any(checkpoints.glob("checkpoint-*.safetensors")))
    assert (tmp_path / "s" / "COLOR" / "taught.json").exists() and not (tmp_path / "s" / "TINT" / "taught.json").exists()
    assert bits(stage(tmp_path)) == bits(whole[1])
    assert written(tmp_path) == written(whole[0])


def test_a_finished_stage_is_read_back(whole: tuple[Path, CompileResult, float]) -> None:
    before = {file: file.stat().st_mtime_ns for file in whole[0].rglob("*") if file.is_file()}
    assert bits(stage(whole[0])) == bits(whole[1])
    assert before == {file: file.stat().st_mtime_ns for file in whole[0].rglob("*") if file.is_file()}


def test_collecting_killed_between_two_parts_goes_on(tmp_path: Path) -> None:
    collecting(tmp_path / "whole")
    parts = tmp_path / "cut" / "parts"
    assert killed(collecting, tmp_path / "cut", lambda _: len(list(parts.glob("*.jsonl"))) >= 2)
    collecting(tmp_path / "cut")
    assert written(tmp_path / "cut") == written(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_stage_killed_at_random_points_ends_with_the_same_bits(
    whole: tuple[Path, CompileResult, float], tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    for _ in range(4):
        moment = draw.uniform(0, whole[2])
        killed(stage, tmp_path, lambda seconds, moment=moment: seconds > moment)
    assert bits(stage(tmp_path)) == bits(whole[1])
    assert written(tmp_path) == written(whole[0])
