"""Several processes, one lesson: what one process learns at the same batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tutelage.distillation.data import Batch
from tutelage.distillation.export import load_weights
from tutelage.distillation.launch import current_processes, is_distributed
from tutelage.distillation.parallel import DataParallelProcesses, SingleProcess
from tutelage.distillation.trainer import train
from tutelage.errors import InputError, MissingExtra
from tutelage.sdvp.stages import collect_to_folder, label_to_folder
from tutelage.sdvp.teachers import from_callable

from ..cli.recipes import tutelage, written
from ..sdvp import small
from .parallel_run import Student, in_turns, lesson, stopped_and_resumed, taught
from .toy import Net, bits, samples
from .toy import lesson as plain

ROOT = Path(__file__).parents[2]


def torchrun(*words: object, count: int = 2, fsdp: bool = False) -> str:
    """The output of ``count`` processes that talk over gloo, with the student split over them or whole in each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "ACCELERATE_USE_FSDP": str(fsdp).lower()}
    done = subprocess.run([*command, *map(str, words)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True], ids=["whole", "split"])
def test_two_processes_learn_what_one_does_and_resume_to_the_same_bits(tmp_path: Path, fsdp: bool) -> None:
    pytest.importorskip("accelerate")
    alone = train(lesson(), tmp_path / "alone")
    records_of = collect_to_folder(tmp_path / "records", small.questions(30), small.modules())
    label_to_folder(tmp_path / "labelled", records_of, small.modules(), {"COLOR": from_callable(small.brightest)})
    torchrun("tests.distillation.parallel_run", tmp_path, fsdp=fsdp)
    assert sorted(file.name for file in tmp_path.glob("rank-*")) == ["rank-0-of-2", "rank-1-of-2"]
    first, second = ((tmp_path / f"rank-{rank}-of-2").read_text() for rank in (0, 1))
    assert first == second, "figures and seconds are the same in every process"
    whole, resumed = (load_weights(Student(), tmp_path / name / "student.safetensors") for name in ("whole", "stopped"))
    assert bits(whole) == bits(resumed)
    handed_on = train(lesson(), tmp_path / "handed-on").student
    for name, value in alone.student.state_dict().items():
        for student in (whole, handed_on):
            torch.testing.assert_close(student.state_dict()[name], value, rtol=0, atol=1e-5, msg=name)
    logged = records(tmp_path / "whole")
    assert [record["step"] for record in logged] == [7, 14, 21, 28, 30], "written once"
    for record, ours in zip(logged, alone.history, strict=True):
        assert record["terms"] == pytest.approx(ours["terms"], abs=1e-5)
    one = taught(tmp_path / "taught-alone", tmp_path / "labelled", SingleProcess()).network.state_dict()
    for name, value in small.color().load_weights(tmp_path / "taught" / "COLOR").network.state_dict().items():
        torch.testing.assert_close(value, one[name], rtol=0, atol=1e-5, msg=name)
    cut = records(tmp_path / "stopped")
    assert [r | {"seconds": 0} for r in cut] == [r | {"seconds": 0} for r in logged]


@pytest.mark.slow
def test_turns_averages_and_the_best_student_are_the_same_on_two_processes(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    alone = in_turns(tmp_path / "alone", SingleProcess())
    torchrun("tests.distillation.parallel_run", tmp_path, "turns")
    first, second = ((tmp_path / f"rank-{rank}").read_text() for rank in (0, 1))
    assert first == second and f"'step': {alone.selection['step']}," in first
    for name in ("student-best", "student-last"):
        found = load_weights(Net(), tmp_path / "two" / f"{name}.safetensors").state_dict()
        for key, value in load_weights(Net(), tmp_path / "alone" / f"{name}.safetensors").state_dict().items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5, msg=f"{name} {key}")


@pytest.mark.slow
def test_the_command_launched_twice_writes_once(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    file = written(tmp_path, '\n[cache]\nfolder = "{folder}/cache"\n')
    assert tutelage("distill", file, "--out", tmp_path / "alone")[0] == 0
    output = torchrun("tutelage", "distill", file, "--out", tmp_path / "two", "--json", tmp_path / "two.json")
    assert output.count("student.safetensors") == 1
    assert (tmp_path / "two" / "report.html").exists() and json.loads((tmp_path / "two.json").read_text())["seeds"] == [0, 1]
    for seed in (0, 1):
        here = tmp_path / "two" / f"seed-{seed}"
        assert [record["step"] for record in records(here)] == [
            record["step"] for record in records(tmp_path / "alone" / here.name)
        ]
    weights = (tmp_path / "two" / "seed-1" / "student.safetensors").read_bytes()
    assert tutelage("distill", file, "--out", tmp_path / "two")[0] == 0, "one process reads back what two wrote"
    assert (tmp_path / "two" / "seed-1" / "student.safetensors").read_bytes() == weights


def test_a_run_on_one_process_resumes_as_ever(tmp_path: Path) -> None:
    whole = train(lesson(), tmp_path / "whole")
    stopped_and_resumed(tmp_path / "stopped", SingleProcess())
    assert bits(load_weights(Student(), tmp_path / "stopped" / "student.safetensors")) == bits(whole.student)


def test_launched_is_what_the_launchers_environment_says() -> None:
    assert not is_distributed({}) and not is_distributed({"WORLD_SIZE": "1"}) and is_distributed({"WORLD_SIZE": "2"})
    assert type(current_processes()) is SingleProcess


def pretended(rank: int, size: int) -> DataParallelProcesses:
    found = object.__new__(DataParallelProcesses)
    found.rank, found.size = rank, size
    return found


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_parts_are_the_batch_and_their_means_its_mean(size: int, weighted: bool) -> None:
    batch = samples().batch(torch.arange(10), None)
    batch.weights = torch.arange(10.0) if weighted else None
    loss = torch.rand(10)
    whole = (loss * batch.weights).sum() / batch.weights.sum() if weighted else loss.mean()
    seen, mean = [], 0.0
    for rank in range(size):
        own, counts = pretended(rank, size).local_rows(batch)
        seen += own.ids.tolist()
        weights = own.weights if weighted else torch.ones(len(own))
        mean += counts * float((loss[own.ids] * weights).sum() / weights.sum()) / size
    assert seen == list(range(10)) and mean == pytest.approx(float(whole), abs=1e-6)


def test_what_cannot_be_split_is_refused() -> None:
    two = pretended(0, 2)
    two.check_supported(plain(), samples().batch(torch.arange(2), None))
    with pytest.raises(InputError, match="1 samples a batch for 2 processes"):
        two.check_supported(plain(), samples().batch(torch.arange(1), None))
    with pytest.raises(InputError, match=r"inputs.b \[3, 4\] is not one row for each of 2 samples"):
        two.check_supported(plain(), Batch({"a": torch.zeros(2, 4), "b": torch.zeros(3, 4)}, ids=torch.arange(2)))


@pytest.mark.parametrize("engine", ["DEEPSPEED", "MEGATRON_LM"])
def test_other_engines_that_split_the_weights_are_refused(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    pytest.importorskip("accelerate")
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(InputError, match=f"{engine} splits the weights"):
        DataParallelProcesses()


def test_accelerate_missing_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MissingExtra) as caught:
        current_processes()
    assert "tutelage[hf]" in caught.value.remedy
