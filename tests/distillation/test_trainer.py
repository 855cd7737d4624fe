"""The loop: exact resume, stages, accumulation, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tutelage.distillation.data import TensorData
from tutelage.distillation.export import load_weights
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Phase
from tutelage.distillation.teacher import EMATeacher, NetworkTeacher
from tutelage.distillation.trainer import Trainer, train
from tutelage.errors import InputError, StaleError, TrainingError

from .toy import Distil, Net, bits, lesson, samples


def stop_at(step: int):
    def progress(done: int, steps: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


def plain(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


class Queue(Distil):
    """A method with state that changes: a buffer, a projection, random draws in its forward."""

    def prepare(self, student, teacher, example, data):
        self.project = nn.Linear(3, 3)
        self.register_buffer("queue", torch.zeros(5))

    def forward(self, batch, student, teacher):
        ours, theirs = super().forward(batch, student, teacher)
        return {"logits": self.project(ours["logits"]) + 0.1 * torch.randn(())}, theirs

    def after_step(self, student):
        self.queue.copy_(torch.cat([self.queue[1:], student.head.bias.detach()[:1]]))


def rich(**settings) -> TrainingJob:
    student = Net(dropout=0.3, norm=True)
    made = lesson(Queue(), student, clip=1.0, accumulate=2, **settings)
    made.teacher = EMATeacher(student, 0.9)
    made.evaluate = lambda net: {"bias": float(net.head.bias.sum())}
    return made


@pytest.mark.parametrize("at", [1, 4, 5, 17, 29])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_stop_and_resume_equals_an_uninterrupted_run(tmp_path: Path, at: int, optimizer: str) -> None:
    whole = train(rich(optimizer=optimizer, eval_every=10))
    with pytest.raises(KeyboardInterrupt):
        train(rich(optimizer=optimizer, eval_every=10), tmp_path, stop_at(at))
    again = train(rich(optimizer=optimizer, eval_every=10), tmp_path)
    assert bits(again.student) == bits(whole.student)
    assert plain(again.history) == plain(whole.history)
    assert plain([json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]) == plain(whole.history)


def test_method_and_teacher_state_resume_too(tmp_path: Path) -> None:
    whole = Trainer(rich())
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        train(rich(), tmp_path, stop_at(13))
    resumed = Trainer(rich(), tmp_path)
    assert resumed.step == 12
    resumed.run()
    assert torch.equal(resumed.method.queue, whole.method.queue) and whole.method.queue.abs().sum() > 0
    assert bits(resumed.teacher.network) == bits(whole.teacher.network)
    assert resumed.teacher.updates == 30


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    first = train(lesson(), tmp_path)
    calls: list[int] = []
    second = train(lesson(), tmp_path, lambda done, steps: calls.append(done))
    assert not calls and bits(first.student) == bits(second.student) and second.history == first.history


def test_only_two_checkpoints_are_kept_and_no_part_files(tmp_path: Path) -> None:
    train(lesson(), tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    checkpoints = ["checkpoint-000000028.safetensors", "checkpoint-000000030.safetensors"]
    assert names == [*checkpoints, "log.jsonl", "run.json", "student.safetensors"]


@pytest.mark.parametrize("change", [{"lr": 0.02}, {"seed": 1}, {"steps": 31}])
def test_a_folder_of_another_lesson_is_refused(tmp_path: Path, change: dict) -> None:
    train(lesson(), tmp_path)
    with pytest.raises(StaleError, match="other settings"):
        train(lesson(**change), tmp_path)


def test_other_weights_other_data_and_another_method_are_refused(tmp_path: Path) -> None:
    train(lesson(), tmp_path)
    taught_by_another = lesson()
    taught_by_another.teacher = NetworkTeacher(Net(16, seed=9))
    for other, named in (
        (lesson(data=samples(seed=3)), "data"),
        (lesson(Distil(tau=3.0)), "options.tau: 2.0, now 3.0"),
        (lesson(lr=0.02, seed=4), "settings.lr: 0.01, now 0.02; settings.seed: 0, now 4"),
        (taught_by_another, "teacher"),
    ):
        with pytest.raises(StaleError) as caught:
            train(other, tmp_path)
        assert caught.value.message == f"the folder holds a run with other settings: {named}"


def test_another_random_start_is_named_with_how_to_seed_it(tmp_path: Path) -> None:
    train(lesson(), tmp_path)
    with pytest.raises(StaleError, match="settings: student's initial weights") as caught:
        train(lesson(student=Net(seed=5)), tmp_path)
    assert "student=lambda: Net()" in caught.value.remedy and "torch.manual_seed" in caught.value.remedy


def test_a_damaged_or_foreign_checkpoint_is_a_typed_error(tmp_path: Path) -> None:
    train(lesson(), tmp_path)
    last = tmp_path / "checkpoint-000000030.safetensors"
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a readable safetensors"):
        train(lesson(), tmp_path)
    torch.save({"step": 30}, last)
    with pytest.raises(InputError, match="not a readable safetensors"):
        train(lesson(), tmp_path)
    last.write_bytes((tmp_path / "student.safetensors").read_bytes())
    with pytest.raises(StaleError, match="not a tutelage-checkpoint"):
        train(lesson(), tmp_path)


def test_same_seed_same_bits_other_seed_other_bits_and_the_callers_generator_is_untouched() -> None:
    before = torch.get_rng_state()
    first, second, third = (train(lesson(student=Net(dropout=0.5), seed=seed)).student for seed in (0, 0, 1))
    assert bits(first) == bits(second) != bits(third)
    assert torch.equal(before, torch.get_rng_state())


def test_accumulation_equals_one_large_batch() -> None:
    large = train(lesson(batch_size=16, optimizer="sgd"))
    small = train(lesson(batch_size=4, accumulate=4, optimizer="sgd"))
    for a, b in zip(large.student.parameters(), small.student.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert large.history[-1]["loss"] == pytest.approx(small.history[-1]["loss"], rel=1e-4)


def test_one_sgd_step_equals_the_hand_written_one() -> None:
    made = lesson(steps=1, optimizer="sgd", momentum=0.0, schedule="constant", lr=0.1)
    trainer = Trainer(made)
    twin = Net()
    indices, seeds = trainer.order.step(0)
    batch = made.data.batch(indices, seeds)
    ours = {"logits": twin(batch.inputs)}
    terms = made.method.loss_terms(batch, ours, made.teacher(batch))
    (0.5 * terms["soft"] + 0.5 * terms["hard"]).backward()
    trainer.run()
    for p, q in zip(made.student.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q - 0.1 * q.grad, atol=1e-7)


def test_clipping_bounds_the_update() -> None:
    made = lesson(steps=1, optimizer="sgd", momentum=0.0, schedule="constant", lr=1.0, clip=1e-3)
    before = [p.detach().clone() for p in made.student.parameters()]
    train(made)
    moved = torch.cat([(p - q).flatten() for p, q in zip(made.student.parameters(), before, strict=True)]).norm().item()
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_bf16_trains_and_keeps_fp32_weights() -> None:
    result = train(lesson(precision="bf16", steps=60))
    assert {p.dtype for p in result.student.parameters()} == {torch.float32}
    assert result.history[-1]["loss"] < result.history[0]["loss"]


class Poisoned(Distil):
    at = 11

    def loss_terms(self, batch, student, teacher):
        found = super().loss_terms(batch, student, teacher)
        if self.progress.step == self.at:
            found["soft"] = found["soft"] * float("nan")
        return found


def test_a_nan_loss_names_the_term_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="'soft'") as caught:
        train(lesson(Poisoned()), tmp_path)
    assert "checkpoint-000000008" in str(caught.value) and "'hard'" not in caught.value.message
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*"))[-1] == "checkpoint-000000008.safetensors"


def test_nan_between_log_points_never_reaches_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="'soft'"):
        train(lesson(Poisoned(), log_every=0, checkpoint_every=1), tmp_path)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*"))[-1] == "checkpoint-000000011.safetensors"


def test_a_term_of_weight_0_may_be_nan() -> None:
    class Off(Poisoned):
        def loss_weights(self):
            return {"soft": 0.0}

    assert train(lesson(Off())).history


def test_a_teacher_that_says_nan_is_named() -> None:
    made = lesson()
    made.teacher.network.head.bias.data[1] = float("nan")
    with pytest.raises(TrainingError, match="teacher's output 'logits'"):
        Trainer(made, check=False).run()


def test_a_method_that_owns_the_student_and_a_shared_teacher_are_refused() -> None:
    class Owner(Distil):
        def prepare(self, student, teacher, example, data):
            self.student = student

    with pytest.raises(InputError, match="owns the student's parameter"):
        train(lesson(Owner()))
    made = lesson()
    made.teacher.network.head.bias = made.student.head.bias
    made.student.head.bias.requires_grad_(True)
    with pytest.raises(InputError, match=r"share the parameter head\.bias"):
        train(made)


def test_a_loss_without_gradient_is_refused() -> None:
    class Dead(Distil):
        def loss_terms(self, batch, student, teacher):
            return {"soft": sum(p.sum() for p in self.free) + 0 * student["logits"].detach().sum()}

        def loss_weights(self):
            return {}

        def prepare(self, student, teacher, example, data):
            self.free = [torch.zeros(1, requires_grad=True)]

    with pytest.raises(TrainingError, match="no gradient"):
        train(lesson(Dead()))


def test_parameters_without_gradient_are_reported_unless_idle() -> None:
    class Spare(Net):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(2, 2)

    class Tolerant(Distil):
        unused_parameters = ("student.unused.*",)

    assert train(lesson(student=Spare())).parameters_without_gradient == ("student.unused.weight", "student.unused.bias")
    assert train(lesson(Tolerant(), student=Spare())).parameters_without_gradient == ()


def test_the_teacher_and_its_buffers_stay_as_they_were() -> None:
    made = lesson()
    made.teacher.network.norm = nn.BatchNorm1d(16)
    made.teacher.network.eval()
    before = bits(made.teacher.network)
    made.teacher.network.train()  # a user's own loop may do this
    train(made)
    assert bits(made.teacher.network) == before


class Staged(Distil):
    def phases(self):
        return (
            Phase("head", share=1, trains=lambda name: name.startswith("student.head")),
            Phase("all", share=3, lr=0.5, restart=True),
        )


def test_stages_train_what_they_say_and_resume_into_the_right_one(tmp_path: Path) -> None:
    made = lesson(Staged(), steps=8)
    start = made.student.inner.weight.detach().clone()
    trainer = Trainer(made)
    seen = []
    for step in range(8):
        trainer.advance()
        seen.append(made.method.progress.phase.name)
        moved = not torch.equal(made.student.inner.weight, start)
        assert moved == (step >= 2)
    assert seen == ["head"] * 2 + ["all"] * 6
    whole = train(lesson(Staged(), steps=8))
    with pytest.raises(KeyboardInterrupt):
        train(lesson(Staged(), steps=8, checkpoint_every=1), tmp_path, stop_at(3))
    assert bits(train(lesson(Staged(), steps=8, checkpoint_every=1), tmp_path).student) == bits(whole.student)


def test_parameters_that_join_late_have_their_own_momentum() -> None:
    made = lesson(Staged(), steps=8, optimizer="sgd", momentum=0.9, lr=0.1)
    start = made.student.inner.weight.detach().clone()
    assert not torch.equal(train(made).student.inner.weight, start)


def test_schedules_have_the_published_shapes() -> None:
    from tutelage.distillation.schedule import learning_rate

    base = TrainingSettings(warmup=4)
    assert [learning_rate(base, s, 104) for s in (0, 3, 4, 54, 104)] == pytest.approx([0.2, 0.8, 1.0, 0.5, 0.0])
    stairs = dataclasses.replace(base, schedule="steps", warmup=0, milestones=(0.5, 0.75))
    assert [learning_rate(stairs, s, 100) for s in (0, 49, 50, 74, 75, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    linear = dataclasses.replace(base, schedule="linear", warmup=0)
    assert learning_rate(linear, 25, 100) == 0.75


def test_progress_counts_epochs_and_weights_can_follow_it() -> None:
    class Ramp(Distil):
        def loss_weights(self):
            return {"soft": self.progress.fraction}

    result = train(lesson(Ramp(), steps=30, log_every=10, data=TensorData(*(samples(40).inputs, samples(40).labels))))
    assert [r["weights"]["soft"] for r in result.history] == pytest.approx([9 / 30, 19 / 30, 29 / 30])


def test_a_misspelt_weight_and_uncovered_groups_are_refused() -> None:
    class Typo(Distil):
        def loss_weights(self):
            return {"sotf": 1.0}

    class Groups(Distil):
        def groups(self, student):
            return [{"params": list(student.head.parameters())}]

    with pytest.raises(InputError, match="sotf"):
        train(lesson(Typo()))
    with pytest.raises(InputError, match="exactly one group"):
        train(lesson(Groups()))


def test_groups_scale_the_learning_rate() -> None:
    class Groups(Distil):
        def groups(self, student):
            return [
                {"params": list(student.head.parameters())},
                {"params": list(student.inner.parameters()), "lr_scale": 0.0, "weight_decay": 0.0},
            ]

    made = lesson(Groups())
    before = made.student.inner.weight.detach().clone()
    train(made)
    assert torch.equal(made.student.inner.weight, before)


def test_a_backward_of_two_passes() -> None:
    class Twice(Distil):
        calls = 0

        def backward(self, loss):
            for _ in range(2):
                self.calls += 1
                loss().backward()

    made = lesson(Twice(), steps=3)
    result = train(made)
    assert made.method.calls == 6 and result.history[-1]["loss"] < 3


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"optimizer": "adam"}, "optimizer"),
        ({"batch_size": 0}, "batch_size"),
        ({"clip": -1.0}, "clip"),
        ({"lr": -1.0}, "lr"),
    ],
)
def test_wrong_settings_name_the_field(wrong: dict, field: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainingSettings(**wrong)
    assert field in str(caught.value.where)


def test_a_compiled_student_trains_alike_and_is_exported_plain(tmp_path: Path) -> None:
    torch.compiler.reset()
    plain = train(lesson(steps=5))
    compiled = train(lesson(student=torch.compile(Net(), backend="eager"), steps=5), tmp_path)
    assert type(compiled.student) is Net and plain.history[-1]["terms"] == compiled.history[-1]["terms"]
    assert bits(load_weights(Net(), tmp_path / "student.safetensors")) == bits(plain.student)


def test_a_method_without_its_teacher_is_refused() -> None:
    with pytest.raises(InputError, match="needs a teacher"):
        TrainingJob(Net(), None, Distil(), samples())


KILLER = """
import os, random, signal, sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from tutelage.distillation.trainer import train
from distillation.test_trainer import LONG
from distillation.{module} import {made} as rich
train(rich(steps=1))  # what is loaded on first use is loaded before the forks
rng = random.Random({rounds})
for _ in range({rounds}):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        train(rich(**LONG), {folder!r}, lambda done, steps: os.write(writer, b"."))
        os._exit(0)
    os.close(writer)
    os.read(reader, 1)  # it trains; now wait for a random number of steps, and a moment more
    for _ in range(rng.randrange(4, 14)):
        os.read(reader, 1)
    time.sleep(rng.uniform(0, 0.004))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it ended before it was killed"
    os.close(reader)
