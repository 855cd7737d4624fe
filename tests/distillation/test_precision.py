"""fp16 with scaled gradients: the scaling is exact, an overflow skips the step, and the scale is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tutelage.distillation.trainer import Trainer, train

from .test_trainer import plain, stop_at
from .toy import Distil, Net, bits, lesson


def scaled(trainer: Trainer, scale: float = 1024.0, every: int = 1000) -> Trainer:
    """The trainer with scaled gradients, computing in fp32: powers of two change no bit."""
    for one in trainer.updaters:
        one.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=every)
    return trainer


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_scaling_changes_no_bit_of_what_is_learned(optimizer: str) -> None:
    told = {"optimizer": optimizer, "clip": 0.5, "accumulate": 2}
    first, second = Trainer(lesson(**told)), scaled(Trainer(lesson(**told)))
    assert bits(first.run().student) == bits(second.run().student)
    assert plain(first.history) == plain(second.history), "the log shows unscaled losses"


def test_an_overflow_leaves_the_step_out_and_halves_the_scale() -> None:
    class Overflowing(Distil):
        def before_update(self, student):
            if self.progress.step == 2:
                student.head.bias.grad.fill_(float("inf"))

        def loss_terms(self, batch, student, teacher):
            found = super().loss_terms(batch, student, teacher)
            if self.progress.step == 2:  # a gradient that overflows: a finite loss times a scale that is too large
                found["hard"] = found["hard"] * 1e38
            return found

    trainer = scaled(Trainer(lesson(Overflowing(), steps=5)), 2.0**16)
    trainer._train_mode()
    moved = []
    for _ in range(4):
        before = bits(trainer.student)
        trainer.advance()
        moved.append(bits(trainer.student) != before)
    assert moved == [True, True, False, True]
    assert trainer.updaters[0].scaler.get_scale() == 2.0**15


def test_the_scale_and_its_count_are_saved_and_found_again(tmp_path: Path) -> None:
    trainer = scaled(Trainer(lesson(), tmp_path), 8.0, every=3)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(stop_at(10))
    state = trainer.updaters[0].state(trainer.step)
    again = scaled(Trainer(lesson()), 1.0, every=3)
    again.updaters[0].load(state, again.parallel)
    assert again.updaters[0].scaler.state_dict() == trainer.updaters[0].scaler.state_dict()
    assert again.updaters[0].scaler.get_scale() == 64.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fp16_on_a_gpu_trains_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    told = {"precision": "fp16", "device": "cuda", "steps": 40}
    whole = train(lesson(student=Net(), **told))
    assert {p.dtype for p in whole.student.parameters()} == {torch.float32}
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]
    with pytest.raises(KeyboardInterrupt):
        train(lesson(student=Net(), **told), tmp_path, stop_at(13))
    again = train(lesson(student=Net(), **told), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.student.parameters(), whole.student.parameters(), strict=True))
