"""The ablations: their tables against figures worked out by hand, their cells, and a run that is stopped and goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tutelage import storage
from tutelage.datasets.confidence_intervals import Interval
from tutelage.errors import StaleError
from tutelage.sdvp.study import ablations
from tutelage.sdvp.study import questions as study_questions
from tutelage.sdvp.study.ablation_tables import AblationTables, verdict
from tutelage.sdvp.study.ablations import FROZEN, FULL, Ablation, AblationPlan, cells, part_file, run_ablations, stage_of
from tutelage.sdvp.task import SdvpTask

from . import small

TASKS = (*study_questions.CURRENT, *study_questions.PREVIOUS, *study_questions.UNSEEN)
PLAN = replace(AblationPlan.smoke(3), axes=("order",))


def part(axis: str, name: str, share: float, viper: float | None = None, **more: Any) -> dict[str, Any]:
    """A cell of one seed that is right on the first ``share`` of 100 questions of every task, two an image."""

    def right(portion: float) -> dict[str, str]:
        return {task: "1" * round(100 * portion) + "0" * (100 - round(100 * portion)) for task in TASKS}

    given = {"visprog": right(share)} | ({"viper": right(viper)} if viper is not None else {})
    lesson = {"kept": 7, "verdict": {"accepted": False}}
    found = {"seed": 0, "axis": axis, "name": name, "right": given, "lessons": [lesson], "cpu_seconds": 2.0}
    return found | {"failures": {"visprog": {"runtime": 3}, "viper": {"limit": 1}}} | more


IMAGES = {task: [f"{i // 2}" for i in range(100)] for task in TASKS}
REFERENCE = [[part("reference", "frozen", 0.5, 0.4, images=IMAGES)], [part("reference", "SDVP", 0.7, 0.6)]]


def tables(*others: list[dict[str, Any]]) -> AblationTables:
    return AblationTables([*REFERENCE, *others], study_questions.group_of)


def test_rows_are_paired_with_the_frozen_modules_and_with_sdvp() -> None:
    rows = {row["name"]: row for row in tables([part("retain", "none", 0.6)]).rows()}
    row = rows["none"]["current"]
    assert row["accuracy"] == pytest.approx(60) and row["change"]["mean"] == pytest.approx(10)
    assert row["against_sdvp"]["mean"] == pytest.approx(-10)
    assert row["against_sdvp"]["lo"] < -10 < row["against_sdvp"]["hi"] < 0
    assert row["verdict"] == "worse" and rows["SDVP"]["current"]["verdict"] == ""
    assert rows["none"]["kept"] == 7 and rows["none"]["refused_teachers"] == 1
    assert rows["none"]["failures"] == {"runtime": 3}


def test_an_interval_shows_something_only_where_it_leaves_zero() -> None:
    shown = [verdict(Interval(m, low, high, 3)) for m, low, high in ((1, 0.5, 2), (-1, -2, -0.5), (0.2, -1, 1))]
    assert shown == ["better", "worse", "no difference shown"]


def test_both_frameworks_are_compared_with_frozen_modules_in_their_own_programs() -> None:
    found = tables([part("framework", "taught through ViperGPT", 0.45, 0.9)])
    rows = {(row["taught"], row["asked"]): row for row in found.all()["frameworks"]}
    assert rows["visprog", "viper"]["current"]["mean"] == pytest.approx(20)
    assert rows["viper", "viper"]["current"]["mean"] == pytest.approx(50)
    assert rows["viper", "visprog"]["current"]["mean"] == pytest.approx(-5)
    assert rows["viper", "viper"]["failures"] == {"limit": 1}
    verdicts = {v["claim"]: v for v in found.verdicts()}
    assert verdicts["Current tasks gain, taught through VisProg, asked in ViperGPT"]["met"]
    missed = verdicts["Current tasks gain, taught through ViperGPT, asked in VisProg"]
    assert not missed["met"] and "easy_vqa" in missed["reason"]
    assert not verdicts["Previous tasks kept, taught through ViperGPT, asked in VisProg"]["met"]


@pytest.mark.parametrize(("added", "met"), [(0.8, True), (0.65, False)])
def test_final_labels_beside_sdvp_are_held_against_the_better_of_the_two(added: float, met: bool) -> None:
    found = tables([part("final labels", "alone", 0.6)], [part("final labels", "added to SDVP", added)])
    (claim,) = [v for v in found.verdicts() if "final labels" in v["claim"]]
    assert claim["met"] is met
    assert claim["reason"] == ("" if met else "the better one is SDVP")


def test_every_cell_has_its_own_name_and_file() -> None:
    keys = [cell.key for cell in cells()]
    assert len(set(keys)) == len(keys)
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") for key in keys)
    axes = {cell.axis for cell in AblationPlan(axes=("data",)).cells}
    assert axes == {"reference", "data"}


def test_a_cell_sees_as_much_as_it_says() -> None:
    stage = SdvpTask("s", small.questions(40), {}, {"COLOR": []})
    assert {q.answer for q in stage_of(stage, FULL).questions} == {None}
    assert len(stage_of(stage, Ablation("data", "a quarter", share=0.25)).questions) == 10
    assert all(q.answer for q in stage_of(stage, Ablation("x", "y", answers=True)).questions)
    assert stage_of(stage, Ablation("x", "y", probe=False)).probe == {}
    long = replace(stage, steps_factor=3.0)
    assert stage_of(long, FULL).steps_factor == 3 and stage_of(long, Ablation("x", "y", longer=False)).steps_factor == 1


def test_each_part_of_replay_has_an_arm_that_differs_in_it_alone() -> None:
    arms = {cell.name: cell.options for cell in cells() if cell.axis == "replay"}
    light = arms["one replayed row to a task row"]
    assert light.replay_ratio == 1 < FULL.options.replay_ratio
    assert light.loss.self_weight * FULL.options.replay_ratio == FULL.options.loss.self_weight, "each row pulls as hard as before"
    assert arms["no random colours"] == replace(FULL.options, augment_replay=0.0)
    assert arms["a quarter of the calls"] == replace(FULL.options, max_replay=FULL.options.max_replay // 4)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "run.json", {"format": "tutelage-run", "version": 1, "settings": {"plan": "another"}})
    with pytest.raises(StaleError, match="other settings"):
        run_ablations(PLAN, tmp_path, 1)


def command(out: Path, home: Path) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "tutelage", "sdvp", "study", "--ablations", "--smoke", "--first-seed", "3", "--axis", "order"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    env = {**os.environ, "TUTELAGE_HOME": str(home)}
    return subprocess.Popen([*line, "--processes", "1", "--out", str(out)], env=env, start_new_session=True, **quiet)  # type: ignore[call-overload]


@pytest.mark.slow
def test_killed_ablations_go_on_cell_by_cell_to_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    assert command(tmp_path / "whole", tmp_path / "home-one").wait(600) == 0
    took = time.monotonic() - began
    rng, kills = random.Random(1), 0
    while kills < 4:
        run = command(tmp_path / "killed", tmp_path / "home")
        time.sleep(took * rng.uniform(0.2, 0.6))
        if run.poll() is not None:
            break
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        kills += 1
    assert kills > 0 and command(tmp_path / "killed", tmp_path / "home").wait(600) == 0
    one, two = (json.loads((tmp_path / name / "ablations.json").read_text()) for name in ("whole", "killed"))
    for found in (one, two):
        for row in found["tables"]["cells"]:
            del row["cpu_seconds"]
    assert one["tables"] == two["tables"]

    def never(*given: object, **named: object) -> None:
        raise AssertionError("a finished cell is run again")

    monkeypatch.setattr(ablations, "train_ablation", never)
    monkeypatch.setenv("TUTELAGE_HOME", str(tmp_path / "home"))
    again = run_ablations(PLAN, tmp_path / "killed", 1)
    assert part_file(tmp_path / "killed", 3, FROZEN).exists()
    assert [row["name"] for row in again["tables"]["cells"]] == ["frozen", "SDVP", "LOC last"]
