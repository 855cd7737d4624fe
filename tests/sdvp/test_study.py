"""The study: its tables against figures worked out by hand, and a run that is killed and goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import StaleError
from tutelage.modules.visual_module import CallLabel
from tutelage.programs.values import Box
from tutelage.sdvp.study import questions as study_questions
from tutelage.sdvp.study.module_metrics import answer_metrics, average_precision, detection_metrics, roc_auc
from tutelage.sdvp.study.run import StudyPlan, run_study
from tutelage.sdvp.study.setup import STAGES
from tutelage.sdvp.study.tables import StudyTables

TASKS = (*study_questions.CURRENT, *study_questions.PREVIOUS, *study_questions.UNSEEN)


def part(seed: int, shares: dict[str, float], **by_task: dict[str, float]) -> dict[str, Any]:
    """A seed in which each arm is right on the first ``share`` of 100 questions of every task, two an image."""

    def arm(name: str) -> dict[str, Any]:
        right = {task: [int(i < 100 * by_task.get(task, {}).get(name, shares[name])) for i in range(100)] for task in TASKS}
        health = {
            "valid": 1.0,
            "executed": 1.0,
            "fallback": 0.0,
            "out_of_vocabulary": 0.0,
            "calls_per_sample": 3.0,
            "ms_per_sample": 1,
        }
        middle = [{task: sum(found) / 100 for task, found in right.items()}] * (len(STAGES) - 1)
        failures = {"runtime": 2} if name == "replaced" else {}
        return {
            "right": right,
            "health": health,
            "failures": failures,
            "modules": {"b_gqa VQA": {"accuracy": 50.0}},
            "matrix": middle,
            "lessons": [],
        }

    questions = {task: {"images": [f"{i // 2}" for i in range(100)], "types": ["one", "two"] * 50} for task in TASKS}
    arms = {name: arm(name) for name in shares}
    return {"seed": seed, "questions": questions, "arms": arms | {"teacher": {"modules": {"b_gqa VQA": {"accuracy": 90.0}}}}}


SHARES = {"frozen": 0.5, "replaced": 0.7, "routed": 0.62, "naive": 0.3, "sdvp": 0.65}


def test_the_summary_is_what_the_arms_say() -> None:
    summary = StudyTables([part(0, SHARES), part(1, SHARES)]).summary()
    assert summary["current_gain"] == pytest.approx(15)
    assert summary["gap_closed"] == pytest.approx(15 / 20)
    assert summary["previous_change"] == summary["unseen_change"] == pytest.approx(15)
    assert summary["naive_forgetting"] == pytest.approx(20)
    low, high = summary["current_gain_ci95"]
    assert low < 15 < high


def test_a_task_without_a_gap_does_not_count_in_gap_closed() -> None:
    flat = {"frozen": 0.5, "replaced": 0.52, "sdvp": 0.9}
    assert StudyTables([part(0, SHARES, b_nlvr=flat)]).summary()["gap_closed"] == pytest.approx(15 / 20)


def test_misses_are_said_with_their_reason() -> None:
    fallen = {"sdvp": 0.1}
    tables = StudyTables([part(0, SHARES | {"routed": 0.66}, a_count=fallen, a_exist=fallen, a_size=fallen)])
    verdicts = {v["claim"]: v for v in tables.verdicts(tables.summary())}
    assert not verdicts["Every previous task kept"]["met"]
    assert "a_count -40.0" in verdicts["Every previous task kept"]["reason"]
    assert verdicts["Every unseen task kept"]["met"]
    assert not verdicts["Mean gain on current tasks"]["met"], "15 points, and 18.5 are promised"
    assert verdicts["easy_vqa near its specialist"] | {"reason": ""} == {
        "claim": "easy_vqa near its specialist",
        "target": "at most 2 points behind",
        "value": "+5.0 behind",
        "met": False,
        "reason": "",
    }
    assert not verdicts["Level with routing to confident teachers"]["met"]
    assert "easy_vqa -1.0" in verdicts["Level with routing to confident teachers"]["reason"]
    assert verdicts["Naive tuning forgets"]["met"]


def test_one_fallen_task_breaks_a_promise_that_the_mean_would_hide() -> None:
    tables = StudyTables([part(0, SHARES, c_mixed={"sdvp": 0.48})])
    summary = tables.summary()
    verdict = {v["claim"]: v for v in tables.verdicts(summary)}["Every unseen task kept"]
    assert summary["unseen_change"] > 10 and not verdict["met"]
    assert "worst c_mixed -2.0" in verdict["value"] and "c_mixed -2.0" in verdict["reason"]


def test_forgetting_is_over_all_but_the_last_task_and_may_be_negative() -> None:
    """After each stage, the three taught tasks: what the last one gained is no transfer, and its last row no best."""
    rows = [[80.0, 50.0, 50.0], [70.0, 90.0, 50.0], [75.0, 94.0, 60.0]]
    made = part(0, SHARES, **{task: {"sdvp": rows[-1][j] / 100} for j, task in enumerate(STAGES)})
    middle = made["arms"]["sdvp"]["matrix"]
    made["arms"]["sdvp"]["matrix"] = [
        {**row, **{task: rows[i][j] / 100 for j, task in enumerate(STAGES)}} for i, row in enumerate(middle)
    ]
    found = StudyTables([made]).continual()["sdvp"]
    assert found["average"] == pytest.approx((75 + 94 + 60) / 3)
    assert found["bwt"] == pytest.approx((75 - 80 + 94 - 90) / 2)
    assert found["forgetting"] == pytest.approx((80 - 75 + 90 - 94) / 2)


def test_gains_are_resampled_by_image_and_seed() -> None:
    """Two answers of an image that always agree are one observation: the interval must not shrink by sqrt(2)."""
    tables = StudyTables([part(0, SHARES)])
    row = next(row for row in tables.arms() if row["task"] == "b_gqa")
    width = row["gain"]["hi"] - row["gain"]["lo"]
    share = 0.15
    expected = 2 * 1.96 * 100 * (share * (1 - share) / 50) ** 0.5
    assert width == pytest.approx(expected, rel=0.25)


def test_every_table_has_its_rows() -> None:
    tables = StudyTables([part(0, SHARES)]).all()
    assert {row["task"] for row in tables["arms"]} == set(TASKS)
    assert [row["type"] for row in tables["types"] if row["task"] == "b_gqa"] == ["one", "two"]
    assert len(tables["matrix"]["sdvp"]) == len(STAGES) + 1
    assert tables["continual"]["sdvp"]["unseen_delta"] == pytest.approx(15)
    assert tables["modules"][0]["cells"]["teacher"]["mean"] == 90
    assert {row["arm"]: row["failures"] for row in tables["health"]}["replaced"] == {"runtime": 2}


def test_module_measures_by_hand() -> None:
    one, two = Box(0, 0, 10, 10), Box(20, 20, 30, 30)
    found = detection_metrics(
        [(CallLabel([one]), CallLabel([one, two])), (CallLabel([one, two]), CallLabel([one])), (None, CallLabel([two]))]
    )
    assert found == {
        "average precision": pytest.approx(50.0),
        "precision": pytest.approx(100 * 2 / 3),
        "recall": pytest.approx(100 * 2 / 4),
        "count error": pytest.approx(1.0),
    }
    said = answer_metrics([(CallLabel("red", None, 0.95), CallLabel("red")), (CallLabel("red", None, 0.95), CallLabel("blue"))])
    assert said == {"accuracy": 50.0, "calibration error": pytest.approx(45.0)}


def test_average_precision_falls_with_misses_ahead_of_hits() -> None:
    def found(*scores: float) -> list[tuple[CallLabel, CallLabel]]:
        places = [Box(40 * i, 0, 40 * i + 10, 10) for i in range(3)]
        boxes = [Box(*box[:4], score) for box, score in zip(places, scores)]
        return [(CallLabel(boxes), CallLabel(places[:2]))]  # the third is wrong

    assert average_precision(found(0.9, 0.8, 0.7)) == 1.0
    assert average_precision(found(0.9, 0.7, 0.8)) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(found(0.8, 0.7, 0.9)) == pytest.approx(2 / 3)
    assert average_precision([(CallLabel([]), CallLabel([Box(0, 0, 1, 1)]))]) == 0.0


def test_the_area_is_the_share_of_pairs_ranked_rightly() -> None:
    yes = [(CallLabel(True, {"yes": p, "no": 1 - p}), CallLabel(True)) for p in (0.9, 0.5)]
    no = [(CallLabel(False, {"yes": p, "no": 1 - p}), CallLabel(False)) for p in (0.5, 0.1)]
    assert roc_auc(yes + no) == pytest.approx(100 * (3 + 0.5) / 4)


def test_a_folder_of_another_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"format": "tutelage-run", "version": 1, "settings": {"plan": "another"}}))
    with pytest.raises(StaleError, match="other settings"):
        run_study(StudyPlan.smoke(), tmp_path, 1)


def smoke(out: Path, home: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tutelage", "demo", "--smoke", "--seed", "5", "--out", str(out)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env={**os.environ, "TUTELAGE_HOME": str(home)}, start_new_session=True, **quiet)  # type: ignore[call-overload]


@pytest.mark.slow
def test_a_demo_killed_at_random_points_ends_with_the_same_result(tmp_path: Path) -> None:
    began = time.monotonic()
    whole = smoke(tmp_path / "whole", tmp_path / "home-one")
    assert whole.wait(600) == 0
    took = time.monotonic() - began
    rng, kills = random.Random(0), 0
    while True:
        run = smoke(tmp_path / "killed", tmp_path / "home-two")
        if kills < 3:
            time.sleep(took * rng.uniform(0.2, 0.7))
        else:
            run.wait(600)
        if run.poll() is not None:
            break
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        kills += 1
    assert run.returncode == 0
    assert kills > 0
    one, two = (json.loads((tmp_path / name / "study.json").read_text()) for name in ("whole", "killed"))
    assert one["samples"] == two["samples"]
    for name in ("arms", "types", "matrix", "continual", "modules"):
        assert one["tables"][name] == two["tables"][name], name
