"""A student split over processes: what one process learns; what needs whole weights is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tutelage.distillation.fsdp import check_supported
from tutelage.distillation.job import TrainingJob
from tutelage.distillation.method import Turn
from tutelage.distillation.parallel import engine_requested
from tutelage.distillation.teacher import EMATeacher
from tutelage.errors import InputError

from .test_parallel import torchrun
from .toy import Distil, Net, lesson


@pytest.mark.slow
def test_a_split_student_learns_the_same_or_is_refused() -> None:
    pytest.importorskip("accelerate")
    torchrun("tests.distillation.fsdp_run", fsdp=True)


class Averaging(Distil):
    def after_step(self, student: nn.Module) -> None:
        pass


class Twice(Distil):
    def backward(self, loss: object) -> None:
        pass


def test_what_needs_whole_weights_is_refused() -> None:
    check_supported(lesson())
    with pytest.raises(InputError, match=r"Averaging.after_step works on the student's weights") as caught:
        check_supported(lesson(Averaging()))
    assert "data parallelism" in caught.value.remedy
    with pytest.raises(InputError, match=r"Twice.backward works on the student's weights"):
        check_supported(lesson(Twice()))
    with pytest.raises(InputError, match="the student is compiled or wrapped"):
        check_supported(lesson(student=torch.compile(Net())))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="channels_last"):
        check_supported(lesson(channels_last=True))
    follows = lesson()
    follows.teacher = EMATeacher(follows.student)
    with pytest.raises(InputError, match="the teacher EMATeacher follows"):
        check_supported(follows)


class Alternating(Distil):
    def turns(self, student: nn.Module) -> list[Turn]:
        return []


class Growing(Distil):
    def enter_phase(self, phase: str, student: nn.Module) -> None:
        pass


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (lesson(ema=0.99), "settings.ema averages them"),
        (lesson(Alternating()), "Alternating.turns works"),
        (lesson(Growing()), "Growing.enter_phase works"),
    ],
)
def test_later_options_that_need_whole_weights_are_refused(job: TrainingJob, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        check_supported(job)
    assert "data parallelism" in caught.value.remedy


def test_the_launcher_says_whether_to_split() -> None:
    assert engine_requested("FSDP", {"ACCELERATE_USE_FSDP": "true"}) and engine_requested("FSDP", {"ACCELERATE_USE_FSDP": "True"})
    assert not engine_requested("FSDP", {}) and not engine_requested("FSDP", {"ACCELERATE_USE_FSDP": "false"})
