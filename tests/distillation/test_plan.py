"""Plans of training jobs: chained, resumed to the same bits, with their provenance."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob
from tutelage.distillation.plan import train_plan
from tutelage.distillation.teacher import NetworkTeacher, network_fingerprint
from tutelage.distillation.teacher_wrappers import MappedClassesTeacher
from tutelage.errors import InputError, StaleError

from .plan_run import SETTINGS, Random, run
from .toy import Distil, Net, bits, samples


def test_a_killed_plan_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = run(None)
    for job, step in (("assistant", 6), ("student", 10)):
        command = [sys.executable, "-m", "tests.distillation.plan_run", str(tmp_path), job, str(step)]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
        assert done.returncode == -9, done.stderr
        assert not (tmp_path / "result.json").exists()
    resumed = run(str(tmp_path))
    for name in ("assistant", "student"):
        assert bits(resumed.results[name].student) == bits(whole.results[name].student)
    said = [{name: entry[name] for name in entry if name != "seconds"} for entry in resumed.provenance]
    assert said == [{name: entry[name] for name in entry if name != "seconds"} for entry in whole.provenance]
    again = run(str(tmp_path), kill=("student", 1))  # nothing is trained again
    assert bits(again.student) == bits(whole.student)


def test_provenance_says_which_job_made_which_teacher(tmp_path: Path) -> None:
    done = run(str(tmp_path))
    first, second = done.provenance
    assert first["uses"] == {} and second["uses"] == {"assistant": ["teacher"]}
    assert second["teacher"] == NetworkTeacher(done.results["assistant"].student).fingerprint
    assert second["student"] == network_fingerprint(done.student) and first["data"] == samples().fingerprint
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept["format"] == "tutelage-plan" and [entry["job"] for entry in kept["jobs"]] == ["assistant", "student"]
    assert (tmp_path / "assistant" / "student.safetensors").exists()


def test_a_student_may_be_a_start_a_wrapped_teacher_and_data() -> None:
    def last(made) -> TrainingJob:
        inputs = samples().inputs
        with torch.no_grad():
            labels = made["labeller"](inputs).argmax(1)
        teacher = MappedClassesTeacher(made["first"], [0, 1, 2])
        return TrainingJob(made["first"], teacher, Distil(), TensorData(inputs, labels), SETTINGS)

    plan = {
        "first": lambda made: TrainingJob(Random(8), Net(16, seed=1), Distil(), samples(), SETTINGS),
        "labeller": lambda made: TrainingJob(Random(8), made["first"], Distil(), samples(), SETTINGS),
        "last": last,
    }
    done = train_plan(plan)
    assert done.provenance[2]["uses"] == {"labeller": ["data"], "first": ["start", "teacher"]}
    assert done.provenance[2]["start"] == done.provenance[0]["student"]
    assert network_fingerprint(done.results["first"].student) == done.provenance[0]["student"], "a start is a copy"


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    def job(made, teacher: object) -> TrainingJob:
        return TrainingJob(Net(), teacher, Distil(), samples(), SETTINGS)

    with pytest.raises(InputError, match="no earlier job 'assistent'") as caught:
        train_plan({"assistant": lambda made: job(made, Net()), "student": lambda made: job(made, made["assistent"])})
    assert "did you mean assistant" in caught.value.remedy
    with pytest.raises(InputError, match="no job to run"):
        train_plan({})
    with pytest.raises(InputError, match="no name of a job"):
        train_plan({"../x": lambda made: job(made, Net())})
    train_plan({"one": lambda made: job(made, Net(seed=1))}, tmp_path)
    with pytest.raises(StaleError, match="jobs"):
        train_plan({"two": lambda made: job(made, Net(seed=1))}, tmp_path)
    with pytest.raises(StaleError, match="other settings: teacher"):
        train_plan({"one": lambda made: job(made, Net(seed=2))}, tmp_path)
