"""A run folder under two processes at once, and under a clock that was set back."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from tutelage.distillation.checkpoint import CheckpointManager, read_tensors
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.trainer import train
from tutelage.errors import TutelageError

from .toy import Distil, samples


def job(steps: int = 12) -> TrainingJob:
    torch.manual_seed(0)
    settings = TrainingSettings(steps=steps, batch_size=8, checkpoint_every=1)
    return TrainingJob(nn.Linear(4, 3), nn.Linear(4, 3), Distil(), samples(), settings, name="shared")


def run(folder: Path, number: int) -> None:
    torch.set_num_threads(1)
    try:
        train(job(), folder / "run")
        said = "finished"
    except TutelageError as error:
        said = f"refused: {error}"
    (folder / f"{number}.txt").write_text(said)


def test_two_processes_in_one_folder_do_it_no_harm(tmp_path: Path) -> None:
    alone = train(job(), tmp_path / "alone").student.state_dict()
    both = [multiprocessing.get_context("fork").Process(target=run, args=(tmp_path, number)) for number in range(2)]
    for child in both:
        child.start()
    for child in both:
        child.join()
        assert child.exitcode == 0
    said = [(tmp_path / f"{number}.txt").read_text() for number in range(2)]
    assert "finished" in said
    assert all(text == "finished" or "remedy" in text for text in said), said
    again = train(job(), tmp_path / "run").student.state_dict()
    assert all(torch.equal(alone[name], again[name]) for name in alone)


def test_a_clock_set_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = train(job(), tmp_path / "alone").student.state_dict()
    train(job(), tmp_path / "run")
    (tmp_path / "run" / "student.safetensors").unlink()
    newest = CheckpointManager(tmp_path / "run").latest
    assert newest is not None
    os.utime(newest, (0, 0))  # older than the one before it, as the clock has it
    monkeypatch.setattr(time, "time", lambda: 1.0)
    result = train(job(), tmp_path / "run")
    assert read_tensors(newest)[1]["step"] == 12
    assert all(torch.equal(alone[name], value) for name, value in result.student.state_dict().items())