"""
LONG = {"steps": 600, "checkpoint_every": 3, "log_every": 2, "eval_every": 20}


def kill_rounds(folder: Path, rounds: int, made: Callable[..., TrainingJob] = rich) -> set[str]:
    """Training in a process of its own, killed ``rounds`` times at random moments, then carried to its end here.

    Returns:
        The names of the files in the folder.
    """
    module, tests = made.__module__.rpartition(".")[2], str(Path(__file__).parents[1])
    code = KILLER.format(tests=tests, folder=str(folder), rounds=rounds, module=module, made=made.__name__)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    calls: list[int] = []
    resumed = train(made(**LONG), folder, lambda done, steps: calls.append(done))
    assert calls[0] > 3 * rounds, "the killed runs had got somewhere"
    whole = train(made(**LONG))
    assert bits(resumed.student) == bits(whole.student) and resumed.selection == whole.selection
    assert plain(resumed.history) == plain(whole.history)
    return {path.name for path in folder.iterdir()}


FINAL = {"checkpoint-000000597.safetensors", "checkpoint-000000600.safetensors", "log.jsonl", "run.json", "student.safetensors"}


def test_a_killed_process_resumes_to_the_same_bits(tmp_path: Path) -> None:
    assert kill_rounds(tmp_path, 3) == FINAL


@pytest.mark.slow
def test_twenty_kills_resume_to_the_same_bits(tmp_path: Path) -> None:
    assert kill_rounds(tmp_path, 20) == FINAL
